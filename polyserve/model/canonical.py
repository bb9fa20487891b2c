"""Pickles that are the same bytes for the same object, whichever process writes them.

An ordinary pickle depends on which equal strings happen to be one object, on the order of sets, which follows the process's hash
seed, and on what memory held where records have gaps.
"""

from __future__ import annotations

import copy
import io
import pickle
import sys
import types
from collections.abc import Mapping
from typing import IO, Any, ClassVar, Protocol

PROTOCOL = 5
"""Fixed: a newer default of a newer Python would be other bytes."""

_ROUNDS = 5

# CountVectorizer remembers the address of its stop words, to validate them once. Without it they are validated once more.
_VOLATILE = frozenset({"_stop_words_id"})


class Beside(Protocol):
    """What is kept beside a pickle, which has a reference in its place."""

    def reference(self, obj: object) -> object:
        """Return the reference of a part that is kept beside, of plain values; `None` for what goes into the pickle."""
        ...

    def find(self, reference: Any) -> object:
        """Return the part that a reference stands for."""
        ...


# The one in C cannot be told how to save a string or a set. joblib and cloudpickle stand on this one too.
_PythonPickler: Any = vars(pickle)["_Pickler"]


class _Pickler(_PythonPickler):  # type: ignore[misc]  # untyped in the standard library's stubs
    dispatch: ClassVar[dict[type, Any]] = dict(_PythonPickler.dispatch)

    def __init__(self, file: IO[bytes], renamed: Mapping[str, str], beside: Beside | None = None) -> None:
        super().__init__(file, PROTOCOL)
        self._beside = beside
        self._strings: dict[str, str] = {}
        self._renamed = renamed
        self.modules: set[str] = set()

    def persistent_id(self, obj: object) -> object:
        return None if self._beside is None else self._beside.reference(obj)

    def save_str(self, text: str) -> None:
        one = self._strings.setdefault(text, text)
        if one is not text and (saved := self.memo.get(id(one))) is not None:
            self.write(self.get(saved[0]))
        else:
            super().save_str(one)

    def save_set(self, items: set[object]) -> None:
        self.save_reduce(set, (_in_order(items),), obj=items)

    def save_frozenset(self, items: frozenset[object]) -> None:
        self.save_reduce(frozenset, (_in_order(items),), obj=items)

    def save_picklebuffer(self, buffer: pickle.PickleBuffer) -> None:
        # Always as a bytearray of its own: whether an array was read-only is an accident, and all empty bytes are one object.
        with buffer.raw() as raw:
            self.save_bytearray(bytearray(raw))

    def save_global(self, obj: object, name: str | None = None) -> None:
        module = pickle.whichmodule(obj, name or obj.__qualname__)  # type: ignore[attr-defined]
        self.modules.add(module)
        if module not in self._renamed:
            super().save_global(obj, name)
            return
        qualname = name or obj.__qualname__  # type: ignore[attr-defined]
        found: Any = sys.modules[module]
        try:
            for part in qualname.split("."):
                found = getattr(found, part)
        except AttributeError:
            found = None
        if found is not obj:
            raise pickle.PicklingError(f"Can't pickle {qualname}: it's not found as {module}.{qualname}")
        self.save(self._renamed[module])
        self.save(qualname)
        self.write(pickle.STACK_GLOBAL)
        self.memoize(obj)

    def reducer_override(self, obj: object) -> Any:
        if type(obj).__name__ == "ndarray" and getattr(getattr(obj, "dtype", None), "names", None):
            return _without_padding(obj).__reduce_ex__(PROTOCOL)
        state = getattr(obj, "__dict__", None)
        if isinstance(obj, type) or not isinstance(state, dict) or _VOLATILE.isdisjoint(state):
            return NotImplemented
        stable = copy.copy(obj)
        for name in _VOLATILE:
            stable.__dict__.pop(name, None)
        return stable.__reduce_ex__(PROTOCOL)

    dispatch[str] = save_str
    dispatch[set] = save_set
    dispatch[frozenset] = save_frozenset
    dispatch[pickle.PickleBuffer] = save_picklebuffer
    dispatch[types.FunctionType] = save_global


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes], renamed: Mapping[str, str], beside: Beside | None = None) -> None:
        super().__init__(file)
        self._beside = beside
        self._originals = {new: old for old, new in renamed.items()}

    def find_class(self, module: str, name: str) -> Any:
        return super().find_class(self._originals.get(module, module), name)

    def persistent_load(self, pid: object) -> object:
        return None if self._beside is None else self._beside.find(pid)


def dumps(
    obj: object, *, renamed: Mapping[str, str] | None = None, beside: Beside | None = None
) -> tuple[bytes, frozenset[str]]:
    """Pickle an object canonically, and tell which modules loading it will import.

    Args:
        obj: What to pickle.
        renamed: Modules that will have another name where the pickle is loaded, such as `__main__`.
        beside: Takes parts out of the pickle, such as a model's weights.

    Returns:
        The pickle, and the modules by their name in this process.

    Raises:
        Exception: Whatever pickling or unpickling raises: PicklingError, TypeError, AttributeError, or the object's own.
    """
    names = renamed or {}
    raw, modules = _dumps(obj, names, beside)
    # What pickling shares and what it does not settles when it is loaded and pickled again; this also proves that it can be loaded.
    for _ in range(_ROUNDS):
        again, modules = _dumps(_Unpickler(io.BytesIO(raw), names, beside).load(), names, beside)
        if again == raw:
            break
        raw = again
    return raw, modules


def _dumps(obj: object, renamed: Mapping[str, str], beside: Beside | None) -> tuple[bytes, frozenset[str]]:
    buffer = io.BytesIO()
    pickler = _Pickler(buffer, renamed, beside)
    pickler.dump(obj)
    return buffer.getvalue(), frozenset(pickler.modules)


def _without_padding(records: Any) -> Any:
    """Return a copy of an array of records whose gaps between fields are zero; the nodes of a tree have gaps of whatever memory held."""
    import numpy as np

    # Not zeros_like, which sets fields and leaves the gaps alone.
    clean = np.zeros(records.shape, records.dtype, order="F" if records.flags.fnc else "C")
    pending = [(records, clean)]
    while pending:
        source, target = pending.pop()
        for name in source.dtype.names:
            if source.dtype[name].names:
                pending.append((source[name], target[name]))
            else:
                target[name] = source[name]
    return clean


def _in_order(items: set[object] | frozenset[object]) -> list[object]:
    return sorted(items, key=lambda item: (type(item).__qualname__, repr(item)))
