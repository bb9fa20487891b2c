"""How a packaged model is loaded and called, one file for each flavor. The framework is imported when its model is.

A flavor's file has one function, `load(root, manifest) -> Model`, and may stand on the standard library and `polyserve.runtime`
alone; numpy and the framework are imported inside functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from polyserve.runtime.manifest import Manifest, ManifestError
from polyserve.runtime.signature import Signature
from polyserve.runtime.tensors import Tensor


class Model(Protocol):
    """A loaded model, ready to answer.

    Attributes:
        signature: What goes in and out. Packaging sets it once the answer to the sample is known; nobody else does.
    """

    signature: Signature

    def answer(self, inputs: Sequence[Tensor]) -> object:
        """Return the model's answer as the Python value it is: an array, a list, a mapping of them."""
        ...

    def predict(self, inputs: Sequence[Tensor], outputs: Sequence[str] | None) -> list[Tensor]:
        """Return the model's answer as tensors, of the outputs named or of all in the signature's order.

        Raises:
            RequestError: The model refuses these inputs; the message is for the caller.
            Exception: Whatever else the model raises; that is for the log.
        """
        ...


def load(root: Path, manifest: Manifest) -> Model:
    """Load the model of a package whose files have been verified.

    Raises:
        ManifestError: This runtime has no such flavor.
        Exception: Whatever the model raises while it is loaded.
    """
    name = f"{__name__}.{manifest.flavor}"
    try:
        loader = import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ManifestError(
            f"flavor {manifest.flavor!r} is unknown to this runtime: upgrade polyserve and deploy again"
        ) from error
    return cast("Model", loader.load(root, manifest))
