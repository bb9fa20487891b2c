"""What can be done with buckets over the JSON API, their policies included."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Any

from polyserve.emulation.http import Answer, Call, json_answer
from polyserve_gcp.emulator.access import Access
from polyserve_gcp.emulator.bindings import CONDITIONAL
from polyserve_gcp.emulator.errors import ServiceError
from polyserve_gcp.emulator.gcs_catalog import CLASSES, Bucket, Catalog, check_bucket_name, now_text
from polyserve_gcp.emulator.gcs_conditions import read_conditions, read_number
from polyserve_gcp.emulator.gcs_errors import absent, bad, forbidden
from polyserve_gcp.emulator.gcs_objects import Caller, Objects
from polyserve_gcp.emulator.gcs_server import FakeGcs

_WRITABLE = (
    "cors", "defaultEventBasedHold", "encryption", "iamConfiguration", "labels", "lifecycle", "location", "rpo", "softDeletePolicy",
    "storageClass", "versioning",
)  # fmt: skip
_ABSENT = {
    "acl": "access control lists", "autoclass": "Autoclass", "billing": "requester pays", "customPlacementConfig": "dual regions",
    "defaultEventBasedHold": "holds", "hierarchicalNamespace": "hierarchical namespaces", "ipFilter": "IP filters",
    "logging": "access logs of buckets", "objectRetention": "retention", "retentionPolicy": "retention", "website": "websites",
}  # fmt: skip
_LABEL_KEY = re.compile(r"[\w][\w-]{0,62}")
_LABEL = re.compile(r"[\w-]{0,63}")
_MULTI = frozenset({"US", "EU", "ASIA"})


class Buckets:
    """The operations on buckets.

    Args:
        catalog: What there is.
        server: Has the contents.
        objects: Who lets callers do something.
        access: Who may do what.
    """

    def __init__(self, catalog: Catalog, server: FakeGcs, objects: Objects, access: Access) -> None:
        self._catalog, self._server, self._objects, self._access = catalog, server, objects, access
        # Of two who make or delete buckets at the same time one comes after the other.
        self._changing = asyncio.Lock()

    async def create(self, call: Call, caller: Caller, url: str) -> Answer:
        """Make a bucket."""
        project = call.query.get("project", "")
        self._demand_project(caller, "storage.buckets.create", project)
        given, name = call.json, str(call.json.get("name", ""))
        check_bucket_name(name)
        fields = self._read(given)
        async with self._changing:
            if name in self._catalog.buckets:
                message = "Your previous request to create the named bucket succeeded and you already own it."
                raise ServiceError("ALREADY_EXISTS", message, reason="conflict")
            made = await self._make(name, fields)
        return json_answer(200, made.show(url, self._access.identities.number))

    async def ensure(self, name: str, fields: Mapping[str, Any]) -> None:
        """Make a bucket where there is none, without asking."""
        async with self._changing:
            if name not in self._catalog.buckets:
                await self._make(name, fields)

    async def _make(self, name: str, fields: Mapping[str, Any]) -> Bucket:
        location = str(fields.get("location") or "US").upper()
        soft = {"retentionDurationSeconds": "604800", "effectiveTime": now_text()}
        usual = {
            "location": location, "locationType": "multi-region" if location in _MULTI else "region", "storageClass": "STANDARD",
            "iamConfiguration": {
                "bucketPolicyOnly": {"enabled": True}, "uniformBucketLevelAccess": {"enabled": True}, "publicAccessPrevention": "inherited",
            }, "softDeletePolicy": soft,
        }  # fmt: skip
        made = Bucket(name=name, fields={**usual, **fields, "location": location})
        await self._server.add_bucket(name, versioning=made.versioning)
        self._catalog.buckets[name] = made
        project = self._access.identities.project
        owners = [f"projectOwner:{project}", f"projectEditor:{project}"]
        self._access.put_policy(
            f"projects/_/buckets/{name}",
            {
                "roles/storage.legacyBucketOwner": owners, "roles/storage.legacyObjectOwner": owners,
                "roles/storage.legacyBucketReader": [f"projectViewer:{project}"],
                "roles/storage.legacyObjectReader": [f"projectViewer:{project}"],
            },
        )  # fmt: skip
        return made

    def list(self, call: Call, caller: Caller, url: str) -> Answer:
        """List the buckets of the project."""
        self._demand_project(caller, "storage.buckets.list", call.query.get("project", ""))
        prefix, after = call.query.get("prefix", ""), call.query.get("pageToken", "")
        limit = min(max(read_number(call.query, "maxResults", 1000), 1), 1000)
        names = [name for name in sorted(self._catalog.buckets) if name.startswith(prefix) and name > after]
        number = self._access.identities.number
        shown: dict[str, Any] = {"kind": "storage#buckets"}
        if names:
            shown["items"] = [self._catalog.buckets[name].show(url, number) for name in names[:limit]]
        if len(names) > limit:
            shown["nextPageToken"] = names[limit - 1]
        return json_answer(200, shown)

    async def answer(self, call: Call, caller: Caller, name: str, url: str) -> Answer:
        """Answer a call on one bucket."""
        found = self._catalog.bucket(name)
        conditions = read_conditions(call.query, call.headers)
        number = self._access.identities.number
        if call.method == "GET":
            self._objects.demand(caller, "storage.buckets.get", name)
            conditions.check(found, reading=True)
            return json_answer(200, found.show(url, number))
        if call.method == "DELETE":
            self._objects.demand(caller, "storage.buckets.delete", name)
            async with self._changing:
                found = self._catalog.bucket(name)
                conditions.check(found)
                await self._remove(found)
            return Answer(204)
        if call.method not in {"PATCH", "PUT"}:
            raise absent(f"{call.method} on buckets")
        self._objects.demand(caller, "storage.buckets.update", name)
        conditions.check(found)
        given = call.json
        if str(given.get("location") or found.fields["location"]).upper() != found.fields["location"]:
            raise bad("The location of a bucket cannot be changed.")
        kept = {key: found.fields[key] for key in ("location", "locationType", "storageClass", "iamConfiguration")}
        before = found.fields if call.method == "PATCH" else kept
        was = found.versioning
        found.fields = _merge(before, self._read(given, partial=True))
        found.fields["location"] = kept["location"]
        found.metageneration += 1
        found.updated = now_text()
        if found.versioning != was:
            await self._server.set_versioning(name, versioning=found.versioning)
        return json_answer(200, found.show(url, number))

    def answer_policy(self, call: Call, caller: Caller, name: str) -> Answer:
        """Answer a call on the policy of a bucket."""
        found, resource = self._catalog.bucket(name), f"projects/_/buckets/{name}"
        if call.raw_path.endswith("/testPermissions"):
            wanted = re.findall(r"(?:^|&)permissions=([^&]*)", call.raw_query)
            allowed = self._access.test(caller.principal, wanted, resource)
            more = {"permissions": allowed} if allowed else {}
            return json_answer(200, {"kind": "storage#testIamPermissionsResponse", **more})
        if call.method == "GET":
            self._objects.demand(caller, "storage.buckets.getIamPolicy", name)
            policy, version = self._access.policy(resource), read_number(call.query, "optionsRequestedPolicyVersion", 1)
        elif call.method == "PUT":
            self._objects.demand(caller, "storage.buckets.setIamPolicy", name)
            _check_prevention(found, call.json)
            try:
                policy, version = self._access.set_policy(resource, call.json), CONDITIONAL
            except ServiceError as error:
                if error.code != "ABORTED":
                    raise
                raise ServiceError("FAILED_PRECONDITION", error.message, status=412, reason="conditionNotMet") from None
        else:
            raise absent(f"{call.method} on policies of buckets")
        return json_answer(200, {"kind": "storage#policy", "resourceId": resource, **policy.show(version)})

    async def _remove(self, found: Bucket) -> None:
        if found.live or found.old or found.writers:
            raise ServiceError("ALREADY_EXISTS", "The bucket you tried to delete is not empty.", reason="conflict")
        del self._catalog.buckets[found.name]
        self._access.forget(f"projects/_/buckets/{found.name}")
        await self._server.remove_bucket(found.name)

    def _demand_project(self, caller: Caller, permission: str, project: str) -> None:
        identities = self._access.identities
        if project and project not in {identities.project, identities.number}:
            raise forbidden(caller.principal, permission)
        if not caller.trusted and not self._access.allows(
            caller.principal, permission, f"projects/{identities.project}"
        ):
            raise forbidden(caller.principal, permission)
        if not project:
            raise bad("Required parameter: project", "required")

    def _read(self, given: Mapping[str, Any], *, partial: bool = False) -> dict[str, Any]:
        for name, what in _ABSENT.items():
            if given.get(name):
                raise absent(what)
        uniform = ((given.get("iamConfiguration") or {}).get("uniformBucketLevelAccess") or {}).get("enabled")
        if uniform is False:
            raise absent("access control lists (buckets without uniform access)")
        if (given.get("storageClass") or "STANDARD") not in CLASSES:
            raise bad(f"Invalid argument: storageClass {given['storageClass']}.")
        for key, value in (given.get("labels") or {}).items():
            good = _LABEL_KEY.fullmatch(key) and key == key.lower()
            if not good or (
                value is not None and not (_LABEL.fullmatch(str(value)) and str(value) == str(value).lower())
            ):
                raise bad(
                    f"Invalid argument: the label '{key}': '{value}' is not of lowercase letters, digits, - and _."
                )
        kept = {name: given[name] for name in _WRITABLE if name in given}
        return kept if partial else {name: value for name, value in kept.items() if value is not None}


def _check_prevention(found: Bucket, given: Mapping[str, Any]) -> None:
    """Refuse a policy that opens a bucket to everybody, where its owner has prevented that."""
    everybody = {"allUsers", "allAuthenticatedUsers"}
    opened = any(not everybody.isdisjoint(one.get("members") or ()) for one in given.get("bindings") or ())
    if opened and found.fields["iamConfiguration"].get("publicAccessPrevention") == "enforced":
        message = "The member bindings allUsers and allAuthenticatedUsers are not allowed since public access prevention is enforced."
        raise ServiceError("FAILED_PRECONDITION", message, status=412, reason="conditionNotMet")


def _merge(before: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a merge patch makes of something: `null` takes away, objects are merged."""
    merged = dict(before)
    for name, value in given.items():
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, dict) and isinstance(merged.get(name), dict):
            merged[name] = _merge(merged[name], value)
        else:
            merged[name] = (
                {key: one for key, one in value.items() if one is not None} if isinstance(value, dict) else value
            )
    return merged
