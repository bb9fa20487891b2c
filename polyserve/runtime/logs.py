"""What a function writes to its log: one JSON line per request, which the operations commands read back on every cloud.

Knows no cloud: lines go to a sink, a callable that takes bytes, in one call per batch.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["Sink", "format_line", "request_line", "standard_output", "write"]

Sink = Callable[[bytes], None]
"""Takes whole lines, newline included."""


def request_line(
    *,
    at: str,
    request_id: str,
    route: str,
    status: int,
    code: str,
    ms: str,
    queue_ms: str,
    predict_ms: str,
    rows: int,
    batch: int,
    cold: bool,
    revision: int | str,
    digest: str,
    bytes_in: int,
    bytes_out: int,
    error: str,
) -> str:
    """Return the line of one request, newline included.

    Times come as text, as the line has them, since their caller needs that text elsewhere or for a whole batch.

    Args:
        at: When it was answered, in seconds since 1970.
        request_id: Its id; printable ASCII without quotes and backslashes.
        route: Which route it took: infer, invocations, ready, live, metadata, server, or unknown.
        status: HTTP status of the answer.
        code: Error code, empty where it went well.
        ms: From its arrival to its answer, in milliseconds.
        queue_ms: From its arrival to the start of the work.
        predict_ms: In the model, for its whole batch.
        rows: Its rows.
        batch: Requests that shared the model's call; 0 where there was none.
        cold: Whether it had to wait for the instance to start.
        revision: The revision that answered.
        digest: First 12 hexadecimal digits of the package's digest.
        bytes_in: Size of its body.
        bytes_out: Size of the answer's body.
        error: What the caller was told, empty where it went well.
    """
    # By hand, since this is written for every request and the encoder takes five times as long.
    return (
        f'{{"event":"request","at":{at},"request_id":"{request_id}","route":"{route}","status":{status},"code":"{code}",'
        f'"ms":{ms},"queue_ms":{queue_ms},"predict_ms":{predict_ms},"rows":{rows},"batch":{batch},'
        f'"cold":{"true" if cold else "false"},"revision":{revision},"digest":"{digest}","bytes_in":{bytes_in},'
        f'"bytes_out":{bytes_out},"error":{json.dumps(error) if error else _EMPTY}}}\n'
    )


_EMPTY = '""'


def format_line(event: Mapping[str, Any]) -> str:
    """Return any event as a line, newline included."""
    return f"{json.dumps(event, separators=(',', ':'), default=str)}\n"


def write(sink: Sink, events: Sequence[Mapping[str, Any]]) -> None:
    """Write events in one call of the sink."""
    sink("".join(map(format_line, events)).encode())


def standard_output(data: bytes) -> None:
    """Write lines to standard output in one call, so that lines of several threads do not mix."""
    # Looked up on each call: platforms and tests replace it.
    sys.stdout.write(data.decode())
    sys.stdout.flush()
