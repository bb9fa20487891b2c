"""A home with one function of plain Python that does what the test asks of it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import httpx
import pytest

from polyserve.bucket import Bucket
from polyserve.driver import FunctionSpec, FunctionStatus, Phase, PutAttributes, RevisionStatus
from polyserve.model import package
from polyserve.rollout import Target, desire
from polyserve_local.errors import PreconditionError
from polyserve_local.inventory import inventory
from polyserve_local.provider import LocalProvider
from polyserve_local.settings import LocalSettings

NAME = "actor"
PATIENCE_S = 30.0
SOURCE = '''
"""Does what the first number of a row says, with the second; answers rows."""
import os
import time

if os.environ.get("ACTOR_CRASHES"):
    os._exit(3)
if os.environ.get("ACTOR_RAISES"):
    raise RuntimeError("broken on purpose")

HELD = []


def act(what, amount):
    if what == 1:
        time.sleep(amount)
    elif what == 2:
        while True:
            pass
    elif what == 3:
        HELD.append(b"x" * int(amount * 2**20))
        time.sleep(10)
    elif what == 4:
        os._exit(9)
    elif what == 5:
        # Never lets another thread of this process run.
        import re
        re.match(r"(a+)+$", "a" * 60 + "b")
    elif what == 6:
        return float(os.getpid())
    elif what == 7:
        print("x" * int(amount), flush=True)
    return amount


def predict(rows):
    return [[what, act(what, amount)] for what, amount in rows]
'''


@pytest.fixture(scope="session")
def actor(tmp_path_factory: pytest.TempPathFactory) -> tuple[FunctionSpec, bytes]:
    """Package and bundle the model once; return the spec of a revision that runs it, and the bundle."""
    directory = tmp_path_factory.mktemp("actor")
    path = directory / "local_actor.py"
    path.write_text(SOURCE)
    found = spec_from_file_location("local_actor", path)
    assert found is not None
    assert found.loader is not None
    module = module_from_spec(found)
    sys.modules["local_actor"] = module
    try:
        found.loader.exec_module(module)
        made = package(module.predict, name="actor", sample=[[0.0, 1.0], [0.0, 2.0]])
    finally:
        del sys.modules["local_actor"]
    provider = LocalProvider(LocalSettings(home=str(directory)))
    desired, bundle = desire(made, Target(provider=provider, bucket=Bucket(provider, "bundles")), name=NAME)
    return desired.spec(1), bundle.path.read_bytes()


class World:
    """A home, its provider, and short words for what tests do with them."""

    ECHO, SLEEP, LOOP, ALLOCATE, EXIT, STALL, PID, PRINT = range(8)

    def __init__(self, home: Path, actor: tuple[FunctionSpec, bytes], **options: Any) -> None:
        self.home = home
        self.provider = LocalProvider(LocalSettings(home=str(home), **options))
        self.functions = self.provider.functions
        self.client = httpx.Client(timeout=PATIENCE_S, trust_env=False)
        self._spec, self._bundle = actor

    def spec(self, revision: int = 1, *, timeout: float = 30.0, memory_mb: int = 256, **changes: Any) -> FunctionSpec:
        """Return a revision's spec, with its bundle in the store."""
        self.provider.ensure_bucket("bundles")
        store, key = self.provider.store("bundles"), self._spec.artifact.key
        with contextlib.suppress(PreconditionError):
            store.put(key, io.BytesIO(self._bundle), attrs=PutAttributes(if_absent=True))
        seconds = timedelta(seconds=timeout)
        return replace(self._spec, revision=revision, timeout=seconds, memory_mb=memory_mb, **changes)

    def deploy(self, revision: int = 1, **settings: Any) -> None:
        """Make a revision, wait until it is ready, and give it all the traffic."""
        self.functions.apply(self.spec(revision, **settings))
        assert self.settled(revision).phase is Phase.READY
        self.functions.route(NAME, {revision: 100})

    def status(self) -> FunctionStatus:
        return self.functions.describe(NAME)

    def settled(self, number: int = 1) -> RevisionStatus:
        """Wait until a revision is ready or has failed."""

        def found() -> RevisionStatus | None:
            revision = self.status().revision(number)
            return None if revision is None or revision.phase is Phase.PROVISIONING else revision

        return self.until(found)

    def call(
        self,
        what: int = 0,
        amount: float = 1.0,
        *,
        revision: int | None = None,
        client: httpx.Client | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """Send one row."""
        address = self.provider.invoker.resolve(NAME, revision=revision)
        return self.send(address.url, {**address.headers, **(headers or {})}, what, amount, client=client)

    def send(
        self,
        url: str,
        headers: Mapping[str, str],
        what: int = 0,
        amount: float = 1.0,
        *,
        client: httpx.Client | None = None,
    ) -> httpx.Response:
        return (client or self.client).post(f"{url}/invocations", json=[[float(what), float(amount)]], headers=headers)

    @property
    def gateway_pid(self) -> int:
        return int(json.loads((self.home / "local/gateway.json").read_bytes())["pid"])

    def kill_gateway(self) -> None:
        self.kill(self.gateway_pid)

    def instance_pids(self) -> list[int]:
        """Return the processes that the run directory names; records come and go meanwhile."""
        pids = []
        for path in (self.home / "local/run").glob("[!.]*.json"):
            with contextlib.suppress(FileNotFoundError):
                pids.append(int(json.loads(path.read_bytes())["pid"]))
        return sorted(pids)

    def log(self) -> str:
        return "\n".join(event.message for event in self.functions.logs(NAME, since=None))

    @staticmethod
    def kill(pid: int) -> None:
        """Kill a process and wait until it is gone."""
        handle = os.pidfd_open(pid)
        try:
            os.kill(pid, signal.SIGKILL)
            assert select.select([handle], [], [], PATIENCE_S)[0]
        finally:
            os.close(handle)

    @staticmethod
    def until(found: Callable[[], Any], *, within: float = PATIENCE_S) -> Any:
        """Ask until there is an answer that counts; what other processes do has no event here."""
        deadline = time.monotonic() + within
        while not (answer := found()):
            assert time.monotonic() < deadline, "it did not happen in time"
            time.sleep(0.01)
        return answer

    def close(self) -> None:
        self.client.close()
        for status in list(self.functions.list(labels={})):
            self.functions.delete(status.name)


def leftovers(home: Path) -> list[str]:
    """Return what is left of functions."""
    return [line for line in inventory(home) if not line.startswith(("bucket", "object"))]


@pytest.fixture
def make_world(isolation: Path, actor: tuple[FunctionSpec, bytes]) -> Iterator[Callable[..., World]]:
    """Make a home with options of the provider; everything in it is deleted at the end, and nothing may be left."""
    made: list[World] = []

    def make(**options: Any) -> World:
        home = isolation / f"h{len(made)}"
        home.mkdir(exist_ok=True)
        made.append(World(home, actor, **options))
        return made[-1]

    yield make
    for world in made:
        world.close()
        # A gateway that had nothing to do for a while, or was told nothing, is just going.
        world.until(lambda world=world: not leftovers(world.home))


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    """A home with the usual options."""
    return make_world()
