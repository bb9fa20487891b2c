"""The contract of files in the bucket must fail for whoever lies: each mutant is one lie, and names the test that notices it."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import pytest

from polyserve.errors import PolyserveError
from polyserve.runtime.remote import Remote
from polyserve.testing.functions import Functions
from polyserve.testing.memory import MemoryFault
from polyserve.testing.memory_functions import MemoryPlatform
from polyserve.testing.memory_harness import MemoryHarness
from polyserve.testing.models import ModelFilesContract
from polyserve.testing.packages import weighted
from polyserve.testing.teeth import Liars, first_failure, lying

LIARS = Liars(ModelFilesContract)


def first_failure_of(harness, directory, only=()):
    """Run the suite, or some tests of it, and return the name of the first that fails."""

    @contextmanager
    def fixtures(bucket):
        given = Functions(harness)
        yield {"functions": given}
        given.gone()

    platform = harness.provider().functions
    noticed = (AssertionError, PolyserveError, MemoryFault, LookupError, ValueError)
    try:
        return first_failure(ModelFilesContract, harness, directory, fixtures, only=only, noticed=noticed)
    finally:
        for name in list(platform._functions):
            MemoryPlatform.delete(platform, name)
        harness.close()


def test_an_honest_provider_passes(tmp_path):
    assert first_failure_of(MemoryHarness(), tmp_path) is None


# --- liars ---


@LIARS.caught_by(ModelFilesContract.test_a_function_reads_the_files_that_its_bundle_left_to_the_bucket)
class IgnoresTheFilesInTheBucket(MemoryPlatform):
    def _remote(self, spec, root):
        return None


@LIARS.caught_by(ModelFilesContract.test_a_function_reads_the_files_that_its_bundle_left_to_the_bucket)
class ReadsOneOfTheFiles(MemoryPlatform):
    def _remote(self, spec, root):
        return super()._remote(replace(spec, models=spec.models[:1]), root)


@LIARS.caught_by(ModelFilesContract.test_files_in_the_bucket_are_part_of_what_a_revision_is)
class ForgetsTheFilesOfARevision(MemoryPlatform):
    def _status(self, function):
        status = super()._status(function)
        digests = {number: replace(each.spec, models=()).digest() for number, each in function.revisions.items()}
        return replace(status, revisions=tuple(replace(r, spec_digest=digests[r.number]) for r in status.revisions))


@LIARS.caught_by(ModelFilesContract.test_files_in_the_bucket_are_part_of_what_a_revision_is)
class TakesOtherFilesUnderANumberThatIsTaken(MemoryPlatform):
    def apply(self, spec):
        known = self._functions.get(spec.name)
        if known is not None and spec.revision in known.revisions:
            spec = replace(spec, models=known.revisions[spec.revision].spec.models)
        return super().apply(spec)


def elsewhere(sha256):
    """Open a file of the package as if it were its object."""
    files = weighted().manifest.files
    return (weighted().root / next(path for path, entry in files.items() if entry.sha256 == sha256)).open("rb")


@LIARS.caught_by(ModelFilesContract.test_a_file_that_is_not_in_the_bucket_is_refused_by_name)
class TakesAMissingFileFromElsewhere(MemoryPlatform):
    def _remote(self, spec, root):
        honest = super()._remote(spec, root)

        def fetch(sha256):
            try:
                return honest.fetch(sha256)
            except MemoryFault:
                return elsewhere(sha256)

        return replace(honest, fetch=fetch)


@LIARS.caught_by(ModelFilesContract.test_a_file_of_other_content_is_refused_by_name_and_never_loaded)
class ServesWhatTheBucketHadBefore(MemoryPlatform):
    def _remote(self, spec, root):
        honest = super()._remote(spec, root)
        return honest and Remote(fetch=elsewhere, into=honest.into)


@LIARS.caught_by(ModelFilesContract.test_a_file_of_other_content_is_refused_by_name_and_never_loaded)
class DoesNotSayWhichFile(MemoryPlatform):
    def _load(self, function, revision):
        super()._load(function, revision)
        if revision.reason:
            revision.reason = "it does not start"
            function.events.clear()


# --- all of them ---


@pytest.mark.parametrize(("lie", "test", "capabilities"), LIARS.cases.values(), ids=LIARS.cases)
def test_the_contract_of_files_in_the_bucket_catches_a_provider_that(lie, test, capabilities, tmp_path):
    assert first_failure_of(lying(lie, capabilities), tmp_path, only={test}) == test


def test_every_test_of_the_contract_catches_somebody():
    assert LIARS.toothless() == set()
