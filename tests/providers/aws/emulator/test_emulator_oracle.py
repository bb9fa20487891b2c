"""The Runtime API against Amazon's own emulator of it, `aws-lambda-rie`: the same handler and events, the same answers.

The program travels in the wheel of aws-sam-cli, from which it is taken without installing anything.
"""

import json
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import time
import zipfile
from contextlib import contextmanager
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in {"x86_64", "aarch64"},
    reason="aws-lambda-rie is a program for Linux",
)
HANDLER = """
import os, time

def handler(event, context):
    what = event.get("do")
    if what == "raise":
        raise ValueError("broken on purpose")
    if what == "group":
        raise ExceptionGroup("several", [ValueError("one"), KeyError("two")])
    if what == "exit":
        os._exit(event["code"])
    if what == "answer":
        return "x" * event["size"]
    if what == "object":
        return object()
    if what == "sleep":
        time.sleep(event["seconds"])
    return event
"""
EVENTS = {
    "an object": {"a": [1, 2.5, None, True], "b": {"c": "d"}},
    "text": {"text": "ä 日本 😀"},
    "an exception": {"do": "raise"},
    "a group of exceptions": {"do": "group"},
    "an answer that is no JSON": {"do": "object"},
    "an end with an error": {"do": "exit", "code": 3},
    "an end without": {"do": "exit", "code": 0},
    "an answer that is too large": {"do": "answer", "size": 7_000_000},
}
BROKEN = {
    "a module that is not there": ("other.handler", HANDLER),
    "a handler that is not there": ("app.nothing", HANDLER),
    "a module that raises": ("app.handler", "raise RuntimeError('at import')"),
    "a module with a syntax error": ("app.handler", "def handler(:"),
}
VERSION = "1.170.0"


@pytest.fixture(scope="session")
def program(session_root):
    """Return aws-lambda-rie."""
    directory = session_root / "rie"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
    subprocess.run(
        [*command, "--dest", directory, f"aws-sam-cli=={VERSION}"], check=True, capture_output=True, timeout=100
    )
    name = f"samcli/local/rapid/aws-lambda-rie-{'arm64' if platform.machine() == 'aarch64' else 'x86_64'}"
    with zipfile.ZipFile(next(directory.glob("*.whl"))) as wheel:
        wheel.extract(name, directory)
    (directory / name).chmod(0o755)
    return directory / name


def free_ports(count):
    """Return ports that nobody listens on now."""
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in servers]
    for server in servers:
        server.close()
    return ports


@contextmanager
def original(program, task, handler, session_root, timeout):
    """Yield a call to a function under Amazon's emulator."""
    front, back = free_ports(2)
    environment = {
        "PATH": os.environ["PATH"],
        # The same runtime client as ours, from the directory that stands for /var/runtime.
        "PYTHONPATH": f"{task}:{session_root / 'aws' / 'runtime' / 'python3.11'}",
        "LAMBDA_TASK_ROOT": str(task),
        "AWS_LAMBDA_FUNCTION_TIMEOUT": str(timeout),
    }
    command = [
        program, "--log-level", "error", "--runtime-interface-emulator-address", f"127.0.0.1:{front}",
        "--runtime-api-address", f"127.0.0.1:{back}", sys.executable, "-B", "-m", "awslambdaric", handler,
    ]  # fmt: skip
    process = subprocess.Popen(
        command, env=environment, cwd=task, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    url = f"http://127.0.0.1:{front}/2015-03-31/functions/function/invocations"

    def call(event):
        deadline = time.monotonic() + 20
        while True:
            try:
                with urlopen(Request(url, data=json.dumps(event).encode()), timeout=20) as answer:
                    return answer.read().decode()
            except HTTPError as error:
                with error:
                    return error.read().decode()
            except OSError:
                if time.monotonic() > deadline:
                    raise

    try:
        yield call
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def comparable(text, *roots):
    """Return a payload without what differs from run to run: identifiers and directories."""
    text = re.sub(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "ID", text)
    for root in roots:
        text = text.replace(str(root), "ROOT")
    # Lambda itself names the size of the answer, its emulator does not.
    text = re.sub(r" \(\d+ bytes\) exceeded", " exceeded", text)
    return json.loads(text)


def ours(account, name, event):
    """Return the payload of a function in our emulator."""
    return account.client("lambda").invoke(FunctionName=name, Payload=json.dumps(event))["Payload"].read().decode()


def root_of(session_root, account, name):
    """Return the directory that our emulator has unpacked a function to."""
    import base64

    digest = account.client("lambda").get_function_configuration(FunctionName=name)["CodeSha256"]
    return session_root / "aws" / "tasks" / base64.b64decode(digest).hex()


@pytest.fixture(scope="session")
def both(account, program, pack, session_root):
    """Return a call to the same function under both emulators."""
    name = account.function(pack({"app.py": HANDLER}), Timeout=2)
    task = session_root / "rie" / "task"
    task.mkdir()
    (task / "app.py").write_text(HANDLER)
    account.invoke(name, {})  # makes the runtime directory that both use
    with original(program, task, "app.handler", session_root, 2) as call:
        yield call, name, (task, root_of(session_root, account, name))


@pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS)
def test_an_event_has_the_same_answer(account, both, event):
    call, name, roots = both

    assert comparable(ours(account, name, event), *roots) == comparable(call(event), *roots)


def test_a_timeout_has_the_same_words(account, both):
    call, name, _ = both
    event = {"do": "sleep", "seconds": 30}

    assert call(event).strip() in json.loads(ours(account, name, event))["errorMessage"]


@pytest.mark.parametrize(("handler", "source"), BROKEN.values(), ids=BROKEN)
def test_a_function_that_cannot_start_has_the_same_error(
    account, program, pack, session_root, tmp_path, handler, source
):
    name = account.function(pack({"app.py": source}), Handler=handler)
    (tmp_path / "app.py").write_text(source)
    found = ours(account, name, {})
    with original(program, tmp_path, handler, session_root, 10) as call:
        expected = call({})
    roots = (tmp_path, root_of(session_root, account, name))

    assert comparable(found, *roots) == comparable(expected, *roots)
