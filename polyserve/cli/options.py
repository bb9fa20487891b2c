"""Arguments and options that several commands share, so that they are called and explained alike everywhere."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import wraps
from typing import Any, TypedDict, TypeVar

import click

F = TypeVar("F", bound=Callable[..., object])

_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def named(command: F) -> F:
    """Add the argument NAME: the deployment."""
    return click.argument("name")(command)


def model(command: F) -> F:
    """Add the argument MODEL."""
    return click.argument("model", callback=_importable)(command)


class Where(TypedDict):
    """Which provider a command is about, as every verb of the API takes it."""

    provider: str | None
    profile: str | None
    emulate: bool | None


def where(command: Callable[..., object]) -> Callable[..., object]:
    """Add --provider, --profile and --emulate, and give them to the command as one argument, `where`."""

    @wraps(command)
    def gathered(
        *args: object, provider: str | None, profile: str | None, emulate: bool | None, **rest: object
    ) -> object:
        return command(*args, where=Where(provider=provider, profile=profile, emulate=emulate), **rest)

    adding: Callable[..., object] = gathered
    for add in (
        emulate,
        click.option("--profile", metavar="NAME", help="Named settings of polyserve.toml."),
        click.option("--provider", metavar="NAME", help="local, aws, ...; default: from the settings, else local."),
    ):
        adding = add(adding)
    return adding


def emulate(command: F) -> F:
    """Add --emulate."""
    meaning = "Rehearse it: the provider's emulator on this machine, no account."
    return click.option("--emulate", is_flag=True, default=None, help=meaning)(command)


def spelt(where: Where) -> str:
    """Return the options of `where` as they are typed, each with a space before it."""
    words = "".join(f" --{key} {value}" for key, value in where.items() if key != "emulate" and value)
    return f"{words} --emulate" if where["emulate"] else words


def json_output(command: F) -> F:
    """Add --json."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON value on stdout, errors as JSON on stderr.")(
        command
    )


def shape(command: F) -> F:
    """Add what `plan` and `deploy` take alike: everything that makes a revision."""
    for add in reversed(
        (
            click.option("--name", metavar="NAME", help="The deployment; default: the package's own name."),
            click.option("--memory", "memory_mb", type=int, metavar="MB", help="Memory of one instance, in MiB."),
            click.option("--timeout", type=float, metavar="SECONDS", help="Longest time one request may take."),
            click.option("--min", "min_instances", type=int, metavar="N", help="Instances kept warm."),
            click.option("--max", "max_instances", type=int, metavar="N", help="Most instances."),
            click.option(
                "--env",
                "environment",
                multiple=True,
                metavar="KEY=VALUE",
                callback=_environment,
                help="An environment variable of the model; may be repeated.",
            ),
            click.option(
                "--canary", type=int, metavar="PERCENT", help="Give the new revision this share of the traffic only."
            ),
            sample,
            contents,
            compiled,
        )
    ):
        command = add(command)
    return command


def contents(command: F) -> F:
    """Add what decides what is in a bundle: --arch, --python and --slim."""
    slim = click.option(
        "--slim",
        type=click.Choice(["standard", "off", "traced"]),
        help="Leave out what no function can use, nothing, or what the sample never touches, too.",
    )
    machine = click.option(
        "--arch", "architecture", type=click.Choice(["x86_64", "arm64"]), help="Processor of the functions."
    )
    python = click.option(
        "--python", metavar="3.N", help="Python of the functions, for a model that is bound to none, such as ONNX."
    )
    return machine(python(slim(command)))


def sample(command: F) -> F:
    """Add --sample."""
    return click.option(
        "--sample",
        metavar="FILE",
        type=click.Path(),
        help="Sample input (.json, .npy, .csv): recorded with the answer and replayed after every deploy.",
    )(command)


def compiled(command: F) -> F:
    """Add --compile."""
    return click.option(
        "--compile",
        "compiling",
        type=click.Choice(["auto", "onnx", "off"]),
        default="auto",
        show_default=True,
        help="Serve as ONNX where a sample of 32 rows or more proves equal answers; or else fail; or never.",
    )(command)


def since(command: F) -> F:
    """Add --since."""
    return click.option(
        "--since",
        metavar="WHEN",
        callback=_since,
        help="Only from then on: 30s, 10m, 2h, 7d, or a time such as 2026-01-31T12:00.",
    )(command)


def shaped(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of `shape` as the API takes them: what was not given is left to the settings."""
    options = {
        key: given[key]
        for key in ("memory_mb", "min_instances", "max_instances", "canary", "slim", "architecture", "python")
    }
    options["timeout"] = None if given["timeout"] is None else timedelta(seconds=given["timeout"])
    options["environment"] = given["environment"] or None
    return options


def _importable(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    """Let `module:attribute` find the modules of the current directory, as `python -m` does."""
    if _REFERENCE.fullmatch(value) and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    return value


def _environment(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for value in values:
        key, equals, content = value.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"{value!r} is not KEY=VALUE")
        pairs[key] = content
    return pairs


def _since(_ctx: click.Context, _param: click.Parameter, value: str | None) -> datetime | None:
    if value is None:
        return None
    short = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", value)
    if short:
        return datetime.now(UTC) - timedelta(seconds=float(short[1]) * _UNITS[short[2]])
    try:
        return datetime.fromisoformat(value).astimezone()
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is neither a duration such as 10m nor a time such as 2026-01-31T12:00"
        ) from None
