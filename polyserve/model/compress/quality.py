"""How good answers are, by labelled rows: accuracy for labels, R2 or the root of the mean squared error for numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from polyserve.errors import PackageError
from polyserve.model.deriving import rows_of
from polyserve.runtime.messages import RequestError
from polyserve.runtime.tensors import Tensor

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

METRICS = ("accuracy", "r2", "rmse")
"""What answers are scored with; more is better for the first two."""

BATCH = 64
"""Rows that are asked for at once: what a busy function may put together, and little memory."""


def check_drop(max_drop: float) -> None:
    """Refuse a limit that is none.

    Raises:
        PackageError: It is negative, or no number.
    """
    if isinstance(max_drop, bool) or not isinstance(max_drop, int | float) or not 0 <= max_drop < math.inf:
        raise _refusal(f"max_drop={max_drop!r} must be a number of at least 0, such as 0.005", "max_drop")


def checked_labels(labels: object, rows: int) -> Array:
    """Return labels as an array with one label, or one row of numbers, for each row of data.

    Raises:
        PackageError: They are not one for each row.
    """
    import numpy as np

    try:
        array: Array = np.asarray(labels)
    except ValueError as error:
        raise _refusal(f"the labels are no array: {error}", "labels") from error
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim not in {1, 2} or array.dtype.kind not in "biufUS":
        what = f"an array of {array.dtype} of shape {list(array.shape)}"
        raise _refusal(f"the labels must be one number, boolean or text for each row, got {what}", "labels")
    if len(array) != rows:
        message = f"there are {len(array)} labels for {rows} rows of data: pass one label for each row"
        raise _refusal(message, "labels")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise _refusal("the labels hold NaN or infinity: leave those rows out, in data and labels", "labels")
    return array


def answers(model: Any, inputs: Sequence[Tensor], output: str) -> Array:
    """Return a model's answers to rows as one array, asked for in batches.

    Raises:
        PackageError: The model refuses the rows.
    """
    import numpy as np

    parts = []
    for begin in range(0, inputs[0].rows, BATCH):
        try:
            (answer,) = model.predict(rows_of(inputs, begin, begin + BATCH), [output])
        except RequestError as error:
            raise _refusal(f"the model does not take the data: {error.message}", "data") from error
        parts.append(answer.numpy())
    return np.concatenate(parts)


def choose(metric: str, labels: Array, answered: Array) -> str:
    """Return the metric to score with; `"auto"` finds out: labels are counted, numbers are measured.

    Raises:
        PackageError: There is no such metric, or it says nothing of such labels and answers.
    """
    if metric not in {"auto", *METRICS}:
        raise _refusal(f"there is no metric {metric!r}: there are {', '.join(METRICS)}, and 'auto' to find out", metric)
    if len(answered) != len(labels):
        message = f"the model gives {len(answered)} answers to {len(labels)} rows, so it cannot be scored row by row"
        raise _refusal(message, "data")
    is_text = [array.dtype.kind not in "biuf" for array in (labels, answered)]
    if is_text[0] != is_text[1]:
        kinds = [
            f"text ({str(array.flat[0])!r})" if text else str(array.dtype)
            for array, text in zip((labels, answered), is_text, strict=True)
        ]
        raise _refusal(
            f"the labels are {kinds[0]}, and the model answers {kinds[1]}: pass labels as it answers them", "labels"
        )
    if metric == "auto":
        metric = "accuracy" if _are_classes(labels, answered) else "r2"
    if metric != "accuracy" and (is_text[0] or answered.size != labels.size):
        message = f"{metric} compares numbers, one for one: labels have shape {list(labels.shape)}, answers {list(answered.shape)}"
        raise _refusal(message, metric)
    return metric


def score(metric: str, labels: Array, answered: Array) -> float:
    """Return the score of answers.

    Raises:
        PackageError: The metric says nothing of such labels and answers.
    """
    import numpy as np

    if metric == "accuracy":
        return float(np.mean(_classes(labels, answered) == labels))
    wanted = labels.astype("f8").ravel()
    squares = float(np.sum((wanted - answered.astype("f8").ravel()) ** 2))
    if metric == "rmse":
        return math.sqrt(squares / len(wanted))
    spread = float(np.sum((wanted - wanted.mean()) ** 2))
    if spread == 0:
        raise _refusal("the labels are all the same, so r2 says nothing: pass metric='rmse', or more rows", "labels")
    return 1.0 - squares / spread


def drop(metric: str, before: float, after: float) -> float:
    """Return by how much a score got worse; negative where it got better. For `rmse`, by which share of itself."""
    if metric != "rmse":
        return before - after
    return (after - before) / before if before else (0.0 if after == before else math.inf)


def gate(metric: str, before: float, after: float, *, drop: float, max_drop: float, method: str) -> None:
    """Refuse a model that got worse than it may.

    Raises:
        PackageError: The score dropped by more than `max_drop`.
    """
    # Written so that a NaN, which is neither more nor less than anything, does not pass. A sum's last bits are not held against it.
    if drop <= max_drop + 1e-12:
        return
    worse = f"{metric} goes from {before:.4f} to {after:.4f}, a drop of {drop:.4f}"
    message = (
        f"method {method!r} is refused, nothing was kept: {worse}, and {max_drop:g} is allowed; "
        "try a method that changes less, or allow more (max_drop, --max-drop)"
    )
    raise _refusal(message, method)


def _are_classes(labels: Array, answered: Array) -> bool:
    import numpy as np

    if answered.dtype.kind != "f":
        return labels.dtype.kind != "f" or bool(np.all(labels == np.round(labels)))
    if labels.ndim != 1 or labels.dtype.kind not in "biu":
        return False
    if answered.ndim == 2 and answered.shape[1] > 1:
        return True
    # Numbers from 0 to 1 for labels that are only 0 and 1: the probability of the 1.
    return bool(np.isin(labels, (0, 1)).all() and ((answered >= 0) & (answered <= 1)).all())


def _classes(labels: Array, answered: Array) -> Array:
    """Return answers as labels: of probabilities for each class the place of the largest, of one probability whether it is over a half."""
    import numpy as np

    if answered.ndim == 2 and answered.shape[1] == 1:
        answered = answered[:, 0]
    if answered.shape == labels.shape:
        is_probability = answered.dtype.kind == "f" and _are_classes(labels, answered)
        return (answered > 0.5).astype(labels.dtype) if is_probability else answered
    if answered.ndim == 2 and labels.ndim == 1 and labels.dtype.kind in "biu" and answered.dtype.kind == "f":
        classes = answered.shape[1]
        if labels.min() < 0 or labels.max() >= classes:
            message = f"the labels go from {labels.min()} to {labels.max()}, and the model answers {classes} probabilities, from class 0 on"
            raise _refusal(message, "labels")
        places: Array = np.argmax(answered, axis=1)
        return places
    message = f"accuracy needs one label for each answer: labels have shape {list(labels.shape)}, answers {list(answered.shape)}"
    raise _refusal(message, "labels")


def _refusal(message: str, resource: str) -> PackageError:
    return PackageError(message, operation="compress", resource=resource)
