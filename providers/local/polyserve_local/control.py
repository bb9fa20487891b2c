"""How a driver call reaches the gateway: find it, start it where it is not running, ask it, raise what it answers.

Whether a gateway lives is told by a lock, never by a pid or by a port that answers: both may be another process's by now.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import polyserve
from polyserve.driver import ErrorCode
from polyserve_local.errors import GatewayError
from polyserve_local.places import Places, tail

START_TIMEOUT_S = 60.0
CALL_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class _Contact:
    pid: int
    port: int
    token: str
    version: str


class Gateway:
    """The driver's side of the control API of one home.

    Args:
        places: The home's files.
        linger_s: Seconds that a gateway started from here stays after the last function is deleted.
    """

    def __init__(self, places: Places, *, linger_s: float) -> None:
        self._places = places
        self._linger_s = linger_s

    def left(self) -> None:
        """Wait until a gateway that has nothing left to do is gone, where it is not to linger."""
        deadline = time.monotonic() + 2.0
        while self._linger_s == 0 and time.monotonic() < deadline and alive(self._places):
            if self._has_functions():
                return
            time.sleep(0.01)

    def call(self, verb: str, body: Mapping[str, Any]) -> Any:
        """Ask the gateway, and start it first where it is not running. Every verb can be repeated.

        Returns:
            What it answers; `None` where there is no function, and the verb is not one that makes one: nobody is started to be asked.

        Raises:
            GatewayError: The gateway refused, or it could not be started.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            contact = self._contact()
            if contact is not None:
                try:
                    status, answer = _exchange(contact, verb, body)
                except (ConnectionError, http.client.HTTPException, TimeoutError, ValueError) as error:
                    if isinstance(error, TimeoutError) or time.monotonic() > deadline:
                        message = f"the gateway of {self._places.home} (pid {contact.pid}) does not answer: {error}"
                        raise GatewayError(ErrorCode.UNAVAILABLE, message) from error
                else:
                    # 401: the contact file of a gateway that is gone, and its port is another program's now.
                    if status != 401:
                        return _read(status, answer)
            elif not alive(self._places):
                if verb != "apply" and not self._has_functions():
                    return None
                self._start()
                continue
            if time.monotonic() > deadline:
                message = f"the gateway of {self._places.home} did not come up: {tail(self._places.gateway_log)}"
                raise GatewayError(ErrorCode.UNAVAILABLE, message)
            time.sleep(0.01)

    def _has_functions(self) -> bool:
        functions = self._places.functions
        try:
            return any(path.suffix == ".json" for path in functions.iterdir())
        except FileNotFoundError:
            return False  # never made, or gone with the last function while we looked

    def _contact(self) -> _Contact | None:
        """Return where the running gateway is reached; `None` while there is none, or it is still starting."""
        if not alive(self._places):
            return None
        try:
            contact = _Contact(**json.loads(self._places.contact.read_bytes()))
        except (FileNotFoundError, ValueError, TypeError):
            return None
        if contact.version != polyserve.__version__:
            # A gateway of another version would not understand us. It leaves its instances running; ours adopts them.
            with_reason = {"version": polyserve.__version__}
            with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
                _exchange(contact, "retire", with_reason)
            return None
        return contact

    def _start(self) -> None:
        """Start a gateway and wait until it answers; returns as well if another one was quicker."""
        self._places.make()
        log = self._places.gateway_log
        if log.exists() and log.stat().st_size > 1 << 20:
            log.replace(log.with_suffix(".log.1"))
        with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as output:
            # The process forks into the background once it answers (or another one does) and its parent returns:
            # this wait is the readiness event, and no zombie is left to us. `-P`: the working directory is no place for modules.
            command = [sys.executable, "-P", "-m", "polyserve_local.gateway"]
            command += [str(self._places.home), "--linger", str(self._linger_s)]
            try:
                done = subprocess.run(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    timeout=START_TIMEOUT_S,
                    check=False,
                )
            except subprocess.TimeoutExpired as error:
                message = (
                    f"the gateway of {self._places.home} did not start within {START_TIMEOUT_S:.0f} s: {tail(log)}"
                )
                raise GatewayError(ErrorCode.UNAVAILABLE, message) from error
        if done.returncode != 0:
            message = f"the gateway of {self._places.home} could not start (exit {done.returncode}): {tail(log)}"
            raise GatewayError(ErrorCode.UNAVAILABLE, message)


def _read(status: int, answer: Any) -> Any:
    """Return what the gateway answered, or raise what it refused with."""
    if status == 200:
        return answer
    wait = answer.get("retry_after_s")
    patience = None if wait is None else timedelta(seconds=wait)
    raise GatewayError(ErrorCode(answer["code"]), answer["error"], retry_after=patience)


def alive(places: Places) -> bool:
    """Return whether a gateway of this home lives: whether its lock is held."""
    try:
        descriptor = os.open(places.lock, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        # Shared, so that two drivers that look at once do not take each other for a gateway.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _exchange(contact: _Contact, verb: str, body: Mapping[str, Any]) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", contact.port, timeout=CALL_TIMEOUT_S)
    try:
        headers = {"authorization": f"Bearer {contact.token}", "content-type": "application/json"}
        connection.request("POST", f"/{verb}", json.dumps(body), headers)
        reply = connection.getresponse()
        return reply.status, json.loads(reply.read())
    finally:
        connection.close()
