"""Which sockets of a server are ready: asked for all of them at a time, apart from the event loop's own list.

The event loop watches one descriptor, the one that stands for all of these. When it is ready the sockets are looked at again and again,
as long as that brings more, and only then is it said that all have been heard: requests that come together are answered together, and
nobody waits for a timer. It also costs less for each socket than the loop's own handles do. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import select
import selectors
from collections.abc import Callable

# Looks at the sockets before others on the loop have their turn: callers who keep coming must not starve them.
MOST_LOOKS = 8
_IN, _OUT = 1, 4

Callback = Callable[[], None]


class Readiness:
    """Sockets that are waited for together.

    Args:
        loop: Watches for all of them.
        settled: Called when everything that had arrived has been handed to the callbacks.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, settled: Callback) -> None:
        self._loop = loop
        self._settled = settled
        self._callbacks: dict[int, tuple[Callback | None, Callback | None]] = {}
        self._waiter = _epoll() if hasattr(select, "epoll") else _AnySelector()
        loop.add_reader(self._waiter.fileno(), self._on_ready)

    def watch(self, descriptor: int, on_readable: Callback | None, on_writable: Callback | None) -> None:
        """Say what to call when a socket is readable and writable, instead of what was said before; None where that is of no interest."""
        events = (_IN if on_readable else 0) | (_OUT if on_writable else 0)
        if events == 0:
            if self._callbacks.pop(descriptor, None):
                self._waiter.unregister(descriptor)
        elif descriptor in self._callbacks:
            self._waiter.modify(descriptor, events)
        else:
            self._waiter.register(descriptor, events)
        if events:
            self._callbacks[descriptor] = (on_readable, on_writable)

    def close(self) -> None:
        """Wait for nothing any more."""
        self._loop.remove_reader(self._waiter.fileno())
        self._waiter.close()
        self._callbacks.clear()

    def _on_ready(self) -> None:
        poll, current = self._waiter.poll, self._callbacks.get
        for _ in range(MOST_LOOKS):
            ready = poll(0)
            if not ready:
                break
            for descriptor, events in ready:
                # Another's callback may have closed it or changed its mind meanwhile. Errors count as both, as the loop has it.
                if events & ~_OUT and (callbacks := current(descriptor)) is not None and callbacks[0] is not None:
                    callbacks[0]()
                if events & ~_IN and (callbacks := current(descriptor)) is not None and callbacks[1] is not None:
                    callbacks[1]()
        self._settled()


class _AnySelector:
    """The platform's own way to wait, where it is not epoll, with epoll's methods and numbers."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def fileno(self) -> int:
        # Kqueue's descriptor can be waited for like epoll's.
        return self._selector.fileno()

    def register(self, descriptor: int, events: int) -> None:
        self._selector.register(descriptor, self._mask(events))

    def modify(self, descriptor: int, events: int) -> None:
        self._selector.modify(descriptor, self._mask(events))

    def unregister(self, descriptor: int) -> None:
        self._selector.unregister(descriptor)

    def poll(self, timeout: float) -> list[tuple[int, int]]:
        return [
            (key.fd, (_IN if events & selectors.EVENT_READ else 0) | (_OUT if events & selectors.EVENT_WRITE else 0))
            for key, events in self._selector.select(timeout)
        ]

    def close(self) -> None:
        self._selector.close()

    @staticmethod
    def _mask(events: int) -> int:
        return (selectors.EVENT_READ if events & _IN else 0) | (selectors.EVENT_WRITE if events & _OUT else 0)


def _epoll() -> select.epoll:
    return select.epoll()
