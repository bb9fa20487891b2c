"""How an execution environment is put together: command, variables and the credentials of the execution role."""

from __future__ import annotations

import secrets
from pathlib import Path

from polyserve_aws.emulator.environments import Environment, stream_name
from polyserve_aws.emulator.identities import Identities
from polyserve_aws.emulator.interpreters import BOOT, find_interpreter, life_line, make_runtime_directory
from polyserve_aws.emulator.releases import Release


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

        Raises:
            ServiceError: The role cannot be assumed any more, or the interpreter is gone.
        """
        settings = release.settings
        interpreter = find_interpreter(settings.runtime)
        runtime = make_runtime_directory(settings.runtime, interpreter, self._directory / "runtime")
        stream = stream_name(release.version)
        scratch = self._directory / "scratch" / secrets.token_hex(8)
        root = release.code.root
        variables = {
            **self.variables(release, initialization, stream, scratch, root),
            "AWS_EXECUTION_ENV": f"AWS_Lambda_{settings.runtime}",
            "LAMBDA_RUNTIME_DIR": str(runtime),
            "LD_LIBRARY_PATH": f"{root}:{root}/lib",
            "_EMULATOR_LAYERS": "",
        }
        # -S and -s keep site directories out; -B because /var/task cannot be written on AWS.
        command = [*life_line(), interpreter, "-S", "-s", "-B", "-c", BOOT]
        return Environment(release, command=command, variables=variables, scratch=scratch, root=root, stream=stream)

    def variables(
        self, release: Release, initialization: str, stream: str, scratch: Path, root: Path
    ) -> dict[str, str]:
        """Return what every execution environment has, archive or image ("Defined runtime environment variables")."""
        settings = release.settings
        session = self._identities.assume(settings.role, release.name)
        return {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "LANG": "en_US.UTF-8",
            "TZ": ":UTC",
            "HOME": str(scratch),
            "TMPDIR": str(scratch),
            "_HANDLER": settings.handler,
            "LAMBDA_TASK_ROOT": str(root),
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
            "AWS_ACCESS_KEY_ID": session.key_id,
            "AWS_SECRET_ACCESS_KEY": session.secret,
            "AWS_SESSION_TOKEN": session.token,
        }
