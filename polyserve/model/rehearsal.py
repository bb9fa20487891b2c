"""Load a package as the function will and have it answer its sample: the proof that it is complete, and where the golden answer is from.

A package that brings code of the user's is rehearsed in a process of its own, which sees the package, the distributions it is locked to and
nothing else of this machine: a module that was forgotten is missing there too. What is left of this room is not imported there.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.abc import MetaPathFinder
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from polyserve.runtime import loaders, modules, values
from polyserve.runtime import manifest as manifests
from polyserve.runtime.manifest import Manifest
from polyserve.runtime.messages import RequestError
from polyserve.runtime.signature import Signature
from polyserve.runtime.tensors import Tensor, concatenate

_SINGLE_ROWS = 64
_TILED_ROWS = 33

# -S leaves sys.path to the standard library, so neither editable installs nor .pth files of this machine reach it.
_CHILD = """
import importlib.util, json, sys
given = json.loads(sys.argv[1])
sys.path += given["roots"]
spec = importlib.util.spec_from_file_location("polyserve", given["polyserve"])
sys.modules["polyserve"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["polyserve"])
from polyserve.model import rehearsal
rehearsal.run_child(given["package"], given["request"], given["result"])
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """How a package answered its sample.

    Attributes:
        signature: The signature with the outputs that came.
        outputs: The answer.
        row_wise: Whether every row was answered the same, to the bit, alone and among others.
        repeated: The answer to the same request a second time.
    """

    signature: Signature
    outputs: tuple[Tensor, ...]
    row_wise: bool
    repeated: tuple[Tensor, ...]


class RehearsalError(Exception):
    """The package could not be loaded, or could not answer.

    Attributes:
        stage: `"load"`, `"sample"` (it did not take the sample) or `"answer"` (what it answered cannot be sent).
        missing: The module that was not there, if that was why.
    """

    def __init__(self, message: str, *, stage: str, missing: str | None = None) -> None:
        super().__init__(message)
        self.stage = stage
        self.missing = missing


def rehearse(
    root: Path,
    manifest: Manifest,
    inputs: Sequence[Tensor],
    output_name: str,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Rehearsal:
    """Load the package and have it answer.

    Args:
        root: The package's directory, without its manifest yet.
        manifest: Its manifest, with the signature's inputs.
        inputs: The sample.
        output_name: What to call an output that has no name of its own.
        shapes: Shapes of outputs, by name, that are known better than from one answer.

    Raises:
        RehearsalError: It cannot be loaded, refuses the sample, fails, or gives what no tensor can hold.
    """
    if (root / modules.CODE).is_dir():
        return _with_shapes(_rehearse_apart(root, manifest, inputs, output_name), shapes or {})
    return _with_shapes(_rehearse_here(root, manifest, inputs, output_name), shapes or {})


def _with_shapes(done: Rehearsal, shapes: Mapping[str, tuple[int, ...]]) -> Rehearsal:
    outputs = tuple(
        replace(spec, shape=_merged(spec.shape, shapes.get(spec.name, spec.shape))) for spec in done.signature.outputs
    )
    return replace(done, signature=replace(done.signature, outputs=outputs))


def _merged(seen: tuple[int, ...], known: tuple[int, ...]) -> tuple[int, ...]:
    """Return what is known of a shape; where an answer was seen to be of another rank or length, that is believed."""
    if len(seen) != len(known):
        return seen
    return tuple(length if -1 in {have, length} else have for have, length in zip(seen, known, strict=True))


def _rehearse_here(root: Path, manifest: Manifest, inputs: Sequence[Tensor], output_name: str) -> Rehearsal:
    try:
        model = loaders.load(root, manifest)
    except Exception as error:
        raise RehearsalError(_told(error), stage="load", missing=_missing(error)) from error
    try:
        answer = model.answer(inputs)
    except RequestError as error:
        raise RehearsalError(error.message, stage="sample") from error
    except Exception as error:
        raise RehearsalError(_told(error), stage="sample", missing=_missing(error)) from error
    try:
        kind, specs = values.describe(answer, name=output_name)
        signature = replace(manifest.signature, output_kind=kind, outputs=specs)
    except (RequestError, ValueError) as error:
        raise RehearsalError(getattr(error, "message", str(error)), stage="answer") from error
    model.signature = signature
    try:
        outputs, repeated = model.predict(inputs, None), model.predict(inputs, None)
        return Rehearsal(
            signature=signature,
            outputs=tuple(outputs),
            row_wise=_is_row_wise(model, inputs, outputs),
            repeated=tuple(repeated),
        )
    except Exception as error:
        raise RehearsalError(_told(error), stage="answer", missing=_missing(error)) from error


def _missing(error: Exception) -> str | None:
    return error.name if isinstance(error, ModuleNotFoundError) else None


def _told(error: Exception) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _is_row_wise(model: loaders.Model, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> bool:
    """Tell whether rows are answered alone as they are among others: to the bit, one by one, in order, and in a larger batch."""
    rows = _common_rows(inputs)
    if not rows or _common_rows(outputs) != rows:
        return False
    expected = [list(map(_bits, tensor.split([1] * rows))) for tensor in outputs]
    copies = -(-_TILED_ROWS // rows) + 1
    try:
        tiled = model.predict([concatenate([tensor] * copies) for tensor in inputs], None)
        if _common_rows(tiled) != rows * copies:
            return False
        for index, tensor in enumerate(tiled):
            if list(map(_bits, tensor.split([1] * (rows * copies)))) != expected[index] * copies:
                return False
        single = [tensor.split([1] * rows) for tensor in inputs]
        for row in range(min(rows, _SINGLE_ROWS)):
            alone = model.predict([parts[row] for parts in single], None)
            if [_bits(tensor) for tensor in alone] != [parts[row] for parts in expected]:
                return False
    except Exception:
        return False
    return True


def _common_rows(tensors: Sequence[Tensor]) -> int:
    """Return the length of the leading dimension that all tensors share; 0 where they share none."""
    lengths = {tensor.shape[0] if tensor.shape else 0 for tensor in tensors}
    return lengths.pop() if len(lengths) == 1 else 0


def _bits(tensor: Tensor) -> tuple[str, str, tuple[int, ...], bytes]:
    return tensor.name, tensor.datatype, tensor.shape, tensor.tobytes()


# --- in a process of its own ------------------------------------------------------------------------------------------------------------


def _rehearse_apart(root: Path, manifest: Manifest, inputs: Sequence[Tensor], output_name: str) -> Rehearsal:
    roots = {str(distribution(line.partition("==")[0]).locate_file("")) for line in manifest.requirements}
    with tempfile.TemporaryDirectory(prefix="polyserve-") as scratch:
        request, result = Path(scratch, "request"), Path(scratch, "result")
        asked = {
            "manifest": manifest.to_json().decode(),
            "inputs": [_packed(tensor) for tensor in inputs],
            "output_name": output_name,
        }
        request.write_text(json.dumps(asked))
        # The order of sys.path, so that what shadows what here does there too.
        ordered = [path for path in sys.path if path in roots] + sorted(roots.difference(sys.path))
        given = {
            "roots": ordered,
            "polyserve": str(Path(modules.__file__).parents[1] / "__init__.py"),
            "package": str(root),
            "request": str(request),
            "result": str(result),
        }
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _CHILD, json.dumps(given)],
            cwd=scratch,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        if not result.is_file():
            last = (done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
            raise RehearsalError(f"its process ended with status {done.returncode}: {last}", stage="load")
        told = json.loads(result.read_bytes())
    if "error" in told:
        raise RehearsalError(told["error"], stage=told["stage"], missing=told["missing"])
    return Rehearsal(
        signature=Signature.from_dict(told["signature"]),
        outputs=tuple(map(_unpacked, told["outputs"])),
        row_wise=told["row_wise"],
        repeated=tuple(map(_unpacked, told["repeated"])),
    )


class _RuntimeOnly(MetaPathFinder):
    """Refuses what of polyserve no function has.

    A script that packages itself at its top level would do so again wherever it is imported.
    """

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        if fullname.startswith("polyserve.") and not fullname.startswith("polyserve.runtime"):
            raise ModuleNotFoundError(f"{fullname} is not there in a function", name=fullname)


def run_child(package: str, request: str, result: str) -> None:
    """Rehearse in this process for the one that started it.

    Args:
        package: The package's directory.
        request: The file that says what to do.
        result: The file that will say what came of it; complete or not there.
    """
    sys.meta_path.insert(0, _RuntimeOnly())
    asked = json.loads(Path(request).read_bytes())
    manifest = manifests.Manifest.from_json(asked["manifest"].encode())
    told: dict[str, Any]
    try:
        done = _rehearse_here(Path(package), manifest, list(map(_unpacked, asked["inputs"])), asked["output_name"])
        told = {
            "signature": done.signature.to_dict(),
            "outputs": [_packed(tensor) for tensor in done.outputs],
            "repeated": [_packed(tensor) for tensor in done.repeated],
            "row_wise": done.row_wise,
        }
    except RehearsalError as error:
        told = {"error": str(error), "stage": error.stage, "missing": error.missing}
    partial = Path(f"{result}.partial")
    partial.write_text(json.dumps(told))
    partial.rename(result)


def _packed(tensor: Tensor) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "datatype": tensor.datatype,
        "shape": list(tensor.shape),
        "data": base64.b64encode(tensor.tobytes()).decode(),
        "parameters": dict(tensor.parameters),
    }


def _unpacked(packed: Mapping[str, Any]) -> Tensor:
    raw = base64.b64decode(packed["data"])
    return Tensor(packed["name"], packed["datatype"], packed["shape"], raw, packed["parameters"])
