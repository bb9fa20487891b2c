"""The APIs over REST: from a path, a query and JSON to a request message, and back."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

from google.protobuf import json_format

from polyserve.emulation.http import Answer, Call
from polyserve_gcp.emulator.asking import Ask, Handler
from polyserve_gcp.emulator.errors import ServiceError, format_error, invalid
from polyserve_gcp.emulator.methods import Method, methods, plain

# What every Google API takes in its query ("Standard query parameters", read 2026-11-21).
_SYSTEM = frozenset({"$alt", "alt", "access_token", "callback", "fields", "key", "prettyPrint", "quotaUser", "userIp"})


class RestDoor:
    """Answers REST calls.

    Args:
        handlers: What answers each method, by `Method.key`.
    """

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self._handlers = handlers

    async def answer(self, api: str, call: Call) -> Answer:
        """Answer one request.

        Args:
            api: Host of the API that was called, `run.googleapis.com`.
            call: The request.
        """
        try:
            method, request = self._read(api, call)
            handler = self._handlers.get(method.key)
            if handler is None:
                raise ServiceError("UNIMPLEMENTED", f"The emulator has no {method.key}.")
            found = await handler(Ask(request=request, call=call, api=api))
        except ServiceError as error:
            return format_error(error)
        numbers = "enum-encoding=int" in call.query.get("$alt", "")
        text = json_format.MessageToJson(plain(found), use_integers_for_enums=numbers)
        return Answer(200, {"content-type": "application/json; charset=UTF-8"}, text.encode())

    def _read(self, api: str, call: Call) -> tuple[Method, Any]:
        for method in methods():
            if method.api != api:
                continue
            for verb, pattern, body in method.rules:
                match = pattern.fullmatch(call.path) if verb == call.method else None
                if match is not None:
                    return method, _parse(method, call, match.groupdict(), body)
        raise ServiceError("NOT_FOUND", f"Method not found: {call.method} {call.path}")


def _parse(method: Method, call: Call, labels: Mapping[str, str], body: str) -> Any:
    """Return the request message of a call."""
    found: dict[str, Any] = {}
    if body:
        try:
            given = json.loads(call.body or b"{}")
        except ValueError as error:
            raise invalid(f"Invalid JSON payload received. {error}") from None
        if not isinstance(given, dict):
            raise invalid('Invalid JSON payload received. Unknown name "": Root element must be a message.')
        found = given if body == "*" else {_camel(body): given}
    elif call.body:
        raise invalid('Invalid JSON payload received. Unknown name "": Cannot bind body: the method takes none.')
    for name, value in parse_qsl(call.raw_query, keep_blank_values=True):
        if name not in _SYSTEM:
            _put(found, name, _value(name, value))
    for name, value in labels.items():
        _put(found, name.replace("__", "."), value)
    try:
        return method.wrap(json_format.ParseDict(found, method.request()))
    except json_format.ParseError as error:
        raise invalid(f"Invalid JSON payload received. {error}") from None


def _put(found: dict[str, Any], name: str, value: Any) -> None:
    *outer, last = [_camel(part) for part in name.split(".")]
    for part in outer:
        found = found.setdefault(part, {})
    found[last] = value


def _value(name: str, text: str) -> Any:
    if _camel(name) == "updateMask":
        # Google takes both spellings of a field here, protobuf's parser one.
        return ",".join(".".join(_camel(part) for part in path.split(".")) for path in text.split(",") if path)
    return {"true": True, "false": False}.get(text.lower(), text)


def _camel(name: str) -> str:
    return re.sub(r"_+([a-z0-9])", lambda match: match[1].upper(), name.rstrip("_"))
