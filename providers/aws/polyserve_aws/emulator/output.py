"""What a function prints, cut into the events of its log: lines of text, and whole records of its logger.

The runtime client writes log records to a descriptor of its own, each in a frame of 16 bytes and a message: that is how
a traceback of many lines is one event on Lambda (`FramedTelemetryLogSink` in awslambdaric). Here that descriptor is a
second name of the one for text, so that both come in the order in which they were written.
"""

from __future__ import annotations

import struct
import time

_MARK = b"\xa5\x5a\x00"
_HEADER = struct.Struct(">4sIQ")
"""Kind of the frame, length of the message, and when it was written in microseconds since 1970."""


class Output:
    """The output of one process, as it comes."""

    def __init__(self) -> None:
        self._rest = b""
        self._events: list[tuple[int, str]] = []

    def feed(self, data: bytes) -> None:
        """Take what was read."""
        self._rest += data
        while self._rest:
            mark = self._rest.find(_MARK)
            if mark != 0:
                text = self._rest if mark < 0 else self._rest[:mark]
                lines, open_end = self._cut(text, whole=mark > 0)
                self._events += lines
                if mark < 0:
                    self._rest = open_end
                    return
                self._rest = self._rest[mark:]
            if len(self._rest) < _HEADER.size:
                return
            _, length, at = _HEADER.unpack_from(self._rest)
            end = _HEADER.size + length
            if len(self._rest) < end:
                return
            self._events.append((at // 1000, self._rest[_HEADER.size : end].decode("utf-8", "replace")))
            self._rest = self._rest[end:]

    def take(self) -> list[tuple[int, str]]:
        """Return the events since the last call: milliseconds since 1970, and the text; an unfinished line is one too."""
        if self._rest and not self._rest.startswith(_MARK):
            self._events.append((time.time_ns() // 1_000_000, self._rest.decode("utf-8", "replace") + "\n"))
            self._rest = b""
        events, self._events = self._events, []
        return events

    def _cut(self, text: bytes, *, whole: bool) -> tuple[list[tuple[int, str]], bytes]:
        """Cut text into lines; what follows the last line's end is left over, unless nothing can follow it."""
        *lines, last = text.split(b"\n")
        if whole and last:
            lines, last = [*lines, last], b""
        now = time.time_ns() // 1_000_000
        return [(now, line.decode("utf-8", "replace") + "\n") for line in lines], last
