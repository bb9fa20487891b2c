"""The contract of `ProviderInfo`: what a provider says of itself before its SDK is imported, and that it is true afterwards."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import timedelta
from importlib.util import find_spec

import msgspec
import pytest

from polyserve import registry
from polyserve.driver import Capability, ProviderInfo
from polyserve.testing.harness import Harness

__all__ = ["InfoContract"]

# In every shape that some platform does not take.
NO_NAMES = ["", " ", "a b", "a/b", "../a", "a\n", "é", "A" * 1000, "-a", "a-"]


class InfoContract:
    """What `plan()` and users of the provider matrix rely on."""

    @pytest.fixture
    def info(self, harness: Harness) -> ProviderInfo:
        """Give what the provider says of itself."""
        return harness.provider().info

    def test_the_provider_bears_the_name_of_its_harness(self, harness: Harness, info: ProviderInfo) -> None:
        assert info.name == harness.name
        assert re.fullmatch(r"[a-z][a-z0-9]*", info.name)

    def test_the_entry_point_says_the_same_but_for_capabilities_and_limits(self, info: ProviderInfo) -> None:
        registered = registry.providers().get(info.name)
        if registered is None:
            # A synthetic provider: the matrix must not have it.
            assert info.extra == "testing"
            return

        fields = (
            "title", "store_service", "function_service", "factory", "settings", "entrypoint", "extra", "price", "unversioned",
        )  # fmt: skip
        assert {name: getattr(info, name) for name in fields} == {name: getattr(registered, name) for name in fields}

    def test_the_names_for_people_are_there(self, info: ProviderInfo) -> None:
        for text in (info.title, info.store_service, info.function_service, info.limits.name_rule):
            assert text
            assert text == text.strip()

    def test_factory_and_settings_are_where_it_says(self, info: ProviderInfo) -> None:
        assert callable(registry.attribute(info, info.factory))
        assert issubclass(registry.settings_type(info), msgspec.Struct)

    def test_its_settings_have_defaults_and_refuse_what_they_do_not_know(self, info: ProviderInfo) -> None:
        settings = registry.settings_type(info)
        msgspec.convert({}, settings)

        with pytest.raises(msgspec.ValidationError, match="no_such_option"):
            msgspec.convert({"no_such_option": 1}, settings)

    def test_what_is_no_part_of_a_revision_is_an_option(self, info: ProviderInfo) -> None:
        assert info.unversioned <= set(registry.settings_type(info).__struct_fields__)

    def test_its_settings_hold_no_credentials(self, info: ProviderInfo) -> None:
        secret = re.compile("secret|password|credential|access_key|connection_string|_token$|^token|api_key")

        names = registry.settings_type(info).__struct_fields__
        # Where the SDK finds its own credentials is no secret.
        assert [name for name in names if secret.search(name) and not name.endswith("_file")] == []

    def test_its_entrypoint_has_a_source_that_can_travel(self, info: ProviderInfo) -> None:
        spec = find_spec(info.entrypoint)

        assert spec is not None
        assert spec.origin is not None
        assert spec.origin.endswith(".py")

    def test_what_it_says_is_read_without_its_sdk(self, info: ProviderInfo) -> None:
        if info.name not in registry.providers():
            return
        room = info.factory.partition(":")[0].partition(".")[0]
        code = (
            f"import sys, {room}\n"
            f"rooms = ('{room}', 'polyserve')\n"
            "third = {m.partition('.')[0] for m in sys.modules} - set(sys.stdlib_module_names) - set(rooms)\n"
            "print(*sorted(m for m in third if not m.startswith('_') and 'editable' not in m))"
        )
        before = set(self._run("import sys; print(*{m.partition('.')[0] for m in sys.modules})"))

        assert [module for module in self._run(code) if module not in before] == []

    @staticmethod
    def _run(code: str) -> list[str]:
        return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()

    def test_its_capabilities_are_from_the_list(self, info: ProviderInfo) -> None:
        assert isinstance(info.capabilities, frozenset)
        assert info.capabilities <= frozenset(Capability)

    def test_its_rule_for_names_takes_plain_names_and_no_impossible_ones(self, info: ProviderInfo) -> None:
        pattern = re.compile(info.limits.name_pattern)

        assert all(pattern.fullmatch(name) for name in ("iris", "digits2", "a-model"))
        assert [name for name in NO_NAMES if pattern.fullmatch(name)] == []

    def test_its_limits_make_sense(self, info: ProviderInfo) -> None:
        limits = info.limits
        smallest, largest = limits.memory_mb

        assert 0 < smallest <= largest
        assert all(smallest <= choice <= largest for choice in limits.memory_choices or ())
        assert list(limits.memory_choices or ()) == sorted(set(limits.memory_choices or ()))
        assert limits.timeout > timedelta(0)
        bounds = (
            limits.request_bytes, limits.response_bytes, limits.bundle_bytes, limits.bundle_unpacked_bytes,
            limits.environment_bytes, limits.max_instances, limits.traffic_revisions,
        )  # fmt: skip
        assert all(bound is None or bound > 0 for bound in bounds)
        assert all(re.fullmatch(r"3\.\d+", python) for python in limits.pythons)
        assert set(limits.architectures) <= {"x86_64", "arm64"}
        assert limits.pythons
        assert limits.architectures

    def test_its_figures_say_where_they_are_from_and_when(self, info: ProviderInfo) -> None:
        for source in (info.limits.source, info.price.source if info.price else info.limits.source):
            assert re.search(r"\b20\d\d-\d\d", source), source
        if info.price:
            assert info.price.per_million_requests >= 0
            assert info.price.per_gb_second >= 0
