"""The contracts must fail for whoever lies: each mutant is one lie, and an honest provider passes the very same run."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from polyserve.bucket import Bucket
from polyserve.driver import Capability, ErrorCode
from polyserve.layers import patience
from polyserve.layers.retrying import retrying
from polyserve.testing.errors import ErrorContract
from polyserve.testing.harness import Harness
from polyserve.testing.info import InfoContract
from polyserve.testing.layers import AT_ONCE, Flaky, LayerContract, native
from polyserve.testing.memory import MemoryProvider, MemoryStore
from polyserve.testing.memory_harness import MemoryHarness
from polyserve.testing.mutants import MUTANTS
from polyserve.testing.stores import ObjectStoreContract
from polyserve.testing.teeth import first_failure

NOTHING: frozenset[Capability] = frozenset()


def stores(harness: Harness, tmp_path: Path) -> str | None:
    def fixtures(bucket):
        return nullcontext({"bucket": Bucket(harness.provider(), bucket)})

    try:
        return first_failure(ObjectStoreContract, harness, tmp_path, fixtures)
    finally:
        harness.close()


def test_an_honest_store_passes(tmp_path):
    assert stores(MemoryHarness(), tmp_path) is None


def test_an_honest_store_without_capabilities_passes(tmp_path):
    assert stores(MemoryHarness(capabilities=NOTHING), tmp_path) is None


def test_there_are_mutants():
    assert len(MUTANTS) >= 30


@pytest.mark.parametrize("lie", MUTANTS.values(), ids=MUTANTS.keys())
def test_the_contract_of_stores_catches_a_store_that(lie, tmp_path):
    assert stores(MemoryHarness(store=lie), tmp_path) is not None


class Undeclared(MemoryStore):
    """Does what its provider does not declare."""

    def put(self, key, body, *, attrs):
        return MemoryStore(everything(self.provider), self.bucket).put(key, body, attrs=attrs)


def everything(provider):
    able = MemoryProvider()
    able.buckets, able.next_version = provider.buckets, provider.next_version
    return able


def test_the_contract_of_stores_catches_a_store_that_honours_what_it_does_not_declare(tmp_path):
    assert "if_absent" in stores(MemoryHarness(capabilities=NOTHING, store=Undeclared), tmp_path)


@pytest.mark.parametrize("capability", [Capability.CONDITIONAL_PUT, Capability.SIGNED_URL])
def test_the_contract_of_stores_catches_a_store_that_refuses_what_it_declares(capability, tmp_path):
    class Refusing(MemoryStore):
        def put(self, key, body, *, attrs):
            return able(self).put(key, body, attrs=attrs)

        def sign(self, key, *, method, expires_in):
            return able(self).sign(key, method=method, expires_in=expires_in)

    def able(store):
        less = MemoryProvider(capabilities=store.provider.info.capabilities - {capability})
        less.buckets, less.next_version = store.provider.buckets, store.provider.next_version
        return MemoryStore(less, store.bucket)

    assert stores(MemoryHarness(store=Refusing), tmp_path) is not None


# --- errors and info ---


def plain(suite: type, harness: Harness, tmp_path: Path) -> str | None:
    return first_failure(suite, harness, tmp_path, lambda bucket: nullcontext({"info": harness.provider().info}))


def honest(provider, error):
    return MemoryProvider.classify(provider, error)


CLASSIFIERS = {
    "calls everything unknown": lambda provider, error: ErrorCode.UNKNOWN,
    "calls everything internal": lambda provider, error: ErrorCode.INTERNAL,
    "calls what it never heard of unavailable": lambda provider, error: (
        ErrorCode.UNAVAILABLE if honest(provider, error) is ErrorCode.UNKNOWN else honest(provider, error)
    ),
    "takes throttling for a quota of no return": lambda provider, error: (
        ErrorCode.PERMISSION_DENIED
        if honest(provider, error) is ErrorCode.RESOURCE_EXHAUSTED
        else honest(provider, error)
    ),
    "remembers": lambda provider, error: (error.__dict__.update(seen=True), honest(provider, error))[1],
}


@pytest.mark.parametrize("classify", CLASSIFIERS.values(), ids=CLASSIFIERS.keys())
def test_the_contract_of_errors_catches_a_provider_that(classify, tmp_path, monkeypatch):
    harness = MemoryHarness()
    assert plain(ErrorContract, harness, tmp_path) is None
    monkeypatch.setattr(harness.provider(), "classify", lambda error: classify(harness.provider(), error))

    again = tmp_path / "again"
    again.mkdir()
    assert plain(ErrorContract, harness, again) is not None


def test_the_contract_of_errors_catches_a_provider_that_does_not_tell_how_long_to_wait(tmp_path, monkeypatch):
    harness = MemoryHarness()
    monkeypatch.setattr(harness.provider(), "retry_after", lambda error: None)

    assert plain(ErrorContract, harness, tmp_path) is not None


LIMITS = {
    "has its memory upside down": {"memory_mb": (1024, 128)},
    "takes names with slashes": {"name_pattern": r"[a-z/ .\n-]*"},
    "takes no names": {"name_pattern": r"x"},
    "does not say where its figures are from": {"source": "somewhere"},
    "allows no time": {"timeout": timedelta(0)},
    "runs Python 2": {"pythons": ("2",)},
}
INFOS = {
    "has another name": {"name": "other"},
    "has a factory that is not there": {"factory": "polyserve.testing.memory:Nothing"},
    "has an entrypoint that is not there": {"entrypoint": "polyserve.no_such_module"},
    "has no words for its storage": {"store_service": ""},
    "makes capabilities up": {"capabilities": frozenset({"telepathy"})},
}


@pytest.mark.parametrize("lie", [*LIMITS, *INFOS])
def test_the_contract_of_info_catches_a_provider_that(lie, tmp_path, monkeypatch):
    harness = MemoryHarness()
    info = harness.provider().info
    wrong = replace(info, limits=replace(info.limits, **LIMITS[lie])) if lie in LIMITS else replace(info, **INFOS[lie])
    monkeypatch.setattr(harness.provider(), "_info", wrong)

    assert plain(InfoContract, harness, tmp_path) is not None


# --- layers ---

UNSAFE = {
    "repeats conditional puts blindly": lambda caller, function, settle, decided: caller.call(function),
    "takes any conflict after a lost answer for its own": lambda caller, function, settle, decided: caller.call(
        lambda: settle() or function()
    ),
    "never repeats conditional puts": lambda caller, function, settle, decided: function(),
}


def layers(harness: Harness, tmp_path: Path) -> str | None:
    def fixtures(bucket):
        flaky = Flaky(harness.provider())
        lost = native(harness, ErrorCode.UNAVAILABLE)
        behind = Bucket(retrying(flaky, AT_ONCE), bucket)
        return nullcontext({"flaky": flaky, "lost": lost, "passing": lost, "bucket": behind})

    return first_failure(LayerContract, harness, tmp_path, fixtures)


def test_the_honest_layer_passes(tmp_path):
    assert layers(MemoryHarness(), tmp_path) is None


@pytest.mark.parametrize("settling", UNSAFE.values(), ids=UNSAFE.keys())
def test_the_contract_of_layers_catches_a_layer_that(settling, tmp_path, monkeypatch):
    monkeypatch.setattr(patience.Caller, "settling", settling)

    assert "condition" in (layers(MemoryHarness(), tmp_path) or "")


def test_the_contract_of_layers_catches_a_layer_that_repeats_everything(tmp_path, monkeypatch):
    monkeypatch.setattr(patience, "_REPEATED", frozenset(ErrorCode))

    assert layers(MemoryHarness(), tmp_path) is not None


def test_the_contract_of_layers_catches_a_layer_that_mixes_versions(tmp_path, monkeypatch):
    def forget(body):
        body._body, body._version = None, AnyVersion()

    monkeypatch.setattr(patience.ResumingBody, "_drop", forget)

    assert layers(MemoryHarness(), tmp_path) is not None


class AnyVersion(str):
    """Equal to every version."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other):
        return True

    def __ne__(self, other):
        return False
