"""CPU and memory as Google writes them, and which of both go together.

Source: "CPU limits", "Memory limits" and "Concurrency" of Cloud Run's documentation, read 2026-11-21.
"""

from __future__ import annotations

import re

from polyserve_gcp.emulator.errors import invalid

MEMORY_OF_CPU = {1.0: (128, 4096), 2.0: (128, 8192), 4.0: (2048, 16384), 6.0: (4096, 24576), 8.0: (4096, 32768)}
"""Least and most memory in MiB for whole CPUs."""
LEAST_CPU = 0.08
MOST_CONCURRENCY = 1000
_CPU_OF_MEMORY = ((128, 0.083), (256, 0.1666), (512, 0.333), (1024, 0.583), (2048, 1.0), (8192, 2.0), (16384, 4.0))
_UNITS = {
    "": 1 / 2**20, "k": 2**-10, "K": 2**-10, "Ki": 2**-10, "M": 1.0, "Mi": 1.0, "G": 1024.0, "Gi": 1024.0,
}  # fmt: skip


def read_memory_mb(text: str, field: str) -> float:
    """Return memory in MiB; `256M` is 256 MiB, as the sizes of functions are called.

    Args:
        text: `512Mi`, `1G`; bytes without a unit.
        field: Where it is, for the message.

    Raises:
        ServiceError: It is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMG]i|[kKMG]|)", text)
    if match is None:
        raise invalid(f"{field}: Invalid value '{text}'. Supported units are k, M, G, Mi, Gi.")
    return float(match[1]) * _UNITS[match[2]]


def read_cpu(text: str, field: str) -> float:
    """Return CPUs: `1`, `0.5`, `2000m`.

    Raises:
        ServiceError: It is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)(m?)", text)
    if match is None:
        raise invalid(f"{field}: Invalid value specified for cpu: '{text}'.")
    return float(match[1]) / (1000 if match[2] else 1)


def default_cpu(memory_mb: float) -> float:
    """Return the CPU that a function of a size has unless it asks for more."""
    return next((cpu for size, cpu in _CPU_OF_MEMORY if memory_mb <= size), 8.0)


def check_compute(cpu: float, memory_mb: float, concurrency: int, where: str) -> None:
    """Refuse CPU, memory and concurrency that do not go together.

    Args:
        cpu: CPUs.
        memory_mb: Memory in MiB.
        concurrency: Requests that an instance takes at a time.
        where: The fields that hold them, for the message.

    Raises:
        ServiceError: They do not.
    """
    if not (LEAST_CPU <= cpu < 1 or cpu in MEMORY_OF_CPU):
        raise invalid(
            f"{where}.cpu: Invalid value specified for cpu. Must be equal to one of [.08-1], 1.0, 2.0, 4.0, 6.0, 8.0"
        )
    least, most = MEMORY_OF_CPU.get(cpu, (128, 512 if cpu < 0.5 else 1024))
    if not least <= memory_mb <= most:
        raise invalid(
            f"{where}.memory: Invalid value specified for container memory. For {cpu:g} CPU, memory must be between "
            f"{least}Mi and {most}Mi inclusive."
        )
    if not 1 <= concurrency <= MOST_CONCURRENCY:
        raise invalid(
            f"max_instance_request_concurrency must be between 1 and {MOST_CONCURRENCY} inclusive, not {concurrency}."
        )
    if cpu < 1 and concurrency > 1:
        raise invalid(
            f"{where}.cpu: Invalid value specified for cpu. Total cpu < 1 is not supported with concurrency > 1."
        )
