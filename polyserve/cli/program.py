"""The program: its table of commands, and what happens when one of them ends.

`polyserve --help` imports click and this file, nothing else: a command's module is imported when that command is run.
What every command keeps to is written here once:

- an error is `error: <one sentence>` and `hint:` lines on stderr, and the exit code of `polyserve.cli.exit_codes`.
  With `--json` stderr has one object instead: `{"error": {"message", "code", "type", "exit_code", "hints"}}`. Stdout
  stays empty or partial, never polluted;
- a traceback is shown for what nobody expected, and only with POLYSERVE_DEBUG=1;
- Ctrl-C exits with 130 and promises what the core keeps: the same command continues;
- a reader that goes away (`polyserve logs x | head`) is no error worth a word.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Any, NoReturn

import click

import polyserve as library
from polyserve.cli.exit_codes import EXIT_CODES, INTERRUPTED

COMMANDS: dict[str, dict[str, str]] = {
    "Ship a model": {
        "demo": "Train, package, deploy and call a model, to see it all work.",
        "package": "Make a model package: content-addressed and verified.",
        "compress": "Make a smaller package, as good as the original.",
        "partition": "Split a model into parts that run side by side or in a row.",
        "bundle": "Build the archive that a deploy would upload.",
        "plan": "Show what a deploy would do, without doing it.",
        "deploy": "Deploy a model, or a new revision of it.",
    },
    "Use it": {
        "invoke": "Send input to a deployment and print the answer.",
        "list": "List the deployments.",
        "status": "Show a deployment: revisions, traffic, instances.",
        "history": "Show what was deployed when.",
        "logs": "Show what a deployment wrote.",
        "metrics": "Show requests, errors, latency and cold starts.",
        "diff": "Compare a deployment on several providers, byte by byte.",
    },
    "Change it": {
        "traffic": "Show or split the traffic between revisions.",
        "promote": "Give the canary all the traffic.",
        "rollback": "Give an earlier revision all the traffic.",
        "scale": "Set how many instances there may be.",
        "destroy": "Delete a deployment and all that belongs to it.",
    },
    "Set it up": {
        "emulate": "Run a cloud's emulator here, to rehearse without an account.",
        "providers": "List the providers and what they can do.",
        "doctor": "Check this machine and the configuration.",
    },
}
"""Commands by section: name -> one line of help. The module of a command is `polyserve.cli.<name>`, its attribute `command`."""

_WIDEST = max(len(name) for section in COMMANDS.values() for name in section)
_HELP = "One trained model, one package, any serverless cloud."

_ENVIRONMENT = (
    ("POLYSERVE_PROVIDER", "the provider, where --provider is not given"),
    ("POLYSERVE_PROFILE", "the profile, where --profile is not given"),
    ("POLYSERVE_DEBUG=1", "show the traceback of an unexpected exception"),
    ("NO_COLOR=1", "no colours"),
)
_COMPLETION = (
    ("bash", 'eval "$(_POLYSERVE_COMPLETE=bash_source polyserve)"'),
    ("zsh", 'eval "$(_POLYSERVE_COMPLETE=zsh_source polyserve)"'),
    ("fish", "_POLYSERVE_COMPLETE=fish_source polyserve | source"),
)


class Program(click.Group):
    """The group of all commands: lists them from a table, imports one only to run it, and ends the process."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, in the order of the table."""
        return [name for section in COMMANDS.values() for name in section]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in self.list_commands(ctx):
            return None
        command = import_module(f"polyserve.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or name the nearest one there is."""
        name = args[0]
        if name not in self.list_commands(ctx) and not name.startswith("-") and not ctx.resilient_parsing:
            raise _UnknownCommandError(name, get_close_matches(name, self.list_commands(ctx), n=1, cutoff=0.5), ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands by section; no command is imported."""
        for section, commands in COMMANDS.items():
            with formatter.section(section):
                formatter.write_dl([(name.ljust(_WIDEST), line) for name, line in commands.items()])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what holds for every command: exit codes, environment, shell completion."""
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), meaning) for code, meaning in EXIT_CODES.items()])
        with formatter.section("Environment"):
            formatter.write_dl(list(_ENVIRONMENT))
        with formatter.section("Shell completion, for this session or in the shell's start-up file"):
            formatter.write_dl(list(_COMPLETION))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        """Complete a command's name from the table; no command is imported."""
        from click.shell_completion import CompletionItem

        names = {name: line for section in COMMANDS.values() for name, line in section.items()}
        items = [CompletionItem(name, help=line) for name, line in names.items() if name.startswith(incomplete)]
        return [*items, *click.Command.shell_complete(self, ctx, incomplete)]

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> NoReturn:
        """Run one command and end the process with its exit code."""
        extra["standalone_mode"] = False
        words = sys.argv[1:] if args is None else list(args)
        # Looked up here and not in the command: a mistyped option must be reported as JSON too.
        as_json = "--json" in words[: words.index("--") if "--" in words else None]
        try:
            code = super().main(args=args, prog_name=prog_name, **extra)
            sys.stdout.flush()
        except BrokenPipeError:
            _forget_stdout()
            code = 1
        except (KeyboardInterrupt, click.Abort):
            from polyserve.cli.failure import show_interruption

            show_interruption(as_json=as_json)
            code = INTERRUPTED
        except Exception as error:
            from polyserve.cli.failure import show

            code = show(error, as_json=as_json)
        sys.exit(code if isinstance(code, int) else 0)


class _UnknownCommandError(click.UsageError):
    """A command that does not exist; `possibilities` has the nearest one, as click's own NoSuchOption does."""

    def __init__(self, name: str, possibilities: list[str], ctx: click.Context) -> None:
        super().__init__(f"no command {name!r}", ctx)
        self.possibilities = possibilities


def _forget_stdout() -> None:
    """Point stdout at nothing, so that the interpreter's last flush does not complain of the reader that left."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, sys.stdout.fileno())
    os.close(nothing)


polyserve = Program(
    name="polyserve",
    help=_HELP,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    params=[
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            help="Show the version and exit.",
            callback=lambda ctx, _param, wanted: _show_version(ctx) if wanted else None,
        )
    ],
)
"""The command `polyserve`."""


def _show_version(ctx: click.Context) -> None:
    # Not click.version_option: it would look the distribution's metadata up, which costs more than the import of click.
    click.echo(f"polyserve {library.__version__}")
    ctx.exit()
