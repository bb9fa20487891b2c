"""Keras files (`.keras`) that are the same bytes for the same model, and what of a user's own they refer to.

Keras writes the date into each file, and where in memory it found what several layers share.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from typing import Any

_CONFIG = "config.json"
_METADATA = "metadata.json"
# What the model was trained with. It is not needed to answer.
_TRAINING = frozenset({"compile_config"})


def canonical(raw: bytes) -> bytes:
    """Return a file without date, addresses and what it was trained with."""
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as source, zipfile.ZipFile(written, "w", zipfile.ZIP_STORED) as target:
        for name in sorted(source.namelist()):
            if name.endswith("/"):
                continue
            content = source.read(name)
            if name == _METADATA:
                content = _json({"keras_version": json.loads(content).get("keras_version")})
            elif name == _CONFIG:
                content = _json(_settled(json.loads(content), {}))
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            target.writestr(entry, content)
    return written.getvalue()


def registered(raw: bytes) -> set[str]:
    """Return the names under which classes and functions that are not Keras's were registered."""
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        return {name for name in _names(json.loads(archive.read(_CONFIG))) if ">" in name}


def _settled(value: Any, numbers: dict[int, int]) -> Any:
    if isinstance(value, dict):
        settled = {}
        for key, part in value.items():
            if key in _TRAINING:
                continue
            is_address = key == "shared_object_id" and isinstance(part, int)
            settled[key] = numbers.setdefault(part, len(numbers)) if is_address else _settled(part, numbers)
        return settled
    return [_settled(part, numbers) for part in value] if isinstance(value, list) else value


def _names(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        name = value.get("registered_name")
        if isinstance(name, str):
            yield name
        for part in value.values():
            yield from _names(part)
    elif isinstance(value, list):
        for part in value:
            yield from _names(part)


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
