"""How what an emulator starts ends with it, even where the emulator is killed."""

from __future__ import annotations

import shutil
import sys
from functools import lru_cache
from pathlib import Path

PARENT_DEATH = (
    "import ctypes,os,sys;ctypes.CDLL(None).prctl(1,9);"
    "sys.exit(0) if os.getppid()==1 else os.execvp(sys.argv[1],sys.argv[1:])"
)


@lru_cache(maxsize=1)
def life_line() -> list[str]:
    """Return the command that has its command killed when the emulator ends, however that happens; Linux only."""
    if sys.platform != "linux":
        return []  # what is started there has to notice by itself
    setpriv = shutil.which("setpriv")
    if setpriv:
        return [setpriv, "--pdeathsig", "KILL"]
    return [str(Path(sys.executable).resolve()), "-S", "-E", "-s", "-c", PARENT_DEATH]
