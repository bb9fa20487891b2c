"""How many processors go with how much memory, on Cloud Run and so for functions. Pure."""

from __future__ import annotations

from polyserve.driver import FunctionSpec
from polyserve_gcp.errors import UnsupportedSettingError
from polyserve_gcp.settings import GcpSettings

__all__ = ["check_models", "concurrency_of", "cpu_of", "seconds_of"]

# Processors by the most memory in MiB that goes with them, and by the least: "Configure memory limits" and "Configure CPU limits", 2026-11.
_MOST = ((1.0, 4096), (2.0, 8192), (4.0, 16_384), (6.0, 24_576), (8.0, 32_768))
_LEAST = {4.0: 2048, 6.0: 4096, 8.0: 4096}
_FRACTIONS = ((0.5, 512), (1.0, 1024))
_SMALLEST = 0.08
SPARE_MB = 128
"""What an instance needs beside its model."""


def cpu_of(settings: GcpSettings, memory_mb: int) -> float:
    """Return the processors of an instance: those that were asked for, or the fewest that go with its memory.

    Raises:
        UnsupportedSettingError: There are no instances of that kind; the message says which there are.
    """
    fewest = next((cpu for cpu, most in _MOST if memory_mb <= most), _MOST[-1][0])
    asked = settings.cpu
    if not asked:
        return fewest
    if asked < 1:
        _check_fraction(asked, memory_mb)
        return asked
    if asked not in dict(_MOST):
        raise UnsupportedSettingError(
            f"cpu is {asked:g}: it can be 1, 2, 4, 6 or 8, or a part of one from {_SMALLEST} on"
        )
    if asked < fewest:
        raise UnsupportedSettingError(
            f"cpu is {asked:g}, and memory_mb {memory_mb} takes {fewest:g}: set cpu to {fewest:g} or more, or leave it out"
        )
    if memory_mb < _LEAST.get(asked, 0):
        raise UnsupportedSettingError(
            f"cpu is {asked:g}, which takes memory_mb {_LEAST[asked]} or more, and memory_mb is {memory_mb}: raise it, or lower cpu"
        )
    return asked


def _check_fraction(asked: float, memory_mb: int) -> None:
    if asked < _SMALLEST:
        raise UnsupportedSettingError(f"cpu is {asked:g}: the smallest part of a processor is {_SMALLEST}")
    most = next(most for below, most in _FRACTIONS if asked < below)
    if memory_mb > most:
        raise UnsupportedSettingError(
            f"cpu is {asked:g}, which goes with memory_mb {most} at most, and memory_mb is {memory_mb}: set cpu to 1, or lower the memory"
        )


def check_models(spec: FunctionSpec) -> None:
    """Refuse files of a model that are left in the bucket and leave an instance no memory: its disk is made of that.

    Raises:
        UnsupportedSettingError: They do; the message says how much it takes.
    """
    size = -(-sum(model.size for model in spec.models) // (1 << 20))
    # Once on what is the disk, and once as the model itself.
    if size and 2 * size + SPARE_MB > spec.memory_mb:
        raise UnsupportedSettingError(
            f"memory_mb is {spec.memory_mb}, and {size:,} MB of the model are read from the bucket into memory, which takes "
            f"{2 * size + SPARE_MB:,}: raise memory_mb, or let the bundle carry the model"
        )


def concurrency_of(settings: GcpSettings, cpu: float) -> int:
    """Return how many requests an instance answers at a time: with less than a processor it can be one only."""
    return settings.concurrency if cpu >= 1 else 1


def seconds_of(timeout_s: float) -> int:
    """Return the time that the platform gives: a second more than the entrypoint takes, which says itself that the time is over."""
    return min(int(-(-timeout_s // 1)) + 1, 3600)
