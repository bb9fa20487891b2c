"""How uv and pip are run for a revision: with the deployer's settings, ended when they are not wanted any more, never outliving us unknown.

Knows programs and their environment; which environment is made of what is not its business.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from polyserve.driver import ErrorCode
from polyserve_local import processes
from polyserve_local.errors import GatewayError
from polyserve_local.places import write_atomic

INSTALL_TIMEOUT_S = 1800.0
SAID_BYTES = 1500
PREFIXES = ("UV_", "PIP_")
# What else decides from where, and whether at all, something can be downloaded.
NAMES = frozenset(
    {
        *("PATH", "HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "NETRC", "SSL_CERT_FILE", "SSL_CERT_DIR"),
        *("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
        *("http_proxy", "https_proxy", "all_proxy", "no_proxy"),
    }
)
# Where to install, into what, and what not to: that is ours to say.
OURS = frozenset(
    {
        *(
            "UV_SYSTEM_PYTHON",
            "UV_PYTHON",
            "UV_PROJECT",
            "UV_WORKING_DIRECTORY",
            "UV_WORKING_DIR",
            "UV_BREAK_SYSTEM_PACKAGES",
        ),
        *("UV_PROJECT_ENVIRONMENT", "UV_VENV_CLEAR", "UV_VENV_SEED", "UV_VENV_RELOCATABLE", "UV_REQUIRE_HASHES"),
        *(
            "PIP_TARGET",
            "PIP_PREFIX",
            "PIP_ROOT",
            "PIP_USER",
            "PIP_PYTHON",
            "PIP_DRY_RUN",
            "PIP_REQUIREMENT",
            "PIP_EDITABLE",
        ),
        *("PIP_REQUIRE_HASHES", "PIP_REQUIRE_VIRTUALENV", "PIP_IGNORE_INSTALLED", "PIP_REPORT", "PIP_LOG"),
    }
)
# A process that was never told to go on ends when we do: its record is written before it does anything.
_WAIT = 'read -r _ || exit 1; exec "$@" </dev/null'


def settings_of(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what of a process's environment says how to install: indexes, mirrors, proxies, caches, certificates."""
    return {
        name: value
        for name, value in environment.items()
        if (name.startswith(PREFIXES) or name in NAMES) and name not in OURS
    }


def unwanted() -> GatewayError:
    """Return the error of work that was given up because its revision was deleted."""
    return GatewayError(ErrorCode.CONFLICT, "the revision was deleted meanwhile")


class Installer:
    """Runs uv or pip.

    Args:
        interpreter: Python of the process that deployed: uv may lie beside it.
        settings: `settings_of` that process's environment.
        stopping: Set when what is being installed is not wanted any more.
    """

    def __init__(self, interpreter: str, settings: Mapping[str, str], stopping: threading.Event) -> None:
        self._interpreter = interpreter
        self._settings = settings
        self._stopping = stopping

    def find_uv(self) -> str | None:
        """Return uv: on the deployer's PATH, or installed with the interpreter; `None` where there is none."""
        path = self._settings.get("PATH", os.environ.get("PATH", os.defpath))
        return shutil.which("uv", path=f"{path}{os.pathsep}{Path(self._interpreter).parent}")

    def run(self, target: Path, command: Sequence[str]) -> None:
        """Run a program that works on the directory `target` to its end, or until it is not wanted any more.

        Raises:
            GatewayError: It cannot be started, or it failed; the message has what it said.
        """
        with self._started(target, command) as (process, started):
            deadline = time.monotonic() + INSTALL_TIMEOUT_S
            while True:
                try:
                    out, complaint = process.communicate(timeout=0.1)
                    break
                except subprocess.TimeoutExpired:
                    if self._stopping.is_set() or time.monotonic() > deadline:
                        processes.kill(process.pid, started)
        if self._stopping.is_set():
            raise unwanted()
        if process.returncode != 0:
            said = (complaint or out).strip()[-SAID_BYTES:] or f"exit status {process.returncode}"
            message = f"the locked requirements cannot be installed ({Path(command[0]).name}): {said}"
            raise GatewayError(ErrorCode.FAILED_PRECONDITION, message)

    @contextlib.contextmanager
    def _started(self, target: Path, command: Sequence[str]) -> Iterator[tuple[subprocess.Popen[str], str | None]]:
        # As for an instance, nothing of the gateway's own environment but the place for temporary files: it is somebody else's.
        environment = {name: os.environ[name] for name in ("TMPDIR", "LANG", "LC_ALL") if name in os.environ}
        record = target.with_name(f"{target.name}.making")
        pipe = subprocess.PIPE
        try:
            process = subprocess.Popen(
                ["/bin/sh", "-c", _WAIT, "sh", *command],
                stdin=pipe,
                stdout=pipe,
                stderr=pipe,
                text=True,
                env={**environment, **self._settings},
                cwd=target.parent,
                start_new_session=True,
            )
        except OSError as error:
            raise GatewayError(ErrorCode.UNAVAILABLE, f"{' '.join(command[:3])} cannot be started: {error}") from error
        with process:
            started = processes.started_at(process.pid)
            try:
                write_atomic(record, json.dumps({"pid": process.pid, "started": started}).encode())
                assert process.stdin is not None
                process.stdin.write("\n")
                process.stdin.flush()
                yield process, started
            finally:
                processes.kill(process.pid, started)
                record.unlink(missing_ok=True)
