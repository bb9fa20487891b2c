"""The emulator of a provider, for as long as a run of tests needs it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polyserve.emulation.lifeline import life_line

__all__ = ["start_emulator"]

LOOK_EVERY_S = 0.02


def start_emulator(
    module: str, directory: Path, variables: Mapping[str, str], *arguments: str, patience_s: float = 180.0
) -> tuple[subprocess.Popen[bytes], Mapping[str, Any]]:
    """Start an emulator, and return its process and the options to reach it with once it answers.

    It ends with this process, however that ends. Whoever started it ends it before.

    Args:
        module: What is run, such as `polyserve_aws.emulator`.
        directory: Its home, for temporary files too.
        variables: What of its environment is kept beside that: nothing of the test that happens to be the first, which it outlives, and no
            credentials of anybody's.
        arguments: Its own arguments, after the directory.
        patience_s: Seconds that it has to start.

    Raises:
        AssertionError: It ended, or does not answer in time; the message has its log.
    """
    home, log = directory / "emulator", directory / "emulator.log"
    environment = {**variables, "HOME": str(directory), "TMPDIR": str(directory)}
    command = [*life_line(), sys.executable, "-m", module, str(home), *arguments]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    ready, ends = home / "ready.json", time.monotonic() + patience_s
    while not ready.exists():
        if process.poll() is not None or time.monotonic() > ends:
            process.kill()
            raise AssertionError(f"the emulator did not start: {log.read_text()}")
        # It tells by this file alone.
        time.sleep(LOOK_EVERY_S)
    return process, json.loads(ready.read_text())["options"]
