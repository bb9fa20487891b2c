"""How mistakes in settings are told: where it was written, what is wrong, and what was probably meant.

Knows words, not settings: which keys there are is for `settings` to say.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from polyserve.errors import SettingsError

__all__ = ["CREDENTIAL", "credential", "nearest", "refuse_credentials", "refuse_misspelt", "refused", "typed"]

# The last word of a key decides: `client_secret` is a credential, `secret_arn` and `token_lifetime_s` only speak of one.
CREDENTIAL = re.compile(
    r"(^|_)(secrets?|passwords?|passwd|passphrase|tokens?|credentials?|api_?key|access_?key|account_?key|private_?key|secret_?key"
    r"|connection_?string|conn_?str)(_id)?$"
)


def refuse_credentials(where: str, table: Mapping[str, Any]) -> None:
    """Refuse anything that looks like a credential, also in tables that this profile does not use."""
    for key, value in table.items():
        if isinstance(value, dict):
            # The function's own variables are not settings of ours.
            if key != "environment":
                refuse_credentials(f"{where}{key}.", value)
        elif CREDENTIAL.search(key.lower()):
            raise credential(f"{where}{key}")


def credential(where: str) -> SettingsError:
    """Return the error of a credential among the settings."""
    return refused(
        f"{where}: credentials are never settings of polyserve: they would end up in files, logs and records. Remove it; each "
        "provider's own chain is used (environment, profile files, instance identity, command line log-in)"
    )


def refuse_misspelt(name: str, known: Iterable[str]) -> None:
    """Refuse a variable that is nearly one of those there are."""
    # Only what is nearly right is refused: POLYSERVE_HOME and its like belong to other parts, and to the user's own functions.
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.85)
    if near:
        raise refused(f"environment: {name}: unknown setting; did you mean {near[0]}?")


def nearest(key: str, known: Iterable[str]) -> str:
    """Return the question whether the nearest of the known keys was meant, or nothing where none is near."""
    near = difflib.get_close_matches(key, list(known), n=1, cutoff=0.6)
    return f", did you mean {near[0]!r}?" if near else ""


def typed(value: object) -> str:
    """Return a value with its type, for people."""
    return f"{type(value).__name__} {value!r}"


def refused(message: str) -> SettingsError:
    """Return the error of a setting that does not validate."""
    return SettingsError(message, operation="settings")
