"""How each framework's models become files of a package: one module per flavor, all of one shape.

A flavor has two halves. The one here runs where the model is packaged: it recognises a model, saves it, and says what it needs.
The other, of the same name in `polyserve.runtime.loaders`, runs in the function and loads what this one saved. To add a flavor,
copy `sklearn.py` on both sides and add its name to `FLAVORS`, before those that would take its models for theirs.

Recognising a model imports no framework: an object is known by the modules of its classes, a file by its suffix, and by how it begins
where other things have that suffix too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from polyserve.errors import PackageError
from polyserve.runtime.manifest import Manifest
from polyserve.runtime.signature import TensorSpec

FLAVORS = ("mlflow", "tflite", "tensorflow", "onnx", "xgboost", "lightgbm", "torch", "sklearn", "python")
"""Every flavor, the most particular first: the first that recognises a model has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """What a flavor wrote, and what the package must say of it.

    Attributes:
        loader: What the loader needs; goes into the manifest as it is, so it holds nothing of this machine.
        name: What the model would be called, such as its class's name.
        modules: Modules that loading will import, by their name in this process. Their distributions are locked; the user's own
            travel as code.
        distributions: Distributions that the loader itself needs.
        bare: Distributions that are locked without what they ask for, since serving imports none of it.
        renamed: Modules that travel under another name, such as `__main__`.
        inputs: What is known of the inputs without a sample, as a kind and specs; `None` where nothing is.
        takes: How the inputs that the model itself names take a sample: its kind, and specs to cast it to. `None` where the sample
            decides. Raises RequestError where the sample cannot be what the model takes.
        shapes: Shapes of outputs that the model knows better than an answer shows, by name.
        output_name: What to call the only output.
        safe: Whether loading what was saved runs no code of the model's own; `None` for what the flavor says.
        flavor: Which flavor's loader serves it; `None` for this one's. What only wraps a model of another flavor says that one.
        sample: Rows of input that came with the model, for who gives none; `None` where none did.
    """

    loader: Mapping[str, object]
    name: str
    modules: frozenset[str]
    distributions: tuple[str, ...] = ()
    bare: frozenset[str] = frozenset()
    renamed: Mapping[str, str]
    inputs: tuple[str, tuple[TensorSpec, ...]] | None = None
    takes: Callable[[object], tuple[str, tuple[TensorSpec, ...]]] | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    output_name: str = "output"
    safe: bool | None = None
    flavor: str | None = None
    sample: Any = None


class Flavor(Protocol):
    """What a flavor's module implements, as module-level names.

    A flavor whose suffixes others use too has `reads(path: Path) -> bool` besides, which looks at how the file begins. One whose models
    are directories has `DIRECTORY`, the name of the file by which they are known. One that saves some models in an unsafe format and
    has a safe one has `SAFER`, which completes "deploy only what comes from people you trust, or".

    Attributes:
        NAME: The flavor's name: that of its module here and of its loader.
        SUFFIXES: Suffixes of the files it reads, lower case, with the dot.
        SAFE: Whether loading what it saves runs no code of the model's own.
    """

    NAME: str
    SUFFIXES: tuple[str, ...]
    SAFE: bool

    def recognises(self, model: object) -> bool:
        """Tell whether an object in memory is this flavor's. Must import nothing, and must not fail whatever the object is."""
        ...

    def save(self, model: object, root: Path, *, methods: Sequence[str] | None, files: Path | None) -> Saved:
        """Write the model below `root / "model"`; the same model must give the same bytes in every process.

        Args:
            model: An object that `recognises` accepts, or any other that the caller says is of this flavor; or a `Path` with one
                of `SUFFIXES`.
            root: The package's directory, empty.
            methods: What to call on it, in order of the outputs; `None` for the flavor's default. A flavor that has no choice
                must refuse others.
            files: A file or directory of the caller's that goes to the predictor's `load`. A flavor that has no use for it must refuse it.

        Raises:
            PackageError: It is not, or cannot become, a model of this flavor; names the value and the way out.
            MissingDependencyError: The framework is not installed.
        """
        ...


def flavor(name: str) -> Flavor:
    """Return a flavor by its name.

    Raises:
        PackageError: There is no such flavor; the message lists those there are.
    """
    if name not in FLAVORS:
        message = f"unknown flavor {name!r}: there are {', '.join(FLAVORS)}, and 'auto' to find out"
        raise PackageError(message, operation="package", resource=name)
    return cast("Flavor", import_module(f"{__name__}.{name}"))


def detect(model: object) -> Flavor:
    """Return the flavor of an object, or of a file by its suffix.

    Raises:
        PackageError: It is none's; the message says what can be packaged.
    """
    for known in map(flavor, FLAVORS):
        if _reads(known, model) if isinstance(model, Path) else known.recognises(model):
            return known
    suffixes = ", ".join(suffix for known in map(flavor, FLAVORS) for suffix in known.SUFFIXES)
    what = (
        f"{model.name!r}"
        if isinstance(model, Path)
        else f"a {type(model).__module__}.{type(model).__qualname__}".replace(" builtins.", " ")
    )
    if isinstance(model, type):
        what = f"class {model.__qualname__!r}, which has no predict(inputs),"
    message = (
        f"{what} is not a model that polyserve knows: pass a fitted estimator of scikit-learn, XGBoost or LightGBM, a PyTorch module, "
        "a Keras, TensorFlow Lite or ONNX model, a function, a class with predict(), "
        f"a model file ({suffixes}), a package, or 'module:attribute'"
    )
    raise PackageError(message, operation="package", resource=what)


def is_model_directory(path: Path) -> bool:
    """Tell whether a directory is a model of a flavor that has directories."""
    return any(_reads(known, path) for known in map(flavor, FLAVORS))


def caution(manifest: Manifest) -> str | None:
    """Say what somebody who deploys a package should know of its loading; `None` where that runs no code of the model's own."""
    if manifest.safe:
        return None
    is_pickle = manifest.loader.get("format") == "pickle"
    what = (
        "the model is a pickle, which runs code when it is loaded" if is_pickle else "loading the model runs its code"
    )
    safer = getattr(flavor(manifest.flavor), "SAFER", "") if manifest.flavor in FLAVORS else ""
    return f"{what}: deploy only what comes from people you trust{safer and ', or '}{safer}"


def _reads(known: Flavor, path: Path) -> bool:
    if path.is_dir():
        mark = getattr(known, "DIRECTORY", None)
        return mark is not None and (path / mark).is_file()
    looks_inside = getattr(known, "reads", None)
    return model_suffix(path) in known.SUFFIXES and (looks_inside is None or looks_inside(path))


def model_suffix(path: Path) -> str:
    """Return a file's suffix, lower case."""
    return path.suffix.lower()
