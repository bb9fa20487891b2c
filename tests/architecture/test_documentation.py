"""What README and docs say is true: their commands exist, their Python runs, and their tables are facts of the code."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import click
import pytest

from polyserve.cli.program import COMMANDS
from polyserve.cli.program import polyserve as program
from polyserve.model.flavors import FLAVORS, flavor

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "providers" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if "_build" not in page.parts]
DECISIONS = sorted(page for page in (ROOT / "docs" / "decisions").glob("*.md") if page.name != "index.md")
NAMES = {name for section in COMMANDS.values() for name in section}

# A page of these is run from top to bottom, on `local`, in a home and a directory of its own.
GUIDES = [page for page in sorted((ROOT / "docs" / "how-to").glob("*.md")) if page.name != "index.md"]
RUN = ["README.md", "docs/index.md", "docs/tutorial.md", *(f"docs/how-to/{page.name}" for page in GUIDES)]


def _id(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@dataclass
class Block:
    """A fenced block of a page; `file` is the caption of a block that shows a file."""

    language: str
    line: int
    file: str = ""
    lines: list[str] = field(default_factory=list)


def _blocks(page: Path) -> Iterator[Block]:
    block = None
    for number, line in enumerate(page.read_text().splitlines(), 1):
        fence = re.match(r"\s*(?:```|:::)(?:\{(?P<directive>[\w-]+)\}\s*)?(?P<language>\S*)", line)
        if block is None and fence:
            block = Block(fence["language"] if fence["directive"] in {None, "code-block"} else "", number)
        elif block is not None and re.fullmatch(r"\s*(?:```|:::)\s*", line):
            yield block
            block = None
        elif block is not None and not block.lines and (option := re.match(r":(\w+): *(.*)", line)):
            block.file = option[2] if option[1] == "caption" else block.file
        elif block is not None:
            block.lines.append(line)


def _commands(block: Block) -> Iterator[tuple[int, str]]:
    """Yield the commands of a shell block with their lines: with prompts those behind a prompt, else all."""
    prompts = any(line.startswith("$ ") for line in block.lines)
    joined: list[tuple[int, str]] = []
    for number, line in enumerate(block.lines, block.line + 1):
        if joined and joined[-1][1].endswith("\\"):
            joined[-1] = (joined[-1][0], joined[-1][1][:-1] + line.removeprefix("> ").strip())
        elif line.startswith("$ ") or (not prompts and line.strip() and not line.startswith("#")):
            joined.append((number, line.removeprefix("$ ")))
    yield from joined


SHELLS = {"console", "sh", "bash", "shell"}


def _uses(page: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield every use of the command line on a page, in blocks and in running text, as words."""
    for block in _blocks(page):
        for number, command in _commands(block) if block.language in SHELLS else ():
            for part in re.split(r"&&|\|\||;|\|", command.partition(" #")[0]):
                words = shlex.split(part)
                if words[:1] == ["polyserve"]:
                    yield number, words
    for number, line in enumerate(page.read_text().splitlines(), 1):
        for inline in re.findall(r"(?<!`)`(polyserve [^`]*)`", line):
            yield number, inline.split()


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_every_command_on_a_page_exists_with_its_options(page: Path) -> None:
    wrong = []
    for number, words in _uses(page):
        name, arguments = (words[1], words[2:]) if len(words) > 1 else ("", [])
        if name.startswith("-") or name == "":
            continue
        command = program.get_command(click.Context(program), name)
        if command is None:
            wrong.append(f"line {number}: no command {name!r}")
            continue
        known = {opt for p in command.get_params(click.Context(command)) for opt in (*p.opts, *p.secondary_opts)}
        given = {word.partition("=")[0].strip("[]()") for word in arguments if re.match(r"[\[(]*--?[a-z]", word)}
        wrong += [f"line {number}: {name} has no {option}" for option in sorted(given - known)]

    assert wrong == []


def test_every_command_is_explained_in_the_reference() -> None:
    page = (ROOT / "docs" / "reference" / "cli.md").read_text()

    assert [name for name in sorted(NAMES) if f"### polyserve {name}\n" not in page] == []


def _script(page: Path) -> str:
    """Return a page as one program: files are written, Python runs in one namespace, `polyserve` commands are called."""
    parts = ["import os, subprocess, sys", "from pathlib import Path", "sys.path.insert(0, os.getcwd())"]
    for block in _blocks(page):
        where = f"# {_id(page)}, line {block.line}"
        if block.file:
            text = "\n".join(block.lines) + "\n"
            parts += [where, f"Path({block.file!r}).write_text({text!r})"]
        elif block.language == "python":
            parts += [where, *block.lines]
        elif block.language in SHELLS:
            for part in (part for _, command in _commands(block) for part in command.split("&&")):
                words = shlex.split(part.partition(" #")[0])
                if words[:1] == ["polyserve"] and "--follow" not in words:
                    parts += [where, f"subprocess.run([sys.executable, '-m', *{words!r}], check=True)"]
    return "\n".join(parts)


CLEAN_UP = "import polyserve\nfor each in polyserve.list_deployments(): polyserve.connect(each.record.name).destroy()"


def test_the_table_of_flavors_has_each_with_its_files() -> None:
    lines = (ROOT / "docs" / "how-to" / "flavors.md").read_text().splitlines()
    rows = {found[1]: found[2] for line in lines if (found := re.match(r"\| `(\w+)` \| ([^|]*) \|", line))}

    assert sorted(rows) == sorted(FLAVORS)
    for name in FLAVORS:
        assert [suffix for suffix in flavor(name).SUFFIXES if f"`{suffix}`" not in rows[name]] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", RUN)
def test_a_page_runs_from_top_to_bottom(name: str, tmp_path: Path) -> None:
    (tmp_path / "page.py").write_text(_script(ROOT / name))
    try:
        ran = subprocess.run([sys.executable, "page.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    finally:
        subprocess.run([sys.executable, "-c", CLEAN_UP], cwd=tmp_path, check=True, capture_output=True)

    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-8000:]


def _shape(text: str) -> list[str]:
    """Return the words of an output with everything that differs from run to run made alike."""
    text = re.sub(r"\S+/demo\.json", "FILE", re.sub(r"\b[0-9a-f]{12}\b", "DIGEST", text))
    return re.sub(r"[\d.,]+", "#", text).split()


@pytest.mark.slow
def test_the_demo_prints_what_the_readme_shows(tmp_path: Path) -> None:
    (shown,) = ["\n".join(block.lines) for block in _blocks(ROOT / "README.md") if block.language == "text"]
    command = [sys.executable, "-m", "polyserve", "demo"]
    try:
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    finally:
        subprocess.run([sys.executable, "-c", CLEAN_UP], cwd=tmp_path, check=True, capture_output=True)

    assert ran.returncode == 0, ran.stderr
    assert _shape(ran.stdout) == _shape(shown)


def test_the_documentation_builds_without_a_warning(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "-n",
        "-q",
        "--keep-going",
        "-b",
        "html",
        "-d",
        str(tmp_path / "d"),
    ]
    ran = subprocess.run(
        [*command, "docs", str(tmp_path / "html")], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert ran.returncode == 0, ran.stderr[-8000:]
    assert (tmp_path / "html" / "tutorial.html").exists()


def test_generated_parts_are_what_the_code_says_now() -> None:
    ran = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("page", DECISIONS, ids=lambda page: page.stem)
def test_a_decision_says_when_it_is_violated(page: Path) -> None:
    headings = re.findall(r"^(#+) (.*)$", page.read_text(), re.MULTILINE)

    assert [text for level, text in headings if level == "##"] == [
        "Status",
        "Context",
        "Decision",
        "Consequences",
        "A change violates this decision when it:",
    ]
    assert len([text for level, text in headings if level == "#"]) == 1


def test_ci_runs_the_commands_of_the_readme() -> None:
    readme = [
        command for block in _blocks(ROOT / "README.md") if block.language in SHELLS for _, command in _commands(block)
    ]
    ci = (ROOT / ".ci" / "run").read_text().replace("--quiet ", "").splitlines()
    tests = next(command for command in readme if "pytest" in command)
    wanted = [part.strip() for command in (readme[0], tests) for part in command.split("&&")]

    assert readme[0] == "pip install -e '.[demo]' && polyserve demo"
    assert [line for line in ci if line in wanted] == wanted


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "providers" / "README.md"], ids=_id)
def test_every_link_in_a_readme_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())

    assert links
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_change_fragment_is_a_sentence() -> None:
    fragments = [path for path in (ROOT / "docs" / "changes").iterdir() if path.suffix == ".md"]
    names = re.compile(r"\+?[\w-]+\.(feature|change|bugfix)(\.\d+)?\.md")

    assert fragments
    assert [path.name for path in fragments if not names.fullmatch(path.name)] == []
    assert [path.name for path in fragments if not re.match(r"[A-Z`].*\.\s*\Z", path.read_text(), re.DOTALL)] == []
