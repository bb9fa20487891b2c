"""Load all parts of a partitioned model and answer as the whole: the proof, before its parts go to functions of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from polyserve.runtime import loaders
from polyserve.runtime import manifest as manifests
from polyserve.runtime.combining import SEQUENCE, chosen, combine, handed_on
from polyserve.runtime.manifest import Manifest
from polyserve.runtime.signature import Signature, match
from polyserve.runtime.tensors import Tensor


class PartitionedModel:
    """The parts of a model, one after the other in this process.

    Args:
        parts: The loaded parts.
        how: How they are put together.
        signature: What goes in and out of the whole.
    """

    def __init__(self, parts: Sequence[loaders.Model], how: Mapping[str, Any], signature: Signature) -> None:
        self.signature = signature
        self._parts = parts
        self._how = how

    def answer(self, inputs: Sequence[Tensor]) -> object:
        """Return one array for one output, else a mapping of arrays by output name."""
        named = {tensor.name: tensor.numpy() for tensor in self.predict(inputs, None)}
        return next(iter(named.values())) if len(named) == 1 else named

    def predict(self, inputs: Sequence[Tensor], outputs: Sequence[str] | None) -> list[Tensor]:
        """Return the whole model's answer as tensors.

        Raises:
            RequestError: A part refuses the inputs.
        """
        if self._how["how"] == SEQUENCE:
            tensors = list(inputs)
            for part in self._parts:
                specs = part.signature.inputs
                tensors = part.predict(match(handed_on(tensors, specs), specs), None)
            return chosen(tensors, outputs)
        return combine(self._how, [part.predict(inputs, None) for part in self._parts], outputs)


def load(root: Path, manifest: Manifest) -> PartitionedModel:
    """Load every part. The files must have been verified."""
    loader = cast("Mapping[str, Any]", manifest.loader)
    parts = []
    for path in loader["parts"]:
        parts.append(loaders.load(root / path, manifests.read(root / path)))
    return PartitionedModel(parts, loader, manifest.signature)
