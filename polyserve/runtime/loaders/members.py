"""Load some members of an ensemble, and answer with the sum of what they answer: one part of a partitioned scikit-learn model."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from polyserve.runtime import modules, values
from polyserve.runtime.combining import SUM
from polyserve.runtime.manifest import Manifest
from polyserve.runtime.messages import ErrorCode, RequestError
from polyserve.runtime.signature import Signature
from polyserve.runtime.tensors import Tensor

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

VOTES = "votes"
"""The method of members that have one vote each."""


class MembersModel:
    """Some members of an ensemble.

    Args:
        members: Each member: the estimator, the columns it takes (`None` for all), the classes it knows (`None` for all), its weight.
        loader: The method that is asked, the number of classes (0 for numbers), whether members take arrays only, and whether they are the
            trees of a forest, which all take the same.
        signature: What goes in and out.
    """

    def __init__(
        self, members: Sequence[tuple[Any, Any, Any, float]], loader: Mapping[str, Any], signature: Signature
    ) -> None:
        self.signature = signature
        self._members = members
        self._method: str = loader["method"]
        self._classes: int = loader["classes"]
        self._as_array: bool = loader["as_array"]
        self._are_trees: bool = loader["trees"]

    def answer(self, inputs: Sequence[Tensor]) -> object:
        """Return the sum of the members' answers: one number for each row, or one for each class.

        Raises:
            RequestError: A member refuses the inputs.
        """
        import numpy as np

        rows = values.from_tensors(inputs, self.signature.input_kind)
        if self._as_array:
            # What trees are asked with; the first of them checks it, and for all of them.
            rows = np.ascontiguousarray(rows, "f4") if self._are_trees else np.asarray(rows)
        count = inputs[0].rows
        total = np.zeros((count, self._classes) if self._classes else count)
        try:
            for number, (member, columns, classes, weight) in enumerate(self._members):
                known = {"check_input": False} if self._are_trees and number else {}
                answer = self._asked(member, rows if columns is None else rows[:, columns], count, known)
                # A member that weighs nothing more or less than the others is added as it is: no bit may change.
                answer = answer if weight == 1 else answer * weight
                if classes is None:
                    total += answer
                else:
                    total[:, classes] += answer
        except ValueError as error:
            reason = str(error).strip().split("\n", 1)[0] or type(error).__name__
            raise RequestError(ErrorCode.INVALID_ARGUMENT, f"the model refuses the input: {reason}") from error
        return total

    def predict(self, inputs: Sequence[Tensor], outputs: Sequence[str] | None) -> list[Tensor]:
        """Return the sum as a tensor.

        Raises:
            RequestError: A member refuses the inputs.
        """
        if outputs is not None and SUM not in outputs:
            return []
        return [Tensor.from_numpy(SUM, cast("Array", self.answer(inputs)))]

    def _asked(self, member: Any, rows: Any, count: int, known: Mapping[str, bool]) -> Array:
        import numpy as np

        if self._method != VOTES:
            return cast("Array", getattr(member, self._method)(rows, **known))
        votes = np.zeros((count, self._classes))
        votes[np.arange(count), member.predict(rows).astype("i8")] = 1
        return votes


def load(root: Path, manifest: Manifest) -> MembersModel:
    """Unpickle the members. The files must have been verified."""
    modules.add(root)
    loader = cast("Mapping[str, Any]", manifest.loader)
    with (root / loader["path"]).open("rb") as file:
        members = pickle.load(file)
    return MembersModel(members, loader, manifest.signature)
