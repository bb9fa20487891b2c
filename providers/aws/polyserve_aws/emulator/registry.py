"""The image registry of ECR: the HTTP API of the OCI distribution specification, with ECR's own tokens.

moto has the control plane, and hashes layers without keeping them; here the blobs are kept. Each region has a port of
its own on 127.0.0.1, which stands for `<account>.dkr.ecr.<region>.amazonaws.com`. Whoever logged in may do in the
registry what his policies say.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from polyserve.emulation.http import Answer, Call, json_answer
from polyserve_aws.emulator.access import Access
from polyserve_aws.emulator.actions import Need
from polyserve_aws.emulator.errors import ServiceError
from polyserve_aws.emulator.identities import ACCOUNT, Principal
from polyserve_aws.emulator.services import put_image, repositories

TOKEN_LIFE_S = 12 * 3600
"""How long a token of ECR holds."""
MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_HOST = re.compile(rb"(https://)?\d{12}\.dkr\.ecr\.([a-z0-9-]+)\.amazonaws\.com")
_ROUTE = re.compile(r"/v2/(?P<name>.+?)/(?P<kind>blobs/uploads|blobs|manifests|tags)(?:/(?P<reference>[^/]*))?")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
Handler = Callable[[Call], Awaitable[Answer]]


class Blobs:
    """The layers, configurations and manifests of all repositories, by digest.

    Args:
        directory: Where they are kept.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "blobs"
        self._directory.mkdir(parents=True, exist_ok=True)

    def path(self, digest: str) -> Path:
        """Return where a blob is, or would be."""
        return self._directory / digest.removeprefix("sha256:")

    def add(self, data: bytes) -> str:
        """Keep a blob; returns its digest."""
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        path = self.path(digest)
        if not path.exists():
            making = path.with_suffix(f".{os.urandom(4).hex()}")
            making.write_bytes(data)
            making.rename(path)
        return digest


class RegistryError(Exception):
    """The registry refuses a request; code and words are those of the distribution specification."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class Registry:
    """The registries of all regions.

    Args:
        access: Checks policies.
        blobs: What was pushed.
        listen: Opens a listener for a handler; returns its port.
    """

    def __init__(self, access: Access, blobs: Blobs, listen: Callable[[Handler], Awaitable[int]]) -> None:
        self._access, self._blobs, self._listen = access, blobs, listen
        self._ports: dict[str, int] = {}
        self._tokens: dict[str, tuple[float, Principal]] = {}
        self._held: dict[tuple[str, str], set[str]] = {}
        self._types: dict[str, str] = {}
        self._uploads: dict[str, bytearray] = {}

    async def follow(self, answer: Answer, region: str, principal: Principal) -> Answer:
        """Name the ports of the registries in an answer of the control plane, and give out tokens that hold."""
        body = answer.body
        if b'"authorizationToken"' in body:
            found = json.loads(body)
            for one in found["authorizationData"]:
                token = secrets.token_urlsafe(48)
                self._tokens[token] = (time.monotonic() + TOKEN_LIFE_S, principal)
                one["authorizationToken"] = base64.b64encode(f"AWS:{token}".encode()).decode()
                one["expiresAt"] = time.time() + TOKEN_LIFE_S
            body = json.dumps(found).encode()
        for match in set(_HOST.findall(body)) | {(b"", region.encode())}:
            name = match[1].decode()
            if name not in self._ports:
                self._ports[name] = await self._listen(self._handler(name))

        def local(found: re.Match[bytes]) -> bytes:
            address = f"127.0.0.1:{self._ports[found[2].decode()]}".encode()
            return b"http://" + address if found[1] else address

        headers = {name: value for name, value in answer.headers.items() if name.lower() != "content-length"}
        return replace(answer, headers=headers, body=_HOST.sub(local, body))

    def region_of(self, host: str) -> str | None:
        """Return the region whose registry a host name means; `None` where it is none of ours."""
        found = _HOST.fullmatch(host.encode())
        if found:
            return found[2].decode()
        return next((region for region, port in self._ports.items() if host == f"127.0.0.1:{port}"), None)

    def _handler(self, region: str) -> Handler:
        async def handle(call: Call) -> Answer:
            try:
                return self._answer(region, call)
            except RegistryError as error:
                headers = (
                    {"www-authenticate": 'Basic realm="ecr",service="ecr.amazonaws.com"'} if error.status == 401 else {}
                )
                body = json_answer(error.status, {"errors": [{"code": error.code, "message": str(error)}]})
                return replace(body, headers={**body.headers, **headers})

        return handle

    def _answer(self, region: str, call: Call) -> Answer:
        principal = self._login(call)
        if call.path.rstrip("/") == "/v2":
            return json_answer(200, {})
        found = _ROUTE.fullmatch(call.path)
        if found is None:
            raise RegistryError(404, "UNSUPPORTED", "The operation is unsupported.")
        name, kind, reference = found["name"], found["kind"], found["reference"] or ""
        if name not in repositories(region):
            raise RegistryError(
                404,
                "NAME_UNKNOWN",
                f"The repository with name '{name}' does not exist in the registry with id '{ACCOUNT}'",
            )

        def permit(action: str, repository: str = name) -> None:
            resource = f"arn:aws:ecr:{region}:{ACCOUNT}:repository/{repository}"
            try:
                self._access.permit(principal, Need(f"ecr:{action}", (resource,)), service="ecr")
            except ServiceError as error:
                raise RegistryError(403, "DENIED", error.message) from error

        return self._serve(call, (region, name), (kind, reference), permit)

    def _serve(
        self, call: Call, place: tuple[str, str], wanted: tuple[str, str], permit: Callable[..., None]
    ) -> Answer:
        """Answer a request to one repository."""
        kind, reference = wanted
        if kind == "blobs/uploads":
            return self._upload(call, place, reference, permit)
        if kind == "blobs" and call.method in {"GET", "HEAD"}:
            permit("GetDownloadUrlForLayer" if call.method == "GET" else "BatchCheckLayerAvailability")
            return self._blob(call, place, reference)
        if kind == "manifests" and call.method in {"GET", "HEAD"}:
            permit("BatchGetImage")
            return self._manifest(place, reference)
        if kind == "manifests" and call.method == "PUT":
            permit("PutImage")
            return self._put_manifest(call, place, reference)
        if kind == "tags" and call.method == "GET":
            permit("ListImages")
            images = repositories(place[0])[place[1]].images
            return json_answer(
                200, {"name": place[1], "tags": sorted(tag for one in images for tag in one.image_tags if tag)}
            )
        raise RegistryError(405, "UNSUPPORTED", "The operation is unsupported.")

    def _login(self, call: Call) -> Principal:
        kind, _, text = call.headers.get("Authorization", "").partition(" ")
        refusal = RegistryError(401, "UNAUTHORIZED", "Your authorization token is missing, has expired or is invalid.")
        if kind.lower() != "basic":
            raise refusal
        try:
            user, _, token = base64.b64decode(text, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            raise refusal from None
        until, principal = self._tokens.get(token, (0.0, None))
        if user != "AWS" or principal is None or time.monotonic() > until:
            raise refusal
        return principal

    def _upload(self, call: Call, place: tuple[str, str], token: str, permit: Callable[..., None]) -> Answer:
        if call.method == "POST":
            permit("InitiateLayerUpload")
            return self._begin_upload(call, place, permit)
        if token not in self._uploads:
            raise RegistryError(404, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry")
        if call.method == "PUT":
            permit("CompleteLayerUpload")
            return self._finish(place, bytes(self._uploads.pop(token)) + call.body, call.query.get("digest", ""))
        status = 204
        if call.method == "PATCH":
            permit("UploadLayerPart")
            start = call.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
            status = 416 if start and int(start) != len(self._uploads[token]) else 202
            if status == 202:
                self._uploads[token] += call.body
        answer = replace(self._progress(place, token), status=status)
        if call.method == "DELETE":
            del self._uploads[token]
        return answer

    def _begin_upload(self, call: Call, place: tuple[str, str], permit: Callable[..., None]) -> Answer:
        mount, source = call.query.get("mount", ""), call.query.get("from", "")
        if mount and mount in self._held.get((place[0], source), ()):
            permit("GetDownloadUrlForLayer", source)
            return self._take(place, mount)
        if call.query.get("digest"):
            return self._finish(place, call.body, call.query["digest"])
        token = secrets.token_hex(16)
        self._uploads[token] = bytearray()
        return self._progress(place, token)

    def _progress(self, place: tuple[str, str], token: str) -> Answer:
        size = len(self._uploads[token])
        headers = {
            "location": f"/v2/{place[1]}/blobs/uploads/{token}",
            "docker-upload-uuid": token,
            "range": f"0-{max(size - 1, 0)}",
        }
        return Answer(202, headers)

    def _finish(self, place: tuple[str, str], data: bytes, digest: str) -> Answer:
        if f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
            raise RegistryError(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
        self._blobs.add(data)
        return self._take(place, digest)

    def _take(self, place: tuple[str, str], digest: str) -> Answer:
        self._held.setdefault(place, set()).add(digest)
        return Answer(201, {"location": f"/v2/{place[1]}/blobs/{digest}", "docker-content-digest": digest})

    def _blob(self, call: Call, place: tuple[str, str], digest: str) -> Answer:
        if digest not in self._held.get(place, ()):
            raise RegistryError(404, "BLOB_UNKNOWN", "blob unknown to registry")
        path = self._blobs.path(digest)
        headers = {"docker-content-digest": digest, "content-type": "application/octet-stream"}
        if call.method == "HEAD":
            return Answer(200, {**headers, "content-length": str(path.stat().st_size)})
        return Answer(200, headers, path.read_bytes())

    def _manifest(self, place: tuple[str, str], reference: str) -> Answer:
        digest = self.find(place[0], place[1], reference)
        if digest is None:
            raise RegistryError(404, "MANIFEST_UNKNOWN", "manifest unknown to registry")
        data = self._blobs.path(digest).read_bytes()
        return Answer(200, {"content-type": self._types[digest], "docker-content-digest": digest}, data)

    def _put_manifest(self, call: Call, place: tuple[str, str], reference: str) -> Answer:
        kind = call.headers.get("Content-Type", "")
        found = call.json
        if kind not in MANIFESTS or not found:
            raise RegistryError(400, "MANIFEST_INVALID", f"a manifest of type {kind!r} is not supported")
        held = self._held.setdefault(place, set())
        parts = [found["config"], *found["layers"]] if "config" in found else found.get("manifests", [])
        absent = [part["digest"] for part in parts if part["digest"] not in held]
        if absent:
            raise RegistryError(400, "MANIFEST_BLOB_UNKNOWN", f"the repository does not have {absent[0]}")
        digest = self._blobs.add(call.body)
        if _DIGEST.fullmatch(reference) and reference != digest:
            raise RegistryError(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
        held.add(digest)
        self._types[digest] = kind
        tag = None if _DIGEST.fullmatch(reference) else reference
        if self.find(*place, reference) != digest:
            put_image(place[0], place[1], call.body.decode(), tag=tag, digest=digest, media_type=kind)
        return Answer(201, {"location": f"/v2/{place[1]}/manifests/{digest}", "docker-content-digest": digest})

    def find(self, region: str, repository: str, reference: str) -> str | None:
        """Return the digest of the image that a tag or a digest names; `None` where there is none."""
        record: Any = repositories(region).get(repository)
        for image in record.images if record else ():
            digest: str = image.get_image_digest()
            if reference == digest or reference in image.image_tags:
                return digest if digest in self._types else None
        return None
