"""What one server allows its callers, so that a slow or hostile one cannot hurt the others."""

from __future__ import annotations

from dataclasses import dataclass

from polyserve.runtime import http1


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one server allows its callers.

    Attributes:
        head_bytes: Largest request line and headers.
        head_seconds: Longest time from a request's first byte to the end of its head.
        body_seconds: Longest time for a body, plus what `body_rate` grants for the bytes that have arrived.
        body_rate: Bytes a second that a body must keep up in the long run.
        idle_seconds: How long a connection without a request is kept.
        write_seconds: How long a caller may take without reading any of its answer.
        linger_seconds: How long to read on after an answer that refuses the rest of a connection.
        grace_seconds: How long a retired connection may still bring a request that was on its way.
        pipelined: Requests of one connection that are read ahead of their answers.
        write_bytes: Answers waiting for one connection, above which nothing more is read from it.
        connections: Open connections above which no more are accepted.
        accepts: Connections accepted at a time; few, so that processes which share a socket share its callers.
        queue_requests: Requests waiting for the model, above which more are refused.
        queue_bytes: Bytes of bodies waiting for the model, above which more are refused.
        batch_requests: Requests handed to the host at once.
        batch_bytes: Bytes of bodies handed to the host at once, unless a single one has more.
        inline_seconds: Predicts that take longer run on the worker thread.
        inline_bytes: Batches with more bytes than this run on the worker thread.
    """

    head_bytes: int = http1.HEAD_BYTES
    head_seconds: float = 10.0
    body_seconds: float = 30.0
    body_rate: int = 32 * 1024
    idle_seconds: float = 75.0
    write_seconds: float = 30.0
    linger_seconds: float = 2.0
    grace_seconds: float = 1.0
    pipelined: int = 64
    write_bytes: int = 1024 * 1024
    connections: int = 4096
    accepts: int = 4
    queue_requests: int = 1024
    queue_bytes: int = 256 * 1024 * 1024
    batch_requests: int = 128
    batch_bytes: int = 4 * 1024 * 1024
    inline_seconds: float = 0.005
    inline_bytes: int = 256 * 1024
