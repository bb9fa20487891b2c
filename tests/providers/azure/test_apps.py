"""What only Azure has: an app is changed under its callers, a publish proves nothing, keys are renewed, names are the whole world's."""

from __future__ import annotations

import hashlib
import io
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from polyserve.driver import Artifact, ErrorCode, FunctionSpec, Phase, PutAttributes
from polyserve.endpoint import Endpoint
from polyserve.errors import PolyserveError, VerificationError
from polyserve.layers.fronting import fronted
from polyserve.rollout import wait_routed
from polyserve.testing.deployments import World
from polyserve.testing.functions import NAME, Functions
from polyserve.testing.packages import ANSWERS_WRONG, BREAKS_IMPORT, times
from polyserve_azure.provider import AzureProvider

ROW = [[1.0, 1.0]]


class Callers:
    """Callers that ask a function one time after the other, and note what they are told."""

    def __init__(self) -> None:
        self.answers: list[float] = []
        self.failures: list[str] = []
        self._over = threading.Event()

    def call(self, endpoint: Endpoint) -> None:
        """Ask until it is over."""
        with endpoint:
            while not self._over.is_set():
                try:
                    self.answers.append(endpoint.invoke(ROW)[0][0])
                except PolyserveError as error:
                    self.failures.append(str(error))

    def end(self) -> None:
        """Let the callers stop."""
        self._over.set()


@contextmanager
def calling(open_endpoint: Callable[[], Endpoint], callers: int = 2) -> Iterator[Callers]:
    """Have a function called all the while."""
    found = Callers()
    with ThreadPoolExecutor(callers) as pool:
        running = [pool.submit(found.call, open_endpoint()) for _ in range(callers)]
        try:
            yield found
        finally:
            found.end()
        for each in running:
            each.result()


def test_callers_are_answered_all_the_while_an_update_takes_the_traffic_and_a_rollback_gives_it_back(
    functions: Functions,
) -> None:
    functions.applied(2)
    functions.route({2: 100})
    with calling(functions.endpoint) as callers:
        functions.applied(3)
        functions.route({3: 100})
        functions.route({2: 100})
        functions.route({3: 100})

    assert callers.failures == []
    assert set(callers.answers) == {2.0, 3.0}
    assert callers.answers[0] == 2.0
    with functions.endpoint() as endpoint:
        assert endpoint.invoke(ROW) == [[3.0, 3.0]]


def test_a_package_that_breaks_never_takes_traffic_and_the_old_revision_answers_throughout(
    functions: Functions,
) -> None:
    functions.applied(2)
    functions.route({2: 100})
    broken = replace(functions.spec(3), environment={BREAKS_IMPORT: "1"})
    with calling(functions.endpoint) as callers:
        functions.platform.apply(broken)
        with pytest.raises(PolyserveError, match="broken on purpose"):
            functions.wait(broken)

    assert callers.failures == []
    assert set(callers.answers) == {2.0}
    assert functions.platform.describe(NAME).weights == {2: 100}


def test_a_package_that_answers_differently_never_takes_traffic_and_the_old_revision_answers_throughout(
    harness: Any,
) -> None:
    world = World(harness, harness.fresh_bucket())
    try:
        world.deploy(times(2))
        with (
            calling(lambda: world.deployment().endpoint) as callers,
            pytest.raises(VerificationError, match="answers differently"),
        ):
            world.deploy(times(3), environment={ANSWERS_WRONG: "1"})

        assert callers.failures == []
        assert set(callers.answers) == {2.0}
        assert world.weights() == {1: 100}
    finally:
        world.gone()


def rebuilt(functions: Functions, spec: FunctionSpec, name: str, content: bytes) -> FunctionSpec:
    """Return a spec whose bundle has one file replaced."""
    store = functions.provider.store(spec.artifact.bucket)
    _, body = store.get(spec.artifact.key)
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(body.read())) as given, zipfile.ZipFile(packed, "w") as made:
        for member in given.infolist():
            if member.filename.startswith(f"__pycache__/{name.removesuffix('.py')}."):
                continue  # its byte-code, which goes before the source
            made.writestr(member, content if member.filename == name else given.read(member))
    data = packed.getvalue()
    digest, key = hashlib.sha256(data).hexdigest(), f"rebuilt/{name}.zip"
    store.put(key, io.BytesIO(data), attrs=PutAttributes(metadata={"sha256": digest}))
    artifact = Artifact(bucket=spec.artifact.bucket, key=key, sha256=digest, size=len(data))
    return replace(spec, artifact=artifact)


def test_an_app_whose_import_fails_is_a_failed_revision_with_the_reason(functions: Functions) -> None:
    broken = rebuilt(functions, functions.spec(1), "function_app.py", b"import nothing_of_that_name\n")
    functions.platform.apply(broken)

    with pytest.raises(PolyserveError, match="nothing_of_that_name"):
        functions.wait(broken)

    status = functions.platform.describe(NAME).revision(1)
    assert status is not None
    assert status.phase is Phase.FAILED


def test_a_key_that_is_renewed_is_asked_for_again(functions: Functions, harness: Any) -> None:
    functions.applied(2)
    functions.route({2: 100})
    with functions.endpoint() as endpoint:
        assert endpoint.invoke(ROW) == [[2.0, 2.0]]

        harness.renew_key(NAME)

        assert endpoint.invoke(ROW) == [[2.0, 2.0]]


def test_a_canary_has_its_share_and_an_id_stays_with_its_revision(functions: Functions) -> None:
    functions.applied(2, 3)
    functions.route({2: 90, 3: 10})

    def ask(number: int) -> float:
        return float(endpoint.invoke(ROW, request_id=f"request-{number}")[0][0])

    with functions.endpoint() as endpoint, ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, range(1000)))
        again = list(pool.map(ask, range(100)))

    # 100 of 1000 with a standard deviation of 9.5; the ids are always the same ones.
    assert 65 <= Counter(answers)[3.0] <= 135
    assert set(answers) == {2.0, 3.0}
    assert again == answers[:100]


def test_traffic_moves_long_after_the_packages_were_published(functions: Functions, harness: Any) -> None:
    """Old instances answer until a front that was changed has new ones, whenever that is."""
    hasty = fronted(AzureProvider(msgspec.structs.replace(harness.settings, patience_s=1.0)))
    try:
        functions.applied(2, 3)
        functions.route({2: 100})
        time.sleep(1.1)
        for weights in ({2: 50, 3: 50}, {2: 100}, {3: 100}):
            hasty.functions.route(NAME, weights)
            wait_routed(hasty, NAME, weights, renew=lambda: None)
    finally:
        hasty.close()


def test_a_region_without_flex_consumption_is_refused_before_anything_is_made(
    functions: Functions, harness: Any
) -> None:
    spec = functions.spec(1)
    before = list(harness.inventory())
    account = next(iter(harness.accounts()))
    settings = msgspec.structs.replace(harness.settings, location="westindia", storage_account=account)
    provider = AzureProvider(settings)
    try:
        with pytest.raises(Exception, match="westindia") as raised:
            fronted(provider).functions.apply(spec)
        assert provider.classify(raised.value) is ErrorCode.FAILED_PRECONDITION
    finally:
        provider.close()
    assert list(harness.inventory()) == before


def test_an_app_of_somebody_else_is_refused_and_left_alone(functions: Functions, harness: Any) -> None:
    spec = functions.spec(1)
    name = harness.site_name(f"{NAME}-r1")
    harness.make_plan(name, tags={"owner": "somebody"})
    try:
        assert functions.code(lambda: functions.platform.apply(spec)) is ErrorCode.ALREADY_EXISTS
        assert any(name in each for each in harness.inventory())
    finally:
        harness.remove_plan(name)


def test_nothing_that_is_secret_is_shown(functions: Functions, harness: Any) -> None:
    functions.applied(1)

    address = functions.provider.invoker.resolve(NAME, revision=1)

    assert address.headers["x-functions-key"] not in repr(address)
    assert not any(key in harness.shown_access() for key in harness.account_keys())


def test_a_begun_app_is_found_finished_and_removed(functions: Functions, harness: Any) -> None:
    spec = functions.spec(1)
    functions.platform.apply(spec)  # the plan is there, and nothing else has settled

    begun = functions.platform.describe(NAME).revision(1)
    assert begun is not None
    assert (begun.spec_digest, begun.phase) == (spec.digest(), Phase.PROVISIONING)
    functions.platform.delete(NAME)

    ends = time.monotonic() + 10
    while any(NAME in each for each in harness.inventory()) and time.monotonic() < ends:
        threading.Event().wait(0.02)
    assert not any(NAME in each for each in harness.inventory())
