"""The contract of functions.

    class TestFunctions(FunctionsContract): ...

It takes a `harness` fixture (`polyserve.testing.harness.Harness`) and runs real bundles: revision `n` of
the sample function multiplies by `n`. Drivers are asked directly, below the portable core, so that what
they raise is seen raw and sorted by `classify`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import FrameType
from typing import Any

import httpx
import pytest

from polyserve.driver import (
    LABEL,
    Capability,
    ErrorCode,
    FunctionPlatform,
    FunctionSpec,
    FunctionStatus,
    HttpReply,
    Phase,
    Provider,
    Request,
    Response,
    RevisionStatus,
    Scaling,
)
from polyserve.endpoint import Endpoint
from polyserve.errors import PolyserveError
from polyserve.rollout import wait_ready, wait_routed
from polyserve.runtime.signature import Signature, TensorSpec
from polyserve.testing.harness import Harness
from polyserve.testing.packages import BREAKS_IMPORT

NAME = "contract-fn"
WITHIN = timedelta(seconds=60)
"""How long a revision, or its traffic, may take."""

MODEL = "contract-times"
_SPEC = TensorSpec(name="input", datatype="FP64", shape=(-1, 2))
SIGNATURE = Signature(input_kind="list", output_kind="list", inputs=(_SPEC,), outputs=(replace(_SPEC, name="output"),))


@contextmanager
def overhearing() -> Iterator[list[str]]:
    """Give what this thread sends over any socket meanwhile, call by call, whoever opened the connection and whenever."""
    sent: list[str] = []

    def overhear(_frame: FrameType, event: str, called: Any) -> None:
        # Sockets of the operating system and of OpenSSL; only what says something: others are closed by the garbage collector.
        if event == "c_call" and type(getattr(called, "__self__", None)).__module__ in {
            "socket",
            "_socket",
            "ssl",
            "_ssl",
        }:
            name = called.__name__
            if name in {"connect", "connect_ex", "do_handshake", "send", "sendall", "sendmsg", "sendto", "write"}:
                sent.append(name)

    before = sys.getprofile()
    sys.setprofile(overhear)
    try:
        yield sent
    finally:
        sys.setprofile(before)


class Functions:
    """The function platform of a harness with one function under test."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        self.provider: Provider = harness.provider()
        self.platform: FunctionPlatform = self.provider.functions
        self._buckets: set[str] = set()

    def spec(self, revision: int, name: str = NAME) -> FunctionSpec:
        """Return the spec of a revision, with its bundle in a bucket."""
        spec = self.harness.function_spec(name, revision)
        self._buckets.add(spec.artifact.bucket)
        return spec

    def applied(self, *revisions: int) -> FunctionStatus:
        """Make revisions, wait until they are ready, and return the function's status."""
        for revision in revisions:
            spec = self.spec(revision)
            self.platform.apply(spec)
            self.wait(spec)
        return self.platform.describe(NAME)

    def wait(self, spec: FunctionSpec) -> RevisionStatus:
        """Wait until a revision is ready."""
        return wait_ready(self.provider, spec, renew=lambda: None, within=WITHIN)

    def route(self, weights: Mapping[int, int]) -> None:
        """Route traffic of the function, and wait until it goes there."""
        self.platform.route(NAME, weights)
        wait_routed(self.provider, NAME, weights, renew=lambda: None, within=WITHIN)

    def code(self, call: Callable[[], object]) -> ErrorCode | None:
        """Return what `classify` makes of the error that a call raises; `None` where it raises none."""
        try:
            call()
        except Exception as error:
            return self.provider.classify(error)
        return None

    def endpoint(self, revision: int | None = None) -> Endpoint:
        """Return an endpoint of the function, or of one revision of it."""
        patience = timedelta(seconds=60)
        return Endpoint(self.provider, NAME, model=MODEL, signature=SIGNATURE, revision=revision, timeout=patience)

    def send(self, path: str, *, method: str = "GET", body: bytes = b"", **headers: str) -> Response:
        """Send one request and return the answer whatever its status."""
        with self.endpoint() as endpoint:
            address = self.provider.invoker.resolve(NAME)
            request_id = headers.get("x-request-id", "contract")
            request = Request(method=method, path=path, headers=headers, body=body, request_id=request_id)
            call = self.provider.invoker.prepare(address, request)
            with suppress(PolyserveError):
                # So that an instance runs and a cold start is no part of what the test looks at.
                endpoint.send(Request(method="GET", path="/v2/health/ready"))
        with httpx.Client(timeout=60, trust_env=False) as client:
            reply = client.request(call.method, call.url, headers=dict(call.headers), content=bytes(call.body))
        given = HttpReply(status=reply.status_code, headers=dict(reply.headers), body=reply.content)
        return self.provider.invoker.parse(address, given)

    def gone(self) -> None:
        """Delete the function, if there is one, and the bundles."""
        assert self.code(lambda: self.platform.delete(NAME)) in {None, ErrorCode.NOT_FOUND}
        for bucket in self._buckets:
            self.harness.drop_bucket(bucket)


class FunctionsContract:
    """What the core relies on of a `FunctionPlatform`."""

    @pytest.fixture
    def functions(self, harness: Harness) -> Iterator[Functions]:
        """Give the platform, and take away what a test made."""
        given = Functions(harness)
        yield given
        given.gone()

    def test_a_revision_is_made_without_traffic_and_can_be_called_all_the_same(self, functions: Functions) -> None:
        status = functions.applied(1)

        assert status.weights == {}
        assert [(r.number, r.phase) for r in status.revisions] == [(1, Phase.READY)]
        with functions.endpoint(1) as endpoint:
            assert endpoint.invoke([[1.0, 2.0]]) == [[1.0, 2.0]]

    def test_applying_the_same_revision_again_changes_nothing(self, functions: Functions) -> None:
        functions.applied(1)
        functions.route({1: 100})
        before = functions.platform.describe(NAME)

        functions.platform.apply(functions.spec(1))

        after = functions.platform.describe(NAME)
        assert [(r.number, r.spec_digest, r.phase) for r in after.revisions] == [
            (r.number, r.spec_digest, r.phase) for r in before.revisions
        ]
        assert after.weights == before.weights == {1: 100}
        with functions.endpoint() as endpoint:
            assert endpoint.invoke([[1.0, 2.0]]) == [[1.0, 2.0]]

    def test_a_revision_that_failed_is_tried_anew_when_it_is_applied_again(self, functions: Functions) -> None:
        spec = functions.spec(1)
        late = replace(spec, artifact=replace(spec.artifact, key="late/bundle.zip"))
        self._fails(functions, late)
        functions.provider.store(spec.artifact.bucket).copy(spec.artifact.key, late.artifact.key)

        functions.platform.apply(late)

        assert functions.wait(late).reason is None

    def test_another_spec_under_a_number_that_is_taken_already_exists(self, functions: Functions) -> None:
        functions.applied(1)
        other = replace(functions.spec(1), memory_mb=300)

        assert functions.code(lambda: functions.platform.apply(other)) is ErrorCode.ALREADY_EXISTS

    def test_the_spec_digest_of_a_revision_is_that_of_its_spec(self, functions: Functions) -> None:
        assert functions.applied(1).revisions[0].spec_digest == functions.spec(1).digest()

    def test_what_is_not_there_is_not_found(self, functions: Functions) -> None:
        platform = functions.platform
        calls: dict[str, Callable[[], object]] = {
            "describe": lambda: platform.describe(NAME),
            "route": lambda: platform.route(NAME, {1: 100}),
            "scale": lambda: platform.scale(NAME, Scaling()),
            "logs": lambda: list(platform.logs(NAME, since=None)),
            "remove_revision": lambda: platform.remove_revision(NAME, 1),
            "delete": lambda: platform.delete(NAME),
            "resolve": lambda: functions.provider.invoker.resolve(NAME),
        }

        assert {name: functions.code(call) for name, call in calls.items()} == dict.fromkeys(calls, ErrorCode.NOT_FOUND)

    def test_a_bundle_that_is_not_there_fails_the_revision_with_a_reason(self, functions: Functions) -> None:
        spec = functions.spec(1)
        missing = replace(spec, artifact=replace(spec.artifact, key="no/such/bundle.zip"))

        self._fails(functions, missing)

    def test_a_bundle_that_is_another_fails_the_revision_with_a_reason(self, functions: Functions) -> None:
        spec = functions.spec(1)
        other = replace(spec, artifact=replace(spec.artifact, sha256="0" * 64))

        self._fails(functions, other)

    @staticmethod
    def _fails(functions: Functions, spec: FunctionSpec) -> None:
        code = functions.code(lambda: functions.platform.apply(spec))
        if code is not None:
            assert code in {ErrorCode.NOT_FOUND, ErrorCode.FAILED_PRECONDITION, ErrorCode.INVALID_ARGUMENT}
            return
        with pytest.raises(PolyserveError, match="failed on"):
            functions.wait(spec)
        status = functions.platform.describe(NAME).revision(spec.revision)
        assert status is not None
        assert status.reason

    def test_traffic_goes_where_it_is_routed_and_routing_again_changes_nothing(self, functions: Functions) -> None:
        functions.applied(2, 3)
        for number in (2, 3, 3):
            functions.route({number: 100})

            assert functions.platform.describe(NAME).weights == {number: 100}
            with functions.endpoint() as endpoint:
                assert endpoint.invoke([[1.0, 1.0]]) == [[float(number)] * 2]

    def test_revisions_are_told_oldest_first_and_each_can_be_called_whatever_its_traffic(
        self, functions: Functions
    ) -> None:
        status = functions.applied(2, 3)
        functions.route({3: 100})

        assert [r.number for r in status.revisions] == [2, 3]
        for number in (2, 3):
            with functions.endpoint(number) as endpoint:
                assert endpoint.invoke([[1.0, 1.0]]) == [[float(number)] * 2]

    def test_a_split_is_honoured_or_refused_never_ignored(self, functions: Functions) -> None:
        functions.applied(2, 3)
        split = {2: 50, 3: 50}
        if Capability.TRAFFIC_SPLIT not in functions.provider.info.capabilities:
            assert functions.code(lambda: functions.platform.route(NAME, split)) is ErrorCode.UNSUPPORTED
            return

        functions.route(split)

        assert functions.platform.describe(NAME).weights == split
        with functions.endpoint() as endpoint:
            assert {endpoint.invoke([[1.0, 1.0]])[0][0] for _ in range(60)} == {2.0, 3.0}

    def test_traffic_for_a_revision_that_is_not_there_is_refused_and_changes_nothing(
        self, functions: Functions
    ) -> None:
        functions.applied(2)
        functions.route({2: 100})

        assert functions.code(lambda: functions.platform.route(NAME, {9: 100})) is ErrorCode.FAILED_PRECONDITION
        assert functions.platform.describe(NAME).weights == {2: 100}

    def test_bounds_are_honoured_or_refused_never_ignored(self, functions: Functions) -> None:
        functions.applied(1)
        capabilities = functions.provider.info.capabilities
        for capability, bounds in (
            (Capability.MAX_INSTANCES, Scaling(max_instances=2)),
            (Capability.MIN_INSTANCES, Scaling(min_instances=1)),
        ):
            code = functions.code(lambda bounds=bounds: functions.platform.scale(NAME, bounds))  # type: ignore[misc]
            if capability in capabilities:
                assert code is None
                functions.applied(1, 2)
                # A revision that is made, or made again, leaves them alone.
                assert functions.platform.describe(NAME).scaling == bounds
            else:
                assert code is ErrorCode.UNSUPPORTED
                assert functions.platform.describe(NAME).scaling == Scaling()
                refused = replace(functions.spec(2), scaling=bounds)
                assert functions.code(lambda spec=refused: functions.platform.apply(spec)) is ErrorCode.UNSUPPORTED  # type: ignore[misc]

    def test_functions_are_found_by_their_labels(self, functions: Functions) -> None:
        functions.applied(1)

        (found,) = functions.platform.list(labels={LABEL: NAME})

        assert found.name == NAME
        assert functions.spec(1).labels.items() <= found.labels.items()
        assert list(functions.platform.list(labels={LABEL: "another"})) == []
        assert list(functions.platform.list(labels={LABEL: NAME, "polyserve-of": "nobody"})) == []

    def test_functions_are_listed_by_name(self, functions: Functions) -> None:
        before = f"a-{NAME}"
        functions.applied(1)
        functions.platform.apply(functions.spec(1, before))
        try:
            functions.wait(functions.spec(1, before))
            # An account may have functions of others.
            found = [status.name for status in functions.platform.list(labels={}) if status.name in {NAME, before}]
        finally:
            functions.platform.delete(before)

        assert found == [before, NAME]

    def test_a_revision_without_traffic_can_be_removed_and_one_with_traffic_cannot(self, functions: Functions) -> None:
        functions.applied(2, 3)
        functions.route({3: 100})
        platform = functions.platform

        assert functions.code(lambda: platform.remove_revision(NAME, 3)) is ErrorCode.FAILED_PRECONDITION
        platform.remove_revision(NAME, 2)

        assert [r.number for r in platform.describe(NAME).revisions] == [3]
        assert functions.code(lambda: platform.remove_revision(NAME, 2)) is ErrorCode.NOT_FOUND

    def test_a_model_that_breaks_there_is_an_error_with_a_reason_and_not_a_wait_for_ever(
        self, functions: Functions
    ) -> None:
        spec = functions.spec(1)
        broken = replace(spec, environment={BREAKS_IMPORT: "1"})
        functions.platform.apply(broken)

        with pytest.raises(PolyserveError) as caught, functions.endpoint(1) as endpoint:
            functions.wait(broken)
            endpoint.invoke([[1.0, 2.0]])

        assert not caught.value.retryable
        assert any("broken on purpose" in event.message for event in functions.platform.logs(NAME, since=None))

    def test_logs_come_in_order_and_from_a_moment_on(self, functions: Functions) -> None:
        functions.applied(1)
        functions.route({1: 100})
        with functions.endpoint() as endpoint:
            endpoint.invoke([[1.0, 2.0]], request_id="first")
            between = datetime.now(UTC)
            endpoint.invoke([[1.0, 2.0]], request_id="second")

        events = list(functions.platform.logs(NAME, since=None))
        late = list(functions.platform.logs(NAME, since=between))

        assert [event.at for event in events] == sorted(event.at for event in events)
        assert [name for name in ("first", "second") if any(name in e.message for e in events)] == ["first", "second"]
        assert not any("first" in event.message for event in late)
        assert any("second" in event.message for event in late)

    def test_permissions_are_the_providers_own_words_and_take_no_call(self, functions: Functions) -> None:
        spec = functions.spec(1)

        assert all(isinstance(each, str) and each for each in functions.platform.permissions(spec))
        assert functions.code(lambda: functions.platform.describe(NAME)) is ErrorCode.NOT_FOUND

    def test_nothing_is_in_the_way_of_the_sample_and_nobody_is_asked_whether_there_is(
        self, functions: Functions
    ) -> None:
        spec = functions.spec(1)
        splits = Capability.TRAFFIC_SPLIT in functions.provider.info.capabilities

        with overhearing() as sent:
            told = [*functions.platform.obstacles(spec), *functions.platform.obstacles(spec, split=splits)]

        assert (told, sent) == ([], [])
        assert functions.code(lambda: functions.platform.describe(NAME)) is ErrorCode.NOT_FOUND

    def test_a_deleted_function_can_be_made_anew_and_has_nothing_of_the_old_one(self, functions: Functions) -> None:
        functions.applied(1)
        functions.route({1: 100})
        with functions.endpoint() as endpoint:
            endpoint.invoke([[1.0, 2.0]], request_id="of-the-old-one")

        functions.platform.delete(NAME)

        assert functions.code(lambda: functions.platform.describe(NAME)) is ErrorCode.NOT_FOUND
        status = functions.applied(2)
        assert ([r.number for r in status.revisions], status.weights) == ([2], {})
        assert not any("of-the-old-one" in event.message for event in functions.platform.logs(NAME, since=None))
