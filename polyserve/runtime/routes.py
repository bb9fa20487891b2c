"""The routes of a model service, and what is answered where there is none.

Knows paths and methods; the answers that never change are made here once. Whoever uses it asks the model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote

from polyserve.runtime.jsontext import encode_json
from polyserve.runtime.messages import ErrorCode, RequestError

if TYPE_CHECKING:
    from polyserve.runtime.manifest import Manifest

__all__ = ["MethodError", "Route", "Routes"]

_PRODUCT = "polyserve"
_LONGEST_SHOWN = 120


class Route(NamedTuple):
    """A route: its name in the log, its one method, and its answer where that is always the same."""

    name: str
    method: str
    body: bytes = b""


class MethodError(RequestError):
    """A route was asked with a method that it has not; `allowed` is the one it has."""

    def __init__(self, path: str, method: str, allowed: str) -> None:
        super().__init__(ErrorCode.UNSUPPORTED, f"{path} answers {allowed}, got {method[:20]!r}", status=405)
        self.allowed = allowed


class Routes:
    """The routes of one service.

    Args:
        version: The revision's number, which is the protocol's model version.
        manifest: The package's manifest; `None` while it is not loaded, when only the server's own routes are there.
    """

    def __init__(self, version: str, manifest: Manifest | None = None) -> None:
        from polyserve import __version__

        server = {"name": _PRODUCT, "version": __version__, "extensions": ["binary_tensor_data"]}
        self._version = version
        self._name = ""
        self.table: dict[str, Route] = {
            "/v2": Route("server", "GET", encode_json(server).encode()),
            "/v2/health/live": Route("live", "GET", b'{"live":true}'),
        }
        """Every path that is spelled as the protocol does, for a caller that cannot wait for `find`."""
        if manifest is not None:
            self._add_model(manifest)

    def _add_model(self, manifest: Manifest) -> None:
        self._name = name = manifest.name
        form = manifest.loader.get("format")
        metadata = {
            "name": name,
            "versions": [self._version],
            "platform": f"{manifest.flavor}_{form}" if form else manifest.flavor,
            "inputs": [spec.to_dict() for spec in manifest.signature.inputs],
            "outputs": [spec.to_dict() for spec in manifest.signature.outputs],
            "parameters": {"digest": manifest.digest, "row_wise": manifest.row_wise},
        }
        self.table["/v2/health/ready"] = Route("ready", "GET", b'{"ready":true}')
        self.table["/invocations"] = Route("invocations", "POST")
        for path in (f"/v2/models/{name}", f"/v2/models/{name}/versions/{self._version}"):
            self.table[path] = Route("metadata", "GET", encode_json(metadata).encode())
            self.table[f"{path}/ready"] = Route("ready", "GET", encode_json({"name": name, "ready": True}).encode())
            self.table[f"{path}/infer"] = Route("infer", "POST")

    def find(self, path: str) -> Route:
        """Return the route of a path, also where it is spelled unusually: percent-encoded, with a slash at its end.

        Raises:
            RequestError: NOT_FOUND, saying whether route, model or version is unknown; UNAVAILABLE while nothing is loaded.
        """
        plain = unquote(path).rstrip("/")
        route = self.table.get(plain)
        if route is not None:
            return route
        if not self._name:
            raise RequestError(ErrorCode.UNAVAILABLE, "the model is not loaded yet; try again")
        parts = plain.split("/")
        if parts[:3] == ["", "v2", "models"] and len(parts) > 3:
            if parts[3] != self._name:
                message = f"there is no model {_cut(parts[3])!r} here; this is {self._name!r}"
                raise RequestError(ErrorCode.NOT_FOUND, message)
            if parts[4:5] == ["versions"] and parts[5:6] != [self._version]:
                wanted = _cut("/".join(parts[5:6]))
                message = f"there is no version {wanted!r} of model {self._name!r} here; this is {self._version!r}"
                raise RequestError(ErrorCode.NOT_FOUND, message)
        known = f"/v2/models/{self._name}, /v2/models/{self._name}/infer or /invocations"
        raise RequestError(ErrorCode.NOT_FOUND, f"there is no route {_cut(path)!r}; try {known}")


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
