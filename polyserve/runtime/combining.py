"""Put the answers of a model's parts together again: the one place that knows how, for the client of a group and for the loader.

Parts of a sum each add up some members of an ensemble (trees, estimators, rounds of a booster): the sums are added in the order
of the parts, and become the whole model's outputs as the whole model makes them. Parts of a sequence hand their outputs on; the last
one's are the answer. numpy is imported inside functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from polyserve.runtime.signature import TensorSpec
from polyserve.runtime.tensors import Tensor

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

PARALLEL, SEQUENCE = "parallel", "sequence"

SUM = "sum"
"""What a part of a sum calls its output."""


def combine(how: Mapping[str, Any], answers: Sequence[Sequence[Tensor]], outputs: Sequence[str] | None) -> list[Tensor]:
    """Return the whole model's answer.

    Args:
        how: What the partitioned package says: `divide` (what the sum is divided by), `methods` (the
            outputs, in order), `labels`, and of boosters `link` and `datatype`.
        answers: Each part's outputs, in the order of the parts.
        outputs: The outputs that are asked for; `None` for all.
    """
    total = _sum(answers, how.get("datatype", "FP64"))
    names = [name for name in how["methods"] if outputs is None or name in outputs]
    return [Tensor.from_numpy(name, _output(how, name, total)) for name in names]


def chosen(answer: Sequence[Tensor], outputs: Sequence[str] | None) -> list[Tensor]:
    """Return the outputs that are asked for."""
    return [tensor for tensor in answer if outputs is None or tensor.name in outputs]


def handed_on(answer: Sequence[Tensor], specs: Sequence[TensorSpec]) -> list[Tensor]:
    """Return what one part of a sequence answered as the inputs of the next."""
    named = {tensor.name: tensor for tensor in answer}
    return [named[spec.name] for spec in specs]


def _sum(answers: Sequence[Sequence[Tensor]], datatype: str) -> Array:
    import numpy as np

    kind = np.float32 if datatype == "FP32" else np.float64
    total = answers[0][0].numpy().astype(kind)
    for (answer,) in answers[1:]:
        total = total + answer.numpy()
    return total.astype(kind)


def _output(how: Mapping[str, Any], name: str, total: Array) -> Array:
    import numpy as np

    values = total / how["divide"] if how["divide"] != 1 else total
    values = _linked(how.get("link", ""), values)
    if how["labels"] is None:
        return values
    if values.ndim == 1:
        # The probability of the second of two classes.
        values = np.stack((1 - values, values), axis=1)
    if name != "predict":
        return values
    labels = np.array(how["labels"]["values"], dtype=how["labels"]["dtype"])
    decided: Array = labels[np.argmax(values, axis=1)]
    return decided


def _linked(link: str, values: Array) -> Array:
    """Return what a booster's objective makes of the sum of its trees."""
    import numpy as np

    if link == "sigmoid":
        # Of large negative numbers the power is infinite, and the answer 0.
        with np.errstate(over="ignore"):
            return cast("Array", (1 / (1 + np.exp(-values))).astype(values.dtype))
    if link == "softmax":
        powers = np.exp(values - values.max(axis=1, keepdims=True))
        return cast("Array", powers / powers.sum(axis=1, keepdims=True))
    return cast("Array", np.exp(values)) if link == "exp" else values
