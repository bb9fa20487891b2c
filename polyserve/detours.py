"""What has to be done beside a call whose request or answer is too large for its platform. Knows no connection: it is given what sends.

Nearly every call has no detour, and costs one comparison.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeAlias

from polyserve.driver import HttpCall, HttpReply

__all__ = ["acarry", "carry"]

Send: TypeAlias = Callable[[HttpCall, float], HttpReply]
AsyncSend: TypeAlias = Callable[[HttpCall, float], Awaitable[HttpReply]]


def carry(send: Send, call: HttpCall, deadline: float) -> HttpReply:
    """Send a call and whatever belongs to it, and return the reply that counts.

    Args:
        send: Sends one call and returns its answer, whatever its status.
        call: The call.
        deadline: When to give up, as `time.monotonic()` counts.
    """
    detour = call.detour
    if detour is None:
        return send(call, deadline)
    try:
        if detour.before is not None:
            stored = send(detour.before, deadline)
            if stored.status >= 300:
                return stored
        reply = send(call, deadline)
        further = detour.follow(reply) if detour.follow is not None else None
        return reply if further is None else carry(send, further, deadline)
    finally:
        for each in detour.after:
            with suppress(OSError, ValueError):
                send(each, deadline)


async def acarry(send: AsyncSend, call: HttpCall, deadline: float) -> HttpReply:
    """Do what `carry` does, natively asynchronous."""
    detour = call.detour
    if detour is None:
        return await send(call, deadline)
    try:
        if detour.before is not None:
            stored = await send(detour.before, deadline)
            if stored.status >= 300:
                return stored
        reply = await send(call, deadline)
        further = detour.follow(reply) if detour.follow is not None else None
        return reply if further is None else await acarry(send, further, deadline)
    finally:
        for each in detour.after:
            with suppress(OSError, ValueError):
                await send(each, deadline)
