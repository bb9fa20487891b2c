"""What there is in a home, looked up past the drivers: files, processes and sockets as the operating system shows them."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from polyserve_local import processes
from polyserve_local.control import alive
from polyserve_local.places import Places


def inventory(home: Path) -> list[str]:
    """Return what there is in a home, each as a line for people; empty once everything was deleted.

    Not counted are the gateway's log, which stays, and the empty file of its lock, which a gateway that was killed leaves: they belong
    to no deployment. A gateway that lives counts.
    """
    places = Places(home)
    found = [f"{kind} {path.relative_to(home)}" for kind, path in _files(places)]
    if places.run.is_dir():
        for path in sorted(places.run.iterdir()):
            found.append(f"file {path}")
            with contextlib.suppress(FileNotFoundError):  # it has ended just now
                record = json.loads(path.read_bytes()) if path.suffix == ".json" else None
                if record and processes.started_at(record["pid"]) == record["started"]:
                    found.append(f"process {record['pid']} (instance of {record['function']})")
    if alive(places):
        found.append("process of the gateway")
    return found


def _files(places: Places) -> list[tuple[str, Path]]:
    found = [("bucket", path) for path in _children(places.store) if path.is_dir()]
    for bucket in [path for _, path in found]:
        found += [
            ("object", path) for path in sorted(bucket.rglob("*")) if path.is_file() and ".writing" not in path.parts
        ]
    found += [("function", path) for path in _children(places.functions)]
    found += [("bundle", path) for path in _children(places.bundles)]
    found += [("model", path) for path in _children(places.models)]
    found += [("environment", path) for path in _children(places.environments)]
    found += [("log", path) for path in _children(places.logs)]
    if places.contact.exists():
        found.append(("file", places.contact))
    return found


def _children(directory: Path) -> list[Path]:
    return sorted(directory.iterdir()) if directory.is_dir() else []
