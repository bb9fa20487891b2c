"""Real packages, built by hand: a manifest, a module, and the host that serves them."""

from __future__ import annotations

import importlib
import json
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from polyserve.runtime.host import Host
from polyserve.runtime.manifest import Manifest, Tolerance, file_entries
from polyserve.runtime.messages import Request
from polyserve.runtime.signature import Signature, TensorSpec

PYTHON = ".".join(platform.python_version_tuple()[:2])


class Served:
    """A host over a package made of source text, and the lines it logged."""

    def __init__(self, host: Host, chunks: list[bytes]) -> None:
        self.host = host
        self.writes = chunks

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in b"".join(self.writes).splitlines()]

    def infer(self, payload: Any, **more: Any) -> Any:
        """POST a JSON payload (or bytes) to the infer route."""
        body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        return self.host.handle(Request(path="/v2/models/tiny/infer", body=body, **more))


Serve = Callable[..., Served]


@pytest.fixture
def package(tmp_path: Path) -> Callable[..., Path]:
    """Write a package of the python flavor whose module is the given source, and return its directory."""
    made = 0

    def write(source: str, inputs: Any, outputs: Any, **fields: Any) -> Path:
        nonlocal made
        made += 1
        root = tmp_path / f"package{made}"
        module = f"model_{abs(hash((str(tmp_path), made)))}"
        (root / "code").mkdir(parents=True)
        (root / "code" / f"{module}.py").write_text(source)
        manifest = Manifest(
            **{
                "name": "tiny",
                "python": PYTHON,
                "flavor": "python",
                "loader": {"format": "callable", "module": module, "attribute": "predict", "model_dir": None},
                "requirements": (),
                "signature": Signature(
                    input_kind=fields.pop("input_kind", "array"),
                    output_kind=fields.pop("output_kind", "array"),
                    inputs=specs(inputs),
                    outputs=specs(outputs),
                ),
                "row_wise": True,
                "safe": True,
                "sample": None,
                "tolerance": Tolerance(),
                "files": file_entries(root),
            }
            | fields
        )
        (root / "manifest.json").write_bytes(manifest.to_json())
        return root

    return write


@pytest.fixture
def serve(package: Callable[..., Path]) -> Iterator[Serve]:
    """Load a package of the given source into a host."""
    path, hooks, loaded = sys.path[:], sys.path_hooks[:], set(sys.modules)

    def start(source: str, inputs: Any, outputs: Any, **fields: Any) -> Served:
        chunks: list[bytes] = []
        options = {key: fields.pop(key) for key in ("request_bytes",) if key in fields}
        host = Host(package(source, inputs, outputs, **fields), revision=3, sink=chunks.append, **options)
        host.load()
        return Served(host, chunks)

    yield start
    sys.path[:], sys.path_hooks[:] = path, hooks
    importlib.invalidate_caches()
    for name in set(sys.modules) - loaded:
        if name.startswith("model_"):
            del sys.modules[name]


@pytest.fixture
def doubling(serve: Serve) -> Served:
    """A row-wise model that doubles rows of four floats."""
    return serve(
        "def predict(x):\n    return x * 2\n",
        [("input", "FP64", (-1, 4))],
        [("output", "FP64", (-1, 4))],
    )


def specs(described: Any) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name=name, datatype=datatype, shape=shape, parameters=more[0] if more else {})
        for name, datatype, shape, *more in described
    )
