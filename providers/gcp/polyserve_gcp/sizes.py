"""How many processors go with how much memory, on Cloud Run and so for functions. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from polyserve.driver import FunctionSpec
from polyserve_gcp.settings import GcpSettings

__all__ = ["concurrency_of", "cpu_of", "misfits", "seconds_of"]

# Processors by the most memory in MiB that goes with them, and by the least: "Configure memory limits" and "Configure CPU limits", 2026-11.
_MOST = ((1.0, 4096), (2.0, 8192), (4.0, 16_384), (6.0, 24_576), (8.0, 32_768))
_LEAST = {4.0: 2048, 6.0: 4096, 8.0: 4096}
_FRACTIONS = ((0.5, 512), (1.0, 1024))
_SMALLEST = 0.08
SPARE_MB = 128
"""What an instance needs beside its model."""


def cpu_of(settings: GcpSettings, memory_mb: int) -> float:
    """Return the processors of an instance: those that were asked for, or the fewest that go with its memory."""
    return settings.cpu or _fewest(memory_mb)


def _fewest(memory_mb: int) -> float:
    return next((cpu for cpu, most in _MOST if memory_mb <= most), _MOST[-1][0])


def misfits(spec: FunctionSpec, settings: GcpSettings) -> Iterator[str]:
    """Yield why there are no instances of a revision's kind: processors, memory and model that do not go together."""
    asked, memory_mb = settings.cpu, spec.memory_mb
    fewest = _fewest(memory_mb)
    if 0 < asked < 1:
        yield from _misfits_of_fraction(asked, memory_mb)
    elif asked and asked not in dict(_MOST):
        yield f"cpu is {asked:g}: it can be 1, 2, 4, 6 or 8, or a part of one from {_SMALLEST} on"
    elif asked and asked < fewest:
        yield f"cpu is {asked:g}, and memory_mb {memory_mb} takes {fewest:g}: set cpu to {fewest:g} or more, or leave it out"
    elif memory_mb < _LEAST.get(asked, 0):
        yield f"cpu is {asked:g}, which takes memory_mb {_LEAST[asked]} or more, and memory_mb is {memory_mb}: raise it, or lower cpu"
    size = -(-sum(model.size for model in spec.models) // (1 << 20))
    # Its disk is made of memory: the files are there once, and once more as the model itself.
    if size and 2 * size + SPARE_MB > memory_mb:
        yield (
            f"memory_mb is {memory_mb}, and {size:,} MB of the model are read from the bucket into memory, which takes "
            f"{2 * size + SPARE_MB:,}: raise memory_mb, or let the bundle carry the model"
        )


def _misfits_of_fraction(asked: float, memory_mb: int) -> Iterator[str]:
    if asked < _SMALLEST:
        yield f"cpu is {asked:g}: the smallest part of a processor is {_SMALLEST}"
        return
    most = next(most for below, most in _FRACTIONS if asked < below)
    if memory_mb > most:
        yield f"cpu is {asked:g}, which goes with memory_mb {most} at most, and memory_mb is {memory_mb}: set cpu to 1, or lower the memory"


def concurrency_of(settings: GcpSettings, cpu: float) -> int:
    """Return how many requests an instance answers at a time: with less than a processor it can be one only."""
    return settings.concurrency if cpu >= 1 else 1


def seconds_of(timeout_s: float) -> int:
    """Return the time that the platform gives: a second more than the entrypoint takes, which says itself that the time is over."""
    return min(int(-(-timeout_s // 1)) + 1, 3600)
