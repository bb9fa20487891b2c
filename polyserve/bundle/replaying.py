"""Answer a package's sample within a bundle's files and nothing else, and tell which of them were touched.

Run as a program (`python -I -S -B replaying.py`): only the standard library and what it is given are on its path. Takes one JSON object on
standard input, answers with one on standard output.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from pathlib import Path
from typing import Any

__all__: list[str] = []


class _Touched:
    """Notes the files below a directory that this process opens, imports or loads."""

    def __init__(self, root: str) -> None:
        self._root = os.path.join(os.path.realpath(root), "")
        self._seen: set[str] = set()

    def hook(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            self._note(args[0])
        elif event == "import":
            self._note(args[1])  # an extension module's file
        elif event == "ctypes.dlopen":
            self._note(args[0])

    def _note(self, path: object) -> None:
        if isinstance(path, bytes):
            path = os.fsdecode(path)
        if isinstance(path, (str, os.PathLike)):
            self._seen.add(os.fspath(path))

    def paths(self) -> list[str]:
        """Return what was touched, by path below the directory; libraries that the loader opened by itself are among it."""
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
            mapped = {line.split(maxsplit=5)[5].rstrip("\n") for line in maps if line.count(" /") and "/" in line}
        found = {os.path.realpath(path) for path in self._seen | mapped}
        return sorted(path.removeprefix(self._root) for path in found if path.startswith(self._root))


def _main() -> None:
    given = json.load(sys.stdin)
    # What a model prints is not an answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.path[:0] = given["paths"]
    touched = _Touched(given["root"])
    if given["trace"]:
        sys.addaudithook(touched.hook)

    from polyserve.runtime.host import Host
    from polyserve.runtime.messages import Request

    body = base64.b64decode(given["body"])
    golden = Request(method=given["method"], path=given["path"], headers=given["headers"], body=body)
    host = Host(Path(given["package"]), sink=lambda data: None)
    host.load()
    response = host.handle(golden)
    if given["trace"]:
        # What else a function is asked: several together, who it is, whether it is ready, and what makes no sense.
        host.handle_many([golden] * 5)
        stem = given["path"].rpartition("/")[0]
        for path in ("/v2", "/v2/health/ready", stem, f"{stem}/ready"):
            host.handle(Request(method="GET", path=path))
        host.handle(Request(path=given["path"], headers={"content-type": "application/json"}, body=b'{"inputs": []}'))
    answer = {
        "status": response.status,
        "headers": dict(response.headers),
        "body": base64.b64encode(response.body).decode(),
        "touched": touched.paths() if given["trace"] else [],
    }
    json.dump(answer, answers)
    answers.close()


if __name__ == "__main__":
    _main()
