"""What the tree may hold: names that say something, files that do one job, and nothing of one machine."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EMPTY_WORDS = {"utils", "util", "helpers", "helper", "common", "base", "manager", "misc", "shared"}
LONGEST_MODULE = 450
# Why a module may be longer; an entry that is not needed any more fails the test too.
LONGER = {
    "polyserve/driver.py": "one list of contracts: splitting it would hide half of what a provider's author must read",
}


def _tracked() -> list[Path]:
    """Return the files of the tree: what git tracks and would track; without git, as in an sdist, every source file."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    except (OSError, subprocess.CalledProcessError):
        listed = [
            str(path.relative_to(ROOT))
            for top in ("polyserve", "providers", "docs", "tests")
            for path in (ROOT / top).rglob("*.*")
        ]
    return sorted(ROOT / name for name in set(listed) if name and (ROOT / name).is_file() and "__pycache__" not in name)


FILES = _tracked()
MODULES = [
    path for path in FILES if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in {"polyserve", "providers"}
]


def test_no_module_has_a_name_that_says_nothing() -> None:
    named = [path.relative_to(ROOT).with_suffix("") for path in FILES if path.suffix == ".py"]

    assert [str(path) for path in named if EMPTY_WORDS & set(path.parts)] == []


def test_no_module_is_longer_than_one_job_needs() -> None:
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in MODULES}
    long = {name: lines for name, lines in lengths.items() if lines > LONGEST_MODULE}

    assert {name: lines for name, lines in long.items() if name not in LONGER} == {}
    assert LONGER.keys() - long.keys() == set()


def test_the_top_level_holds_what_the_map_shows() -> None:
    top = {path.relative_to(ROOT).parts[0] for path in FILES}

    assert top <= {
        ".ci",
        ".gitignore",
        "LICENSE",
        "README.md",
        "docs",
        "polyserve",
        "providers",
        "pyproject.toml",
        "tests",
    }


# A class of one letter keeps a pattern from matching itself.
FORBIDDEN = {
    "the address of a package registry": r"p[y]pi\.org|p[y]thonhosted\.|registry\.n[p]mjs|deb\.d[e]bian\.org",
    "a path of somebody's machine": r"(?<![\w./-])/(?:work|root|Users|home/\w+)/",
    "an instruction to install an unrelated project": r"pip install (?:-U |--upgrade )?['\"]?polyserve(?!-sdk)\b",
}


@pytest.mark.parametrize("pattern", FORBIDDEN.values(), ids=FORBIDDEN)
def test_no_file_holds(pattern: str) -> None:
    found = []
    for path in FILES:
        if (
            path.suffix in {".py", ".md", ".toml", ".rst", ".txt", ".json", ".html", ".css", ""}
            and path != Path(__file__).resolve()
        ):
            for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
                if re.search(pattern, line):
                    found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}")

    assert found == []


def test_no_file_is_large() -> None:
    assert [str(path.relative_to(ROOT)) for path in FILES if path.stat().st_size > 300_000] == []
