"""PyTorch's archives: which of them a file is, the same bytes for the same model, and whether opening one runs code.

TorchScript and exported programs are zip archives. Beside the model they hold where on the exporter's machine each line came from,
and the inputs it was exported with; neither is needed to run it.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

TORCHSCRIPT = "torchscript"
EXPORT = "export"
PICKLE = "pickle"

_ROOT = "archive/"
# Depends on all other records, and on the order in which they were written.
_VOLATILE = ".data/serialization_id"
_SAMPLE = "data/sample_inputs/"
# What sympy writes for sizes, such as "Add(Symbol('s0', positive=True, integer=True), Integer(1))". PyTorch evaluates it as Python.
_WORDS = frozenset(
    re.findall(
        r"\w+",
        "Symbol Integer Rational Add Mul Pow Mod PythonMod FloorDiv CleanDiv CeilDiv Max Min Abs Eq Ne Equality Unequality And Or Not "
        "StrictLessThan LessThan StrictGreaterThan GreaterThan ModularIndexing Where true false True False positive nonnegative "
        "negative nonpositive integer real finite zero nonzero commutative",
    )
)
_EXPRESSION = re.compile(r"(?:'[su]\d+'|[A-Za-z_]\w*|-?\d+|[(),=\s])*")
_OPERATOR = re.compile(r"torch\.ops\.[a-z]\w*\.\w+(\.\w+)?|_operator\.[a-z]\w*|math\.[a-z]\w*|torch\.sym_[a-z]+")
_NAMES = re.compile(r"'[su]\d+'|([A-Za-z_]\w*)")


def kind(path: Path) -> str | None:
    """Return which of PyTorch's formats a file is of: `"torchscript"`, `"export"` or `"pickle"`; `None` where it is no archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2] for name in archive.namelist()} | set(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return None
    if "archive_format" in names or "serialized_exported_program.json" in names:
        return EXPORT
    if "constants.pkl" in names:
        return TORCHSCRIPT
    return PICKLE if "data.pkl" in names else None


def canonical(raw: bytes) -> bytes:
    """Return an archive without what differs from export to export and from machine to machine."""
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as source, zipfile.ZipFile(written, "w", zipfile.ZIP_STORED) as target:
        root = source.namelist()[0].partition("/")[0] + "/"
        for name in sorted(source.namelist()):
            inside = name.removeprefix(root)
            if inside == _VOLATILE or inside.endswith(".debug_pkl"):
                continue
            content = source.read(name)
            if inside.startswith(_SAMPLE):
                # Must be there; empty, it stands for none.
                content = b""
            elif inside.startswith("models/") and inside.endswith(".json"):
                content = json.dumps(_settled(json.loads(content)), separators=(",", ":")).encode()
            # The date that zip begins with, and a mode that is nobody's.
            entry = zipfile.ZipInfo(_ROOT + inside, (1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            target.writestr(entry, content)
    return written.getvalue()


def runs_code(raw: bytes) -> bool:
    """Tell whether an exported program may run code that it brings.

    PyTorch unpickles what a program keeps as a pickle, evaluates what it says of sizes, and looks its operators up by name: anything
    but weights as they are, sizes and operators counts as code.
    """
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        for name in archive.namelist():
            if name.endswith(".json") and any(_unsafe(json.loads(archive.read(name)))):
                return True
            # Pickles by another way: shared libraries that AOTInductor compiled, objects of C++ classes.
            if name.endswith((".so", ".pkl", ".pt")) and archive.getinfo(name).file_size:
                return True
    return False


def _settled(described: Any) -> Any:
    """Return a program's description without traces, guards, and the build of PyTorch that wrote it."""
    described = _without_traces(described)
    if isinstance(described, dict) and "guards_code" in described:
        # Python, compiled where the sample inputs are there. What they say of sizes is checked without them too.
        described["guards_code"] = []
    if isinstance(described, dict) and isinstance(version := described.get("torch_version"), str):
        described["torch_version"] = version.partition("+")[0]
    return described


def _without_traces(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_traces(part) for key, part in value.items() if key != "stack_trace"}
    return [_without_traces(part) for part in value] if isinstance(value, list) else value


def _unsafe(value: Any) -> Iterator[bool]:
    if isinstance(value, dict):
        for key, part in value.items():
            if (
                (key == "use_pickle" and part)
                or (key == "expr_str" and not _is_plain(str(part)))
                or (key == "target" and isinstance(part, str) and not _is_operator(part, value))
            ):
                yield True
            else:
                yield from _unsafe(part)
    elif isinstance(value, list):
        for part in value:
            yield from _unsafe(part)


def _is_operator(target: str, node: Mapping[str, Any]) -> bool:
    """Tell whether a node calls an operator; what else has a `target` names a parameter."""
    return "inputs" not in node or ("__" not in target and _OPERATOR.fullmatch(target) is not None)


def _is_plain(expression: str) -> bool:
    names = {name for name in _NAMES.findall(expression) if name}
    return _EXPRESSION.fullmatch(expression) is not None and names <= _WORDS
