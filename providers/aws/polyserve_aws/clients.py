"""The SDK's session and clients: made when they are first needed, shared by the drivers, without retries of their own."""

from __future__ import annotations

import os
import threading
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import boto3
import botocore.session
from botocore.config import Config
from botocore.loaders import Loader

from polyserve_aws.errors import explain_refusal
from polyserve_aws.settings import AwsSettings

__all__ = ["Clients", "is_private"]

CONNECTIONS = 32
"""Connections that one client keeps: as many as the core has calls in flight."""


class Clients:
    """One session and its clients. Safe to use from many threads.

    Args:
        settings: Which account and region, and where its services answer.
    """

    def __init__(self, settings: AwsSettings) -> None:
        self._settings = settings
        self._session: boto3.Session | None = None
        self._clients: dict[str, Any] = {}
        # Neither sessions nor the making of clients are safe for threads: boto3's guide, "Multithreading".
        self._lock = threading.RLock()

    @property
    def session(self) -> boto3.Session:
        """The session, with the SDK's own chain of credentials."""
        with self._lock:
            if self._session is None:
                settings = self._settings
                # A profile that is named turns the environment's credentials off, which a rehearsal must never use.
                profile = settings.profile or ("default" if settings.shared_credentials_file else None)
                core = botocore.session.Session(profile=profile)
                if settings.shared_credentials_file:
                    core.set_config_variable("credentials_file", settings.shared_credentials_file)
                core.register_component("data_loader", _models(core.get_config_variable("data_path") or ""))
                self._session = boto3.Session(botocore_session=core, region_name=settings.region or None)
            return self._session

    def get(self, service: str) -> Any:
        """Return the client of a service, such as `"s3"`."""
        client = self._clients.get(service)
        if client is None:
            with self._lock:
                client = self._clients.get(service)
                if client is None:
                    client = self._clients[service] = self._make(service)
        return client

    def _make(self, service: str) -> Any:
        endpoint = self._settings.endpoint_url or None
        config = Config(
            # The core repeats what may be repeated; twice would be once too often.
            retries={"total_max_attempts": 1, "mode": "standard"},
            connect_timeout=5,
            read_timeout=60,
            max_pool_connections=CONNECTIONS,
            tcp_keepalive=True,
            signature_version="s3v4" if service == "s3" else None,
            # The core compares what was read with the digest that was stored; once is enough.
            response_checksum_validation="when_required",
            s3=_storage(endpoint),
        )
        client = self.session.client(service, endpoint_url=endpoint, config=config)
        client.meta.events.register("after-call", explain_refusal)
        return client

    def close(self) -> None:
        """Close the connections; clients are made anew where one is needed again."""
        with self._lock:
            clients, self._clients = self._clients, {}
        for client in clients.values():
            client.close()


def is_private(url: str) -> bool:
    """Return whether nobody can be between here and a URL: it is one of TLS, or of this machine."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    return parts.scheme == "https" or host in {"localhost", "::1"} or host.startswith("127.")


def _storage(endpoint: str | None) -> dict[str, Any]:
    """Return how S3 is called. What we write has a checksum, which is signed: with TLS around it, contents need no signature of their own.

    The SDK does the same, but not where the checksum is given to it: "Authenticating Requests", API reference of S3, 2026-11.
    """
    signed = endpoint is not None and not is_private(endpoint)
    return {"addressing_style": "path" if endpoint else "auto", "payload_signing_enabled": signed}


class _Models(Loader):  # type: ignore[misc]
    """Reads the descriptions of services, each once for all sessions: a script that deploys often opens many."""

    @property
    def search_paths(self) -> list[str]:
        """The directories. Every `boto3.Session` adds its own one, which is there already: it adds to a copy."""
        return list(self._search_paths)


@cache
def _models(data_path: str) -> _Models:
    own = [os.path.expanduser(os.path.expandvars(path)) for path in data_path.split(os.pathsep) if path]
    return _Models([*own, os.path.join(os.path.dirname(boto3.__file__), "data")])
