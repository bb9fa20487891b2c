"""How an execution environment is put together: command, variables and the credentials of the execution role."""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from polyserve.emulation.lifeline import life_line
from polyserve_aws.emulator.environments import Environment, stream_name
from polyserve_aws.emulator.identities import Identities, Principal
from polyserve_aws.emulator.images import TASK, command_of, runs_in_its_own_root, variables_of
from polyserve_aws.emulator.interpreters import BOOT, OWN_RUNTIME, find_interpreter, make_runtime_directory
from polyserve_aws.emulator.releases import Release

SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"
SNAP_START = "snap-start"
SESSION_S = 43_200
"""How long the session of an execution role is said to last."""


class Launcher:
    """Makes execution environments.

    Args:
        directory: Where their scratch space and the runtime directories are.
        identities: Gives out the sessions of execution roles.
        endpoint: Address of the emulator, which the function's own SDK calls.
    """

    def __init__(self, directory: Path, identities: Identities, endpoint: str) -> None:
        self._directory, self._identities, self._endpoint = directory, identities, endpoint

    async def make(self, release: Release, initialization: str) -> Environment:
        """Return an environment that is not started yet.

        Args:
            release: What is to run.
            initialization: `on-demand`, `provisioned-concurrency` or `snap-start`.

        Raises:
            ServiceError: The role cannot be assumed any more, or the interpreter is gone.
        """
        settings = release.settings
        session = self._identities.assume(settings.role, release.name)
        stream = stream_name(release.version)
        scratch = self._directory / "scratch" / secrets.token_hex(8)
        common = self._variables(release, initialization, stream, session)
        image = settings.package_type == "Image"
        if image and runs_in_its_own_root(release):
            root = release.code.root
            command, variables = _contained(release)
        else:
            runtime = OWN_RUNTIME if image else settings.runtime
            root = release.code.root / TASK.lstrip("/") if image else release.code.root
            command, variables = self._bare(release, runtime, root, scratch)
        variables |= common | {"_HANDLER": command_of(release)[1] if image else settings.handler}
        return Environment(
            release,
            command=[*life_line(), *command],
            variables=variables,
            scratch=scratch,
            root=root,
            stream=stream,
            ended=lambda: self._identities.end(session),
            credentials=_told(session) if initialization == SNAP_START else None,
        )

    def _bare(self, release: Release, runtime: str, root: Path, scratch: Path) -> tuple[Sequence[str], dict[str, str]]:
        """Return how unpacked code is started under an interpreter of this machine."""
        interpreter = find_interpreter(runtime)
        directory = make_runtime_directory(runtime, interpreter, self._directory / "runtime")
        variables = {"PATH": SYSTEM_PATH}
        if release.settings.package_type == "Image":
            variables |= variables_of(release)
        else:
            variables["AWS_EXECUTION_ENV"] = f"AWS_Lambda_{runtime}"
        variables |= {
            "HOME": str(scratch),
            "TMPDIR": str(scratch),
            "LAMBDA_TASK_ROOT": str(root),
            "LAMBDA_RUNTIME_DIR": str(directory),
            "LD_LIBRARY_PATH": f"{root}:{root}/lib",
        }
        # -S and -s keep site directories out; -B because /var/task cannot be written on AWS.
        return [interpreter, "-S", "-s", "-B", "-c", BOOT], variables

    def _variables(self, release: Release, initialization: str, stream: str, session: Principal) -> dict[str, str]:
        """Return what every execution environment has ("Defined runtime environment variables", developer guide)."""
        settings = release.settings
        return {
            "LANG": "en_US.UTF-8",
            "TZ": ":UTC",
            "AWS_REGION": release.region,
            "AWS_DEFAULT_REGION": release.region,
            "AWS_LAMBDA_FUNCTION_NAME": release.name,
            "AWS_LAMBDA_FUNCTION_VERSION": release.version,
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(settings.memory),
            "AWS_LAMBDA_INITIALIZATION_TYPE": initialization,
            "AWS_LAMBDA_LOG_GROUP_NAME": release.log_group,
            "AWS_LAMBDA_LOG_STREAM_NAME": stream,
            # The function's own calls come back here, and are held to its role.
            "AWS_ENDPOINT_URL": self._endpoint,
            **settings.environment,
            # A snapshot must not hold any: "Environment variables", SnapStart, developer guide, 2026-11.
            **({} if initialization == SNAP_START else _named(session)),
        }


def _named(session: Principal) -> dict[str, str]:
    """Return the credentials of a role as variables."""
    return {
        "AWS_ACCESS_KEY_ID": session.key_id,
        "AWS_SECRET_ACCESS_KEY": session.secret,
        "AWS_SESSION_TOKEN": session.token,
    }


def _told(session: Principal) -> dict[str, str]:
    """Return them as an environment that asks is told them."""
    ends = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + SESSION_S))
    return {
        "AccessKeyId": session.key_id,
        "SecretAccessKey": session.secret,
        "Token": session.token,
        "Expiration": ends,
    }


def _contained(release: Release) -> tuple[Sequence[str], dict[str, str]]:
    """Return how an image is started whose files become the root directory."""
    root = release.code.root
    command, _, directory = command_of(release)
    (root / "tmp").mkdir(exist_ok=True)
    variables = {"PATH": SYSTEM_PATH, "LAMBDA_TASK_ROOT": TASK} | variables_of(release)
    variables |= {"HOME": "/tmp", "TMPDIR": "/tmp"}  # noqa: S108 - the image's own
    # Its working directory is changed to by the shell that most images have; one without starts in its root directory.
    shell = directory != "/" and (root / "bin/sh").exists()
    change = ["/bin/sh", "-c", 'cd "$0" && exec "$@"', directory] if shell else []
    program = shutil.which("chroot")
    assert program is not None
    return [program, str(root), *change, *command], variables
