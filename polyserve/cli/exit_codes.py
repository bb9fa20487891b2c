"""The exit codes of `polyserve`, in one table: shown in `polyserve --help` and in the documentation.

Each error class carries its own (`PolyserveError.exit_code`); the table says what a script may conclude from it.
"""

from __future__ import annotations

FAILED = 1
"""A check that failed, or a question answered with no."""
REFUSED = 2
"""A plan that would be refused."""
FAULT = 70
"""An exception that polyserve did not expect."""
INTERRUPTED = 130
"""Ctrl-C: 128 + SIGINT, as a shell would say."""

EXIT_CODES: dict[int, str] = {
    0: "done",
    FAILED: "failed: the model, the service, or a check of `polyserve doctor`",
    REFUSED: "wrong command, option or value, or refused; nothing was changed",
    3: "no deployment, revision or file of that name",
    4: "not signed in, or not allowed",
    5: "the state of things does not allow it, or somebody else is changing it",
    6: "a revision answers differently from its package; it has no traffic",
    7: "nothing answers, throttled or too slow: the same command may work later",
    FAULT: "a fault in polyserve itself; POLYSERVE_DEBUG=1 shows the traceback",
    INTERRUPTED: "interrupted: the same command continues",
}
"""What each exit code means."""
