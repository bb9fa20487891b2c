"""What regions offer: the list that Azure answers with, which clients are to ask for and not to know by heart.

From "Language runtime support policy" and "Flex Consumption plan", read 2026-11-21. The last region has no Flex
Consumption, so that clients meet one.
"""

from __future__ import annotations

from typing import Any

from polyserve.emulation.http import Answer, json_answer
from polyserve_azure.emulator.asking import Ask, Operation, Table
from polyserve_azure.emulator.errors import ServiceError

VERSIONS = {"3.10": "2026-10-31", "3.11": "2027-10-31", "3.12": "2028-10-31", "3.13": "2029-10-31"}
"""Versions of Python, with the end of their support."""
DEFAULT_VERSION = "3.13"
MEMORY_MB = (512, 2048, 4096)
DEFAULT_MEMORY_MB = 2048
LARGEST_SCALE = 1000
WITHOUT_FLEX = "westindia"
LOCATIONS = (
    "eastus",
    "eastus2",
    "westus2",
    "northeurope",
    "westeurope",
    "swedencentral",
    "southeastasia",
    WITHOUT_FLEX,
)


def table() -> Table:
    """Return the operations."""
    action = "Microsoft.Web/locations/functionAppStacks/read"
    return {("GET", "microsoft.web/locations/functionappstacks", False): Operation(action, list_stacks)}


async def list_stacks(ask: Ask) -> Answer:
    """List the stacks of a region."""
    location, stack = ask.target.name.replace(" ", "").lower(), ask.call.query.get("stack", "python").lower()
    if location not in LOCATIONS:
        raise ServiceError(404, "NotFound", f"The location '{ask.target.name}' was not found.")
    if stack != "python" or (location == WITHOUT_FLEX and _wants_flex(ask)):
        return json_answer(200, {"value": []})
    minors = [
        _minor(version, end, flex=location != WITHOUT_FLEX) for version, end in sorted(VERSIONS.items(), reverse=True)
    ]
    major = {"displayText": "Python 3", "value": "3", "minorVersions": minors}
    properties = {"displayText": "Python", "value": "python", "preferredOs": "linux", "majorVersions": [major]}
    shown = {
        "id": None,
        "name": "python",
        "type": "Microsoft.Web/functionAppStacks",
        "location": location,
        "properties": properties,
    }
    return json_answer(200, {"value": [shown]})


def _wants_flex(ask: Ask) -> bool:
    return ask.call.query.get("sku", "").lower() in {"fc1", "flexconsumption"}


def _minor(version: str, end: str, *, flex: bool) -> dict[str, Any]:
    memory = [{"size": size, "isDefault": size == DEFAULT_MEMORY_MB} for size in MEMORY_MB]
    sku = {
        "skuCode": "FC1",
        "instanceMemoryMB": memory,
        "maximumInstanceCount": {
            "lowestMaximumInstanceCount": 1,
            "highestMaximumInstanceCount": LARGEST_SCALE,
            "defaultValue": 100,
        },
        "functionAppConfigProperties": {"runtime": {"name": "python", "version": version}},
    }
    linux = {
        "runtimeVersion": f"Python|{version}", "remoteDebuggingSupported": False, "isDefault": version == DEFAULT_VERSION,
        "supportedFunctionsExtensionVersions": ["~4"], "endOfLifeDate": f"{end}T00:00:00+00:00",
        "Sku": [sku] if flex else [],
    }  # fmt: skip
    return {"displayText": f"Python {version}", "value": version, "stackSettings": {"linuxRuntimeSettings": linux}}
