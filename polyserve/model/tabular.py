"""What models of rows of numbers take: one matrix, or one column for each feature that the model knows by name.

A sample decides how rows come; names, their order and their number are the model's. Columns go to the model as one matrix, so serving
needs no pandas, whatever the sample was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from polyserve.runtime.signature import TensorSpec
from polyserve.runtime.values import describe

NAMED = "rows"
"""The kind of rows with names: a DataFrame fits it, and so do dicts."""

# What reaches a model as it is sent. Other numbers are sent as FP64, so that a sample of whole numbers does not refuse fractions.
_KEPT = frozenset({"BOOL", "FP32", "FP64"})


def inputs(names: Sequence[str] | None, count: int) -> tuple[str, tuple[TensorSpec, ...]]:
    """Return kind and specs where there is no sample.

    Args:
        names: The features' names, in the model's order; `None` where it was trained on rows without.
        count: How many features it has.
    """
    if names is None:
        return "array", (TensorSpec(name="input", datatype="FP64", shape=(-1, count)),)
    return NAMED, tuple(TensorSpec(name=name, datatype="FP64", shape=(-1,)) for name in names)


def takes(
    sample: object, names: Sequence[str] | None, count: int, *, known_as: Callable[[str], str] = str
) -> tuple[str, tuple[TensorSpec, ...]]:
    """Return kind and specs for a sample: by name where both it and the model have names, else as one matrix.

    Args:
        sample: The sample.
        names: The features' names, in the model's order; `None` where it was trained on rows without.
        count: How many features it has.
        known_as: How the model writes a name of the sample's.

    Raises:
        RequestError: No tensors can stand for the sample.
    """
    kind, described = describe(sample)
    if names is None or kind not in {"frame", "mapping", "rows"}:
        (matrix,) = inputs(None, count)[1]
        sent_as = _sent_as(described[0].datatype) if len(described) == 1 else matrix.datatype
        return "array", (replace(matrix, datatype=sent_as),)
    given = {known_as(spec.name): spec for spec in described}
    # A name that the sample lacks stays, so that what compares the two can tell all that are missing or unknown.
    columns = [given.get(name, TensorSpec(name=name, datatype="FP64", shape=(-1,))) for name in names]
    return NAMED, tuple(TensorSpec(name=spec.name, datatype=_sent_as(spec.datatype), shape=(-1,)) for spec in columns)


def _sent_as(datatype: str) -> str:
    # Text stays FP64's to refuse: the message then says what was expected.
    return datatype if datatype in _KEPT else "FP64"
