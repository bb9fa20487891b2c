"""Apps reach storage with an identity instead of the account's key, where a deployment wants that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from polyserve.driver import ErrorCode, FunctionSpec
from polyserve.errors import PolyserveError
from polyserve.layers.fronting import fronted
from polyserve.testing.functions import NAME, Functions
from polyserve_azure.errors import AppError
from polyserve_azure.provider import AzureProvider
from polyserve_azure.settings import AzureSettings


@pytest.fixture
def identity(functions: Functions, harness: Any) -> Iterator[str]:
    """Give a user-assigned identity without any role."""
    functions.spec(2)  # with it there is a storage account
    found = harness.make_identity("apps")
    yield found
    functions.gone()
    harness.remove_identity("apps")


@pytest.fixture
def mine(harness: Any, identity: str) -> Iterator[Functions]:
    """Give the function platform of somebody whose apps have the identity."""
    provider = fronted(AzureProvider(msgspec.structs.replace(harness.settings, app_identity=identity)))
    found = Functions(harness)
    found.provider, found.platform = provider, provider.functions
    yield found
    provider.close()


@pytest.fixture
def spec(mine: Functions, identity: str) -> Callable[[int], FunctionSpec]:
    """Give what makes specs that name the identity."""
    return lambda revision: replace(mine.spec(revision), options={"app_identity": identity})


def test_an_app_with_an_identity_that_may_write_its_container_is_published_and_has_no_key(
    mine: Functions, spec: Callable[[int], FunctionSpec], identity: str, harness: Any
) -> None:
    harness.let_write_blobs("apps")

    mine.platform.apply(spec(2))
    mine.wait(spec(2))
    mine.route({2: 100})

    with mine.endpoint() as endpoint:
        assert endpoint.invoke([[1.0, 2.0]]) == [[2.0, 4.0]]
    settings = harness.app_settings(NAME)
    assert settings["AzureWebJobsStorage__credential"] == "managedidentity"
    assert not any(key in value for key in harness.account_keys() for value in settings.values())


def test_an_identity_that_may_not_write_is_told_by_the_deployment(
    mine: Functions, spec: Callable[[int], FunctionSpec]
) -> None:
    mine.platform.apply(spec(2))

    with pytest.raises(PolyserveError, match="may not write blobs"):
        mine.wait(spec(2))


def test_to_give_an_identity_takes_two_actions_more(
    functions: Functions, mine: Functions, spec: Callable[[int], FunctionSpec]
) -> None:
    more = set(mine.platform.permissions(spec(2))) - set(functions.platform.permissions(functions.spec(2)))

    assert {each.rpartition("userAssignedIdentities/")[2] for each in more} == {"read", "assign/action"}


def test_who_deploys_without_the_accounts_key_has_actions_on_data_and_apps_have_an_identity(
    identity: str, harness: Any
) -> None:
    with pytest.raises(msgspec.ValidationError, match="app_identity"):
        msgspec.convert({"storage_login": "entra"}, AzureSettings)
    provider = AzureProvider(msgspec.structs.replace(harness.settings, app_identity=identity, storage_login="entra"))
    try:
        policy = fronted(provider).functions.policy(harness.function_spec(NAME, 1))
        assert "Microsoft.Storage/storageAccounts/listKeys/action" not in policy["Actions"]
        assert {each.rpartition("/blobs/")[2] for each in policy["DataActions"]} == {
            "add/action",
            "delete",
            "read",
            "write",
        }
        # Loopback has no TLS: said at the first call, before anything is made.
        with pytest.raises(AppError, match="TLS") as raised:
            provider.store("models").head("k")
        assert provider.classify(raised.value) is ErrorCode.UNSUPPORTED
    finally:
        provider.close()
