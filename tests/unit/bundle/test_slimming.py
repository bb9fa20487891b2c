"""What a function cannot use is left out by rule, and never what it might."""

import hashlib
import struct
import sys
from pathlib import Path

import pytest

from polyserve.bundle import elf, slimming
from polyserve.bundle.contents import Content, of_file, of_text


def slimmed(*paths: str) -> tuple[set[str], dict[str, int]]:
    done = slimming.standard({path: of_text("x" * 10) for path in paths})
    return set(done.files), dict(done.dropped)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("numpy/core/tests/test_a.py", "tests"),
        ("sklearn/conftest.py", "tests"),
        ("numpy/core/include/numpy/npy_math.h", "headers and sources"),
        ("scipy/linalg/_fblas.pyx", "headers and sources"),
        ("scipy/meson.build", "headers and sources"),
        ("numpy/__init__.pyi", "stubs"),
        ("numpy/py.typed", "stubs"),
        ("xgboost/lib/xgboost.dll", "other systems"),
        ("onnxruntime/capi/libonnxruntime.so.1.31.1", "second copies"),
        ("numpy-2.0.dist-info/WHEEL", "notes of installers"),
        ("numpy-2.0.dist-info/sboms/auditwheel.cdx.json", "notes of installers"),
    ],
)
def test_what_no_function_can_use_goes(path, reason):
    assert slimmed(path) == (set(), {reason: 10})


@pytest.mark.parametrize(
    "path",
    [
        "numpy/testing/__init__.py",
        "tests_of_mine/__init__.py",
        "sklearn/test.py",
        "numpy/core/_umath.cpython-312-x86_64-linux-gnu.so",
        "onnxruntime/capi/libonnxruntime_providers_shared.so",
        "sklearn/datasets/data/iris.csv",
        "numpy-2.0.dist-info/METADATA",
        "numpy-2.0.dist-info/entry_points.txt",
        "numpy-2.0.dist-info/licenses/LICENSE.txt",
        "package.json",
    ],
)
def test_what_a_model_might_read_stays(path):
    assert slimmed(path) == ({path}, {})


def test_bytes_are_counted_by_reason():
    assert slimmed("a/tests/x.py", "a/tests/y.py", "a/z.h", "a/a.py")[1] == {"tests": 20, "headers and sources": 10}


def test_libraries_for_graphics_cards_go_unless_something_is_linked_against_them():
    lock = ["xgboost", "nvidia-nccl-cu12", "numpy"]

    assert slimming.for_graphics_cards(lock) == {"nvidia-nccl-cu12"}
    assert slimming.for_graphics_cards([*lock, "torch", "triton"]) == frozenset()
    assert slimming.for_graphics_cards(["numpy"]) == frozenset()


# --- libraries ---


def library(symbols: int) -> bytes:
    """Return a library of one segment, with so many bytes behind it."""
    loaded = 64 + 56 + 100
    header = bytearray(64)
    header[:6] = b"\x7fELF\x02\x01"
    struct.pack_into("<QQ", header, 32, 64, loaded)
    struct.pack_into("<HHHHHH", header, 52, 64, 56, 1, 64, 9, 8)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, loaded, loaded, 4096)
    return bytes(header) + segment + b"c" * 100 + b"s" * symbols


def test_what_lies_behind_the_last_segment_of_a_library_is_cut_off(tmp_path):
    (tmp_path / "lib.so").write_bytes(library(10_000))
    done = slimming.standard({"a/lib.so": of_file(tmp_path / "lib.so")})
    data = done.files["a/lib.so"].read()

    assert done.dropped == {"debug symbols": 10_000}
    assert len(data) == done.files["a/lib.so"].size == 220
    # Sections are described nowhere; segments as before.
    assert struct.unpack_from("<Q", data, 40) == (0,)
    assert struct.unpack_from("<HHH", data, 58) == (0, 0, 0)
    assert data[64:] == library(0)[64:]
    assert (tmp_path / "lib.so").read_bytes() == library(10_000)


@pytest.mark.parametrize("data", [library(100), b"\x7fELF\x01\x01" + b"0" * 9000, b"text", b"", b"\x7fELF\x02\x01"])
def test_what_is_no_library_or_hardly_longer_than_its_segments_stays(tmp_path, data):
    (tmp_path / "lib.so").write_bytes(data)
    done = slimming.standard({"lib.so": of_file(tmp_path / "lib.so")})

    assert done.files["lib.so"].read() == data
    assert done.dropped == {}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux loads ELF libraries")
def test_a_library_that_was_cut_still_loads_and_computes(tmp_path):
    import ctypes

    from sklearn.tree import _splitter as extension

    path = Path(extension.__file__)
    padded = path.read_bytes() + b"\0" * 8192
    content = Content(
        source=padded, sha256=hashlib.sha256(padded).hexdigest(), size=len(padded), executable=True, stripped=True
    )
    (tmp_path / "cut.so").write_bytes(content.read())

    assert (tmp_path / "cut.so").stat().st_size < len(padded)
    assert ctypes.CDLL(str(tmp_path / "cut.so")).PyInit__splitter
    assert elf.loaded_size(tmp_path / "cut.so") is None


def test_tests_that_other_modules_import_stay_with_the_packages_around_them():
    # numpy 2.2: numpy.testing imports numpy._core.tests._natype, and scikit-learn imports numpy.testing.
    files = {
        "numpy/testing/utils.py": "from numpy import isnan\nfrom numpy._core.tests._natype import pd_NA\n",
        "numpy/_core/tests/__init__.py": "",
        "numpy/_core/tests/_natype.py": "from . import deeper\n",
        "numpy/_core/tests/deeper.py": "",
        "numpy/_core/tests/test_multiarray.py": "import numpy._core.tests._locales\n",
        "numpy/_core/tests/_locales.py": "",
        "pack/a.py": "    from .tests import (\n        one,\n        two,\n    )\n",
        "pack/tests/__init__.py": "",
        "pack/tests/one.py": "",
        "pack/tests/three.py": "",
    }

    done = slimming.standard({path: of_text(text) for path, text in files.items()})

    assert files.keys() - done.files.keys() == {
        "numpy/_core/tests/test_multiarray.py",
        "numpy/_core/tests/_locales.py",
        "pack/tests/three.py",
    }
