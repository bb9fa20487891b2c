"""Callers show the key of an app's host, or a token of Microsoft Entra where a deployment wants that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx
import msgspec
import pytest

from polyserve.driver import FunctionSpec
from polyserve.layers.fronting import fronted
from polyserve.testing.functions import NAME, Functions
from polyserve_azure.provider import AzureProvider
from polyserve_azure.settings import AzureSettings

APPLICATION = "11111111-2222-3333-4444-555555555555"
ROW = [[1.0, 2.0]]


@pytest.fixture
def platform(functions: Functions, harness: Any) -> Iterator[Callable[[str], Functions]]:
    """Give what makes the function platform of somebody who wants tokens for an application, or keys."""
    opened = []

    def make(application: str) -> Functions:
        provider = fronted(AzureProvider(msgspec.structs.replace(harness.settings, entra_client_id=application)))
        opened.append(provider)
        found = Functions(harness)
        found.provider, found.platform = provider, provider.functions
        return found

    yield make
    for provider in opened:
        provider.close()


def wanting(spec: FunctionSpec, application: str = APPLICATION) -> FunctionSpec:
    """Return a spec whose deployment wants tokens."""
    return replace(spec, options={"entra_client_id": application})


def rolled_out(functions: Functions, spec: FunctionSpec) -> None:
    """Make a revision and give it the traffic."""
    functions.platform.apply(spec)
    functions.wait(spec)
    functions.route({spec.revision: 100})


def test_a_front_that_wants_tokens_takes_no_key_and_no_token_for_anything_else(
    platform: Callable[[str], Functions], harness: Any
) -> None:
    mine = platform(APPLICATION)
    rolled_out(mine, wanting(mine.spec(2)))

    with mine.endpoint() as endpoint:
        assert endpoint.invoke(ROW) == [[2.0, 4.0]]
    address = mine.provider.invoker.resolve(NAME)
    assert "x-functions-key" not in address.headers
    token, other, key = (
        harness.token_for(f"api://{APPLICATION}"),
        harness.token_for("api://other"),
        harness.host_key(NAME),
    )
    tried = [{}, {"x-functions-key": key}, *({"authorization": f"Bearer {each}"} for each in (other, token))]
    with httpx.Client(trust_env=False) as client:
        told = [client.get(f"{address.url}/v2/health/ready", headers=headers).status_code for headers in tried]
    assert told == [401, 401, 401, 200]


def test_the_revisions_behind_it_keep_their_keys_and_have_their_share(platform: Callable[[str], Functions]) -> None:
    mine = platform(APPLICATION)
    mine.platform.apply(wanting(mine.spec(2)))
    mine.wait(wanting(mine.spec(2)))
    rolled_out(mine, wanting(mine.spec(3)))
    mine.route({2: 50, 3: 50})

    with mine.endpoint() as endpoint:
        assert {endpoint.invoke(ROW)[0][0] for _ in range(40)} == {2.0, 3.0}
    assert "x-functions-key" in mine.provider.invoker.resolve(NAME, revision=2).headers


def test_a_deployment_can_go_from_keys_to_tokens_and_back(
    functions: Functions, platform: Callable[[str], Functions]
) -> None:
    rolled_out(functions, functions.spec(1))
    mine = platform(APPLICATION)
    rolled_out(mine, wanting(mine.spec(2)))
    # One who knows nothing of the option learns what to show from the app itself.
    for each in (mine, functions):
        with each.endpoint() as endpoint:
            assert endpoint.invoke(ROW) == [[2.0, 4.0]]

    rolled_out(functions, functions.spec(3))

    assert "x-functions-key" in functions.provider.invoker.resolve(NAME).headers
    with functions.endpoint() as endpoint:
        assert endpoint.invoke(ROW) == [[3.0, 6.0]]


def test_who_wants_tokens_needs_the_actions_for_it_and_names_the_tenant(
    functions: Functions, platform: Callable[[str], Functions]
) -> None:
    spec = functions.spec(1)
    more = set(platform(APPLICATION).platform.permissions(spec)) - set(functions.platform.permissions(spec))

    assert more == {"Microsoft.Web/sites/config/Read", "Microsoft.Web/sites/config/Write"}
    with pytest.raises(msgspec.ValidationError, match="tenant_id"):
        msgspec.convert({"entra_client_id": APPLICATION}, AzureSettings)
