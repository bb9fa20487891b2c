"""The harness of the local provider: a home of its own, and the files in it read and written without the driver.

The oracle knows the format of `polyserve_local.files` from its documentation and shares no code with it.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polyserve.driver import ErrorCode, FunctionSpec
from polyserve.testing.harness import ErrorCase, RawObject, sample_spec
from polyserve_local.errors import (
    BucketNotEmptyError,
    DamagedObjectError,
    GatewayError,
    InvalidNameError,
    PreconditionError,
    UnsupportedOperationError,
)
from polyserve_local.provider import LocalProvider
from polyserve_local.settings import LocalSettings

SAFE = "abcdefghijklmnopqrstuvwxyz0123456789-_."


def open_harness(directory: Path) -> LocalHarness:
    """Give the harness; every provider's module has this."""
    return LocalHarness(directory)


def _escape(piece: bytes) -> str:
    text = "".join(chr(byte) if chr(byte) in SAFE else f"%{byte:02x}" for byte in piece)
    return "%2e" + text[1:] if text[:1] == "." else text


def _split(piece: bytes) -> list[bytes]:
    """Cut off 80 bytes as long as there are as many; the last part has fewer."""
    return [piece[at : at + 80] for at in range(0, len(piece) // 80 * 80 + 1, 80)]


def path_of(key: str) -> str:
    *directories, last = key.encode().split(b"/")
    names = []
    for piece in directories:
        *chunks, rest = _split(piece)
        names += [_escape(chunk) + "%-" for chunk in chunks] + [_escape(rest) + "%"]
    *chunks, rest = _split(last)
    names += [_escape(chunk) + "%-" for chunk in chunks] + [_escape(rest) or "%e"]
    return "/".join(names)


def key_of(path: str) -> str:
    key, rest = b"", path
    for name in rest.split("/"):
        plain, end = name, b""
        if name == "%e":
            plain = ""
        elif name.endswith("%-"):
            plain = name[:-2]
        elif name.endswith("%"):
            plain, end = name[:-1], b"/"
        parts = plain.split("%")
        key += parts[0].encode() + b"".join(bytes.fromhex(part[:2]) + part[2:].encode() for part in parts[1:]) + end
    return key.decode()


class LocalHarness:
    """The local provider with a home in a temporary directory."""

    name = "local"
    key_bytes = 1024

    def __init__(self, directory: Path) -> None:
        self.home = directory / "home"
        self.home.mkdir()
        self.options: Mapping[str, Any] = {"home": str(self.home), "idle_timeout_s": 30.0}
        self._provider = LocalProvider(LocalSettings(home=str(self.home), idle_timeout_s=30.0))
        self._numbers = itertools.count(1)
        self._versions = itertools.count(1)

    def provider(self) -> LocalProvider:
        return self._provider

    def fresh_bucket(self) -> str:
        name = f"contract-{next(self._numbers)}"
        self._provider.ensure_bucket(name)
        return name

    def drop_bucket(self, bucket: str) -> None:
        if self._bucket(bucket).exists():
            # Not shutil.rmtree: a key of slashes is deeper than Python recurses.
            subprocess.run(["rm", "-rf", str(self._bucket(bucket))], check=True)

    def raw_put(self, bucket: str, key: str, value: RawObject) -> None:
        file = self._bucket(bucket) / path_of(key)
        missing = [file.parent]
        while not missing[-1].exists():
            missing.append(missing[-1].parent)
        for directory in reversed(missing[:-1]):
            directory.mkdir()
        header = {
            "type": value.content_type,
            "meta": dict(value.metadata),
            "version": f"raw-{next(self._versions)}",
            "ns": int(file.parent.stat().st_mtime * 1e9),
        }
        end = len(value.body).to_bytes(8, "little") + b"pserve1\n"
        file.write_bytes(value.body + json.dumps(header).encode() + b"\n" + end)

    def raw_get(self, bucket: str, key: str) -> RawObject:
        content = (self._bucket(bucket) / path_of(key)).read_bytes()
        assert content[-8:] == b"pserve1\n"
        size = int.from_bytes(content[-16:-8], "little")
        header = json.loads(content[size:-16])
        return RawObject(body=content[:size], content_type=header["type"], metadata=header["meta"])

    def raw_list(self, bucket: str) -> Sequence[str]:
        top = str(self._bucket(bucket))
        found, pending = [], [top]
        while pending:
            directory = pending.pop()
            for name in os.listdir(directory):
                path = f"{directory}/{name}"
                if os.path.isdir(path):
                    pending += [path] * (not name.startswith("."))
                else:
                    found.append(key_of(path.removeprefix(top + "/")))
        return found

    def _bucket(self, bucket: str) -> Path:
        # Whatever the provider calls the directory of its buckets, the name of the bucket is its child's.
        (found,) = [*self.home.glob(f"*/{bucket}"), *self.home.glob(f"*/*/{bucket}")] or [self.home / "none" / bucket]
        return found

    def inventory(self) -> Sequence[str]:
        # Not rglob: it fails where the gateway, on its way out, removes a directory that is just being read.
        paths = [Path(top, name) for top, inner, files in os.walk(self.home) for name in (*inner, *files)]
        names = sorted(p.relative_to(self.home).as_posix() for p in paths if p.is_file() or p.name == ".writing")
        left = [name for name in names if not name.startswith("local/gateway")]
        return [*left, *(f"process {pid}" for pid in self._processes())]

    def _processes(self) -> list[int]:
        """Return the processes that were started with this home, but for the gateway, which goes when it likes."""
        listed = subprocess.run(["ps", "-eo", "pid=,args="], check=True, capture_output=True, text=True).stdout
        mine = [line.split(None, 1) for line in listed.splitlines() if str(self.home) in line]
        return [int(pid) for pid, arguments in mine if "gateway" not in arguments and not arguments.startswith("ps ")]

    def error_cases(self) -> Sequence[ErrorCase]:
        codes = {
            errno.ENOENT: ErrorCode.NOT_FOUND,
            errno.EACCES: ErrorCode.PERMISSION_DENIED,
            errno.EPERM: ErrorCode.PERMISSION_DENIED,
            errno.EROFS: ErrorCode.PERMISSION_DENIED,
            errno.EEXIST: ErrorCode.ALREADY_EXISTS,
            errno.EADDRINUSE: ErrorCode.ALREADY_EXISTS,
            errno.ENOTEMPTY: ErrorCode.FAILED_PRECONDITION,
            errno.ENOSPC: ErrorCode.RESOURCE_EXHAUSTED,
            errno.EDQUOT: ErrorCode.RESOURCE_EXHAUSTED,
            errno.EMFILE: ErrorCode.RESOURCE_EXHAUSTED,
            errno.EAGAIN: ErrorCode.RESOURCE_EXHAUSTED,
            errno.ENAMETOOLONG: ErrorCode.INVALID_ARGUMENT,
            errno.ECONNREFUSED: ErrorCode.UNAVAILABLE,
            errno.ECONNRESET: ErrorCode.UNAVAILABLE,
            errno.EPIPE: ErrorCode.UNAVAILABLE,
            errno.ETIMEDOUT: ErrorCode.DEADLINE_EXCEEDED,
            errno.EIO: ErrorCode.INTERNAL,
        }
        own = [
            (PreconditionError("object 'k' exists already"), ErrorCode.FAILED_PRECONDITION),
            (BucketNotEmptyError("bucket 'b' has objects"), ErrorCode.FAILED_PRECONDITION),
            (InvalidNameError("bucket '../b'"), ErrorCode.INVALID_ARGUMENT),
            (DamagedObjectError("no object"), ErrorCode.INTERNAL),
            (UnsupportedOperationError("no URLs"), ErrorCode.UNSUPPORTED),
            (TimeoutError(), ErrorCode.DEADLINE_EXCEEDED),
            (TimeoutError("timed out"), ErrorCode.DEADLINE_EXCEEDED),
            (ConnectionError("closed"), ErrorCode.UNAVAILABLE),
            (MemoryError(), ErrorCode.RESOURCE_EXHAUSTED),
            *((GatewayError(code, "the gateway says so"), code) for code in ErrorCode if code is not ErrorCode.UNKNOWN),
        ]
        native = [(OSError(number, os.strerror(number)), code) for number, code in codes.items()]
        return [
            ErrorCase(name=f"{number} {type(error).__name__} {error}", error=error, code=code)
            for number, (error, code) in enumerate([*native, *own])
        ]

    def function_spec(self, name: str, revision: int) -> FunctionSpec:
        self._provider.ensure_bucket("contract-bundles")
        return sample_spec(self._provider, "contract-bundles", name, revision)

    def close(self) -> None:
        self._provider.close()
        self.drop_bucket("contract-bundles")
        shutil.rmtree(self.home, ignore_errors=True)
