"""The content of an object as a file that is read, whatever its pieces come from."""

from __future__ import annotations

import io
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

__all__ = ["NOTHING", "PiecedContent"]

NOTHING = memoryview(b"")
"""A piece that is used up."""


class PiecedContent(io.RawIOBase):
    """A content that comes piece by piece, and is read as it comes."""

    def __init__(self) -> None:
        self._piece = NOTHING

    @abstractmethod
    def _next(self) -> memoryview | None:
        """Return what comes next, or `None` at the end."""

    def readable(self) -> bool:
        """Return true."""
        return True

    def _more(self) -> bool:
        """Have something to give, or return false at the end."""
        while not self._piece:
            piece = self._next()
            if piece is None:
                return False
            self._piece = piece
        return True

    def pieces(self) -> Iterator[memoryview]:
        """Yield what is left as it comes, without a copy."""
        while self._more():
            piece, self._piece = self._piece, NOTHING
            yield piece

    def read(self, size: int | None = -1) -> bytes:
        """Read up to `size` bytes, or all that is left."""
        if size is None or size < 0:
            pieces, self._piece = [self._piece], NOTHING
            while (piece := self._next()) is not None:
                pieces.append(piece)
            return b"".join(pieces)
        if not size or not self._more():
            return b""
        data, self._piece = self._piece[:size], self._piece[size:]
        return bytes(data)

    def readall(self) -> bytes:
        """Read all that is left."""
        return self.read()

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer and return how many bytes came."""
        with memoryview(buffer).cast("B") as view:
            if not view.nbytes or not self._more():
                return 0
            data, self._piece = self._piece[: view.nbytes], self._piece[view.nbytes :]
            view[: len(data)] = data
            return len(data)
