"""What an import loads, by name and not by time: a slow import is always one module too many."""

import json
import subprocess
import sys

import pytest

SDKS = {"azure", "boto3", "botocore", "google", "grpc"}
HEAVY = {
    "aiohttp",
    "click",
    "httpx",
    "joblib",
    "msgspec",
    "numpy",
    "pandas",
    "pydantic",
    "rich",
    "scipy",
    "sklearn",
    "stamina",
}


def _loaded(code: str) -> set[str]:
    """Return the top-level names in `sys.modules` after running `code` in an interpreter of its own."""
    script = (
        f"import sys, json\n{code}\nprint()\nprint(json.dumps(sorted({{n.partition('.')[0] for n in sys.modules}})))"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(ran.stdout.splitlines()[-1]))


def test_importing_polyserve_loads_nothing_but_the_standard_library() -> None:
    bare = _loaded("pass")

    extra = _loaded("import polyserve") - bare - set(sys.stdlib_module_names)

    assert extra == {"polyserve"}


@pytest.mark.parametrize(
    "module", ["polyserve.driver", "polyserve.errors", "polyserve.runtime.host", "polyserve_local"]
)
def test_the_contracts_and_the_runtime_load_nothing_heavy(module: str) -> None:
    assert not _loaded(f"import {module}") & (HEAVY | SDKS)


def test_the_help_of_the_command_line_loads_only_its_parser() -> None:
    code = (
        "import contextlib\nfrom polyserve.cli import main\nsys.argv = ['polyserve', '--help']\n"
        "with contextlib.suppress(SystemExit):\n    main()"
    )

    assert not _loaded(code) & (HEAVY | SDKS) - {"click"}


def test_every_command_s_help_loads_only_its_parser() -> None:
    code = (
        "import contextlib, io\nfrom polyserve.cli import main\n"
        "for name in ('deploy', 'invoke', 'list', 'demo', 'logs', 'providers'):\n"
        "    sys.argv = ['polyserve', name, '--help']\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "        main()"
    )

    assert not _loaded(code) & (HEAVY | SDKS) - {"click"}
