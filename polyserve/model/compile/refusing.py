"""What a model refuses, found out by asking it: missing values, infinity, numbers too large, no rows.

ONNX refuses none of it and answers something. What the original refused, the loader of the compiled model refuses before it is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from polyserve.model.compile import probes
from polyserve.model.compile.trees import CannotConvert
from polyserve.runtime.loaders import Model
from polyserve.runtime.messages import ErrorCode, RequestError
from polyserve.runtime.tensors import Tensor

_COLUMNS = 8
"""How many columns of a table are tried."""

# The largest float64 that float32 can hold, rounded.
_FLOAT32 = float(np.nextafter(np.float64(3.4028235677973366e38), 0))


def ask(model: Model, rows: probes.Rows, inputs: Sequence[Tensor]) -> list[Tensor] | RequestError:
    """Return a model's answer to rows, or its refusal or failure.

    Args:
        model: The model.
        rows: An array for each input.
        inputs: Tensors like those the rows are to be.
    """
    tensors = []
    for array, like in zip(rows, inputs, strict=True):
        if array.size:
            tensor = Tensor.from_numpy(like.name, array, datatype=like.datatype)
            tensor.parameters = like.parameters
        else:
            tensor = Tensor(like.name, like.datatype, array.shape, [], like.parameters)
        tensors.append(tensor)
    try:
        return model.predict(tensors, None)
    except RequestError as error:
        return error
    except Exception as error:
        # On rows that nobody may ever send; a model may fail on them in any way.
        first = (str(error).strip().splitlines() or [""])[0]
        return RequestError(ErrorCode.INTERNAL, f"{type(error).__name__}: {first[:200]}")


def limits(model: Model, inputs: Sequence[Tensor]) -> dict[str, Any]:
    """Return what the loader of the compiled model is told to refuse.

    Returns:
        `bounds`: the largest magnitude that is taken, by input; `missing`: those of them that take missing values all the same;
        `empty`: whether no rows at all are taken. What is as it would be anyway is left out.

    Raises:
        CannotConvert: Columns of one table differ in it.
    """
    sample = probes.arrays(inputs)
    bounds: dict[str, float] = {}
    missing: list[str] = []
    for index, (array, tensor) in enumerate(zip(sample, inputs, strict=True)):
        if array.dtype.kind != "f":
            continue
        takes = partial(_takes, model, inputs, index)
        takes_missing = takes(np.nan)
        if takes(np.inf):
            if not takes_missing:
                raise CannotConvert(f"{tensor.name!r} takes infinity and no missing values")
            continue
        largest = float(np.finfo(array.dtype).max)
        bounds[tensor.name] = largest if largest <= _FLOAT32 or takes(_FLOAT32 * 2) else _FLOAT32
        if takes_missing:
            missing.append(tensor.name)
    told: dict[str, Any] = {**({"bounds": bounds} if bounds else {}), **({"missing": missing} if missing else {})}
    if isinstance(ask(model, [array[:0] for array in sample], inputs), RequestError):
        told["empty"] = False
    return told


def _takes(model: Model, inputs: Sequence[Tensor], index: int, value: float) -> bool:
    """Tell whether a model takes a number in one of its inputs, whichever column it is in."""
    sample = probes.arrays(inputs)
    width = sample[index].shape[1] if sample[index].ndim == 2 else 1
    given = (probes.with_value(sample, index, column, value) for column in range(0, width, -(-width // _COLUMNS)))
    answers = {not isinstance(ask(model, rows, inputs), RequestError) for rows in given}
    if len(answers) > 1:
        raise CannotConvert(f"some columns of {inputs[index].name!r} take {value} and others refuse it")
    return answers.pop()
