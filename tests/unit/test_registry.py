"""Which options are part of a revision: all that are set, but for those that say where the provider is and who asks it."""

from dataclasses import replace

import msgspec
import pytest

from polyserve import registry
from polyserve.driver import ProviderInfo


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """Options of a provider."""

    region: str = ""
    subnets: tuple[str, ...] = ()
    snapshot: bool = False
    roles: frozenset[str] = frozenset()


@pytest.fixture
def info():
    return replace(registry.info("local"), unversioned=frozenset({"region"}))


def test_what_is_not_set_is_no_part_of_a_revision(info: ProviderInfo):
    assert registry.versioned(info, Options()) == {}
    assert registry.versioned(info, Options(snapshot=False, subnets=())) == {}


def test_what_is_set_is_part_of_a_revision_as_json_has_it(info: ProviderInfo):
    given = Options(subnets=("a", "b"), snapshot=True, roles=frozenset({"y", "x"}))

    assert registry.versioned(info, given) == {"subnets": ["a", "b"], "snapshot": True, "roles": ["x", "y"]}


def test_where_the_provider_is_and_who_asks_it_are_no_part_of_a_revision(info: ProviderInfo):
    assert registry.versioned(info, Options(region="north", snapshot=True)) == {"snapshot": True}


def test_how_this_machine_runs_all_its_functions_is_no_part_of_any_revision():
    local = registry.info("local")
    settings = registry.settings_type(local)

    assert registry.versioned(local, settings(home="elsewhere", idle_timeout_s=5.0)) == {}
