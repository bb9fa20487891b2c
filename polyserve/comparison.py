"""Whether deployments of one name answer alike on several providers: the same package, the same bytes, the same errors.

Each is sent the golden sample of the package that it serves and a handful of requests that no model can answer. What comes back is compared
byte by byte; nothing is changed and nothing is repeated.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from polyserve.bundle import PACKAGE
from polyserve.deployment import Deployment
from polyserve.driver import Request, Response
from polyserve.errors import FailedPreconditionError, translating
from polyserve.model import golden
from polyserve.records import Revision
from polyserve.runtime import manifest as manifests
from polyserve.transport import Connections

REQUEST_ID = "polyserve-diff"
"""Id of every request that is sent, so that answers which repeat it are equal."""

COLD_WITHIN = timedelta(minutes=2)
"""How long the first answer may take."""

_TOLD = ("content-type", "x-polyserve-digest", "inference-header-content-length")
"""Headers that are part of the answer; the others tell of the way and of time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at on every provider.

    Attributes:
        what: What it was.
        seen: What came of it by provider: a short text, equal where the answers are equal byte by byte.
    """

    what: str
    seen: Mapping[str, str]

    @property
    def equal(self) -> bool:
        """Whether all providers gave the same."""
        return len(set(self.seen.values())) == 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What came of comparing the deployments of one name."""

    name: str
    checks: tuple[Check, ...]

    @property
    def equal(self) -> bool:
        """Whether everything was the same everywhere."""
        return all(check.equal for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-able values."""
        checks = [{"what": check.what, "equal": check.equal, "seen": dict(check.seen)} for check in self.checks]
        return {"name": self.name, "equal": self.equal, "checks": checks}


def compare(deployments: Sequence[Deployment]) -> Comparison:
    """Send every deployment the same requests and compare the answers.

    Args:
        deployments: Deployments of one name on several providers.

    Raises:
        FailedPreconditionError: One has no revision with traffic, or its package has no golden sample.
        PolyserveError: A provider does not answer.
    """
    seen: dict[str, dict[str, str]] = {}
    for deployment in deployments:
        for what, value in _looked_at(deployment).items():
            seen.setdefault(what, {})[deployment.provider] = value
    checks = tuple(Check(what=what, seen=found) for what, found in seen.items())
    return Comparison(name=deployments[0].name, checks=checks)


def _looked_at(deployment: Deployment) -> dict[str, str]:
    revision = deployment.status().record.stable
    if revision is None:
        message = f"deployment {deployment.name!r} on {deployment.provider} has no revision with traffic: deploy a package to it first"
        raise FailedPreconditionError(message, provider=deployment.provider, operation="diff", resource=deployment.name)
    sample = _golden(deployment, revision)
    model = f"/v2/models/{revision.model}"
    requests = {
        "the model's description": Request(method="GET", path=model),
        "the golden sample": sample,
        "a body that is no JSON": _post(f"{model}/infer", b"{"),
        "a request without inputs": _post(f"{model}/infer", b"{}"),
        "an input of another name": _post(f"{model}/infer", _NOBODY),
        "an unknown model": _post("/v2/models/no-such-model/infer", sample.body, sample.headers),
        "an unknown route": Request(method="GET", path="/v2/no/such/route"),
        "a method that is not allowed": Request(method="GET", path=f"{model}/infer"),
    }
    with deployment.endpoint as endpoint:
        # So that what is compared are answers of a model that runs.
        endpoint.send(Request(method="GET", path=f"{model}/ready"), timeout=COLD_WITHIN)
    found = {"package": revision.package_digest[:12]}
    connections = Connections()
    try:
        for what, request in requests.items():
            found[what] = _shown(_asked(deployment, revision.number, connections, request))
    finally:
        connections.close()
    return found


_NOBODY = json.dumps({"inputs": [{"name": "polyserve-nobody", "datatype": "FP64", "shape": [1], "data": [0]}]}).encode()


def _post(path: str, body: bytes | memoryview, headers: Mapping[str, str] | None = None) -> Request:
    return Request(path=path, headers=headers or {"content-type": "application/json"}, body=body)


def _golden(deployment: Deployment, revision: Revision) -> Request:
    """Return the golden request of the package that a deployment serves, out of its bundle in the bucket."""
    with tempfile.TemporaryDirectory(prefix="polyserve-diff-") as folder:
        path = Path(folder) / "bundle.zip"
        deployment.target.bucket.download(revision.artifact.key, path)
        with zipfile.ZipFile(path) as bundle:
            wanted = (f"{PACKAGE}/{manifests.FILE_NAME}", f"{PACKAGE}/sample/")
            bundle.extractall(folder, [name for name in bundle.namelist() if name.startswith(wanted)])
        root = Path(folder) / PACKAGE
        request = golden.request(root, manifests.read(root))
    if request is None:
        message = (
            f"the package of {deployment.name!r} on {deployment.provider} has no golden sample: package it with sample="
        )
        raise FailedPreconditionError(message, provider=deployment.provider, operation="diff", resource=deployment.name)
    return request


def _asked(deployment: Deployment, number: int, connections: Connections, request: Request) -> Response:
    """Send one request to one revision, so that no canary answers, and return the answer whatever its status."""
    provider = deployment.target.provider
    request = Request(
        method=request.method,
        path=request.path,
        headers={**request.headers, "x-request-id": REQUEST_ID},
        body=request.body,
        request_id=REQUEST_ID,
    )
    with translating(provider, "invoke", deployment.name):
        address = provider.invoker.resolve(deployment.name, revision=number)
        call = provider.invoker.prepare(address, request)
        reply = connections.send(call, time.monotonic() + COLD_WITHIN.total_seconds())
        return provider.invoker.parse(address, reply)


def _shown(response: Response) -> str:
    """Return an answer as a short text that is equal where the answers are."""
    told = json.dumps({name: response.headers.get(name) for name in _TOLD}).encode()
    return f"{response.status} {hashlib.sha256(told + response.body).hexdigest()[:12]}"
