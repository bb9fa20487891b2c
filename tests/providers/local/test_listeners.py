"""Listening sockets are shared by processes, and so is whether they block."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from typing import Any

from polyserve_local.entrypoint import Instance, receive
from polyserve_local.supervisor import listen


class Accepting:
    """In the server's place: looks at the listening sockets as they are given, and ends the instance."""

    def __init__(self, shared: socket.socket) -> None:
        self.shared = shared
        self.blocking: list[bool] = []

    def add_listener(self, sock: socket.socket) -> None:
        self.blocking += [os.get_blocking(sock.fileno()), os.get_blocking(self.shared.fileno())]
        sock.close()
        signal.raise_signal(signal.SIGTERM)

    def remove_listener(self, sock: socket.socket) -> None: ...

    async def drain(self) -> None: ...


def test_an_instance_that_begins_to_accept_never_lets_another_block_in_accept() -> None:
    shared, (ours, theirs) = listen(0), socket.socketpair()
    config = {"accept": ["public"], "share": 100, "listeners": ["public"], "idle_timeout_s": 60.0}
    server: Any = Accepting(shared)
    with shared, ours, theirs:
        socket.send_fds(ours, [json.dumps(config).encode() + b"\n"], [shared.fileno()])
        told, listeners = receive(theirs)
        try:
            asyncio.run(Instance(told, listeners, theirs).serve(lambda: server))
        finally:
            for listener in listeners.values():
                listener.close()

    assert server.blocking == [False, False]
