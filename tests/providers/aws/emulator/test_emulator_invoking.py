"""Functions run: what was uploaded, under Lambda's own runtime client, with nothing else around it."""

import base64
import json
import socket
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from urllib.request import urlopen

import pytest
from botocore.exceptions import ClientError


def test_a_function_is_pending_until_it_is_active(account, upload):
    client = account.client("lambda")
    made = client.create_function(
        FunctionName="becoming",
        Role=account.role(),
        Runtime="python3.11",
        Handler="app.handler",
        Code={"ZipFile": upload()},
    )

    assert made["State"] == "Pending"

    account.settle("becoming")

    assert client.get_function_configuration(FunctionName="becoming")["State"] == "Active"
    assert account.invoke("becoming", {}).status == 200


def test_invoking_a_function_that_is_pending_is_a_conflict(slow_account, upload):
    client = slow_account.client("lambda")
    client.create_function(
        FunctionName="early",
        Role=slow_account.role(),
        Runtime="python3.11",
        Handler="app.handler",
        Code={"ZipFile": upload()},
    )

    with pytest.raises(client.exceptions.ResourceConflictException, match="Pending"):
        slow_account.invoke("early", {})


def test_a_function_sees_its_context_and_variables(account, function):
    answered = account.invoke(function, {})

    assert answered.version == "$LATEST"
    assert answered.value["name"] == function
    assert answered.value["arn"] == f"arn:aws:lambda:us-east-1:123456789012:function:{function}"
    assert answered.value["memory"] == "256"
    assert answered.value["variable"] == "value"
    assert 0 < answered.value["remaining"] <= 10_000


def test_an_environment_stays_warm(account, upload):
    name = account.function(upload("warm"))
    first = account.invoke(name, {}).value
    second = account.invoke(name, {}).value

    assert first["pid"] == second["pid"]
    assert (first["count"], second["count"]) == (1, 2)


def test_other_code_gets_other_environments(account, upload):
    name = account.function(upload("old"))
    before = account.invoke(name, {}).value
    account.client("lambda").update_function_code(FunctionName=name, ZipFile=upload("new"))
    account.settle(name)
    after = account.invoke(name, {}).value

    assert (before["mark"], after["mark"]) == ("old", "new")
    assert before["pid"] != after["pid"]


def test_nothing_of_the_emulators_own_environment_can_be_imported(account, function):
    answered = account.invoke(function, {"do": "import", "name": "pytest"})

    assert answered.error == "Unhandled"
    assert answered.value["errorType"] == "ModuleNotFoundError"


@pytest.mark.parametrize("name", ["awslambdaric", "boto3"])
def test_what_every_python_runtime_of_lambda_has_is_there(account, function, name):
    answered = account.invoke(function, {"do": "import", "name": name})

    assert answered.error is None
    assert answered.value.endswith(f"{name}/__init__.py")


def test_the_log_tail_has_what_was_printed_between_the_lines_of_lambda(account, upload):
    name = account.function(upload("tail"))
    tail = base64.b64decode(account.invoke(name, {"a": 1}, LogType="Tail").raw["LogResult"]).decode()
    lines = [line.split()[0] for line in tail.splitlines() if line]

    assert lines == ["module", "START", "event", "END", "REPORT"]
    assert "Init Duration" in tail
    assert 'event {"a": 1}' in tail


def test_a_warm_invocation_reports_no_init(account, function):
    account.invoke(function, {})
    tail = base64.b64decode(account.invoke(function, {}, LogType="Tail").raw["LogResult"]).decode()

    assert "Max Memory Used" in tail
    assert "Init Duration" not in tail


def test_what_is_printed_is_in_cloudwatch_logs(account, function):
    account.invoke(function, {"do": "echo", "find": "this-line"})
    events = account.client("logs").filter_log_events(logGroupName=f"/aws/lambda/{function}", filterPattern="this-line")

    assert len(events["events"]) == 1


def test_without_permission_to_log_there_are_no_logs(account, upload):
    name = account.function(upload("silent"), Role=account.role())

    assert account.invoke(name, {}).error is None
    with pytest.raises(ClientError, match="ResourceNotFound"):
        account.client("logs").filter_log_events(logGroupName=f"/aws/lambda/{name}")


@pytest.mark.parametrize(
    ("event", "kind", "message"),
    [
        ({"do": "raise"}, "ValueError", "broken on purpose"),
        ({"do": "exit", "code": 3}, "Runtime.ExitError", "exit status 3"),
        ({"do": "exit", "code": 0}, "Runtime.ExitError", "Runtime exited without providing a reason"),
        ({"do": "answer", "size": 7_000_000}, "Function.ResponseSizeTooLarge", "6291556"),
    ],
    ids=["exception", "exit", "exit without error", "answer too large"],
)
def test_a_function_that_fails_says_how(account, function, event, kind, message):
    answered = account.invoke(function, event)

    assert (answered.status, answered.error) == (200, "Unhandled")
    assert answered.value["errorType"] == kind
    assert message in answered.value["errorMessage"]


def test_a_function_that_takes_too_long_is_stopped(account, upload):
    name = account.function(upload("slow"), Timeout=1)
    answered = account.invoke(name, {"do": "sleep", "seconds": 30}, LogType="Tail")

    assert answered.value["errorType"] == "Sandbox.Timedout"
    assert "Task timed out after 1.00 seconds" in answered.value["errorMessage"]
    assert "Status: timeout" in base64.b64decode(answered.raw["LogResult"]).decode()
    assert account.invoke(name, {}).value["count"] == 1


def test_a_function_that_holds_too_much_memory_is_killed(account, upload):
    name = account.function(upload("greedy"), MemorySize=128)
    answered = account.invoke(name, {"do": "hold", "mb": 300})

    assert answered.value["errorType"] == "Runtime.OutOfMemory"


def test_a_module_that_cannot_be_imported_is_told(account, pack):
    name = account.function(pack({"app.py": "import nothing_of_that_name"}))
    answered = account.invoke(name, {})

    assert answered.error == "Unhandled"
    assert answered.value["errorType"] == "Runtime.ImportModuleError"
    assert "nothing_of_that_name" in answered.value["errorMessage"]


def test_a_handler_that_is_not_there_is_told(account, upload):
    name = account.function(upload(), Handler="app.nothing")

    assert account.invoke(name, {}).value["errorType"] == "Runtime.HandlerNotFound"


def test_an_event_over_six_megabytes_is_refused(account, function):
    with pytest.raises(ClientError, match="RequestTooLargeException"):
        account.invoke(function, "x" * 7_000_000)


def test_an_event_that_is_no_json_is_refused(account, function):
    client = account.client("lambda")

    with pytest.raises(client.exceptions.InvalidRequestContentException):
        client.invoke(FunctionName=function, Payload=b"{not json")


def test_a_dry_run_runs_nothing(account, upload):
    name = account.function(upload("dry"))
    answered = account.invoke(name, {}, InvocationType="DryRun")

    assert (answered.status, answered.value) == (204, None)
    assert account.invoke(name, {}).value["count"] == 1


def test_an_asynchronous_event_is_taken_at_once_and_run_later(account, function):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)
        event = {"do": "meet", "port": server.getsockname()[1]}
        answered = account.invoke(function, event, InvocationType="Event")
        met, _ = server.accept()
        with met:
            met.sendall(b"!")

    assert (answered.status, answered.value) == (202, None)


def test_a_failing_asynchronous_event_is_tried_three_times(account, pack):
    source = (
        "import socket\ndef handler(event, context):\n"
        "    socket.create_connection(('127.0.0.1', event['port'])).close()\n    raise RuntimeError\n"
    )
    name = account.function(pack({"app.py": source}))
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)
        account.invoke(name, {"port": server.getsockname()[1]}, InvocationType="Event")
        for _ in range(3):
            server.accept()[0].close()
        server.settimeout(1)
        with pytest.raises(TimeoutError):
            server.accept()


def test_more_events_than_reserved_concurrency_are_throttled(account, upload):
    name = account.function(upload("reserved"))
    client = account.client("lambda")
    client.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=2)
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(2) as pool:
        server.settimeout(20)
        event = {"do": "meet", "port": server.getsockname()[1]}
        running = [pool.submit(account.invoke, name, event) for _ in range(2)]
        met = [server.accept()[0] for _ in range(2)]
        pids = {connection.recv(16) for connection in met}

        with pytest.raises(client.exceptions.TooManyRequestsException) as caught:
            account.invoke(name, {})

        for connection in met:
            connection.sendall(b"!")
            connection.close()
        assert [one.result().error for one in running] == [None, None]

    assert len(pids) == 2
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 429
    assert account.invoke(name, {}).status == 200


def test_the_code_can_be_fetched_as_it_was_uploaded(account, upload):
    code = upload("fetched")
    name = account.function(code)
    location = account.client("lambda").get_function(FunctionName=name)["Code"]["Location"]
    with urlopen(location) as answer:
        found = answer.read()

    assert found == code
    assert zipfile.ZipFile(BytesIO(found)).namelist() == ["app.py"]


def test_an_answer_can_be_taken_as_a_stream(account, function):
    found = account.client("lambda").invoke_with_response_stream(
        FunctionName=function, Payload=json.dumps({"do": "answer", "size": 200_000})
    )
    events = list(found["EventStream"])
    text = b"".join(event["PayloadChunk"]["Payload"] for event in events if "PayloadChunk" in event)

    assert json.loads(text) == "x" * 200_000
    assert "InvokeComplete" in events[-1]


def test_an_object_that_arrives_can_start_a_function(account, function, bucket):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)
        port = server.getsockname()[1]
        source = (
            "import socket, json\ndef handler(event, context):\n"
            f"    with socket.create_connection(('127.0.0.1', {port})) as met:\n"
            "        met.sendall(event['Records'][0]['s3']['object']['key'].encode())\n"
        )
        target = BytesIO()
        with zipfile.ZipFile(target, "w") as made:
            made.writestr("app.py", source)
        name = account.function(target.getvalue())
        arn = account.client("lambda").get_function_configuration(FunctionName=name)["FunctionArn"]
        configuration = {"LambdaFunctionConfigurations": [{"LambdaFunctionArn": arn, "Events": ["s3:ObjectCreated:*"]}]}
        s3 = account.client("s3")
        s3.put_bucket_notification_configuration(Bucket=bucket, NotificationConfiguration=configuration)
        put = threading.Thread(target=lambda: s3.put_object(Bucket=bucket, Key="arrived", Body=b"x"))
        put.start()
        met, _ = server.accept()
        with met:
            key = met.recv(100)
        put.join()

    assert key == b"arrived"


def test_a_record_of_many_lines_is_one_event_among_the_lines_that_were_printed(account, pack):
    source = (
        "import logging\ndef handler(event, context):\n    print('before')\n    print('open', end='')\n"
        "    logging.getLogger().error('first\\nsecond')\n    print('after')\n"
    )
    name = account.function(pack({"app.py": source}))
    account.invoke(name, {})
    events = account.client("logs").filter_log_events(logGroupName=f"/aws/lambda/{name}")["events"]
    found = [event["message"] for event in events if not event["message"].startswith(("START", "END", "REPORT"))]

    assert [text.strip().rpartition("\t")[2] for text in found] == ["before", "open", "first\nsecond", "after"]


def test_a_traceback_is_one_event(account, function):
    account.invoke(function, {"do": "raise"})
    events = account.client("logs").filter_log_events(logGroupName=f"/aws/lambda/{function}", filterPattern="broken")[
        "events"
    ]

    assert any("[ERROR] ValueError: broken on purpose\nTraceback" in event["message"] for event in events)


def test_more_than_fits_into_one_call_is_logged_all_the_same(account, pack):
    source = "def handler(event, context):\n    for number in range(1500):\n        print(number, 'x' * 1000)\n    print('y' * 300_000)\n"
    name = account.function(pack({"app.py": source}))
    account.invoke(name, {})
    pages = account.client("logs").get_paginator("filter_log_events").paginate(logGroupName=f"/aws/lambda/{name}")
    messages = [event["message"] for page in pages for event in page["events"]]

    assert [text for text in messages if text.endswith("x\n")] == [f"{number} {'x' * 1000}\n" for number in range(1500)]
    assert [len(text) for text in messages if text.startswith("y")] == [256 * 1024 - 26]
