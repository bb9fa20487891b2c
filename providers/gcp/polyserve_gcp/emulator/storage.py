"""Cloud Storage: fake-gcs-server has what objects hold, and a layer in front of it is strict where that is not."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from polyserve.emulation.http import Answer, Call, json_answer
from polyserve_gcp.emulator.access import Access
from polyserve_gcp.emulator.errors import ServiceError
from polyserve_gcp.emulator.gcs_batch import answer_batch
from polyserve_gcp.emulator.gcs_buckets import Buckets
from polyserve_gcp.emulator.gcs_catalog import Catalog
from polyserve_gcp.emulator.gcs_errors import absent, bad, format_json, format_xml
from polyserve_gcp.emulator.gcs_json import JsonApi
from polyserve_gcp.emulator.gcs_listing import list_objects
from polyserve_gcp.emulator.gcs_objects import OWN, Caller, Objects, Writing
from polyserve_gcp.emulator.gcs_server import FakeGcs
from polyserve_gcp.emulator.gcs_signatures import ALGORITHM, SignatureError, is_signed, read_signature
from polyserve_gcp.emulator.gcs_uploads import Uploads
from polyserve_gcp.emulator.gcs_xml import XmlApi
from polyserve_gcp.emulator.identities import CLOUD_PLATFORM, Identities

SERVICE = "storage.googleapis.com"
SCOPES = (
    CLOUD_PLATFORM, "https://www.googleapis.com/auth/devstorage.full_control",
    "https://www.googleapis.com/auth/devstorage.read_write",
)  # fmt: skip
READING = (*SCOPES, "https://www.googleapis.com/auth/devstorage.read_only")
_JSON = (
    "/storage/v1/",
    "/download/storage/v1/",
    "/upload/storage/v1/",
    "/resumable/upload/storage/v1/",
    "/batch/storage/v1",
)


class Storage:
    """Cloud Storage: the JSON API, its uploads, and what of the XML API signed URLs and parallel uploads need.

    Args:
        directory: Where fake-gcs-server writes its log.
        identities: Who there is.
        access: Who may do what.

    Attributes:
        url: Address at which `answer` is reached; set before the first call, as it is in what clients are told.
        catalog: What there is.
    """

    def __init__(self, directory: Path, identities: Identities, access: Access) -> None:
        self.url = ""
        self.catalog = Catalog()
        self._identities, self._access = identities, access
        self._server = FakeGcs(directory)
        self._objects = Objects(self.catalog, self._server, access)
        self._buckets = Buckets(self.catalog, self._server, self._objects, access)
        self._json, self._uploads = JsonApi(self._objects), Uploads(self._objects)
        self._xml = XmlApi(self._objects, self._uploads)
        email = f"service-{identities.number}@gs-project-accounts.iam.gserviceaccount.com"
        self._agent = identities.add_agent(email)

    async def start(self) -> None:
        """Start fake-gcs-server; returns when it answers.

        Raises:
            OSError: It is not installed, is not the one that it should be, or does not start.
        """
        await self._server.start()

    async def close(self) -> None:
        """End it, and everything that it has with it."""
        self._uploads.close()
        await self._server.stop()

    async def answer(self, call: Call) -> Answer:
        """Answer one call to `storage.googleapis.com`."""
        is_json = call.raw_path.startswith(_JSON)
        try:
            return await (self._answer_json(call) if is_json else self._answer_xml(call))
        except SignatureError as error:
            return format_xml(error, error.elements)
        except ServiceError as error:
            return format_json(error) if is_json else format_xml(error)

    async def ensure_bucket(self, name: str, location: str) -> None:
        """Make a bucket where there is none, as Google's own services make theirs: without asking who may."""
        await self._buckets.ensure(name, {"location": location})

    async def read_object(self, bucket: str, name: str, generation: int = 0) -> bytes:
        """Return what an object holds, without asking who may.

        Args:
            bucket: Its bucket.
            name: Its name.
            generation: Which generation of it; the live one unless given.

        Raises:
            ServiceError: There is none (404).
        """
        found = self._objects.find(OWN, bucket, name, generation)
        return await self._server.read(bucket, name, found.generation)

    async def write_object(
        self, bucket: str, name: str, body: bytes, content_type: str = "application/octet-stream"
    ) -> int:
        """Write an object, without asking who may; returns its generation."""
        writing = Writing(bucket=bucket, name=name, fields={"contentType": content_type})
        return (await self._objects.write(OWN, writing, body)).generation

    def sign_url(self, bucket: str, name: str, method: str, *, content_type: str = "", expires_s: int = 1800) -> str:
        """Return a signed URL of Google's own, such as the Cloud Functions API gives out for sources.

        Args:
            bucket: The bucket.
            name: Name of the object.
            method: What it is good for: `PUT`, `GET`.
            content_type: What an upload must say it is; nothing in particular unless given.
            expires_s: How long it is good, in seconds.
        """
        at = time.gmtime()
        scope = f"{time.strftime('%Y%m%d', at)}/auto/storage/goog4_request"
        fields = {"host": urlsplit(self.url).netloc} | ({"content-type": content_type} if content_type else {})
        signed = ";".join(sorted(fields))
        query = {
            "X-Goog-Algorithm": ALGORITHM, "X-Goog-Credential": f"{self._agent.email}/{scope}",
            "X-Goog-Date": time.strftime("%Y%m%dT%H%M%SZ", at), "X-Goog-Expires": str(expires_s), "X-Goog-SignedHeaders": signed,
        }  # fmt: skip
        written = "&".join(f"{key}={quote(value, safe='-_.~')}" for key, value in sorted(query.items()))
        path = f"/{bucket}/{quote(name, safe='/~')}"
        headers = "".join(f"{key}:{value}\n" for key, value in sorted(fields.items()))
        request = "\n".join([method, path, written, headers, signed, "UNSIGNED-PAYLOAD"])
        digest = hashlib.sha256(request.encode()).hexdigest()
        _, signature = self._identities.sign(
            self._agent, "\n".join([ALGORITHM, query["X-Goog-Date"], scope, digest]).encode()
        )
        # A service agent may do everything with the buckets that Google makes for a service.
        self._access.grant("roles/storage.admin", self._agent.member, f"projects/_/buckets/{bucket}")
        return f"{self.url}{path}?{written}&X-Goog-Signature={signature.hex()}"

    def _caller(self, call: Call) -> Caller:
        _refuse_absent(call)
        if not call.headers.get("Authorization"):
            self._access.demand_service(SERVICE)
            return Caller()
        scopes = READING if call.method in {"GET", "HEAD"} else SCOPES
        return Caller(self._access.enter(call, SERVICE, scopes=scopes))

    async def _answer_json(self, call: Call) -> Answer:
        path = call.raw_path
        if path.startswith("/batch/"):
            return await answer_batch(call, self.answer)
        if path.startswith(("/upload/", "/resumable/")):
            return await self._answer_upload(call)
        parts = [unquote(part) for part in path.removeprefix("/storage/v1/").split("/")]
        if parts[0] == "b" and (len(parts) <= 2 or parts[2] == "iam"):
            return await self._answer_bucket(call, parts)
        caller = self._caller(call)
        if len(parts) == 3 and parts[::2] == ["b", "o"] and call.method == "GET":
            bucket = self.catalog.bucket(parts[1])
            self._objects.demand(caller, "storage.objects.list", parts[1])
            return await list_objects(self._server, bucket, call.query, self.url)
        if parts[0] == "projects" and parts[2:] == ["serviceAccount"]:
            return json_answer(200, {"kind": "storage#serviceAccount", "email_address": self._agent.email})
        return await self._json.answer(call, caller, self.url)

    async def _answer_upload(self, call: Call) -> Answer:
        if "upload_id" in call.query:
            return await self._uploads.resume(call, self.url)
        parts = call.raw_path.split("/")
        if call.method != "POST" or len(parts) < 3 or parts[-1] != "o":
            raise absent(f"'{call.method} {call.raw_path}'")
        return await self._uploads.answer(call, self._caller(call), unquote(parts[-2]), self.url)

    async def _answer_bucket(self, call: Call, parts: list[str]) -> Answer:
        caller = self._caller(call)
        if len(parts) > 2:
            return self._buckets.answer_policy(call, caller, parts[1])
        if len(parts) == 2:
            return await self._buckets.answer(call, caller, parts[1], self.url)
        if call.method == "POST":
            return await self._buckets.create(call, caller, self.url)
        return self._buckets.list(call, caller, self.url)

    async def _answer_xml(self, call: Call) -> Answer:
        bucket, _, name = call.raw_path.lstrip("/").partition("/")
        if not bucket or not name:
            raise absent("calls to the XML API on buckets")
        if is_signed(call):
            self._access.demand_service(SERVICE)
            _refuse_absent(call)
            caller = Caller(read_signature(call, self._identities))
        else:
            caller = self._caller(call)
        if "\x00" in unquote(name):
            raise bad("The specified object name is not valid.", "InvalidObjectName")
        return await self._xml.answer(call, caller, unquote(bucket), unquote(name), self.url)


def _refuse_absent(call: Call) -> None:
    """Refuse what would change the meaning of any call, and is not emulated."""
    for name in ("x-goog-encryption-algorithm", "x-goog-copy-source-encryption-algorithm"):
        if name in call.headers:
            raise absent("encryption with keys that come along with a call")
    if call.query.get("enableObjectRetention", "").lower() == "true":
        raise absent("retention")
    lists = ("predefinedAcl", "predefinedDefaultObjectAcl", "destinationPredefinedAcl")
    named = [name for name in lists if call.query.get(name)] + ["x-goog-acl"] * ("x-goog-acl" in call.headers)
    if named:
        raise bad(f"Cannot use {named[0]} with a bucket that has uniform bucket-level access enabled.")
