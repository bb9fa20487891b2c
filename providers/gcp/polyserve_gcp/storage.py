"""Cloud Storage itself: the SDK's client with deadlines and without retries, and the buckets that deployments make."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from polyserve_gcp.credentials import Credentials
from polyserve_gcp.errors import BucketNotEmptyError
from polyserve_gcp.settings import GcpSettings

if TYPE_CHECKING:
    from google.auth.transport.requests import AuthorizedSession
    from google.cloud.storage import Client

__all__ = ["CALL", "HOST", "Buckets"]

HOST = "storage.googleapis.com"
CONNECTIONS = 32
# Seconds to connect, and between two pieces of an answer. The core repeats what may be repeated; twice would be once too often.
CALL: dict[str, Any] = {"timeout": (5.0, 60.0), "retry": None}
"""How every call of the SDK is made."""


class Buckets:
    """The buckets of a project. Safe to use from many threads; nothing is called before it is needed.

    Args:
        settings: Where buckets are made, and with which key.
        credentials: Who calls.
    """

    def __init__(self, settings: GcpSettings, credentials: Credentials) -> None:
        self._settings = settings
        self._credentials = credentials
        self._opened: tuple[Client, AuthorizedSession] | None = None
        self._lock = threading.Lock()

    def _open(self) -> tuple[Client, AuthorizedSession]:
        with self._lock:
            if self._opened is None:
                from google.auth.transport.requests import AuthorizedSession
                from google.cloud.storage import Client
                from requests.adapters import HTTPAdapter

                native = self._credentials.native
                session = AuthorizedSession(native, auth_request=self._credentials.transport)
                # Else the default of a `.netrc` would take the place of the token.
                session.auth = _as_it_is
                for scheme in ("https://", "http://"):
                    session.mount(scheme, HTTPAdapter(pool_connections=4, pool_maxsize=CONNECTIONS, max_retries=0))
                # Where nothing is named, the SDK's own variables decide.
                given = self._settings.endpoints.get(HOST)
                options = {"api_endpoint": given.rstrip("/")} if given else None
                client = Client(self._credentials.project, native, _http=session, client_options=options)
                # Since 3.17 another thread asks for each bucket, for traces that nobody has to have turned on: another permission,
                # and calls that outlive ours. There is no switch but a variable of the whole process.
                client._bucket_metadata_cache = None
                self._opened = client, session
            return self._opened

    @property
    def client(self) -> Client:
        """The SDK's client."""
        return self._open()[0]

    @property
    def session(self) -> AuthorizedSession:
        """The connections of that client, with its credentials."""
        return self._open()[1]

    @property
    def credentials(self) -> Credentials:
        """Who calls."""
        return self._credentials

    def ensure(self, bucket: str) -> None:
        """Make a bucket exist in the region; private, without lists of who may read which object."""
        from google.api_core.exceptions import Conflict, NotFound

        client = self.client
        try:
            client.get_bucket(bucket, **CALL)
            return
        except NotFound:
            pass
        made = client.bucket(bucket)
        made.iam_configuration.uniform_bucket_level_access_enabled = True
        made.iam_configuration.public_access_prevention = "enforced"
        if self._settings.kms_key:
            made.default_kms_key_name = self._settings.kms_key
        try:
            client.create_bucket(made, location=self._settings.region, **CALL)
        except Conflict as conflict:
            # Two deployers at once; or the name is somebody else's, and then it cannot be looked at.
            try:
                client.get_bucket(bucket, **CALL)
            except Exception:
                raise conflict from None

    def remove(self, bucket: str) -> None:
        """Delete an empty bucket.

        Raises:
            BucketNotEmptyError: It has objects.
        """
        from google.api_core.exceptions import Conflict

        client = self.client
        message = f"bucket {bucket!r} has objects: delete them first"
        if next(iter(client.list_blobs(bucket, max_results=1, fields="items(name)", **CALL)), None) is not None:
            raise BucketNotEmptyError(message)
        try:
            client.bucket(bucket).delete(**CALL)
        except Conflict as conflict:
            # Somebody has just put something into it, or it has older versions.
            raise BucketNotEmptyError(message) from conflict

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            opened, self._opened = self._opened, None
        if opened is not None:
            opened[0].close()


def _as_it_is(request: Any) -> Any:
    """Authorize nothing: the session has done that."""
    return request
