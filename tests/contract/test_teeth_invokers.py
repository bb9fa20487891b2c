"""The contract of calling functions must fail for whoever lies: each mutant is one lie, and names the test that notices it."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import cached_property

import pytest

from polyserve.driver import Address, Capability
from polyserve.errors import PolyserveError
from polyserve.testing.functions import NAME, Functions
from polyserve.testing.invokers import InvokerContract
from polyserve.testing.memory import INFO, MemoryFault, MemoryProvider
from polyserve.testing.memory_functions import MemoryInvoker, MemoryPlatform
from polyserve.testing.memory_harness import MemoryHarness
from polyserve.testing.memory_http import Loopback
from polyserve.testing.teeth import Liars, first_failure, lying

NOTHING: frozenset[Capability] = frozenset()
LIARS = Liars(InvokerContract)


def first_failure_of(harness, directory, only=()):
    """Run the suite, or some tests of it, and return the name of the first that fails."""

    @contextmanager
    def fixtures(bucket):
        given = Functions(harness)
        given.applied(2)
        given.platform.route(NAME, {2: 100})
        yield {"functions": given}
        given.gone()

    platform = harness.provider().functions
    noticed = (AssertionError, PolyserveError, MemoryFault, LookupError, ValueError)
    try:
        return first_failure(InvokerContract, harness, directory, fixtures, only=only, noticed=noticed)
    finally:
        for name in list(platform._functions):
            MemoryPlatform.delete(platform, name)
        harness.close()


@pytest.mark.parametrize("capabilities", [INFO.capabilities, NOTHING], ids=["able", "bare"])
def test_an_honest_provider_passes(capabilities, tmp_path):
    assert first_failure_of(MemoryHarness(capabilities=capabilities), tmp_path) is None


# --- liars about calls ---


class _Answers(MemoryPlatform):
    """Changes every answer."""

    def answer(self, request):
        return self.told(request, super().answer(request))


def edited(response, **changes):
    """Return a response with another JSON object in it."""
    return replace(response, body=json.dumps({**json.loads(response.body), **changes}).encode())


@LIARS.caught_by(InvokerContract.test_the_protocol_is_spoken_as_published)
class TellsOtherShapes(_Answers):
    def told(self, request, response):
        described = request.method == "GET" and response.body.startswith(b"{") and b"inputs" in response.body
        return edited(response, inputs=[]) if described else response


@LIARS.caught_by(InvokerContract.test_the_protocol_is_spoken_as_published)
class HasNoHealth(_Answers):
    def told(self, request, response):
        return replace(response, status=404) if request.path.endswith("/live") else response


@LIARS.caught_by(InvokerContract.test_an_inference_in_json_answers_in_json)
class GivesAnswersItsOwnIds(_Answers):
    def told(self, request, response):
        return edited(response, id="its own") if request.path.endswith("/infer") else response


@LIARS.caught_by(InvokerContract.test_an_inference_in_json_answers_in_json)
class RoundsNumbers(_Answers):
    def told(self, request, response):
        return replace(response, body=response.body.replace(b"3.0", b"3.01"))


@LIARS.caught_by(InvokerContract.test_plain_rows_are_answered_with_plain_rows)
class WrapsPlainRows(_Answers):
    def told(self, request, response):
        wrapped = b'{"predictions":' + response.body + b"}"
        return replace(response, body=wrapped) if request.path.endswith("/invocations") else response


class _Heads(_Answers):
    """Changes one header of every answer."""

    header = ""
    value = None

    def told(self, request, response):
        headers = {name: value for name, value in response.headers.items() if name != self.header}
        return replace(response, headers=headers if self.value is None else {**headers, self.header: self.value})


for _name, _header, _value in (
    ("DropsTheRequestId", "x-request-id", None),
    ("MakesUpARequestId", "x-request-id", "another"),
    ("NamesAnotherRevision", "x-polyserve-revision", "1"),
    ("DropsTheDigest", "x-polyserve-digest", None),
    ("DoesNotTellColdFromWarm", "x-polyserve-cold", ""),
    ("DropsTheTimes", "server-timing", None),
):
    _heads = type(_name, (_Heads,), {"header": _header, "value": _value})
    LIARS.caught_by(InvokerContract.test_every_answer_says_who_gave_it)(_heads)


@LIARS.caught_by(InvokerContract.test_every_answer_says_who_gave_it)
class ShortensTheDigest(_Answers):
    def told(self, request, response):
        short = response.headers.get("x-polyserve-digest", "")[:12]
        return replace(response, headers={**response.headers, "x-polyserve-digest": short})


@LIARS.caught_by(InvokerContract.test_every_answer_says_who_gave_it)
class ParsesNoHeaders(MemoryInvoker):
    def parse(self, address, reply):
        return replace(super().parse(address, reply), headers={})


@LIARS.caught_by(InvokerContract.test_every_answer_says_who_gave_it)
class SendsNoHeaders(MemoryInvoker):
    def prepare(self, address, request):
        return super().prepare(address, replace(request, headers={}, request_id=""))


class _Errs(_Answers):
    """Changes every answer that is an error."""

    def told(self, request, response):
        return response if response.status < 400 else self.error(response)


@LIARS.caught_by(InvokerContract.test_every_error_has_the_one_body)
class HasErrorsOfItsOwnShape(_Errs):
    def error(self, response):
        return replace(response, body=json.dumps({"detail": json.loads(response.body)["error"]}).encode())


@LIARS.caught_by(InvokerContract.test_every_error_has_the_one_body)
class AddsToErrors(_Errs):
    def error(self, response):
        return edited(response, hint="look at the manual")


@LIARS.caught_by(InvokerContract.test_every_error_has_the_one_body)
class ShowsTracebacks(_Errs):
    def error(self, response):
        return edited(response, error="Traceback (most recent call last): ...")


@LIARS.caught_by(InvokerContract.test_every_error_has_the_one_body)
class CallsEveryErrorAFaultOfItsOwn(_Errs):
    def error(self, response):
        return replace(response, status=500)


@LIARS.caught_by(InvokerContract.test_every_error_has_the_one_body)
class ErrsWithoutTheRequestsId(_Errs):
    def error(self, response):
        return edited(response, request_id="")


@LIARS.caught_by(InvokerContract.test_a_body_over_the_limit_is_refused_by_both_numbers)
class TakesBodiesOfAnySize(MemoryPlatform):
    def apply(self, spec):
        return super().apply(replace(spec, request_bytes=1 << 30))


@LIARS.caught_by(InvokerContract.test_a_body_over_the_limit_is_refused_by_both_numbers)
class RefusesABodyWithoutNumbers(_Errs):
    def error(self, response):
        return edited(response, error="too large") if response.status == 413 else response


@LIARS.caught_by(InvokerContract.test_a_request_over_its_time_is_given_up)
class TakesItsTime(MemoryPlatform):
    def apply(self, spec):
        return super().apply(replace(spec, timeout=timedelta(hours=1)))


@LIARS.caught_by(InvokerContract.test_nobody_is_answered_without_a_credential)
class AnswersAnybody(MemoryProvider):
    class Open(Loopback):
        def answer(self, request):
            headers = {**request.headers, "authorization": f"Bearer {self.token}"}
            return super().answer(replace(request, headers=headers))

    @cached_property
    def loopback(self):
        return self.Open(self)


@LIARS.caught_by(InvokerContract.test_an_address_does_not_show_its_credential)
class ShowsItsCredential(MemoryInvoker):
    class Shown(Address):
        __slots__ = ()

        def __repr__(self):
            return f"{self.url} {self.headers}"

    def resolve(self, name, *, revision=None):
        address = super().resolve(name, revision=revision)
        return self.Shown(url=address.url, headers=address.headers)


@LIARS.caught_by(InvokerContract.test_many_callers_at_once_are_all_answered_each_with_his_own_answer)
class MixesUpAnswers(_Answers):
    before = b""

    def told(self, request, response):
        if not request.path.endswith("/infer"):
            return response
        body, self.before = self.before or response.body, response.body
        return replace(response, body=body)


@LIARS.caught_by(InvokerContract.test_a_revision_that_does_not_exist_is_not_found)
class ResolvesAnyRevision(MemoryPlatform):
    def address(self, name, revision):
        return f"{super().address(name, None).rpartition('/')[0]}/{revision or 'traffic'}"


# --- all of them ---


@pytest.mark.parametrize(("lie", "test", "capabilities"), LIARS.cases.values(), ids=LIARS.cases)
def test_the_contract_of_calls_catches_a_provider_that(lie, test, capabilities, tmp_path):
    assert first_failure_of(lying(lie, capabilities), tmp_path, only={test}) == test


def test_every_test_of_the_contract_catches_somebody():
    assert LIARS.toothless() == set()
