"""Field masks: which fields of a resource an update replaces."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from polyserve_gcp.emulator.errors import invalid
from polyserve_gcp.emulator.methods import plain


def replace_fields(current: Any, given: Any, paths: Iterable[str], *, fixed: Collection[str]) -> Any:
    """Return a copy of a resource with some fields replaced by those of another.

    Args:
        current: The resource.
        given: What a caller sent.
        paths: The fields that it names, as in `FieldMask.paths`; `*` or none at all for every field that is not fixed.
        fixed: Fields that nobody can set.

    Raises:
        ServiceError: A path names no field, or one that nobody can set.
    """
    found = type(current)(current)
    target, source = plain(found), plain(given)
    names = [field.name for field in target.DESCRIPTOR.fields]
    wanted = list(paths)
    if not wanted or wanted == ["*"]:
        wanted = [name for name in names if name not in fixed]
    for path in wanted:
        if path.partition(".")[0].rstrip("_") in fixed:
            raise invalid(f"update_mask: field '{path}' cannot be updated.")
        _replace(target, source, path.split("."), path)
    return found


def _replace(target: Any, source: Any, parts: list[str], path: str) -> None:
    first, *rest = parts
    field = target.DESCRIPTOR.fields_by_name.get(first) or target.DESCRIPTOR.fields_by_name.get(f"{first}_")
    if field is None:
        raise invalid(f"update_mask: invalid field path '{path}': there is no field '{first}'.")
    if rest:
        if field.message_type is None or field.is_repeated:
            raise invalid(f"update_mask: invalid field path '{path}': '{first}' has no fields of its own.")
        # Read without setting it where it is absent, so that a mask of what is in neither adds nothing.
        if source.HasField(field.name) or target.HasField(field.name):
            _replace(getattr(target, field.name), getattr(source, field.name), rest, path)
        return
    target.ClearField(field.name)
    if field.is_repeated:
        getattr(target, field.name).MergeFrom(getattr(source, field.name))
    elif field.message_type is not None:
        if source.HasField(field.name):
            getattr(target, field.name).CopyFrom(getattr(source, field.name))
    elif not field.has_presence or source.HasField(field.name):
        setattr(target, field.name, getattr(source, field.name))
