"""The emulator's ground, and Google's own clients to drive it: nothing of polyserve's adapter is imported here."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from google.auth import credentials
from google.cloud import storage
from google.oauth2 import service_account

from polyserve_gcp.emulator.ground import Ground

T = TypeVar("T")
_numbers = itertools.count(1)


class RunningGround:
    """A project and Cloud Storage, in a thread of their own."""

    def __init__(self, directory: Path) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gcp-ground", daemon=True)
        self._thread.start()
        self.ground = Ground(directory)
        self.run(self.ground.open())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something where the ground lives."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    @property
    def options(self) -> dict[str, Any]:
        return self.ground.options

    def endpoint(self, service: str) -> str:
        return self.ground.endpoints[f"{service}.googleapis.com"]

    def account(self, *roles: str) -> service_account.Credentials:
        """Make a service account with roles on the project; returns its credentials."""
        made = self.ground.identities.add_service_account(f"tester-{next(_numbers)}")
        for role in roles:
            self.ground.access.grant(role, made.member)
        return service_account.Credentials.from_service_account_info(self.ground.identities.add_key(made))

    def client(self, own: Any = None) -> storage.Client:
        """Return Google's client of Cloud Storage; the deployer's unless told whose."""
        return storage.Client(
            project=self.options["project"], credentials=own or self.deployer(),
            client_options={"api_endpoint": self.endpoint("storage")},
        )  # fmt: skip

    def deployer(self) -> service_account.Credentials:
        return service_account.Credentials.from_service_account_file(self.options["credentials_file"])

    def close(self) -> None:
        self.run(self.ground.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture(scope="session", autouse=True)
def _no_boundaries() -> Iterator[None]:
    """Have google.auth ask nobody about regional boundaries: it asks Google, wherever it was told to call."""
    # In a thread of its own, and no setting turns that off (google-auth 2.62.2).
    with pytest.MonkeyPatch.context() as patch:
        kind = credentials.CredentialsWithRegionalAccessBoundary
        patch.setattr(kind, "_is_regional_access_boundary_lookup_required", lambda _: False)
        # Nor Cloud Storage's client about each bucket, for traces that nobody has turned on (google-cloud-storage 3.17.1).
        patch.setenv("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")
        yield


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGround]:
    """A project and Cloud Storage, without what runs code."""
    running = RunningGround(tmp_path_factory.mktemp("gcp-ground"))
    yield running
    running.close()


@pytest.fixture(scope="session")
def client(ground: RunningGround) -> storage.Client:
    """Google's client of Cloud Storage, as the project's owner."""
    return ground.client()


@pytest.fixture
def bucket(client: storage.Client) -> storage.Bucket:
    """A bucket of the test's own."""
    return client.create_bucket(f"bucket-{next(_numbers)}", location="us-central1")
