"""A bucket within a bucket: every key begins with a prefix that its users never see."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import BinaryIO, Literal

from polyserve.driver import ObjectMeta, ObjectStore, Page, PutAttributes
from polyserve.errors import InvalidArgumentError

__all__ = ["PrefixedStore", "prefixed"]

MAX_KEY_BYTES = 1024


def prefixed(store: ObjectStore, prefix: str) -> ObjectStore:
    """Return a store of the objects whose key begins with `prefix`, under the rest of their key.

    Keys may be shorter here, by the bytes of the prefix.
    """
    return PrefixedStore(store, prefix)


class PrefixedStore:
    """Part of a store. Implements `polyserve.driver.ObjectStore`.

    Args:
        store: The store that is wrapped.
        prefix: What every key begins with, such as `"team-a/"`.
    """

    def __init__(self, store: ObjectStore, prefix: str) -> None:
        self._store = store
        self._prefix = prefix

    def put(self, key: str, body: BinaryIO, *, attrs: PutAttributes) -> ObjectMeta:
        """Write an object."""
        return self._inner(self._store.put(self._outer(key), body, attrs=attrs))

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> tuple[ObjectMeta, BinaryIO]:
        """Open an object."""
        meta, body = self._store.get(self._outer(key), offset=offset, length=length)
        return self._inner(meta), body

    def head(self, key: str) -> ObjectMeta:
        """Describe an object."""
        return self._inner(self._store.head(self._outer(key)))

    def list_page(self, *, prefix: str, delimiter: str, token: str | None, limit: int) -> Page:
        """List one page."""
        page = self._store.list_page(prefix=self._prefix + prefix, delimiter=delimiter, token=token, limit=limit)
        return Page(
            objects=tuple(self._inner(meta) for meta in page.objects),
            prefixes=tuple(common.removeprefix(self._prefix) for common in page.prefixes),
            next_token=page.next_token,
        )

    def copy(self, source: str, target: str) -> ObjectMeta:
        """Copy an object."""
        return self._inner(self._store.copy(self._outer(source), self._outer(target)))

    def delete(self, key: str) -> None:
        """Delete an object."""
        self._store.delete(self._outer(key))

    def sign(self, key: str, *, method: Literal["GET", "PUT"], expires_in: timedelta) -> str:
        """Return a signed URL."""
        return self._store.sign(self._outer(key), method=method, expires_in=expires_in)

    def _outer(self, key: str) -> str:
        outer = self._prefix + key
        if len(outer) > MAX_KEY_BYTES // 4 and len(outer.encode()) > MAX_KEY_BYTES:
            room = MAX_KEY_BYTES - len(self._prefix.encode())
            message = f"key {key[:100]!r}... is too long: below prefix {self._prefix!r} a key has at most {room} bytes"
            raise InvalidArgumentError(message, resource=key)
        return outer

    def _inner(self, meta: ObjectMeta) -> ObjectMeta:
        return replace(meta, key=meta.key.removeprefix(self._prefix))
