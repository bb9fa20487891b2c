"""Lists of objects: fake-gcs-server's own for what is live; old generations and globs, which it does not list, from the catalog."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from typing import Any

from polyserve.emulation.http import Answer, json_answer
from polyserve_gcp.emulator.gcs_catalog import Bucket, StoredObject
from polyserve_gcp.emulator.gcs_errors import absent, bad
from polyserve_gcp.emulator.gcs_server import FakeGcs

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
    limit = query.get("maxResults", "")
    if limit and not limit.isdigit():
        raise bad(f"Invalid argument: maxResults is '{limit}', and not a number.")
    most = min(int(limit or PAGE) or PAGE, PAGE)
    if (
        query.get("versions", "").lower() == "true"
        or query.get("matchGlob")
        or query.get("includeTrailingDelimiter", "").lower() == "true"
    ):
        return json_answer(200, _page(_choose(bucket, query), query, most, url))
    names = ("prefix", "delimiter", "startOffset", "endOffset", "pageToken")
    wanted = {name: query[name] for name in names if query.get(name)}
    found = await server.list(bucket.name, {**wanted, "maxResults": str(most)})
    shown: dict[str, Any] = {"kind": "storage#objects"}
    # What was deleted since it was listed is left out.
    live = [bucket.live.get(item["name"]) for item in found.get("items") or ()]
    if any(live):
        shown["items"] = [one.show(url) for one in live if one is not None]
    shown |= {name: found[name] for name in ("prefixes", "nextPageToken") if found.get(name)}
    return json_answer(200, shown)


def _choose(bucket: Bucket, query: Mapping[str, str]) -> Iterable[tuple[str, StoredObject | None]]:
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


def _page(
    entries: Iterable[tuple[str, StoredObject | None]], query: Mapping[str, str], most: int, url: str
) -> dict[str, Any]:
    token = query.get("pageToken", "")
    try:
        start = int(base64.b64decode(token, validate=True).decode().partition(":")[2]) if token else 0
    except ValueError:
        raise bad("Invalid argument: pageToken") from None
    every = list(entries)
    chosen = every[start : start + most]
    shown: dict[str, Any] = {"kind": "storage#objects"}
    items, prefixes = (
        [one.show(url) for _, one in chosen if one is not None],
        [name for name, one in chosen if one is None],
    )
    if items:
        shown["items"] = items
    if prefixes:
        shown["prefixes"] = prefixes
    if len(every) > start + most:
        shown["nextPageToken"] = base64.b64encode(f"p:{start + most}".encode()).decode()
    return shown


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
