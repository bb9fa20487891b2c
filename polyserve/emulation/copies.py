"""What runs in a placeholder: it makes ready what instances need, and each copy of it becomes one.

This is not imported but run, by the interpreter of the code that was deployed, which sees nothing of polyserve; so it takes the standard
library and nothing else. Its arguments are a program, the program's own arguments, and the descriptor of the emulator's control (see
`placeholders`). The program is a file with two functions: `prepare(*arguments)` is called once, and `become(descriptors, *arguments)` in
each copy, with the descriptors that are its own.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import select
import signal
import socket
import sys
from typing import Any

MOST_DESCRIPTORS = 3
"""Most that a copy is given."""


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
            data, descriptors, _, _ = socket.recv_fds(self._control, 1, MOST_DESCRIPTORS)
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
    """Have this process killed when its placeholder ends; Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(0)


def main() -> None:
    """Make ready, make copies, and become an instance in each; before the arguments are `-c` and this file."""
    path, *arguments, control = sys.argv[2:]
    program: dict[str, Any] = {"__name__": "__main__"}
    with open(path, "rb") as file:
        exec(compile(file.read(), path, "exec", dont_inherit=True), program)  # noqa: S102 - that is what this is for
    program["prepare"](*arguments)
    gc.collect()
    gc.freeze()
    program["become"](Standing(socket.socket(fileno=int(control))).wait(), *arguments)


if __name__ == "__main__":
    main()
