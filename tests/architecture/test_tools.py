"""The tools of the trade, each as a test, so that one command checks everything."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Each is the command a developer would type; its output is the message of the failing test.
TOOLS = {
    "the linter finds nothing": ["-m", "ruff", "check", "."],
    "the formatter would change nothing": ["-m", "ruff", "format", "--check", "."],
    "the type checker finds nothing": ["-m", "mypy"],
    "the public surface is typed for its users": ["-m", "mypy", "tests/architecture/usage.py"],
    "the import contracts hold": ["-c", "from importlinter.cli import lint_imports_command as c; c(['--no-cache'])"],
    "the change fragments make a changelog": ["-m", "towncrier", "build", "--draft", "--version", "0.0.0"],
}


@pytest.mark.parametrize("arguments", TOOLS.values(), ids=TOOLS)
def test_the_tools_agree(arguments: list[str]) -> None:
    ran = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)

    assert ran.returncode == 0, ran.stdout[-20_000:] + ran.stderr[-5_000:]
