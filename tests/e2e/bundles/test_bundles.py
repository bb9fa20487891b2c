"""A bundle for a platform that installs nothing: complete, slim, byte-compiled, proven, and the same bytes on any machine."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent

import pytest
from sklearn.tree import DecisionTreeClassifier

from polyserve.bundle import build
from polyserve.driver import BundleForm
from polyserve.errors import PackageError
from polyserve.model import ModelPackage, package
from polyserve.model.storage import cache_directory
from polyserve.runtime import archive
from tests.e2e.bundles.conftest import write_wheel

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
CACHED = f"cpython-{PYTHON.replace('.', '')}.pyc"
TINY = {
    "tiny/__init__.py": "from tiny.used import double\n",
    "tiny/used.py": dedent("""
        from pathlib import Path

        def double(x):
            factor = int((Path(__file__).parent / "factor.txt").read_text())
            return [value * factor for value in x]
    """),
    "tiny/factor.txt": "2",
    "tiny/unused.py": "BIG = '" + "x" * 50_000 + "'\n",
    "tiny/unused.pyi": "BIG: str\n",
    "tiny/fast.h": "int x;\n",
    "tiny/tests/__init__.py": "",
    "tiny/tests/test_used.py": "assert False\n",
    "tiny/wrong.py": "this does not compile\n",
}

# Modules of which two patch versions of one Python once made different byte-code, and one process another than the next.
HARD = {
    "tiny/lebedev.py": Path(find_spec("scipy.integrate._lebedev").origin).read_bytes(),
    "tiny/stft.py": Path(find_spec("scipy.signal._short_time_fft").origin).read_bytes(),
}

BUILD = """
import dataclasses, os, sys
os.umask(int(sys.argv[2], 8))
from polyserve import registry
from polyserve.bundle import build
from polyserve.driver import BundleForm
from polyserve.model import ModelPackage
info = registry.info("local")
info = dataclasses.replace(info, bundle=BundleForm(dependencies=".", glibc={sys.argv[3]: (2, 28)}))
made = build(ModelPackage.open(sys.argv[1]), info, python=sys.argv[3], architecture="x86_64")
print(made.sha256, "byte-code" in made.parts)
"""

ASK = """
import json, sys
sys.path[:0] = sys.argv[1].split(":")
import polyserve_entrypoint, polyserve.runtime.host, tiny.used
modules = (polyserve_entrypoint, polyserve.runtime.host, tiny.used)
print(json.dumps([module.__spec__.cached for module in modules] + [tiny.used.double([4])]))
"""


DOUBLING = "import tiny\n\ndef predict(x):\n    return tiny.double(x)\n"


def packaged(folder: Path, source: str) -> ModelPackage:
    """Make a package of code that needs a distribution."""
    (folder / "doubling.py").write_text(source)
    with zipfile.ZipFile(write_wheel(folder, "tiny", "1.0", TINY)) as wheel:
        wheel.extractall(folder / "site")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder / "site"))
        patch.syspath_prepend(str(folder))
        try:
            return package("doubling:predict", sample=[1.0, 2.0], requirements=["tiny"], into=folder / "kept")
        finally:
            for name in [name for name in sys.modules if name.partition(".")[0] in {"doubling", "tiny"}]:
                del sys.modules[name]


@pytest.fixture(scope="module")
def doubling(tmp_path_factory) -> ModelPackage:
    """Return a package that no test changes."""
    return packaged(tmp_path_factory.mktemp("doubling"), DOUBLING)


@pytest.fixture
def made(doubling, make_wheel) -> ModelPackage:
    """Return that package, where uv and pip find what it needs."""
    make_wheel("tiny", "1.0", TINY)
    return doubling


def built(made: ModelPackage, info, **changes):
    return build(made, info, **({"python": PYTHON, "architecture": "x86_64"} | changes))


def names(bundle) -> set[str]:
    with zipfile.ZipFile(bundle.path) as opened:
        return set(opened.namelist())


def test_dependencies_lie_where_the_platform_looks_for_them(made, platform):
    at_root = built(made, platform())
    beside = BundleForm(
        entrypoint="function_app.py", dependencies=".packages/lib", files={"host.json": "{}"}, glibc={PYTHON: (2, 28)}
    )
    below = built(made, platform(form=beside))

    assert {"tiny/used.py", "polyserve_entrypoint.py", "polyserve/runtime/host.py"} <= names(at_root)
    assert {".packages/lib/tiny/used.py", "function_app.py", "host.json"} <= names(below)
    assert set(below.parts) == {"package", "runtime", "entrypoint", "platform", "dependencies", "byte-code"}
    assert below.unpacked_size == sum(below.parts.values())


def test_a_platform_that_installs_gets_the_lock_and_no_dependencies(made, platform):
    form = BundleForm(requirements_file="requirements.txt", requirements=("framework==3.*",))
    bundle = built(made, platform(form=form))

    with zipfile.ZipFile(bundle.path) as opened:
        lines = opened.read("requirements.txt").decode().splitlines()
    assert lines == ["framework==3.*", "tiny==1.0"]
    assert "dependencies" not in bundle.parts


def test_what_no_function_can_use_is_left_out_and_counted(made, platform):
    bundle = built(made, platform())
    whole = built(made, platform(), slim="off")

    left_out = {"tiny/tests/test_used.py", "tiny/tests/__init__.py", "tiny/fast.h", "tiny/unused.pyi"}
    assert left_out & names(bundle) == set()
    assert left_out <= names(whole)
    assert {"tests", "headers and sources", "stubs"} <= bundle.dropped.keys()
    assert whole.parts["dependencies"] - bundle.parts["dependencies"] == sum(bundle.dropped.values())


def test_a_bundle_runs_from_its_byte_code(made, platform, tmp_path):
    archive.extract(built(made, platform()).path, tmp_path / "out")
    unpacked = tmp_path / "out"
    for source in unpacked.glob("tiny/*.py"):
        # Unchecked: an archive's dates say nothing, so that a source is not even looked at.
        source.write_text("raise SystemExit('compiled again')")
    command = [sys.executable, "-I", "-S", "-B", "-c", ASK, str(unpacked)]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    *cached, doubled = json.loads(told.stdout)

    assert doubled == [8]
    assert all(Path(path).is_file() for path in cached)
    assert f"tiny/__pycache__/wrong.{CACHED}" not in names(built(made, platform()))


def test_byte_code_is_left_out_where_it_would_be_too_much(made, platform):
    whole = built(made, platform())
    without = whole.unpacked_size - whole.parts["byte-code"]

    unpacked = built(made, platform(bundle_unpacked_bytes=without))
    packed = built(made, platform(bundle_bytes=whole.size - 1))

    assert (unpacked.unpacked_size, packed.unpacked_size) == (without, without)
    assert "larger than the platform takes" in unpacked.notes[0]
    assert "the upload would be larger" in packed.notes[0]


def test_a_python_that_is_not_here_is_said_to_be_missing(made, platform, monkeypatch):
    from polyserve.bundle import compiling

    monkeypatch.setattr(compiling, "find_python", lambda python: None)
    bundle = built(made, platform())

    assert "byte-code" not in bundle.parts
    assert f"put a python{PYTHON} on the PATH" in bundle.notes[0]


def test_a_dependency_in_the_place_of_the_bundles_own_files_is_refused(made, make_wheel, platform):
    make_wheel("rude", "1.0", {"polyserve_entrypoint.py": ""})
    form = BundleForm(dependencies=".", requirements=("rude==1.0",), glibc={PYTHON: (2, 28)})

    with pytest.raises(PackageError, match=r"rude brings 'polyserve_entrypoint\.py'"):
        built(made, platform(form=form))


def test_distributions_are_listed_largest_first(made, platform, make_wheel):
    make_wheel("huge", "1.0", {"huge.py": "x = '" + "y" * 900_000 + "'"})
    form = BundleForm(dependencies=".", requirements=("huge==1.0",), glibc={PYTHON: (2, 28)})

    assert next(iter(built(made, platform(form=form)).distributions)) == "huge"


# --- the same bytes ---


def pythons() -> list[str]:
    """Return interpreters of this minor version; where there is another patch version of it, that is one of them."""
    found = {sys.version: sys.executable}
    for candidate in (f"/usr/bin/python{PYTHON}", f"/usr/local/bin/python{PYTHON}", shutil.which(f"python{PYTHON}")):
        if candidate is not None and Path(candidate).exists():
            command = [candidate, "-c", "import sys; print(sys.version, end='')"]
            asked = subprocess.run(command, capture_output=True, text=True, check=False)
            if asked.returncode == 0:
                found.setdefault(asked.stdout, candidate)
    return list(found.values())


def test_the_same_package_is_the_same_bytes_wherever_it_is_built(made, make_wheel, tmp_path):
    make_wheel("tiny", "1.0", TINY | HARD)
    saved = made.save(tmp_path / "model.zip")
    told = set()
    for number, interpreter in enumerate([*pythons(), sys.executable]):
        home = tmp_path / f"elsewhere-{number}"
        home.mkdir()
        environment = {
            **os.environ,
            "POLYSERVE_CACHE": str(home / "cache"),
            "XDG_CACHE_HOME": str(home),
            "PYTHONHASHSEED": str(number),
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }
        command = [interpreter, "-c", BUILD, str(saved), ("022", "077", "000")[number % 3], PYTHON]
        ran = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        told.add(ran.stdout)

    assert len(told) == 1
    assert told.pop().split()[1] == "True"


def test_a_bundle_that_was_built_before_is_found_without_any_index(made, platform, tmp_path):
    first = built(made, platform())
    shutil.rmtree(tmp_path / "wheelhouse")

    assert built(made, platform()) == first


def test_a_new_model_takes_over_what_was_compressed_before(made, platform, tmp_path):
    told: list[str] = []
    built(made, platform())
    other = packaged(tmp_path, DOUBLING.replace("tiny.double(x)", "tiny.double(tiny.double(x))"))
    bundle = built(other, platform(), report=told.append)

    assert bundle.package_digest != made.digest
    assert [line for line in told if not line.startswith("packing")] == []


def test_platforms_share_what_was_compiled_and_compressed_wherever_they_put_it(made, platform, make_wheel):
    make_wheel("more", "1.0", {"more.py": "x = 1\n"})
    told: list[str] = []
    first = built(made, platform())
    form = BundleForm(dependencies="below/lib", requirements=("more==1.0",), glibc={PYTHON: (2, 28)})
    second = built(made, platform(form=form), report=told.append)

    assert {f"below/lib/tiny/__pycache__/used.{CACHED}", f"below/lib/__pycache__/more.{CACHED}"} <= names(second)
    # The one distribution that the first bundle had not.
    assert [line for line in told if line.startswith("compiling")] == [f"compiling 1 modules for Python {PYTHON}"]
    with zipfile.ZipFile(first.path) as one, zipfile.ZipFile(second.path) as two:
        inside = f"tiny/__pycache__/used.{CACHED}"
        assert one.read(inside) == two.read(f"below/lib/{inside}")


def test_an_interpreter_that_cannot_compile_is_named_and_leaves_nothing(made, platform, monkeypatch, tmp_path):
    from polyserve.bundle import compiling

    broken = tmp_path / "broken-python"
    broken.write_text("#!/bin/sh\necho it is broken >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(compiling, "find_python", lambda python: str(broken))

    with pytest.raises(PackageError, match=r"broken-python cannot compile the bundle's modules: it is broken"):
        built(made, platform())
    assert list((cache_directory() / "packs").iterdir()) == []


# --- traced ---


def test_what_the_sample_never_touches_goes_and_the_sample_is_still_answered(made, platform):
    standard, traced = built(made, platform()), built(made, platform(), slim="traced")

    gone = names(standard) - names(traced)
    assert {"tiny/unused.py", f"tiny/__pycache__/unused.{CACHED}", "tiny/wrong.py"} <= gone
    assert {"tiny/factor.txt", "tiny/used.py", "tiny-1.0.dist-info/METADATA"} <= names(traced)
    assert traced.dropped["never touched by the sample"] > 50_000


def test_a_trace_is_made_once(made, platform):
    told: list[str] = []
    first = built(made, platform(), slim="traced")

    assert built(made, platform(), slim="traced", report=told.append) == first
    assert told == []


def test_what_is_looked_at_without_being_opened_is_missed_and_found_missing(make_wheel, made, platform):
    looking = dict(TINY) | {
        "tiny/used.py": "import os\n\ndef double(x):\n    there = os.path.exists(os.path.join(os.path.dirname(__file__), 'factor.txt'))\n"
        "    return [value * (2 if there else 3) for value in x]\n"
    }
    make_wheel("tiny", "1.0", looking)

    with pytest.raises(PackageError, match=r"slim 'traced' was given up .* with what it touched alone"):
        built(made, platform(), slim="traced")


def test_tracing_for_another_machine_is_refused(made, platform):
    other = "arm64" if os.uname().machine == "x86_64" else "x86_64"

    with pytest.raises(PackageError, match="slim 'traced' runs the model with the function's own libraries"):
        built(made, platform(), slim="traced", architecture=other)


def test_tracing_without_a_sample_is_refused(made, platform):
    # A model that says what its input is can be packaged without one; a function cannot.
    unproven = package(DecisionTreeClassifier().fit([[0.0], [1.0]], [0, 1]), name="tree")
    unproven = dataclasses.replace(
        unproven, manifest=dataclasses.replace(unproven.manifest, requirements=("tiny==1.0",))
    )

    with pytest.raises(PackageError, match="has none: package it with a sample"):
        built(unproven, platform(), slim="traced")
