"""Lists nested as a shape says: measured, made flat, and nested again, at the speed of the interpreter's own loops.

Knows no datatype and no tensor; whoever calls names the tensor in the error.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from math import prod
from typing import Any

from polyserve.runtime.datatypes import refusal, shorten

__all__ = ["MOST_DIMENSIONS", "check_elements", "flatten", "measure", "nest"]

MOST_DIMENSIONS = 32

_LISTS = frozenset({list, tuple})


def measure(name: str, values: Any) -> tuple[tuple[int, ...], list[Any]]:
    """Return the shape of nested lists, and what is at the bottom of them as one flat list; see `check_elements`.

    Raises:
        RequestError: The lists are ragged, or nested too deeply.
    """
    if not isinstance(values, list | tuple):
        return (), [values]
    shape: list[int] = [len(values)]
    level: list[Any] = values if isinstance(values, list) else list(values)
    while level and isinstance(level[0], list | tuple):
        length = len(level[0])
        if len(shape) == MOST_DIMENSIONS:
            raise refusal(name, f"expected at most {MOST_DIMENSIONS} dimensions, got more")
        if not _all_of(level, length):
            raise refusal(name, f"expected rows of one length at depth {len(shape)}, got ragged lists")
        shape.append(length)
        level = list(chain.from_iterable(level))
    return tuple(shape), level


def check_elements(name: str, depth: int, elements: Sequence[Any]) -> None:
    """Refuse lists among the elements.

    Apart from `measure`, because packing the elements refuses them as well, only in words that explain less.

    Raises:
        RequestError: There is one; names the depth.
    """
    for element in elements:
        if isinstance(element, list | tuple | dict):
            raise refusal(name, f"expected values at depth {depth}, got {shorten(element)} among them")


def flatten(name: str, values: Sequence[Any], shape: tuple[int, ...]) -> list[Any]:
    """Return lists that are flat, or nested as the shape says, as one flat list of the shape's size.

    Raises:
        RequestError: The lists are ragged, or are not of that size.
    """
    count = prod(shape)
    if len(shape) < 2 or not values or not isinstance(values[0], list | tuple):
        if len(values) != count:
            raise refusal(name, f"expected {count} elements for shape {list(shape)}, got {len(values)}")
        return values if isinstance(values, list) else list(values)
    if len(values) != shape[0]:
        raise refusal(name, f"expected {shape[0]} rows for shape {list(shape)}, got {len(values)}")
    level: list[Any] = list(values)
    for depth, length in enumerate(shape[1:], start=1):
        if not _all_of(level, length):
            raise refusal(
                name,
                f"expected lists of {length} at depth {depth} for shape {list(shape)}, got another length or no list",
            )
        level = list(chain.from_iterable(level))
    return level


def nest(flat: list[Any], shape: tuple[int, ...]) -> Any:
    """Return a flat list as lists nested as the shape says; its only element for a scalar."""
    if not shape:
        return flat[0]
    for axis in range(len(shape) - 1, 0, -1):
        length = shape[axis]
        if length == 0:
            flat = [[] for _ in range(prod(shape[:axis]))]
        else:
            flat = [flat[start : start + length] for start in range(0, len(flat), length)]
    return flat


def _all_of(level: Sequence[Any], length: int) -> bool:
    """Tell whether these are all lists of one length."""
    # Sets of types and lengths, since a loop over rows would take longer than reading them from JSON does.
    if not set(map(type, level)) <= _LISTS and not all(isinstance(row, list | tuple) for row in level):
        return False
    return set(map(len, level)) <= {length}
