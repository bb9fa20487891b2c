"""Stores that lie, each in one way: a contract that one of them passes has no teeth.

`MUTANTS` has them by the name of the lie; each is a store of the provider in memory, to be given to `MemoryHarness(store=...)`.
"""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import BinaryIO, Literal

from polyserve.driver import ErrorCode, ObjectMeta, Page, PutAttributes
from polyserve.testing.memory import MemoryFault, MemoryStore

__all__ = ["MUTANTS"]


class _IgnoresIfAbsent(MemoryStore):
    def put(self, key: str, body: BinaryIO, *, attrs: PutAttributes) -> ObjectMeta:
        return super().put(key, body, attrs=replace(attrs, if_absent=False))


class _IgnoresIfMatch(MemoryStore):
    def put(self, key: str, body: BinaryIO, *, attrs: PutAttributes) -> ObjectMeta:
        return super().put(key, body, attrs=replace(attrs, if_match=None))


class _ChecksAbsenceBeforeItReads(MemoryStore):
    def put(self, key: str, body: BinaryIO, *, attrs: PutAttributes) -> ObjectMeta:
        if not attrs.if_absent:
            return super().put(key, body, attrs=attrs)
        if key in self._contents().objects:
            raise MemoryFault(ErrorCode.FAILED_PRECONDITION, "exists")
        return super().put(key, _Slow(body.read()), attrs=replace(attrs, if_absent=False))


class _MakesWhatIfMatchMisses(MemoryStore):
    def put(self, key: str, body: BinaryIO, *, attrs: PutAttributes) -> ObjectMeta:
        missing = key not in self._contents().objects
        return super().put(key, body, attrs=replace(attrs, if_match=None) if missing else attrs)


class _SwallowsMissing(MemoryStore):
    def delete(self, key: str) -> None:
        self._contents().objects.pop(key, None)


class _DeletesNothing(MemoryStore):
    def delete(self, key: str) -> None:
        self.head(key)


class _DeletesWhatIsBelow(MemoryStore):
    def delete(self, key: str) -> None:
        super().delete(key)
        objects = self._contents().objects
        for other in [other for other in objects if other.startswith(key + "/")]:
            del objects[other]


class _ListsBackwards(MemoryStore):
    def list_page(self, *, prefix: str, delimiter: str, token: str | None, limit: int) -> Page:
        page = super().list_page(prefix=prefix, delimiter=delimiter, token=token, limit=limit)
        return replace(page, objects=page.objects[::-1])


class _ListsInUtf16Order(MemoryStore):
    def list_page(self, *, prefix: str, delimiter: str, token: str | None, limit: int) -> Page:
        page = super().list_page(prefix=prefix, delimiter=delimiter, token=token, limit=limit)
        return replace(page, objects=tuple(sorted(page.objects, key=lambda meta: meta.key.encode("utf-16-be"))))


class _DropsDoubleSlashes(MemoryStore):
    def put(self, key: str, body: BinaryIO, *, attrs: PutAttributes) -> ObjectMeta:
        return super().put(key.replace("//", "/"), body, attrs=attrs)


class _DecodesPercents(MemoryStore):
    def put(self, key: str, body: BinaryIO, *, attrs: PutAttributes) -> ObjectMeta:
        return replace(super().put(key.replace("%2F", "/"), body, attrs=attrs), key=key)


class _FoldsCase(MemoryStore):
    def put(self, key: str, body: BinaryIO, *, attrs: PutAttributes) -> ObjectMeta:
        objects = self._contents().objects
        same = next((other for other in objects if other.casefold() == key.casefold()), key)
        return replace(super().put(same, body, attrs=attrs), key=key)


class _IgnoresOffset(MemoryStore):
    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> tuple[ObjectMeta, BinaryIO]:
        return super().get(key, length=length)


class _IsOffByOneInLength(MemoryStore):
    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> tuple[ObjectMeta, BinaryIO]:
        return super().get(key, offset=offset, length=None if length is None else length + 1)


class _RefusesRangesPastTheEnd(MemoryStore):
    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> tuple[ObjectMeta, BinaryIO]:
        if offset and offset >= self.head(key).size:
            raise MemoryFault(ErrorCode.INVALID_ARGUMENT, "range not satisfiable")
        return super().get(key, offset=offset, length=length)


class _TakesNoBytesForAll(MemoryStore):
    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> tuple[ObjectMeta, BinaryIO]:
        return super().get(key, offset=offset, length=length or None)


class _TellsTheSizeOfTheRange(MemoryStore):
    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> tuple[ObjectMeta, BinaryIO]:
        meta, body = super().get(key, offset=offset, length=length)
        content = body.read()
        return replace(meta, size=len(content)), io.BytesIO(content)


class _ForgetsMetadata(MemoryStore):
    def put(self, key: str, body: BinaryIO, *, attrs: PutAttributes) -> ObjectMeta:
        return super().put(key, body, attrs=replace(attrs, metadata={}))


class _MergesMetadata(MemoryStore):
    def put(self, key: str, body: BinaryIO, *, attrs: PutAttributes) -> ObjectMeta:
        there = self._contents().objects.get(key)
        old = there[0].metadata if there else {}
        return super().put(key, body, attrs=replace(attrs, metadata={**old, **attrs.metadata}))


class _ForgetsContentType(MemoryStore):
    def put(self, key: str, body: BinaryIO, *, attrs: PutAttributes) -> ObjectMeta:
        return super().put(key, body, attrs=replace(attrs, content_type="application/octet-stream"))


class _KeepsItsVersion(MemoryStore):
    def put(self, key: str, body: BinaryIO, *, attrs: PutAttributes) -> ObjectMeta:
        there = self._contents().objects.get(key)
        meta = super().put(key, body, attrs=attrs)
        if there is None:
            return meta
        kept = replace(meta, version=there[0].version)
        self._contents().objects[key] = (kept, self._contents().objects[key][1])
        return kept


class _ListsAnotherVersion(MemoryStore):
    def list_page(self, *, prefix: str, delimiter: str, token: str | None, limit: int) -> Page:
        page = super().list_page(prefix=prefix, delimiter=delimiter, token=token, limit=limit)
        return replace(page, objects=tuple(replace(meta, version=f'"{meta.version}"') for meta in page.objects))


class _IgnoresTheLimit(MemoryStore):
    def list_page(self, *, prefix: str, delimiter: str, token: str | None, limit: int) -> Page:
        return super().list_page(prefix=prefix, delimiter=delimiter, token=token, limit=1000)


class _ListsOnePageOnly(MemoryStore):
    def list_page(self, *, prefix: str, delimiter: str, token: str | None, limit: int) -> Page:
        page = super().list_page(prefix=prefix, delimiter=delimiter, token=token, limit=limit)
        return replace(page, next_token=None)


class _RepeatsTheLastOfAPage(MemoryStore):
    def list_page(self, *, prefix: str, delimiter: str, token: str | None, limit: int) -> Page:
        page = super().list_page(prefix=prefix, delimiter=delimiter, token=token, limit=limit)
        if token is not None and token in self._contents().objects:
            return replace(page, objects=(self.head(token), *page.objects)[:limit])
        return page


class _CountsInsteadOfRemembering(MemoryStore):
    def list_page(self, *, prefix: str, delimiter: str, token: str | None, limit: int) -> Page:
        page = super().list_page(prefix=prefix, delimiter=delimiter, token=None, limit=1000)
        start = int(token or 0)
        end = start + limit
        if delimiter:
            return super().list_page(prefix=prefix, delimiter=delimiter, token=token, limit=limit)
        return Page(objects=page.objects[start:end], next_token=str(end) if end < len(page.objects) else None)


class _IgnoresTheDelimiter(MemoryStore):
    def list_page(self, *, prefix: str, delimiter: str, token: str | None, limit: int) -> Page:
        return super().list_page(prefix=prefix, delimiter="", token=token, limit=limit)


class _TellsPrefixesOnEveryPage(MemoryStore):
    def list_page(self, *, prefix: str, delimiter: str, token: str | None, limit: int) -> Page:
        after = token.rstrip("/") if token and delimiter else token
        return super().list_page(prefix=prefix, delimiter=delimiter, token=after, limit=limit)


class _TakesPrefixesForDirectories(MemoryStore):
    def list_page(self, *, prefix: str, delimiter: str, token: str | None, limit: int) -> Page:
        directory = prefix if not prefix or prefix.endswith("/") else prefix + "/"
        return super().list_page(prefix=directory, delimiter=delimiter, token=token, limit=limit)


class _ListsMissingBucketsAsEmpty(MemoryStore):
    def list_page(self, *, prefix: str, delimiter: str, token: str | None, limit: int) -> Page:
        if self.bucket not in self.provider.buckets:
            return Page(objects=())
        return super().list_page(prefix=prefix, delimiter=delimiter, token=token, limit=limit)


class _MakesMissingBuckets(MemoryStore):
    def put(self, key: str, body: BinaryIO, *, attrs: PutAttributes) -> ObjectMeta:
        self.provider.ensure_bucket(self.bucket)
        return super().put(key, body, attrs=attrs)


class _ShowsHalfWrittenObjects(MemoryStore):
    def put(self, key: str, body: BinaryIO, *, attrs: PutAttributes) -> ObjectMeta:
        half = body.read(50_000)
        if len(half) < 50_000 or attrs.if_absent or attrs.if_match is not None:
            return super().put(key, io.BytesIO(half + body.read()), attrs=attrs)
        super().put(key, io.BytesIO(half), attrs=attrs)
        return super().put(key, io.BytesIO(half + body.read()), attrs=attrs)


class _KeepsWhatBrokeOff(MemoryStore):
    def put(self, key: str, body: BinaryIO, *, attrs: PutAttributes) -> ObjectMeta:
        pieces: list[bytes] = []
        try:
            while piece := body.read(65_536):
                pieces.append(piece)
        except Exception:
            super().put(key, io.BytesIO(b"".join(pieces)), attrs=attrs)
            raise
        return super().put(key, io.BytesIO(b"".join(pieces)), attrs=attrs)


class _LosesMetadataInCopies(MemoryStore):
    def copy(self, source: str, target: str) -> ObjectMeta:
        return self.put(target, self.get(source)[1], attrs=PutAttributes())


class _MovesInsteadOfCopying(MemoryStore):
    def copy(self, source: str, target: str) -> ObjectMeta:
        meta = super().copy(source, target)
        if source != target:
            self.delete(source)
        return meta


class _RaisesWhatNobodyKnows(MemoryStore):
    def head(self, key: str) -> ObjectMeta:
        try:
            return super().head(key)
        except MemoryFault as fault:
            raise RuntimeError("404") from fault


class _SpoilsBytes(MemoryStore):
    def put(self, key: str, body: BinaryIO, *, attrs: PutAttributes) -> ObjectMeta:
        return super().put(key, io.BytesIO(body.read().replace(b"\r\n", b"\n").replace(b"\x80", b"?")), attrs=attrs)


class _SignsEveryMethod(MemoryStore):
    def sign(self, key: str, *, method: Literal["GET", "PUT"], expires_in: timedelta) -> str:
        return super().sign(key, method="PUT", expires_in=expires_in)


class _SignsAnotherKey(MemoryStore):
    def sign(self, key: str, *, method: Literal["GET", "PUT"], expires_in: timedelta) -> str:
        return super().sign(key.replace("//", "/"), method=method, expires_in=expires_in)


class _Slow(io.BytesIO):
    """A body whose reading lets other threads come between."""

    def read(self, size: int | None = -1, /) -> bytes:
        time.sleep(0.01)
        return super().read(size)


MUTANTS: Mapping[str, type[MemoryStore]] = {
    "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in kind.__name__[1:]).strip(): kind
    for kind in MemoryStore.__subclasses__()
    if kind.__module__ == __name__
}
"""The stores that lie, by the name of the lie."""
