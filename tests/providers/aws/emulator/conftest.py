"""The emulator, and plain boto3 to drive it: nothing of polyserve's adapter is imported here."""

from __future__ import annotations

import configparser
import io
import itertools
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

pytest.importorskip("moto", reason="install polyserve-sdk[emulators]")

from polyserve_aws.emulator import Emulator

REGION = "us-east-1"
SETTLE_S, LONG_S = 0.03, 2.0
TRUST = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Principal": {"Service": "lambda.amazonaws.com"}, "Action": "sts:AssumeRole"}],
}
ACTOR = '''
"""Does what the event says."""
import json, os, socket, sys, time

COUNT = 0
print("module imported", file=sys.stderr)


def handler(event, context):
    global COUNT
    COUNT += 1
    print("event", json.dumps(event))
    what = event.get("do")
    if what == "raise":
        raise ValueError("broken on purpose")
    if what == "exit":
        os._exit(event["code"])
    if what == "sleep":
        time.sleep(event["seconds"])
    if what == "answer":
        return "x" * event["size"]
    if what == "hold":
        HELD = bytearray(event["mb"] * 2**20)
        time.sleep(20)
    if what == "meet":
        # Says that it runs, and goes on when it is told to.
        with socket.create_connection(("127.0.0.1", event["port"])) as met:
            met.sendall(str(os.getpid()).encode())
            met.recv(1)
    if what == "import":
        return __import__(event["name"]).__file__
    if what == "call":
        import boto3
        return getattr(boto3.client(event["service"]), event["method"])(**event["args"])["ResponseMetadata"]["HTTPStatusCode"]
    if what == "echo":
        return event
    return {
        "count": COUNT, "pid": os.getpid(), "version": context.function_version, "arn": context.invoked_function_arn,
        "memory": context.memory_limit_in_mb, "remaining": context.get_remaining_time_in_millis(),
        "name": context.function_name, "variable": os.environ.get("VARIABLE"), "path": sys.path, "mark": MARK,
        "start": os.environ["AWS_LAMBDA_INITIALIZATION_TYPE"],
    }
'''
_numbers = itertools.count(1)


def archive(files: Mapping[str, str | bytes]) -> bytes:
    """Return files as a zip."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as found:
        for name, content in files.items():
            found.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content)
    return target.getvalue()


def actor(mark: object = 0) -> bytes:
    """Return the actor's archive; the mark tells one upload from another."""
    return archive({"app.py": f"{ACTOR}\nMARK = {mark!r}\n"})


@dataclass(frozen=True)
class Answered:
    """What came back from an invocation."""

    status: int
    error: str | None
    version: str | None
    value: Any
    raw: dict[str, Any]


class Account:
    """Clients of one signer, and the few calls that most tests begin with."""

    def __init__(self, url: str, key: str, secret: str) -> None:
        self.url, self.key, self.secret = url, key, secret
        self._clients: dict[str, Any] = {}

    def client(self, service: str, **more: Any) -> Any:
        """Return a boto3 client that does not try again."""
        if service not in self._clients or more:
            signature = more.pop("signature_version", None)
            config = Config(retries={"max_attempts": 0}, signature_version=signature, max_pool_connections=50)
            keys = {"aws_access_key_id": self.key, "aws_secret_access_key": self.secret} | more
            made = boto3.client(service, endpoint_url=self.url, region_name=REGION, config=config, **keys)
            if more or signature:
                return made
            self._clients[service] = made
        return self._clients[service]

    def role(self, *actions: str, resource: str = "*", trust: Mapping[str, Any] = TRUST) -> str:
        """Make a role with a policy that allows some actions; returns its ARN."""
        iam, name = self.client("iam"), f"role-{next(_numbers)}"
        arn: str = iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(trust))["Role"]["Arn"]
        if actions:
            iam.put_role_policy(RoleName=name, PolicyName="p", PolicyDocument=allow(*actions, resource=resource))
        return arn

    def user(self, document: str) -> Account:
        """Make a user with one policy; returns an account of his."""
        iam, name = self.client("iam"), f"user-{next(_numbers)}"
        iam.create_user(UserName=name)
        iam.put_user_policy(UserName=name, PolicyName="p", PolicyDocument=document)
        key = iam.create_access_key(UserName=name)["AccessKey"]
        return Account(self.url, key["AccessKeyId"], key["SecretAccessKey"])

    def function(self, code: bytes | None = None, **settings: Any) -> str:
        """Make a function and wait until it is ready; returns its name."""
        name = settings.pop("FunctionName", f"function-{next(_numbers)}")
        role = settings.pop("Role", None) or self.role("logs:*")
        given = {"Runtime": "python3.11", "Handler": "app.handler", "Timeout": 10, "Code": {"ZipFile": code or actor()}}
        self.client("lambda").create_function(FunctionName=name, Role=role, **(given | settings))
        self.settle(name)
        return name

    def settle(self, name: str, **more: Any) -> None:
        """Wait until a function is ready and no change of it is under way."""
        patience = {"Delay": 0, "MaxAttempts": 5000}
        for waiter in ("function_active_v2", "function_updated_v2"):
            self.client("lambda").get_waiter(waiter).wait(FunctionName=name, WaiterConfig=patience, **more)

    def publish(self, name: str) -> str:
        """Publish a version and wait until it is ready; returns its number."""
        number: str = self.client("lambda").publish_version(FunctionName=name)["Version"]
        self.settle(name, Qualifier=number)
        return number

    def invoke(self, name: str, event: object = None, **more: Any) -> Answered:
        """Invoke a function."""
        payload = b"" if event is None else json.dumps(event).encode()
        found = self.client("lambda").invoke(FunctionName=name, Payload=payload, **more)
        text = found["Payload"].read()
        value = json.loads(text) if text else None
        return Answered(found["StatusCode"], found.get("FunctionError"), found.get("ExecutedVersion"), value, found)


def allow(*actions: str, resource: str | list[str] = "*") -> str:
    """Return a policy that allows some actions."""
    return json.dumps(
        {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": list(actions), "Resource": resource}]}
    )


def read_keys(options: Mapping[str, str]) -> tuple[str, str]:
    """Return the operator's key from the credentials file, as an SDK would."""
    parser = configparser.ConfigParser()
    parser.read(options["shared_credentials_file"])
    return parser["default"]["aws_access_key_id"], parser["default"]["aws_secret_access_key"]


@pytest.fixture(scope="session")
def emulator(session_root: Path) -> Iterator[Emulator]:
    """Yield an emulator in this process, for all tests."""
    found = Emulator(session_root / "aws", settle_s=SETTLE_S)
    found.start()
    yield found
    found.close()


@pytest.fixture(scope="session")
def account(emulator: Emulator) -> Account:
    """Return the operator's clients."""
    return Account(emulator.url, *read_keys(emulator.options))


@pytest.fixture
def slow_account(account: Account, emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Account:
    """Give the operator's clients while a change takes long enough for a busy machine to look at it meanwhile."""
    # There can be one emulator in a process, and this one is in a hurry.
    monkeypatch.setattr(emulator._control, "_settle_s", LONG_S)
    return account


@pytest.fixture(scope="session")
def function(account: Account) -> str:
    """Return a function that does what its events say, and whose settings no test changes."""
    return account.function(MemorySize=256, Environment={"Variables": {"VARIABLE": "value"}})


@pytest.fixture(scope="session")
def pack() -> Callable[[Mapping[str, str | bytes]], bytes]:
    """Return what makes a zip of files."""
    return archive


@pytest.fixture
def upload() -> Callable[[object], bytes]:
    """Return what makes the actor's archive with a mark."""
    return actor


@pytest.fixture
def policy() -> Callable[..., str]:
    """Return what makes a policy document."""
    return allow


@pytest.fixture
def bucket(account: Account) -> str:
    """Return the name of a new bucket."""
    name = f"bucket-{next(_numbers)}"
    account.client("s3").create_bucket(Bucket=name)
    return name


@pytest.fixture(scope="session")
def signer() -> Callable[[str, Mapping[str, str]], Account]:
    """Return what makes the operator's clients of an emulator from its options."""
    return lambda url, options: Account(url, *read_keys(options))
