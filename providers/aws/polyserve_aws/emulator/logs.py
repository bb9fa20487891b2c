"""What functions print, in CloudWatch Logs: if the execution role may write there."""

from __future__ import annotations

from polyserve_aws.emulator.identities import ACCOUNT, Identities
from polyserve_aws.emulator.releases import Release
from polyserve_aws.emulator.services import write_log


class Logs:
    """Writes the output of execution environments.

    Args:
        identities: Knows what execution roles may do.
    """

    def __init__(self, identities: Identities) -> None:
        self._identities = identities

    def write(self, release: Release, stream: str, lines: list[tuple[int, str]]) -> None:
        """Append lines to the stream of an environment.

        As on AWS nobody is told where the role lacks the permission: there are just no logs.

        Args:
            release: What ran.
            stream: Name of the environment's log stream.
            lines: Milliseconds since 1970, and the text.
        """
        role, group = release.settings.role, release.log_group
        base = f"arn:aws:logs:{release.region}:{ACCOUNT}:log-group:{group}"
        if not lines or not self._may(role, "logs:PutLogEvents", f"{base}:log-stream:{stream}"):
            return
        if not self._may(role, "logs:CreateLogStream", f"{base}:*"):
            return
        write_log(release.region, group, stream, lines, make_group=self._may(role, "logs:CreateLogGroup", f"{base}:*"))

    def _may(self, role: str, action: str, resource: str) -> bool:
        return self._identities.role_allows(role, action, resource) or self._identities.role_allows(
            role, action, resource.removesuffix(":*")
        )
