"""Preconditions: what must be there for a call to go through, and what must not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from polyserve_gcp.emulator.errors import ServiceError
from polyserve_gcp.emulator.gcs_catalog import Bucket, StoredObject
from polyserve_gcp.emulator.gcs_errors import absent, bad, unmet


@dataclass(frozen=True, slots=True)
class Conditions:
    """The preconditions of one call on one object or bucket; `None` for those that it does not have."""

    generation: int | None = None
    not_generation: int | None = None
    metageneration: int | None = None
    not_metageneration: int | None = None
    etags: tuple[str, ...] = ()
    not_etags: tuple[str, ...] = ()

    def check(self, found: StoredObject | Bucket | None, *, reading: bool = False) -> None:
        """Refuse the call where they do not hold.

        Args:
            found: What is there.
            reading: Whether the call only reads: others have no conditions on ETags.

        Raises:
            ServiceError: One does not hold: 412, or 304 where something has to be another and is the same ("Request
                preconditions", read 2026-11-21).
        """
        if not reading and (self.etags or self.not_etags):
            raise absent("conditions on ETags for calls that change something")
        generation = found.generation if isinstance(found, StoredObject) else 0
        metageneration = found.metageneration if found is not None else 0
        etag = found.etag if found is not None else ""
        if self.generation not in {None, generation} or self.metageneration not in {None, metageneration}:
            raise unmet()
        if self.etags and etag not in self.etags and "*" not in self.etags:
            raise unmet()
        known = etag in self.not_etags or "*" in self.not_etags
        if known or self.not_generation == generation or self.not_metageneration == metageneration:
            raise ServiceError("FAILED_PRECONDITION", "Not Modified", status=304, headers={"etag": etag})


NONE = Conditions()


def read_conditions(
    query: Mapping[str, str], headers: Mapping[str, str] | None = None, *, source: bool = False
) -> Conditions:
    """Return the preconditions of a call to the JSON API.

    Args:
        query: Its query.
        headers: Its header fields, whose `If-Match` and `If-None-Match` count; for copies those of the target only.
        source: Those on what is copied, instead of on what is written.

    Raises:
        ServiceError: One is no number.
    """
    start = "ifSource" if source else "if"
    headers = headers or {}
    return Conditions(
        _number(query, f"{start}GenerationMatch"), _number(query, f"{start}GenerationNotMatch"),
        _number(query, f"{start}MetagenerationMatch"), _number(query, f"{start}MetagenerationNotMatch"),
        _etags(headers, "If-Match"), _etags(headers, "If-None-Match"),
    )  # fmt: skip


def read_xml_conditions(headers: Mapping[str, str]) -> Conditions:
    """Return the preconditions of a call to the XML API.

    Raises:
        ServiceError: One is no number, or is about dates.
    """
    if "If-Modified-Since" in headers or "If-Unmodified-Since" in headers:
        raise absent("conditions on dates")
    return Conditions(
        _number(headers, "x-goog-if-generation-match"), None, _number(headers, "x-goog-if-metageneration-match"), None,
        _etags(headers, "If-Match"), _etags(headers, "If-None-Match"),
    )  # fmt: skip


def read_number(given: Mapping[str, str], name: str, usual: int = 0) -> int:
    """Return a number out of a query or header fields, such as a generation.

    Args:
        given: The query or the header fields.
        name: Its name.
        usual: What it is where it is not given.

    Raises:
        ServiceError: It is no number.
    """
    found = _number(given, name)
    return usual if found is None else found


def _number(given: Mapping[str, str], name: str) -> int | None:
    text = given.get(name)
    if text is None or text == "":
        return None
    try:
        return int(text)
    except ValueError:
        raise bad(f"Invalid argument: {name} is '{text}', and not a number.") from None


def _etags(headers: Mapping[str, str], name: str) -> tuple[str, ...]:
    return tuple(part.strip().strip('"') for part in headers.get(name, "").split(",") if part.strip())
