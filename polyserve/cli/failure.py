"""How a command fails: one sentence, hints, an exit code. Imported only when something went wrong."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
import traceback
from collections.abc import Iterator

import click

from polyserve.cli.exit_codes import FAULT, INTERRUPTED
from polyserve.cli.providers import NOT_YET, PLANNED
from polyserve.errors import (
    ConflictError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    PackageError,
    PlanRefused,
    PolyserveError,
    SettingsError,
    UnavailableError,
    VerificationError,
)

_RED, _DIM = "1;31", "2"


def show(error: Exception, *, as_json: bool) -> int:
    """Write what went wrong to stderr and return the exit code."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.ctx.get_help() if error.ctx else str(error), err=True)
        return error.exit_code
    if isinstance(error, PolyserveError):
        message, hints = error.message, list(_hints(error))
        code, kind, exit_code = error.code.value, type(error).__name__, error.exit_code
    elif isinstance(error, click.ClickException):
        # With possibilities, click's own format adds them to the sentence; here they are a hint.
        near = getattr(error, "possibilities", None)
        message, hints = _sentence(error.message if near else error.format_message()), list(_usage_hints(error))
        code, kind, exit_code = "INVALID_ARGUMENT", "UsageError", error.exit_code
    else:
        message = f"unexpected {type(error).__name__}: {error}" if str(error) else f"unexpected {type(error).__name__}"
        hints = ["POLYSERVE_DEBUG=1 shows the traceback; please report it with that"]
        code, kind, exit_code = "INTERNAL", type(error).__name__, FAULT
        if os.environ.get("POLYSERVE_DEBUG", "") not in {"", "0"}:
            hints = []
            traceback.print_exception(error, file=sys.stderr)
    if as_json:
        fields = {"message": message, "code": code, "type": kind, "exit_code": exit_code, "hints": hints}
        _write(json.dumps({"error": fields}, ensure_ascii=False))
    else:
        _write(*_wrapped("error:", _RED, message), *(line for hint in hints for line in _wrapped("hint:", _DIM, hint)))
    return exit_code


def show_interruption(*, as_json: bool) -> None:
    """Say that the command was interrupted, and what that means."""
    message = "interrupted: run the same command again to continue"
    if as_json:
        fields = {"message": message, "code": "CANCELLED", "type": "KeyboardInterrupt", "exit_code": INTERRUPTED}
        _write(json.dumps({"error": {**fields, "hints": []}}))
    else:
        _write(message)


# Messages that name what there is themselves.
_SAID = ("polyserve list", " has no revision ")


def _hints(error: PolyserveError) -> Iterator[str]:
    """Yield what to do next, where the message itself does not say it."""
    provider = f" --provider {error.provider}" if error.provider else ""
    # The error does not know where it was looked for; the words that were typed do.
    provider += " --emulate" if "--emulate" in sys.argv else ""
    match error:
        case PlanRefused():
            # A refusal is a sentence with its own way out; the message counts or joins them.
            yield from (refusal for refusal in error.refusals if refusal not in error.message)
        case SettingsError():
            yield "polyserve doctor shows every setting and where it was read"
        case PackageError() if "sample=" in error.message:
            yield "on the command line: --sample FILE, with some rows as .json, .npy or .csv"
        case ConflictError():
            yield "wait until it has ended, then run the same command again"
        case VerificationError():
            yield f"traffic was not touched; polyserve logs {error.resource or 'NAME'}{provider} has the reason"
        case NotFoundError() if error.provider and not any(said in error.message for said in _SAID):
            yield f"polyserve list{provider} shows the deployments there are"
        case InvalidArgumentError() if error.message.startswith("unknown provider") and error.resource in PLANNED:
            yield f"{PLANNED[error.resource]}: {NOT_YET}"
        case UnavailableError():
            yield "run the same command again; polyserve doctor looks for the cause"
        case InternalError():
            yield f"polyserve logs {error.resource or 'NAME'}{provider} has the reason"
        case _:
            return


def _usage_hints(error: click.ClickException) -> Iterator[str]:
    near = getattr(error, "possibilities", None)
    if near:
        yield f"did you mean {near[0]!r}?"
    ctx = getattr(error, "ctx", None)
    if ctx is not None:
        yield f"{ctx.command_path} --help"


def _sentence(message: str) -> str:
    """Return a message of click in our voice: lower case, no full stop."""
    return message[:1].lower() + message[1:].rstrip(".")


def _write(*lines: str) -> None:
    try:
        sys.stderr.write("\n".join(lines) + "\n")
        sys.stderr.flush()
    except (BrokenPipeError, ValueError):
        return


def _wrapped(label: str, colour: str, text: str) -> Iterator[str]:
    """Yield a labelled text; on a terminal in lines that fit it, broken between words only."""
    lines = f"{label} {text}".split("\n")
    if sys.stderr.isatty():
        width = max(40, shutil.get_terminal_size().columns)
        lines = [part for line in lines for part in _broken(line, width)]
        if not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb":
            lines[0] = lines[0].replace(label, f"\033[{colour}m{label}\033[0m", 1)
    yield from lines


def _broken(line: str, width: int) -> list[str]:
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.wrap(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False) or [
        line
    ]
