"""A function behind an HTTP API of API Gateway: made by the first route, found by the function's tag, gone with it."""

import httpx
import pytest
from botocore.exceptions import ClientError

from polyserve.driver import ErrorCode, HttpReply, Request
from polyserve.errors import translating
from polyserve.rollout import wait_ready, wait_routed
from polyserve.testing.functions import NAME
from polyserve_aws.provider import AwsProvider
from polyserve_aws.settings import AwsSettings

FUNCTION = f"polyserve-{NAME}"
ROWS = b"[[1.0, 2.0]]"


@pytest.fixture
def provider(aws):
    """Give a function that makes a provider whose functions are called by an HTTP API."""
    made = []

    def given(**more):
        made.append(AwsProvider(AwsSettings(**{**aws.options, "invoke": "http-api", **more})))
        return made[-1]

    yield given
    for each in made:
        each.close()


@pytest.fixture
def gateway(aws):
    return aws.client("apigatewayv2")


def served(functions, provider, number=2):
    """Make a revision, route everything to it, and return where it answers."""
    spec = functions.spec(number)
    provider.functions.apply(spec)
    wait_ready(provider, spec, renew=lambda: None)
    provider.functions.route(NAME, {number: 100})
    wait_routed(provider, NAME, {number: 100}, renew=lambda: None)
    return provider.functions.describe(NAME).url


def called(provider, body=ROWS):
    """Call the function as the core does, and return its answer."""
    address = provider.invoker.resolve(NAME)
    request = Request(
        method="POST", path="/invocations", headers={"content-type": "application/json"}, body=body, request_id="r1"
    )
    call = provider.invoker.prepare(address, request)
    answer = httpx.request(call.method, call.url, headers=call.headers, content=bytes(call.body), trust_env=False)
    reply = HttpReply(status=answer.status_code, headers=dict(answer.headers), body=answer.content)
    return provider.invoker.parse(address, reply)


def test_a_function_is_called_through_its_http_api_by_who_may(aws, functions, provider, gateway):
    mine = provider()
    url = served(functions, mine)

    assert called(mine).body == b"[[2.0,4.0]]"
    assert called(mine).headers["x-polyserve-revision"] == "2"
    assert httpx.post(f"{url}/invocations", content=ROWS, trust_env=False).status_code == 403
    (api,) = gateway.get_apis()["Items"]
    assert (api["Name"], api["Tags"]) == (FUNCTION, {"polyserve": NAME})
    assert aws.client("lambda").list_function_url_configs(FunctionName=FUNCTION)["FunctionUrlConfigs"] == []


def test_it_is_open_to_all_only_while_that_is_asked_for(functions, provider):
    open_to_all, closed = provider(public=True), provider()
    url = served(functions, open_to_all)
    answer = httpx.post(f"{url}/invocations", content=ROWS, trust_env=False)
    called_by_core = called(open_to_all)

    closed.functions.route(NAME, {2: 100})

    assert (answer.status_code, answer.json()) == (200, [[2.0, 4.0]])
    assert called_by_core.status == 200
    assert httpx.post(f"{url}/invocations", content=ROWS, trust_env=False).status_code == 403
    assert called(closed).status == 200


@pytest.mark.parametrize("cut", ["create_integration", "tag_resource", "create_stage"])
def test_a_route_that_was_cut_short_is_finished_by_the_next_with_one_api(
    functions, provider, gateway, monkeypatch, cut
):
    mine = provider()
    spec = functions.spec(2)
    mine.functions.apply(spec)
    wait_ready(mine, spec, renew=lambda: None)
    service = "lambda" if cut == "tag_resource" else "apigatewayv2"
    client = mine._clients.get(service)
    with monkeypatch.context() as patched:
        patched.setattr(client, cut, lambda **_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            mine.functions.route(NAME, {2: 100})
    assert mine.functions.describe(NAME).weights == {}

    mine.functions.route(NAME, {2: 100})

    assert called(mine).body == b"[[2.0,4.0]]"
    assert len(gateway.get_apis()["Items"]) == 1


def test_an_api_that_was_not_noted_yet_is_deleted_with_the_function(functions, provider, gateway):
    mine = provider()
    spec = functions.spec(2)
    mine.functions.apply(spec)
    wait_ready(mine, spec, renew=lambda: None)
    gateway.create_api(Name=FUNCTION, ProtocolType="HTTP", Tags={"polyserve": NAME})
    theirs = gateway.create_api(Name=FUNCTION, ProtocolType="HTTP")["ApiId"]

    mine.functions.delete(NAME)

    assert [api["ApiId"] for api in gateway.get_apis()["Items"]] == [theirs]
    gateway.delete_api(ApiId=theirs)


def test_whoever_deletes_the_function_by_other_options_deletes_its_api(functions, provider, gateway):
    served(functions, provider())

    provider(invoke="url").functions.delete(NAME)

    assert gateway.get_apis()["Items"] == []


def test_the_way_to_a_function_changes_with_the_option_and_leaves_nothing_of_the_one_before(
    functions, provider, gateway, aws
):
    lambda_ = aws.client("lambda")
    public = provider(invoke="url", public=True)
    served(functions, public)
    by_api = provider()
    by_api.functions.route(NAME, {2: 100})

    assert lambda_.list_function_url_configs(FunctionName=FUNCTION)["FunctionUrlConfigs"] == []
    assert called(by_api).status == 200
    policy = lambda_.get_policy(FunctionName=FUNCTION, Qualifier="live")["Policy"]
    assert ("polyserve-http-api" in policy, "polyserve-public" in policy) == (True, False)

    provider(invoke="api").functions.route(NAME, {2: 100})

    assert gateway.get_apis()["Items"] == []
    assert functions.platform.describe(NAME).labels == {"polyserve": NAME}
    with pytest.raises(ClientError, match="ResourceNotFound"):
        lambda_.get_policy(FunctionName=FUNCTION, Qualifier="live")


def test_a_function_without_an_api_is_not_found_by_it(functions, provider):
    functions.applied(2)
    functions.route({2: 100})
    other = provider()

    with pytest.raises(LookupError, match="no HTTP API"), translating(other, "resolve", NAME):
        other.invoker.resolve(NAME)


def test_its_time_is_api_gateways_of_which_some_is_kept_for_an_answer(functions, provider, aws):
    served(functions, provider())

    given = aws.client("lambda").get_function_configuration(FunctionName=FUNCTION)["Environment"]["Variables"]
    assert given["POLYSERVE_TIMEOUT_S"] == "29.5"
    assert provider().info.limits.timeout.total_seconds() == 30
    assert provider(invoke="url").info.limits.timeout.total_seconds() == 899


SAID = {
    403: ErrorCode.PERMISSION_DENIED,
    404: ErrorCode.UNAVAILABLE,
    413: ErrorCode.INVALID_ARGUMENT,
    418: ErrorCode.INVALID_ARGUMENT,
    429: ErrorCode.RESOURCE_EXHAUSTED,
    500: ErrorCode.INTERNAL,
    503: ErrorCode.UNAVAILABLE,
    504: ErrorCode.UNAVAILABLE,
}


def test_what_api_gateway_says_itself_is_sorted(functions, provider):
    mine = provider()
    served(functions, mine)
    address = mine.invoker.resolve(NAME)
    found = {}
    for status in SAID:
        with pytest.raises(Exception, match="API Gateway") as caught:
            mine.invoker.parse(address, HttpReply(status=status, headers={}, body=b'{"message":"Word"}'))
        found[status] = mine.classify(caught.value)

    assert found == SAID
