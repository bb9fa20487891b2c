"""Skops files that are the same bytes for the same model: skops names their parts by where objects were in memory, and dates them.

Knows the form of the archive, and nothing of what it holds: its types are checked before, by skops itself.
"""

from __future__ import annotations

import io
import json
import zipfile
from typing import Any

_SCHEMA = "schema.json"
_DATE = (1980, 1, 1, 0, 0, 0)


def canonical(raw: bytes) -> bytes:
    """Return a skops file with the names of its parts, and its objects' numbers, in the order in which they appear, and no dates."""
    with zipfile.ZipFile(io.BytesIO(raw)) as source:
        schema = json.loads(source.read(_SCHEMA))
        numbers: dict[object, int] = {}
        names: dict[str, str] = {}
        _renumber(schema, numbers, names)
        target = io.BytesIO()
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
            for name, renamed in names.items():
                archive.writestr(_entry(renamed), source.read(name))
            archive.writestr(_entry(_SCHEMA), json.dumps(schema, separators=(",", ":")))
    return target.getvalue()


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _DATE)
    entry.create_system = 3  # Unix, whatever this is
    entry.external_attr = 0o644 << 16
    return entry


def _renumber(node: Any, numbers: dict[object, int], names: dict[str, str]) -> None:
    if isinstance(node, list):
        for part in node:
            _renumber(part, numbers, names)
    if not isinstance(node, dict):
        return
    # Only what skops wrote about an object has a loader; a dict of the model's own has its keys inside such a one.
    if "__loader__" in node:
        if isinstance(node.get("__id__"), int):
            # Python keeps some equal strings and numbers as one object, and which ones is chance.
            key = object() if node["__loader__"] == "JsonNode" else node["__id__"]
            node["__id__"] = numbers.setdefault(key, len(numbers))
        if isinstance(name := node.get("file"), str):
            suffix = name[name.rfind(".") :]
            node["file"] = names.setdefault(name, f"{len(names)}{suffix}")
    for part in node.values():
        _renumber(part, numbers, names)
