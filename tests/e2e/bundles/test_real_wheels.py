"""Real wheels for another machine, from the package index: what a user's first deploy does."""

import struct
from importlib.metadata import version

import pytest

from polyserve.bundle import Target, slimming, wheels

AARCH64 = 183  # EM_AARCH64 of the ELF specification


@pytest.mark.slow
def test_scikit_learn_for_another_processor_is_complete_and_slim():
    lock = [f"{name}=={version(name)}" for name in ("joblib", "numpy", "scikit-learn", "scipy", "threadpoolctl")]
    there = Target(provider="A cloud", python="3.13", architecture="arm64", glibc=(2, 34))

    tree = wheels.fetch(lock, [], there)
    slimmed = slimming.standard(tree.files)
    libraries = {path: content.read() for path, content in slimmed.files.items() if ".so" in path}

    assert {struct.unpack_from("<H", data, 18)[0] for data in libraries.values()} == {AARCH64}
    assert any(path.endswith("cpython-313-aarch64-linux-gnu.so") for path in libraries)
    assert {content.owner for content in tree.files.values()} == {line.partition("==")[0] for line in lock}
    whole, left = (sum(content.size for content in files.values()) for files in (tree.files, slimmed.files))
    assert left < 0.85 * whole
    assert left < 200_000_000
