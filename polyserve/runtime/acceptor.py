"""Accepts on listening sockets that other processes may share.

Knows nothing of HTTP: it hands over connected sockets.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

# Out of descriptors or memory: accepting again at once would only spin.
PAUSE_SECONDS = 0.2


class Acceptor:
    """Listening sockets of one event loop.

    Every process that shares a socket is woken for every caller. Each takes a few at a time, not the whole backlog, so that callers who
    come together spread over the processes; one that is busy comes late and finds them taken.

    Args:
        loop: Tells when a caller waits.
        accepted: Takes a connected, non-blocking socket and the descriptor of the listening socket it came through.
        has_room: Whether more connections are wanted.
        at_once: The most that are accepted at a time.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        accepted: Callable[[socket.socket, int], None],
        *,
        has_room: Callable[[], bool],
        at_once: int,
    ) -> None:
        self._loop = loop
        self._accepted = accepted
        self._has_room = has_room
        self._at_once = at_once
        self._listeners: dict[int, socket.socket] = {}
        self._watched: set[int] = set()

    def add(self, sock: socket.socket) -> None:
        """Accept on a bound, listening socket; this copy of it is ours from now on."""
        sock.setblocking(False)
        self._listeners[sock.fileno()] = sock
        self._watch(sock)

    def remove(self, sock: socket.socket) -> int:
        """Stop accepting on a socket, close this copy of it and return what was its descriptor.

        Raises:
            KeyError: The socket was not added, or was removed before.
        """
        number = sock.fileno()
        del self._listeners[number]
        if number in self._watched:
            self._watched.discard(number)
            self._loop.remove_reader(number)
        # Never shut down: that would stop every process that shares it.
        sock.close()
        return number

    @property
    def listeners(self) -> tuple[socket.socket, ...]:
        """The sockets that were added and not removed."""
        return tuple(self._listeners.values())

    def _watch(self, sock: socket.socket) -> None:
        number = sock.fileno()
        # It may have been removed during a pause.
        if self._listeners.get(number) is sock and number not in self._watched:
            self._watched.add(number)
            self._loop.add_reader(number, self._accept, sock)

    def _pause(self, sock: socket.socket) -> None:
        self._watched.discard(sock.fileno())
        self._loop.remove_reader(sock.fileno())
        self._loop.call_later(PAUSE_SECONDS, self._watch, sock)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(self._at_once):
            if not self._has_room():
                self._pause(listener)
                return
            try:
                sock, _ = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                # Another process was quicker, or the caller has gone.
                return
            except OSError:
                self._pause(listener)
                return
            sock.setblocking(False)
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._accepted(sock, listener.fileno())
