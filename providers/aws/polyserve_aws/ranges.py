"""Large objects in ranges, several at a time where one connection gives less than it could: S3 gives each some 90 MB/s.

The first range comes with what is known of the object. What comes after it is asked for only once it is used up, and must be of the same
version: all at once where the first one came quickly, as from a server nearby, else in ranges.

Source: https://docs.aws.amazon.com/AmazonS3/latest/userguide/optimizing-performance-guidelines.html, 2026-11.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO

from polyserve_aws.parts import PARALLEL, PART_BYTES
from polyserve_aws.pieces import NOTHING, PiecedContent

__all__ = ["QUICK", "RANGE_BYTES", "RangedContent"]

RANGE_BYTES = PART_BYTES
"""Size of a range; what is no larger is read in one piece."""

QUICK = 150e6
"""Bytes a second from which on one connection is enough."""

Fetch = Callable[[int, int], memoryview]
Rest = Callable[[int], BinaryIO]


class RangedContent(PiecedContent):
    """The content of an object that is read in ranges, in order. No more than `PARALLEL` ranges are in memory.

    Args:
        first: The first range, which is being read.
        fetch: Returns a range, from where it begins and how long it is; called on other threads.
        rest: Opens all that comes from a place on.
        size: Size of the object.
    """

    def __init__(self, first: BinaryIO, fetch: Fetch, rest: Rest, size: int) -> None:
        super().__init__()
        self._stream = first
        self._fetch = fetch
        self._rest = rest
        self._size = size
        self._pool: ThreadPoolExecutor | None = None
        self._pieces = self._ranges()

    def _ranges(self) -> Iterator[memoryview]:
        begun = time.perf_counter()
        yield from _pieces(self._stream)
        quick = RANGE_BYTES / max(time.perf_counter() - begun, 1e-9) > QUICK
        self._stream.close()
        if quick:
            self._stream = self._rest(RANGE_BYTES)
            yield from _pieces(self._stream)
            return
        self._pool = ThreadPoolExecutor(PARALLEL, thread_name_prefix="polyserve-s3")
        starts = iter(range(RANGE_BYTES, self._size, RANGE_BYTES))
        waiting: deque[Future[memoryview]] = deque()
        while True:
            while len(waiting) < PARALLEL and (start := next(starts, None)) is not None:
                length = min(RANGE_BYTES, self._size - start)
                waiting.append(self._pool.submit(self._fetch, start, length))
            if not waiting:
                return
            yield waiting.popleft().result()

    def _next(self) -> memoryview | None:
        return next(self._pieces, None)

    def close(self) -> None:
        """Give up what has not come yet, and wait for what is on its way."""
        if not self.closed:
            super().close()
            self._stream.close()
            if self._pool is not None:
                self._pool.shutdown(cancel_futures=True)
            self._pieces, self._piece = iter(()), NOTHING


def _pieces(stream: BinaryIO) -> Iterator[memoryview]:
    pieces = getattr(stream, "pieces", None)
    if pieces is not None:
        yield from pieces()
        return
    while data := stream.read(1 << 20):
        yield memoryview(data)
