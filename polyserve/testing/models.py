"""The contract of files that a bundle leaves to the bucket.

    class TestModelFiles(ModelFilesContract): ...

It takes a `harness` fixture. A function whose spec names such files reads them when it starts, and serves them or refuses to: what came
from the bucket is never loaded before it was compared with the package's manifest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from polyserve.driver import Artifact, ErrorCode, FunctionSpec
from polyserve.errors import PolyserveError
from polyserve.testing.functions import NAME, Functions
from polyserve.testing.harness import Harness, RawObject, sample_spec
from polyserve.testing.packages import BIAS, FACTOR, weighted

_FILE = "model/files/weights.bin"
_REFUSED_AT_ONCE = {ErrorCode.NOT_FOUND, ErrorCode.FAILED_PRECONDITION, ErrorCode.INVALID_ARGUMENT}


def specified(functions: Functions, revision: int = 1) -> FunctionSpec:
    """Return the spec of a revision of which both files are in the bucket, and not in the bundle."""
    bucket = functions.spec(revision).artifact.bucket
    return sample_spec(functions.provider, bucket, NAME, revision, package=weighted(), model_in_bucket_mb=1)


def object_of(spec: FunctionSpec) -> Artifact:
    """Return the object of the larger file."""
    sha256 = weighted().manifest.files[_FILE].sha256
    return next(model for model in spec.models if model.sha256 == sha256)


class ModelFilesContract:
    """What the core relies on of a platform whose functions read files of their model from the bucket."""

    @pytest.fixture
    def functions(self, harness: Harness) -> Iterator[Functions]:
        """Give the platform, and take away what a test made."""
        given = Functions(harness)
        yield given
        given.gone()

    def test_a_function_reads_the_files_that_its_bundle_left_to_the_bucket(self, functions: Functions) -> None:
        spec = specified(functions)
        functions.platform.apply(spec)
        functions.wait(spec)

        assert len(spec.models) == 2
        with functions.endpoint(1) as endpoint:
            assert endpoint.invoke([[1.0, 2.0]]) == [[FACTOR + BIAS, 2.0 * FACTOR + BIAS]]

    def test_files_in_the_bucket_are_part_of_what_a_revision_is(self, functions: Functions) -> None:
        spec = specified(functions)
        functions.platform.apply(spec)
        functions.wait(spec)
        other = replace(spec, models=spec.models[:1])

        status = functions.platform.describe(NAME).revision(1)

        assert status is not None
        assert status.spec_digest == spec.digest() != other.digest()
        assert functions.code(lambda: functions.platform.apply(other)) is ErrorCode.ALREADY_EXISTS

    def test_a_file_that_is_not_in_the_bucket_is_refused_by_name(self, functions: Functions) -> None:
        spec = specified(functions)
        missing = object_of(spec)
        functions.provider.store(missing.bucket).delete(missing.key)

        self._refuses(functions, spec)

    def test_a_file_of_other_content_is_refused_by_name_and_never_loaded(self, functions: Functions) -> None:
        spec = specified(functions)
        damaged = object_of(spec)
        functions.harness.raw_put(damaged.bucket, damaged.key, RawObject(body=b"\x09" * damaged.size))

        self._refuses(functions, spec)

    @staticmethod
    def _refuses(functions: Functions, spec: FunctionSpec) -> None:
        code = functions.code(lambda: functions.platform.apply(spec))
        if code is not None:
            assert code in _REFUSED_AT_ONCE
            return
        with pytest.raises(PolyserveError) as caught, functions.endpoint(1) as endpoint:
            functions.wait(spec)
            endpoint.invoke([[1.0, 2.0]])

        assert not caught.value.retryable
        status = functions.platform.describe(NAME).revision(1)
        told = [event.message for event in functions.platform.logs(NAME, since=None)]
        assert any(_FILE in words for words in [*told, str(status.reason if status else "")])
