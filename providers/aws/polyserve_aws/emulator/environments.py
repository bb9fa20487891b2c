"""One execution environment: a process under the real runtime client, and the Runtime API that it polls.

The Runtime API is a listener of its own for each environment, as on AWS, so the process cannot be mistaken for
another. Life of an environment: `start` waits until the runtime asks for work; `invoke` gives it one event and waits
for the answer, the process's end or the deadline; `stop` ends it with everything it has started.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyserve_aws.emulator import runtime_api
from polyserve_aws.emulator.output import Output
from polyserve_aws.emulator.releases import Release
from polyserve_aws.emulator.runtime_api import error_payload

INIT_PATIENCE_S = 10.0
"""How long the init phase may take; then it is run again within the first invocation (Lambda's developer guide)."""
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How one event ended.

    Attributes:
        payload: What the function answered, or the error as JSON.
        error: Value of `X-Amz-Function-Error`; empty where there was none.
        fate: Empty, or why the environment is of no more use: `timeout`, `exit`, `memory`, `size`.
        duration_ms: How long the handler took.
    """

    payload: bytes
    error: str
    fate: str
    duration_ms: float


class Environment:
    """One execution environment.

    Args:
        release: What runs in it.
        command: The program, with its arguments.
        variables: All of its environment variables, but those that only the environment itself knows.
        scratch: Directory that is its own: `/tmp` on AWS.
        root: Working directory of the process.
        stream: Name of its log stream.
        ended: Called once it is no more.
        credentials: Those of the execution role, where they are not among the variables but to be asked for.
    """

    def __init__(
        self,
        release: Release,
        *,
        command: Sequence[str],
        variables: Mapping[str, str],
        scratch: Path,
        root: Path,
        stream: str,
        ended: Callable[[], None],
        credentials: Mapping[str, str] | None = None,
    ) -> None:
        self.release = release
        self._ended = ended
        self.stream = stream
        self.init_ms = 0.0
        self.used = False
        self.provisioned = False
        self.peak_bytes = 0
        self._command, self._variables, self._scratch, self._root = list(command), dict(variables), scratch, root
        self._api = runtime_api.RuntimeApi(credentials)
        self._process: subprocess.Popen[bytes] | None = None
        self._gone: asyncio.Future[int] | None = None
        self._pipe = -1
        self._output = Output()

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self._gone is not None and not self._gone.done()

    async def start(self, patience_s: float) -> str:
        """Start the process and wait until it asks for its first event.

        Args:
            patience_s: How long to wait.

        Returns:
            Empty when it is ready, else why it is not: `timeout`, `exit` or `error`.
        """
        loop = asyncio.get_running_loop()
        began = time.perf_counter()
        address = await self._api.listen()
        self._scratch.mkdir(parents=True, exist_ok=True)
        self._gone = loop.create_future()
        self._pipe, write_end = os.pipe()
        os.set_blocking(self._pipe, False)
        records = os.dup(write_end)
        variables = {**self._api.variables(address), "_LAMBDA_TELEMETRY_LOG_FD": str(records)}
        try:
            # It returns as soon as the program is started; asyncio's own way would need a watcher of this loop's thread.
            self._process = subprocess.Popen(  # noqa: ASYNC220
                self._command,
                cwd=self._root,
                env=self._variables | variables,
                stdin=subprocess.DEVNULL,
                stdout=write_end,
                stderr=write_end,
                pass_fds=(records,),
                start_new_session=True,
            )
        finally:
            os.close(write_end)
            os.close(records)
        loop.add_reader(self._pipe, self._read_output)
        threading.Thread(target=self._watch, args=(loop, self._process), daemon=True, name="environment").start()
        ready = asyncio.ensure_future(self._api.ready.wait())
        both: set[asyncio.Future[Any]] = {ready, self._gone}
        await asyncio.wait(both, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        self.init_ms = (time.perf_counter() - began) * 1000
        self._measure()
        if self._api.init_error is not None:
            return "error"
        if self._gone.done():
            return "exit"
        return "" if self._api.ready.is_set() else "timeout"

    def init_failure(self, request_id: str, why: str) -> bytes:
        """Return the payload of an invocation whose environment did not start."""
        if self._api.init_error is not None:
            return self._api.init_error
        if why == "exit":
            return error_payload("Runtime.ExitError", f"RequestId: {request_id} Error: {self._how_it_ended()}")
        timeout = self.release.settings.timeout
        return error_payload(
            "Sandbox.Timedout", f"RequestId: {request_id} Error: Task timed out after {timeout:.2f} seconds"
        )

    async def invoke(self, event: runtime_api.Event, patience_s: float) -> Ended:
        """Have the process handle one event.

        Args:
            event: The event.
            patience_s: Seconds until it is over with it.
        """
        assert self._gone is not None
        self.used = True
        began = time.perf_counter()
        answer = self._api.offer(event)
        limit = self.release.settings.memory * 1024 * 1024
        deadline = began + patience_s
        both: set[asyncio.Future[Any]] = {answer, self._gone}
        fate = ""
        while not answer.done() and not self._gone.done():
            left = deadline - time.perf_counter()
            if left <= 0:
                fate = "timeout"
                break
            # The first look comes late: most calls are over before anything needs to be measured.
            await asyncio.wait(both, timeout=min(left, 0.05), return_when=asyncio.FIRST_COMPLETED)
            self._measure()
            if self.peak_bytes > limit and not answer.done():
                fate = "memory"
                break
        duration = (time.perf_counter() - began) * 1000
        self._read_output()
        if not answer.done():
            fate = fate or "exit"
            return await self._broken_off(event.request_id, fate, patience_s, duration)
        payload, failed, fate = answer.result()
        return Ended(payload=payload, error="Unhandled" if failed else "", fate=fate, duration_ms=duration)

    async def _broken_off(self, request_id: str, fate: str, patience_s: float, duration: float) -> Ended:
        if fate == "timeout":
            timeout = self.release.settings.timeout
            kind, text = "Sandbox.Timedout", f"Task timed out after {timeout:.2f} seconds"
            duration = max(duration, patience_s * 1000)
        elif fate == "memory":
            kind, text = "Runtime.OutOfMemory", "Runtime exited with error: signal: killed"
        else:
            kind, text = "Runtime.ExitError", self._how_it_ended()
        payload = error_payload(kind, f"RequestId: {request_id} Error: {text}")
        return Ended(payload=payload, error="Unhandled", fate=fate, duration_ms=duration)

    def _how_it_ended(self) -> str:
        code = self._gone.result() if self._gone is not None and self._gone.done() else 0
        if code < 0:
            names = {signal.SIGKILL: "killed", signal.SIGSEGV: "segmentation fault", signal.SIGABRT: "aborted"}
            return f"Runtime exited with error: signal: {names.get(signal.Signals(-code), signal.Signals(-code).name)}"
        return f"Runtime exited with error: exit status {code}" if code else "Runtime exited without providing a reason"

    async def stop(self) -> None:
        """End the process, everything in its group, and its listener; its scratch directory goes too."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # gone, and nothing of its group is left
                os.killpg(self._process.pid, signal.SIGKILL)
            assert self._gone is not None
            await self._gone
        if self._pipe >= 0:
            self._read_output()
            asyncio.get_running_loop().remove_reader(self._pipe)
            os.close(self._pipe)
            self._pipe = -1
        await self._api.close()
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._ended()

    def take_lines(self) -> list[tuple[int, str]]:
        """Return what it has logged since the last call: the milliseconds of each event, and its text."""
        self._read_output()
        return self._output.take()

    def _watch(self, loop: asyncio.AbstractEventLoop, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        try:
            loop.call_soon_threadsafe(self._note_end, code)
        except RuntimeError:
            return  # the loop is closed: nobody asks any more

    def _note_end(self, code: int) -> None:
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(code)

    def _read_output(self) -> None:
        while self._pipe >= 0:
            try:
                chunk = os.read(self._pipe, 65536)
            except BlockingIOError:
                return
            if not chunk:
                asyncio.get_running_loop().remove_reader(self._pipe)
                return
            self._output.feed(chunk)

    def _measure(self) -> None:
        if self._process is None:
            return
        try:
            with open(f"/proc/{self._process.pid}/statm", "rb") as file:
                self.peak_bytes = max(self.peak_bytes, int(file.read().split()[1]) * _PAGE)
        except (OSError, IndexError):
            return  # gone, or not on Linux: nothing can be said


def stream_name(version: str) -> str:
    """Return a new name for a log stream, in Lambda's form."""
    return time.strftime("%Y/%m/%d/", time.gmtime()) + f"[{version}]{secrets.token_hex(16)}"
