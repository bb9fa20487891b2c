"""Make a model package of a model.

    resolve    object, file, package or "module:attribute" -> the model
    save       its flavor writes it and says which modules it needs
    collect    the user's own modules go to code/, the rest becomes the lock
    rehearse   the package is loaded as in the function and answers the sample: that is the golden answer
    keep       the directory moves to its place in the cache, named by its digest
    compile    where that is asked for and proven: a second package, that answers the same sample the same

Nothing of this machine, of the time or of this process goes into a package: the same input gives the same digest everywhere.
"""

from __future__ import annotations

import difflib
import os
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any

from polyserve.errors import NotFoundError, PackageError
from polyserve.model import compile as compiling
from polyserve.model import golden
from polyserve.model.environment import Environment
from polyserve.model.flavors import Flavor, Saved, detect, is_model_directory
from polyserve.model.flavors import flavor as flavor_named
from polyserve.model.rehearsal import Rehearsal, RehearsalError, rehearse
from polyserve.model.sources import collect
from polyserve.model.storage import SUFFIX, ModelPackage, keep, packages_directory, staging
from polyserve.runtime import manifest as manifests
from polyserve.runtime import values
from polyserve.runtime.manifest import Manifest, Tolerance
from polyserve.runtime.messages import RequestError
from polyserve.runtime.modules import CODE
from polyserve.runtime.signature import Signature, TensorSpec
from polyserve.runtime.tensors import Tensor

NAME_RULE = "1 to 63 lower-case letters, digits and hyphens, from a letter, to a letter or digit"
_NAME = re.compile(r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?")
_REFERENCE = re.compile(r"(?P<module>[^\W\d]\w*(?:\.[^\W\d]\w*)*):(?P<attribute>[^\W\d]\w*(?:\.[^\W\d]\w*)*)")


def package(
    model: object,
    *,
    name: str | None = None,
    sample: object = None,
    flavor: str = "auto",
    methods: Sequence[str] | None = None,
    requirements: Sequence[str] | None = None,
    code: Sequence[Path | str] | None = None,
    files: Path | str | None = None,
    into: Path | str | None = None,
    compile: str = "auto",  # noqa: A002 - the word that the command line and `deploy` have for it
) -> ModelPackage:
    """Make a content-addressed package of a trained model.

    Args:
        model: A fitted estimator, a function, a predictor class or object, a model file or the directory of a SavedModel or of
            MLflow, a package (returned as it is), or `"module:attribute"`, which is looked for in the working directory too.
        name: The model's name; by default that of the file, function or class, in lower-case words joined by hyphens. A package
            keeps its own.
        sample: Some rows of input as the model takes them: an array, nested lists, a DataFrame, a dict. It is packaged with the
            answer to it, which every deployment must repeat. Without it only the inputs' number and names are known, where the
            model knows them.
        flavor: Which framework's model it is; `"auto"` finds out.
        methods: What to call on a scikit-learn model, one output each; by default `predict`.
        requirements: Further distributions that the model needs and no import shows, such as `"pillow"`.
        code: Further files and directories of modules that the model needs and no import shows.
        files: A file or directory that a predictor reads in `load(model_dir)`.
        into: The directory to keep the package in, below its digest; by default the cache.
        compile: Whether to serve the model as ONNX: `"auto"`, where it answers every row of a sample of 32 or more as the original
            does, and the original otherwise; `"onnx"`, which refuses instead; `"off"`. What came of it is in the package's
            `compilation`. A package is compiled by `"onnx"` alone.

    Returns:
        The package. The same input gives the same digest, on any machine with the same distributions.

    Raises:
        PackageError: It is not, or cannot become, a package; names the value, the limit and the way out.
        NotFoundError: There is no such file.
        MissingDependencyError: The model's framework is not installed.
    """
    compiling.check(compile)
    found = _resolve(model)
    if isinstance(found, ModelPackage):
        _refuse_options(sample=sample, methods=methods, requirements=requirements, code=code, files=files)
        return compiling.compiled(found, compile) if compile == "onnx" else found
    chosen = detect(found) if flavor == "auto" else flavor_named(flavor)
    with staging(packages_directory() if into is None else Path(into).absolute()) as root:
        saved = chosen.save(found, root, methods=methods, files=None if files is None else Path(files))
        manifest = _fill(
            root,
            chosen,
            saved,
            name=_checked_name(name, saved),
            sample=saved.sample if sample is None else sample,
            requirements=requirements or (),
            code=[Path(path) for path in code or ()],
        )
        (root / manifests.FILE_NAME).write_bytes(manifest.to_json())
        made = keep(ModelPackage(root=root, manifest=manifest, digest=manifest.digest))
    return compiling.compiled(made, compile)


def _fill(
    root: Path,
    chosen: Flavor,
    saved: Saved,
    *,
    name: str,
    sample: object,
    requirements: Sequence[str],
    code: Sequence[Path],
) -> Manifest:
    """Add code, lock and golden sample to a saved model, and return the manifest."""
    environment = Environment()
    sources = collect(saved.modules, environment, code=code, renamed=saved.renamed)
    for inside, file in sources.files.items():
        (root / CODE / inside).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, root / CODE / inside)
    needed = sources.distributions.union(saved.distributions)
    kind, specs, inputs = _inputs(sample, saved)
    needed.update(_distributions(kind, specs))
    manifest = Manifest(
        name=name,
        python=f"{sys.version_info.major}.{sys.version_info.minor}",
        flavor=saved.flavor or chosen.NAME,
        loader=saved.loader,
        requirements=environment.lock(needed, requirements, bare=saved.bare),
        signature=Signature(input_kind=kind, output_kind="array", inputs=specs, outputs=()),
        row_wise=False,
        safe=chosen.SAFE if saved.safe is None else saved.safe,
        sample=None,
        tolerance=Tolerance(),
        files={},
    )
    done = _rehearsed(root, manifest, inputs, saved, is_sample=sample is not None)
    needed.update(_distributions(done.signature.output_kind, done.signature.outputs))
    tolerance = golden.tolerance_for([tensor.datatype for tensor in done.outputs])
    described = None
    if sample is not None:
        difference = golden.same(done.outputs, done.repeated, tolerance)
        if difference is not None:
            message = (
                f"the model answers the same sample differently each time ({difference}): fix its random seed, or "
                "leave what changes out"
            )
            raise _refusal(message, "sample")
        described = golden.write(root, inputs, done.outputs, tolerance)
    return replace(
        manifest,
        requirements=environment.lock(needed, requirements, bare=saved.bare),
        signature=done.signature,
        row_wise=done.row_wise and sample is not None,
        sample=described,
        tolerance=tolerance,
        files=manifests.file_entries(root),
    )


def _inputs(sample: object, saved: Saved) -> tuple[str, tuple[TensorSpec, ...], list[Tensor]]:
    """Return kind, specs and tensors of the sample; of two rows of zeros where there is none but the model knows its inputs."""
    if sample is None:
        if saved.inputs is None:
            message = f"{saved.name} does not say what its input is: pass a sample, such as sample=X[:8]"
            raise _refusal(message, "sample")
        kind, specs = saved.inputs
        return kind, specs, [_zeros(spec) for spec in specs]
    try:
        kind, specs = values.describe(sample) if saved.takes is None else saved.takes(sample)
        tensors = values.to_tensors(sample, specs, kind)
    except RequestError as error:
        message = f"the sample cannot be sent as a request: {error.message}"
        raise _refusal(message, "sample") from error
    if any(0 in tensor.shape for tensor in tensors):
        raise _refusal("the sample is empty: pass at least one row, such as sample=X[:8]", "sample")
    golden.check_size(tensors)
    return kind, specs, tensors


def _distributions(kind: str, specs: Sequence[TensorSpec]) -> tuple[str, ...]:
    """Return the distributions that values of a kind are made with."""
    if kind == "frame":
        return ("numpy", "pandas")
    arrays = kind in {"array", "arrays"} or (
        kind == "mapping" and any(spec.shape and spec.parameters.get("python") != "list" for spec in specs)
    )
    return ("numpy",) if arrays else ()


def _zeros(spec: TensorSpec) -> Tensor:
    """Return an input of two rows, or of as many as the model asks for."""
    shape = tuple(2 if length == -1 else length for length in spec.shape)
    return Tensor(spec.name, spec.datatype, shape, [0] * prod(shape), spec.parameters)


def _rehearsed(root: Path, manifest: Manifest, inputs: Sequence[Tensor], saved: Saved, *, is_sample: bool) -> Rehearsal:
    try:
        return rehearse(root, manifest, inputs, saved.output_name, saved.shapes)
    except RehearsalError as error:
        if error.missing is not None and error.missing.startswith("polyserve."):
            message = (
                "the model's own module packages or deploys while it is imported, and a function has polyserve's runtime alone: "
                'put polyserve\'s imports and calls under `if __name__ == "__main__":`'
            )
            raise _refusal(message, error.missing) from error
        if error.missing is not None:
            message = (
                f"module {error.missing!r} does not travel with the model, so it would be missing where the model is "
                "served: name its file or "
                f"directory with code=[...], or its distribution with requirements=[...]"
            )
            raise _refusal(message, error.missing) from error
        if error.stage == "load":
            raise _refusal(f"{saved.name} cannot be loaded again once it is packaged: {error}", saved.name) from error
        if not is_sample:
            message = f"{saved.name} cannot be tried without a sample ({error}): pass one, such as sample=X[:8]"
            raise _refusal(message, "sample") from error
        if error.stage == "sample":
            reason = str(error).rstrip(".")
            message = f"the model does not take the sample: {reason}. Pass rows as predict() takes them"
            raise _refusal(message, "sample") from error
        message = f"the model's answer to the sample cannot be sent: {error}. Return arrays, lists or a dict of them"
        raise _refusal(message, "sample") from error


# --- what is to be packaged -------------------------------------------------------------------------------------------------------------


def _resolve(model: object) -> object:
    """Return the object, the file's path or the opened package that `model` stands for."""
    if not isinstance(model, str | os.PathLike):
        return model
    path = Path(model)
    if path.is_dir():
        if (path / manifests.FILE_NAME).is_file():
            return ModelPackage.open(path)
        if is_model_directory(path):
            return path
        message = (
            f"directory {str(model)!r} is no model package, it has no {manifests.FILE_NAME}, and no model: pass a model file, "
            "the directory of a SavedModel or of MLflow, or a package"
        )
        raise _refusal(message, str(model))
    if path.is_file():
        return ModelPackage.open(path) if path.suffix.lower() == SUFFIX else path
    reference = _REFERENCE.fullmatch(model) if isinstance(model, str) else None
    if reference is None:
        message = (
            f"{str(model)!r} does not exist, and is not of the form 'module:attribute': pass a model file, a package "
            "or such a reference"
        )
        raise NotFoundError(message, operation="package", resource=str(model))
    return _imported(reference["module"], reference["attribute"])


def _imported(module: str, attribute: str) -> object:
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        # As `python -m` does; a console script's path has its own directory first instead.
        sys.path.insert(0, here)
    try:
        found: Any = import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            message = (
                f"'{module}:{attribute}': there is no module {error.name!r} in {here!r}, on PYTHONPATH or installed"
            )
        else:
            message = f"'{module}:{attribute}': the module imports {error.name!r}, which is not installed"
        raise _refusal(message, module) from error
    except Exception as error:
        message = f"'{module}:{attribute}': the module cannot be imported ({type(error).__name__}: {error})"
        raise _refusal(message, module) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            there = [known for known in vars(found) if not known.startswith("_")] if hasattr(found, "__dict__") else []
            # The nearest names first: a large module would bury the one that was meant.
            nearest = difflib.get_close_matches(part, there, n=3) or there[:10]
            more = f" and {len(there) - len(nearest)} more" if len(there) > len(nearest) else ""
            message = (
                f"'{module}:{attribute}': {module!r} has no {part!r}; "
                f"it has {', '.join(nearest) or 'nothing public'}{more}"
            )
            raise _refusal(message, f"{module}:{attribute}")
        found = getattr(found, part)
    return found


def _checked_name(name: str | None, saved: Saved) -> str:
    if name is not None:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise _refusal(f"name {name!r} is not {NAME_RULE}", str(name))
        return name
    derived = kebab(saved.name)
    if not _NAME.fullmatch(derived):
        raise _refusal(f"no name can be made of {saved.name!r}: pass name=, {NAME_RULE}", saved.name)
    return derived


def kebab(words: str) -> str:
    """Return a class's, function's or file's name as lower-case words joined by hyphens: `RandomForest_v2` is `random-forest-v2`."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", words)
    return re.sub(r"[^a-z0-9]+", "-", spaced.lower()).strip("-")


def _refuse_options(**options: object) -> None:
    given = [option for option, value in options.items() if value is not None]
    if given:
        message = f"a package is never changed, so {', '.join(given)} would have no effect: package the model itself with them"
        raise _refusal(message, given[0])


def _refusal(message: str, resource: str) -> PackageError:
    return PackageError(message, operation="package", resource=resource)
