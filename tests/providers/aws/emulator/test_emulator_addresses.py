"""Function URLs and HTTP APIs: requests come in over HTTP, signed or not."""

import base64
import json
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import ClientError

MIRROR = """
import base64, json

def handler(event, context):
    if event.get("rawPath") == "/fail":
        raise ValueError("nobody outside is told this")
    if event.get("rawPath") == "/plain":
        return {"no": "statusCode"}
    if event.get("rawPath") == "/binary":
        return {"statusCode": 201, "headers": {"content-type": "application/octet-stream", "x-made": "here"},
                "body": base64.b64encode(bytes(range(256))).decode(), "isBase64Encoded": True, "cookies": ["a=1", "b=2"]}
    return {"statusCode": 200, "headers": {"content-type": "application/json"}, "body": json.dumps(event)}
"""
BOTH = ("lambda:InvokeFunctionUrl", "lambda:InvokeFunction")


@pytest.fixture(scope="session")
def mirror(account):
    """Return a function that answers with its event."""
    import io
    import zipfile

    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as found:
        found.writestr("app.py", MIRROR)
    return account.function(target.getvalue())


@pytest.fixture(scope="session")
def signed_url(account, mirror):
    """Return a function URL that wants signatures."""
    return account.client("lambda").create_function_url_config(FunctionName=mirror, AuthType="AWS_IAM")["FunctionUrl"]


def send(account, url, *, method="GET", data=None, service="lambda", **headers):
    """Send a request signed by botocore; returns status, headers and body."""
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    request = AWSRequest(method, url, data=data, headers=fields)
    SigV4Auth(Credentials(account.key, account.secret), service, "us-east-1").add_auth(request)
    with urlopen(Request(url, data=data, headers=dict(request.headers), method=method)) as answer:
        return answer.status, answer.headers, answer.read()


def refusal(action):
    """Return the status and the body of a request that is refused."""
    with pytest.raises(HTTPError) as caught:
        action()
    with caught.value as answer:
        return answer.code, answer.read().decode()


def test_a_signed_request_becomes_an_event(account, signed_url):
    data = json.dumps({"a": 1}).encode()
    status, _, body = send(
        account, f"{signed_url}a/b%20c?x=1&y=2&x=3", method="POST", data=data, content_type="application/json"
    )
    event = json.loads(body)

    assert (status, event["version"], event["rawPath"], event["rawQueryString"]) == (
        200,
        "2.0",
        "/a/b c",
        "x=1&y=2&x=3",
    )
    assert event["queryStringParameters"] == {"x": "1,3", "y": "2"}
    assert (event["body"], event["isBase64Encoded"]) == ('{"a": 1}', False)
    assert event["requestContext"]["http"]["method"] == "POST"
    assert event["requestContext"]["authorizer"]["iam"]["accessKey"] == account.key


def test_bytes_that_are_no_text_come_in_base64(account, signed_url):
    data = bytes(range(256))
    event = json.loads(send(account, signed_url, method="POST", data=data, content_type="application/octet-stream")[2])

    assert event["isBase64Encoded"]
    assert base64.b64decode(event["body"]) == data


def test_an_answer_in_base64_goes_out_as_bytes_with_its_headers_and_cookies(account, signed_url):
    status, headers, body = send(account, f"{signed_url}binary")

    assert (status, body, headers["x-made"]) == (201, bytes(range(256)), "here")
    assert headers.get_all("set-cookie") == ["a=1", "b=2"]


def test_an_answer_without_a_status_is_the_body(account, signed_url):
    status, headers, body = send(account, f"{signed_url}plain")

    assert (status, headers["content-type"], json.loads(body)) == (200, "application/json", {"no": "statusCode"})


def test_a_function_that_fails_says_nothing_to_the_outside(account, signed_url):
    assert refusal(lambda: send(account, f"{signed_url}fail")) == (502, "Internal Server Error")


def test_a_request_without_a_signature_is_forbidden(signed_url):
    assert refusal(lambda: urlopen(signed_url))[0] == 403


def test_a_request_signed_for_another_service_is_forbidden(account, signed_url):
    assert refusal(lambda: send(account, signed_url, service="s3"))[0] == 403


def test_a_caller_needs_both_permissions(account, signed_url, policy):
    with_one = account.user(policy("lambda:InvokeFunctionUrl"))
    with_both = account.user(policy(*BOTH))
    code, text = refusal(lambda: send(with_one, signed_url))

    assert (code, "Forbidden" in text) == (403, True)
    assert send(with_both, signed_url)[0] == 200


def test_a_public_url_is_open_once_the_functions_policy_says_so(account, upload):
    name, client = account.function(upload()), account.client("lambda")
    url = client.create_function_url_config(FunctionName=name, AuthType="NONE")["FunctionUrl"]
    before = refusal(lambda: urlopen(url))[0]
    client.add_permission(
        FunctionName=name, StatementId="url", Action=BOTH[0], Principal="*", FunctionUrlAuthType="NONE"
    )
    halfway = refusal(lambda: urlopen(url))[0]
    client.add_permission(
        FunctionName=name, StatementId="invoke", Action=BOTH[1], Principal="*", InvokedViaFunctionUrl=True
    )
    with urlopen(url) as answer:
        status = answer.status

    assert (before, halfway, status) == (403, 403, 200)


def test_an_alias_has_an_address_of_its_own(account, mirror):
    client = account.client("lambda")
    number = account.publish(mirror)
    client.create_alias(FunctionName=mirror, Name="live", FunctionVersion=number)
    url = client.create_function_url_config(FunctionName=mirror, Qualifier="live", AuthType="AWS_IAM")["FunctionUrl"]
    found = client.list_function_url_configs(FunctionName=mirror)["FunctionUrlConfigs"]

    assert send(account, url)[0] == 200
    assert url in [config["FunctionUrl"] for config in found]

    client.delete_function_url_config(FunctionName=mirror, Qualifier="live")

    with pytest.raises(OSError, match="refused"):
        urlopen(url)


def test_there_is_one_address_for_a_function(account, mirror, signed_url):
    with pytest.raises(ClientError, match="ResourceConflictException"):
        account.client("lambda").create_function_url_config(FunctionName=mirror, AuthType="NONE")


@pytest.fixture
def http_api(account, mirror):
    """Return the endpoint and the identifier of an HTTP API whose integration is the function, without routes."""
    client = account.client("apigatewayv2")
    made = client.create_api(Name="api", ProtocolType="HTTP")
    arn = account.client("lambda").get_function_configuration(FunctionName=mirror)["FunctionArn"]
    integration = client.create_integration(
        ApiId=made["ApiId"], IntegrationType="AWS_PROXY", IntegrationUri=arn, PayloadFormatVersion="2.0"
    )["IntegrationId"]
    client.create_stage(ApiId=made["ApiId"], StageName="$default", AutoDeploy=True)

    def route(key, **more):
        client.create_route(ApiId=made["ApiId"], RouteKey=key, Target=f"integrations/{integration}", **more)

    yield made["ApiEndpoint"], made["ApiId"], route
    client.delete_api(ApiId=made["ApiId"])


def let_in(account, name, api_id):
    """Let an API invoke a function."""
    source = f"arn:aws:execute-api:us-east-1:123456789012:{api_id}/*"
    account.client("lambda").add_permission(
        FunctionName=name, StatementId=api_id, Action="lambda:InvokeFunction", Principal="apigateway.amazonaws.com",
        SourceArn=source,
    )  # fmt: skip


def test_an_http_api_passes_requests_on_by_route(account, mirror, http_api):
    endpoint, api_id, route = http_api
    let_in(account, mirror, api_id)
    route("GET /models/{name}")
    route("ANY /files/{proxy+}")
    with urlopen(f"{endpoint}/models/iris?x=1") as answer:
        event = json.loads(answer.read())
    with urlopen(Request(f"{endpoint}/files/a/b", data=b"x", method="PUT")) as answer:
        greedy = json.loads(answer.read())

    assert (event["routeKey"], event["pathParameters"]) == ("GET /models/{name}", {"name": "iris"})
    assert greedy["pathParameters"] == {"proxy": "a/b"}
    assert refusal(lambda: urlopen(f"{endpoint}/nothing")) == (404, '{"message":"Not Found"}')


def test_an_http_api_needs_the_functions_permission(http_api):
    endpoint, _, route = http_api
    route("$default")

    assert refusal(lambda: urlopen(endpoint)) == (500, '{"message":"Internal Server Error"}')


def test_a_route_may_want_signatures(account, mirror, http_api):
    endpoint, api_id, route = http_api
    let_in(account, mirror, api_id)
    route("$default", AuthorizationType="AWS_IAM")

    assert refusal(lambda: urlopen(endpoint)) == (403, '{"message":"Forbidden"}')
    assert send(account, f"{endpoint}/x", service="execute-api")[0] == 200
