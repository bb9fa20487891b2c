"""What runs in a placeholder: Python, with what functions-framework imports before it comes to the function.

This is not imported but run, by the function's own interpreter and with the function's search path, of which it is no part. Each
copy of it becomes an instance: a process that cannot tell that `functions-framework` was not started in it just now. So nothing
of functions-framework or gunicorn is imported here, which read the environment when they are. A second argument names the script.

All copies have the seed of `hash` in common, as the workers of one instance do; `random` seeds itself anew in each.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import importlib.machinery
import json
import logging
import os
import select
import signal
import site
import socket
import sys
import time
from typing import Any

PRELOADED = """
logging.config random string cloudevents.exceptions flask werkzeug cloudevents.http cloudevents.http.event werkzeug.local click
"""
"""What functions-framework itself imports, in its order, and is not its own: nothing that an instance would not import."""


class Standing:
    """Makes copies of this process.

    Args:
        control: What the emulator asks for copies by, and is told of their ends.
    """

    def __init__(self, control: socket.socket) -> None:
        self._control = control

    def wait(self) -> list[int]:
        """Make copies until the emulator hangs up; returns in a copy, with the descriptors that are its own."""
        ended, note = socket.socketpair()
        note.setblocking(False)
        signal.set_wakeup_fd(note.fileno())
        signal.signal(signal.SIGCHLD, lambda *_: None)
        own = os.getpid()
        while True:
            readable, _, _ = select.select([self._control, ended], [], [])
            if ended in readable:
                ended.recv(4096)
                self._tell_ends()
            if self._control not in readable:
                continue
            data, descriptors, _, _ = socket.recv_fds(self._control, 1, 3)
            if not data:
                os._exit(0)
            leading, led = os.pipe()
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for closing in (self._control, ended, note):
                    closing.close()
                os.close(leading)
                os.setsid()
                _end_with(own)
                os.close(led)
                return descriptors
            for descriptor in (led, *descriptors):
                os.close(descriptor)
            # Empty as soon as the copy leads its group, by which the emulator ends it, or is gone.
            os.read(leading, 1)
            os.close(leading)
            self._tell(pid=pid)

    def _tell_ends(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._tell(pid=pid, code=os.waitstatus_to_exitcode(status))

    def _tell(self, **content: int) -> None:
        try:
            self._control.sendall(json.dumps(content).encode() + b"\n")
        except OSError:
            os._exit(0)


def _end_with(parent: int) -> None:
    """Have this process killed when its placeholder ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def _become(plan: int, *outputs: int) -> None:
    """Become the instance that the plan says."""
    with open(plan, encoding="utf-8") as file:
        told: dict[str, Any] = json.load(file)
    for number, output in enumerate(outputs, start=1):
        os.dup2(output, number)
        os.close(output)
    os.chdir(told["root"])
    os.environ.clear()
    os.environ.update(told["variables"])
    time.tzset()
    # What Python looks up when it starts, and what is counted from then on.
    site.USER_BASE = site.USER_SITE = None
    site.getusersitepackages()
    logging._startTime = time.time_ns() if sys.version_info >= (3, 13) else time.time()  # type: ignore[attr-defined]
    sys.orig_argv = told["command"]
    sys.argv = told["command"][1:]


def _run(script: str) -> None:
    """Run the script as `__main__`, as the interpreter would have."""
    with open(script, "rb") as file:
        code = compile(file.read(), script, "exec", dont_inherit=True)
    names = sys.modules["__main__"].__dict__
    for name in [name for name in names if not name.startswith("__")]:
        del names[name]
    names.update(__file__=script, __cached__=None, __loader__=importlib.machinery.SourceFileLoader("__main__", script))
    try:
        exec(code, names)  # noqa: S102 - as the interpreter does
        return
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        # What is printed begins with the script.
        error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next
        sys.excepthook(type(error), error, error.__traceback__)
    sys.exit(1)


def main() -> None:
    """Stand by, then run the script; the arguments are this file, the script, and the descriptor of the emulator's control."""
    script, control = sys.argv[2:]
    # What cannot be imported is said by an instance that starts from nothing.
    for name in PRELOADED.split():
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    _become(*Standing(socket.socket(fileno=int(control))).wait())
    _run(script)


if __name__ == "__main__":
    main()
