"""The custom role that `plan --policy` prints is enough, and a refusal says what is missing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from polyserve.driver import ErrorCode
from polyserve.layers.fronting import fronted
from polyserve.testing.functions import NAME, Functions
from polyserve_azure.errors import ServiceError
from polyserve_azure.provider import AzureProvider


@pytest.fixture
def world(functions: Functions, harness: Any, tmp_path: Path) -> Iterator[Any]:
    """Give what makes a provider whose caller has a role of these actions alone."""
    opened = []

    def deployer(actions: list[str]) -> Any:
        file = tmp_path / "token.json"
        file.write_text(json.dumps({"access_token": harness.token_with(actions), "expires_on": 1 << 40}))
        provider = AzureProvider(msgspec.structs.replace(harness.settings, token_file=str(file)))
        opened.append(provider)
        return fronted(provider)

    yield deployer
    for provider in opened:
        provider.close()


def test_a_deploy_a_call_and_a_destroy_take_no_more_than_the_role_has(
    functions: Functions, harness: Any, world: Any
) -> None:
    spec = functions.spec(2)
    role = functions.platform.policy(spec)
    assert list(functions.platform.permissions(spec)) == role["Actions"]
    mine = Functions(harness)
    mine.provider = world(role["Actions"])
    mine.platform = mine.provider.functions

    mine.platform.apply(spec)
    mine.wait(spec)
    mine.route({2: 100})
    with mine.endpoint() as endpoint:
        assert endpoint.invoke([[1.0, 2.0]]) == [[2.0, 4.0]]
    mine.platform.delete(NAME)


def test_a_refusal_names_the_action_that_is_missing(functions: Functions, world: Any) -> None:
    spec = functions.spec(2)
    provider = world([a for a in functions.platform.permissions(spec) if a != "Microsoft.Web/serverFarms/Write"])

    with pytest.raises(ServiceError, match=r"Microsoft\.Web/serverFarms/Write") as raised:
        provider.functions.apply(spec)

    assert provider.classify(raised.value) is ErrorCode.PERMISSION_DENIED
