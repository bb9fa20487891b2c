"""Write the parts of README and docs that are facts of the code: the provider matrix, the command line, errors and exit codes.

    python docs/generate.py           # write
    python docs/generate.py --check   # say what is stale, and fail

A generated part stands between `<!-- generated: NAME -->` and `<!-- end -->`; everything else in the file is written by hand.
"""

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import click
import msgspec

from polyserve import errors, registry
from polyserve.cli.exit_codes import EXIT_CODES
from polyserve.cli.program import COMMANDS, Program
from polyserve.cli.program import polyserve as program
from polyserve.cli.providers import PLANNED
from polyserve.driver import Capability, ErrorCode, ProviderInfo
from polyserve.runtime.messages import HTTP_STATUS

ROOT = Path(__file__).resolve().parents[1]


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _mib(size: int) -> str:
    return f"{size // 1024} GiB" if size % 1024 == 0 and size >= 1024 else f"{size} MiB"


def _bytes(size: int | None) -> str:
    return "none" if size is None else _mib(size >> 20) if size >= 1 << 20 else f"{size} bytes"


def provider_matrix() -> str:
    """Return what each provider is and can do, planned ones included and marked."""
    known = registry.providers()
    coming = [name for name in PLANNED if name not in known]
    head = ["", *(f"`{name}`" for name in (*known, *coming))]
    services = [PLANNED[name].partition(": ")[2] or PLANNED[name] for name in coming]
    rows = [
        ["in this version", *("works" for _ in known), *("planned" for _ in coming)],
        ["runs and stores", *(f"{i.function_service}, {i.store_service}" for i in known.values()), *services],
    ]
    for capability in Capability:
        says = ["yes" if capability in i.capabilities else "no, refused" for i in known.values()]
        rows.append([capability.value.replace("-", " "), *says, *("" for _ in coming)])
    return _table(head, rows)


def _limits(info: ProviderInfo) -> str:
    limits = info.limits
    rows = [
        ["name", limits.name_rule],
        ["memory of one instance", f"{_mib(limits.memory_mb[0])} to {_mib(limits.memory_mb[1])}"],
        ["time for one request", f"{limits.timeout.total_seconds():,.0f} s"],
        ["request body", _bytes(limits.request_bytes)],
        ["response body", _bytes(limits.response_bytes)],
        ["bundle, packed and unpacked", f"{_bytes(limits.bundle_bytes)}, {_bytes(limits.bundle_unpacked_bytes)}"],
        ["environment variables", _bytes(limits.environment_bytes)],
        ["Python", ", ".join(limits.pythons)],
        ["processors", ", ".join(limits.architectures)],
        ["instances", "none" if limits.max_instances is None else str(limits.max_instances)],
        ["source of these figures", limits.source],
    ]
    return _table(["limit", f"on `{info.name}`"], rows)


def _options(info: ProviderInfo) -> str:
    """Return the options of a provider, as its settings type documents them."""
    kind = registry.settings_type(info)
    documented = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:")[2]
    rows = []
    for field in msgspec.structs.fields(kind):
        # With what follows it further in.
        says = re.search(rf"^( +){field.name}: (.*(?:\n\1 +.*)*)$", documented, re.MULTILINE)
        shown = (
            "empty"
            if field.default in ("", (), msgspec.NODEFAULT)
            else str(field.default).lower()
            if isinstance(field.default, bool)
            else field.default
        )
        rows.append(
            [
                f"`{field.encode_name}`",
                f"{shown:g}" if isinstance(shown, float) else str(shown),
                " ".join(says[2].split()) if says else "",
            ]
        )
    return _table(["option", "default", "meaning"], rows)


def exit_codes() -> str:
    """Return the exit codes of the command line, with the errors that each stands for."""
    tree = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.PolyserveError)]
    rows = []
    for code, meaning in EXIT_CODES.items():
        kinds = sorted(kind.__name__ for kind in tree if kind.exit_code == code)
        rows.append([f"`{code}`", meaning, ", ".join(f"`{kind}`" for kind in kinds)])
    return _table(["code", "meaning", "errors"], rows)


def error_codes() -> str:
    """Return the error codes with their HTTP status and their class."""
    rows = []
    for code in ErrorCode:
        kind = errors.error_for(code)
        bases = [base.__name__ for base in kind.__bases__ if base.__module__ == "builtins" and base is not Exception]
        also = f" (also `{bases[0]}`)" if bases else ""
        rows.append([f"`{code.value}`", str(HTTP_STATUS[code]), f"`{kind.__name__}`{also}"])
    return _table(["code", "HTTP status", "class in Python"], rows)


def _parameters(command: click.Command, ctx: click.Context) -> Iterator[list[str]]:
    for parameter in command.get_params(ctx):
        if not isinstance(parameter, click.Option) or parameter.hidden or "--help" in parameter.opts:
            continue
        record = parameter.get_help_record(ctx)
        if record:
            yield [f"`{record[0]}`", record[1]]


def command_line() -> str:
    """Return every command with its usage, its help and its options."""
    assert isinstance(program, Program)
    parts = []
    top = click.Context(program, info_name="polyserve")
    for section, names in COMMANDS.items():
        parts.append(f"## {section}")
        for name in names:
            command = program.get_command(top, name)
            assert command is not None
            ctx = click.Context(command, info_name=name, parent=top)
            usage = " ".join(["polyserve", name, *command.collect_usage_pieces(ctx)])
            help_text = inspect.cleandoc(command.help or names[name]).replace("\b\n", "").replace("\f", "")
            parts += [f"### polyserve {name}", help_text, f"```text\n{usage}\n```"]
            rows = list(_parameters(command, ctx))
            if rows:
                parts.append(_table(["option", "what it does"], rows))
    return "\n\n".join(parts)


PARTS: dict[str, Callable[[], str]] = {
    "provider-matrix": provider_matrix,
    **{f"{name}-limits": partial(_limits, info) for name, info in registry.providers().items()},
    **{f"{name}-options": partial(_options, info) for name, info in registry.providers().items()},
    "exit-codes": exit_codes,
    "error-codes": error_codes,
    "command-line": command_line,
}
_PART = re.compile(r"(<!-- generated: (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def regenerated(text: str) -> str:
    """Return a page with its generated parts made anew."""
    return _PART.sub(lambda m: f"{m[1]}\n{PARTS[m['name']]()}\n\n{m[3]}", text)


def main(check: bool) -> int:
    """Write every stale page, or name it; returns the exit code."""
    stale = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = page.read_text()
        fresh = regenerated(text)
        if fresh != text:
            stale.append(page.relative_to(ROOT))
            if not check:
                page.write_text(fresh)
    for page in stale:
        print(f"{page}: {'stale: run python docs/generate.py' if check else 'written'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
