"""Lists of objects: fake-gcs-server's own where they are plain; with delimiters, globs and old generations out of the catalog."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from polyserve.emulation.http import Answer, json_answer
from polyserve_gcp.emulator.gcs_catalog import Bucket, StoredObject
from polyserve_gcp.emulator.gcs_errors import absent, bad
from polyserve_gcp.emulator.gcs_server import FakeGcs

_Entry = tuple[str, StoredObject | None]
PAGE = 1000
"""Most entries of one page, objects and prefixes together ("Objects: list", read 2026-11-21)."""


async def list_objects(server: FakeGcs, bucket: Bucket, query: Mapping[str, str], url: str) -> Answer:
    """Answer one page of a list.

    Args:
        server: Has the live objects.
        bucket: What is listed.
        query: Query of the call.
        url: Address of the service.
    """
    if query.get("softDeleted", "").lower() == "true":
        raise absent("soft-deleted objects")
    if query.get("filter"):
        raise absent("filters of lists")
    limit = query.get("maxResults", "")
    if limit and not limit.isdigit():
        raise bad(f"Invalid argument: maxResults is '{limit}', and not a number.")
    most = min(int(limit or PAGE) or PAGE, PAGE)
    # fake-gcs-server takes `True` for false, cuts at the first letter of a delimiter, and repeats prefixes on every page.
    if any(query.get(name) for name in ("delimiter", "matchGlob")) or query.get("versions", "").lower() == "true":
        return json_answer(200, _page(_choose(bucket, query), query, most, url))
    wanted = {name: query[name] for name in ("prefix", "startOffset", "endOffset", "pageToken") if query.get(name)}
    found = await server.list(bucket.name, {**wanted, "maxResults": str(most)})
    shown: dict[str, Any] = {"kind": "storage#objects"}
    # What was deleted since it was listed is left out.
    live = [bucket.live.get(item["name"]) for item in found.get("items") or ()]
    if any(live):
        shown["items"] = [one.show(url) for one in live if one is not None]
    if found.get("nextPageToken"):
        shown["nextPageToken"] = found["nextPageToken"]
    return json_answer(200, shown)


def _choose(bucket: Bucket, query: Mapping[str, str]) -> Iterable[_Entry]:
    """Iterate over the entries of a list: objects, and prefixes without one."""
    versions = query.get("versions", "").lower() == "true"
    prefix, delimiter, glob = query.get("prefix", ""), query.get("delimiter", ""), query.get("matchGlob", "")
    start, end = query.get("startOffset", "").encode(), query.get("endOffset", "").encode()
    trailing = query.get("includeTrailingDelimiter", "").lower() == "true"
    pattern = _pattern(glob) if glob else None
    if glob and delimiter not in {"", "/"}:
        raise bad("matchGlob goes with the delimiter / only.")
    last = ""
    for one in bucket.every():
        name = one.name
        if not name.startswith(prefix) or name.encode() < start or (end and name.encode() >= end):
            continue
        if not versions and one.deleted:
            continue
        if pattern is not None and not pattern.fullmatch(name):
            continue
        cut = name.find(delimiter, len(prefix)) if delimiter else -1
        if cut < 0:
            yield name, one
            continue
        common = name[: cut + len(delimiter)]
        if common != last:
            last = common
            yield common, None
        if trailing and name == common:
            yield name, one


def _page(entries: Iterable[_Entry], query: Mapping[str, str], most: int, url: str) -> dict[str, Any]:
    """Return the page of a list that begins behind the entry that its token names."""
    after = _read_token(query.get("pageToken", ""))
    chosen = list(islice((one for one in entries if _place(one) > after), most + 1))
    shown: dict[str, Any] = {"kind": "storage#objects"}
    items = [one.show(url) for _, one in chosen[:most] if one is not None]
    prefixes = [name for name, one in chosen[:most] if one is None]
    shown |= {name: found for name, found in (("items", items), ("prefixes", prefixes)) if found}
    if len(chosen) > most:
        name, generation = _place(chosen[most - 1])
        shown["nextPageToken"] = base64.b64encode(name + b":" + str(generation).encode()).decode()
    return shown


def _place(entry: _Entry) -> tuple[bytes, int]:
    name, one = entry
    return name.encode(), one.generation if one is not None else 0


def _read_token(text: str) -> tuple[bytes, int]:
    if not text:
        return b"", -1
    try:
        name, _, generation = base64.b64decode(text, validate=True).rpartition(b":")
        return name, int(generation)
    except ValueError:
        raise bad("Invalid argument: pageToken") from None


def _pattern(glob: str) -> re.Pattern[str]:
    """Return what a glob of Cloud Storage means: `*` stops at a slash, `**` does not, `{a,b}` and `[a-z]` choose."""
    found, at, depth = "", 0, 0
    while at < len(glob):
        sign = glob[at]
        if glob.startswith("**/", at):
            found, at = found + "(?:.*/)?", at + 3
            continue
        if glob.startswith("**", at):
            found, at = found + ".*", at + 2
            continue
        close = glob.find("]", at + 1)
        if sign == "[" and close > 0:
            inner = glob[at + 1 : close]
            kept = re.sub(r"([\\^\[\]&~|])", r"\\\1", inner[1:] if inner[:1] in {"!", "^"} else inner)
            found += f"[{'^' if inner[:1] in {'!', '^'} else ''}{kept}]"
            at = close + 1
            continue
        if sign == "{":
            found, depth = found + "(?:", depth + 1
        elif sign == "}" and depth:
            found, depth = found + ")", depth - 1
        elif sign == "," and depth:
            found += "|"
        else:
            found += {"*": "[^/]*", "?": "[^/]"}.get(sign, re.escape(sign))
        at += 1
    if depth:
        raise bad(f"Invalid argument: matchGlob '{glob}' has a brace without its other.")
    return re.compile(found, re.DOTALL)
