"""Where settings come from, which one wins, and how a mistake is told."""

import sys
from types import ModuleType

import msgspec
import pytest

from polyserve import registry
from polyserve.errors import InvalidArgumentError, SettingsError
from polyserve.settings import resolve


class AcmeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    region: str = "north"
    retries: int = 3
    zones: tuple[str, ...] = ()
    token_lifetime_s: int = 60

    def __post_init__(self):
        if self.region == "nowhere":
            raise ValueError("region: there is no 'nowhere'")


class ZenithSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    project: str = ""


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    """Install two providers beside `local`, as entry points would."""
    from dataclasses import replace

    module = ModuleType("polyserve_testing_providers")
    module.AcmeSettings, module.ZenithSettings = AcmeSettings, ZenithSettings
    monkeypatch.setitem(sys.modules, module.__name__, module)
    local = registry.info("local")
    limited = replace(local.limits, request_bytes=6 << 20)
    known = {
        "local": local,
        "acme": replace(local, name="acme", settings=f"{module.__name__}:AcmeSettings", limits=limited),
        "zenith": replace(local, name="zenith", settings=f"{module.__name__}:ZenithSettings"),
    }
    monkeypatch.setattr(registry, "providers", lambda: known)


@pytest.fixture
def settle(tmp_path):
    """Yield `resolve` over files and variables that the test gives, and none of the developer's."""

    def settle(toml=None, pyproject=None, environ=None, **arguments):
        if toml is not None:
            (tmp_path / "polyserve.toml").write_text(toml)
        if pyproject is not None:
            (tmp_path / "pyproject.toml").write_text(pyproject)
        return resolve(cwd=tmp_path, environ=environ or {}, **arguments)

    return settle


def refusal(settle, *arguments, **options):
    with pytest.raises(SettingsError) as caught:
        settle(*arguments, **options)
    return str(caught.value)


# --- which one wins -------------------------------------------------------------------------------------------------


def test_without_anything_said_it_is_the_local_provider_and_defaults(settle):
    settings = settle()

    assert (settings.profile, settings.provider, settings.bucket) == ("default", "local", "polyserve")
    assert (settings.memory_mb, settings.timeout_s, settings.min_instances, settings.max_instances) == (
        512,
        30.0,
        0,
        None,
    )
    assert set(settings.sources.values()) == {"default"}


PYPROJECT = """
[tool.polyserve]
bucket = "of-pyproject"
[tool.polyserve.profiles.dev]
bucket = "of-pyprojects-profile"
"""
TOML = """
bucket = "of-toml"
[profiles.dev]
bucket = "of-tomls-profile"
"""


@pytest.mark.parametrize(
    ("given", "expected", "source"),
    [
        ({"pyproject": PYPROJECT}, "of-pyproject", "pyproject.toml: tool.polyserve.bucket"),
        (
            {"pyproject": PYPROJECT, "profile": "dev"},
            "of-pyprojects-profile",
            "pyproject.toml: tool.polyserve.profiles.dev.bucket",
        ),
        ({"pyproject": PYPROJECT, "toml": TOML}, "of-toml", "polyserve.toml: bucket"),
        (
            {"pyproject": PYPROJECT, "toml": TOML, "profile": "dev"},
            "of-tomls-profile",
            "polyserve.toml: profiles.dev.bucket",
        ),
        (
            {"toml": TOML, "profile": "dev", "environ": {"POLYSERVE_BUCKET": "of-environment"}},
            "of-environment",
            "environment: POLYSERVE_BUCKET",
        ),
        ({"environ": {"POLYSERVE_BUCKET": "of-environment"}, "bucket": "of-argument"}, "of-argument", "argument"),
        ({"toml": TOML, "bucket": None}, "of-toml", "polyserve.toml: bucket"),
        ({"toml": TOML, "environ": {"POLYSERVE_BUCKET": ""}}, "of-toml", "polyserve.toml: bucket"),
    ],
    ids=["pyproject", "its-profile", "toml", "its-profile-too", "environment", "argument", "none", "empty-variable"],
)
def test_the_nearest_wins_and_is_named(settle, given, expected, source):
    settings = settle(**given)

    assert (settings.bucket, settings.sources["bucket"]) == (expected, source)


def test_files_are_searched_upwards(tmp_path):
    (tmp_path / "polyserve.toml").write_text('bucket = "above"')
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)

    settings = resolve(cwd=below, environ={})

    assert (settings.bucket, settings.sources["bucket"]) == ("above", "../../polyserve.toml: bucket")


@pytest.mark.parametrize(
    ("environ", "argument", "expected"),
    [({}, None, "dev"), ({"POLYSERVE_PROFILE": "prod"}, None, "prod"), ({"POLYSERVE_PROFILE": "prod"}, "dev", "dev")],
)
def test_the_profile_is_of_the_argument_the_environment_or_the_file(settle, environ, argument, expected):
    toml = 'profile = "dev"\n[profiles.dev]\nmemory_mb = 1024\n[profiles.prod]\nmemory_mb = 2048'

    settings = settle(toml, environ=environ, profile=argument)

    assert settings.profile == expected
    assert settings.memory_mb == {"dev": 1024, "prod": 2048}[expected]


PROVIDERS = """
profile = "dev"
[acme]
region = "south"
retries = 5
[zenith]
project = "shared"
[profiles.dev]
provider = "acme"
memory_mb = 1024
[profiles.dev.acme]
region = "west"
"""


def test_a_profiles_options_come_before_the_shared_ones(settle):
    settings = settle(PROVIDERS)

    assert settings.options == AcmeSettings(region="west", retries=5)
    assert settings.sources["acme.region"] == "polyserve.toml: profiles.dev.acme.region"
    assert settings.sources["acme.retries"] == "polyserve.toml: acme.retries"
    assert settings.sources["acme.zones"] == "default"


def test_another_provider_keeps_the_profile_and_takes_its_own_tables_only(settle):
    settings = settle(PROVIDERS, provider="zenith")

    assert (settings.provider, settings.memory_mb) == ("zenith", 1024)
    assert settings.options == ZenithSettings(project="shared")


def test_options_of_the_environment_are_converted_to_their_type(settle):
    environ = {
        "POLYSERVE_ACME_RETRIES": "7",
        "POLYSERVE_ACME_ZONES": '["a", "b"]',
        "POLYSERVE_ZENITH_PROJECT": "unused",
    }

    settings = settle(PROVIDERS, environ=environ)

    assert settings.options == AcmeSettings(region="west", retries=7, zones=("a", "b"))
    assert settings.sources["acme.retries"] == "environment: POLYSERVE_ACME_RETRIES"


def test_options_as_an_argument_win(settle):
    settings = settle(PROVIDERS, options={"region": "east"}, environ={"POLYSERVE_ACME_REGION": "north"})

    assert settings.options.region == "east"
    assert settings.sources["acme.region"] == "argument"


def test_environment_variables_are_merged_by_name(settle):
    toml = '[environment]\nA = "file"\nB = "file"\n[profiles.default.environment]\nB = "profile"'

    settings = settle(toml, environment={"C": "argument"})

    assert settings.environment == {"A": "file", "B": "profile", "C": "argument"}
    assert settings.sources["environment.B"] == "polyserve.toml: profiles.default.environment.B"
    assert settings.sources["environment.C"] == "argument"


def test_the_largest_request_is_what_the_platform_takes_unless_it_is_said(settle):
    assert settle().request_bytes == 64 << 20
    assert settle(provider="acme").request_bytes == 6 << 20
    assert settle(provider="acme", request_bytes=10 << 20).request_bytes == 10 << 20


def test_integers_of_toml_may_be_seconds(settle):
    assert settle("timeout_s = 5").timeout_s == 5.0


def test_resolving_reads_nothing_but_what_it_is_given(settle, monkeypatch):
    monkeypatch.setenv("POLYSERVE_BUCKET", "of-the-process")

    assert settle().bucket == "polyserve"


# --- how a mistake is told ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"toml": 'profile = "dev"\n[profiles.dev]\nmemory_mb = "big"'},
            "polyserve.toml: profiles.dev.memory_mb: expected int, got str 'big'",
        ),
        ({"toml": "memory_mb = 0"}, "polyserve.toml: memory_mb: expected int >= 1, got 0"),
        ({"toml": "timeout_s = -1"}, "polyserve.toml: timeout_s: expected float > 0.0, got -1"),
        ({"toml": "memory_mb = true"}, "polyserve.toml: memory_mb: expected int, got bool True"),
        ({"environ": {"POLYSERVE_MEMORY_MB": "big"}}, "environment: POLYSERVE_MEMORY_MB: expected int, got str 'big'"),
        ({"memory_mb": "512"}, "argument memory_mb: expected int, got str '512'"),
        (
            {"pyproject": "[tool.polyserve]\nbucket = 1"},
            "pyproject.toml: tool.polyserve.bucket: expected str, got int 1",
        ),
        ({"toml": "[environment]\nDEBUG = true"}, "polyserve.toml: environment.DEBUG: expected str, got bool True"),
        ({"toml": 'environment = "A=1"'}, "polyserve.toml: environment: expected a table, got str 'A=1'"),
        ({"toml": "acme = 1"}, "polyserve.toml: acme: expected a table of options, got int 1"),
        ({"toml": "profiles = 1"}, "polyserve.toml: profiles: expected a table, got int 1"),
        ({"toml": "[profiles]\ndev = 1"}, "polyserve.toml: profiles.dev: expected a table, got int 1"),
        ({"toml": "profile = 1"}, "polyserve.toml: profile: expected str, got int 1"),
        (
            {"toml": "[acme]\nretries = 'x'", "provider": "acme"},
            "polyserve.toml: acme.retries: expected int, got str 'x'",
        ),
        (
            {"provider": "acme", "options": {"retries": "x"}},
            "argument options.retries: expected int, got str 'x'",
        ),
        (
            {"provider": "acme", "environ": {"POLYSERVE_ACME_ZONES": "["}},
            "environment: POLYSERVE_ACME_ZONES: not valid JSON: Input data was truncated",
        ),
        (
            {"provider": "acme", "options": {"region": "nowhere"}},
            "options of provider 'acme': region: there is no 'nowhere'",
        ),
        (
            {"min_instances": 3, "toml": "max_instances = 2"},
            "min_instances is 3 (argument) but max_instances is 2 (polyserve.toml: max_instances): raise one or lower the other",
        ),
    ],
)
def test_a_value_that_does_not_validate_names_its_place_and_what_was_expected(settle, given, message):
    assert refusal(settle, **given) == message


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"toml": "memory = 1"}, "polyserve.toml: memory: unknown key 'memory', did you mean 'memory_mb'?"),
        (
            {"toml": "[profiles.default]\nbuckets = 1"},
            "polyserve.toml: profiles.default.buckets: unknown key 'buckets', did you mean 'bucket'?",
        ),
        ({"toml": "[acmee]\nregion = 'x'"}, "polyserve.toml: acmee: unknown key 'acmee', did you mean 'acme'?"),
        ({"memory_md": 1}, "argument memory_md: unknown key 'memory_md', did you mean 'memory_mb'?"),
        (
            {"environ": {"POLYSERVE_TIMEOUT": "3"}},
            "environment: POLYSERVE_TIMEOUT: unknown setting; did you mean POLYSERVE_TIMEOUT_S?",
        ),
        (
            {"provider": "acme", "environ": {"POLYSERVE_ACME_REGIONS": "3"}},
            "environment: POLYSERVE_ACME_REGIONS: unknown setting; did you mean POLYSERVE_ACME_REGION?",
        ),
        (
            {"toml": "[acme]\nregoin = 'x'", "provider": "acme"},
            "polyserve.toml: acme.regoin: unknown option 'regoin' of provider 'acme', did you mean 'region'?",
        ),
        (
            {"toml": "[profiles.dev]\n[profiles.prod]", "profile": "pord"},
            "argument profile: unknown profile 'pord', did you mean 'prod'?; there are dev, prod",
        ),
        (
            {"environ": {"POLYSERVE_PROFILE": "x"}},
            "environment: POLYSERVE_PROFILE: unknown profile 'x'; no profile is defined",
        ),
    ],
)
def test_a_name_that_nobody_reads_is_refused_with_the_nearest_right_one(settle, given, message):
    assert refusal(settle, **given).startswith(message)


def test_variables_of_other_parts_are_left_alone(settle):
    settle(
        environ={
            "POLYSERVE_EMULATORS": "/elsewhere",
            "POLYSERVE_HOME": "/h",
            "POLYSERVE_CACHE": "/c",
            "POLYSERVE_ACME_TOKEN": "of another",
        }
    )


def test_an_unknown_provider_lists_those_there_are(settle):
    with pytest.raises(InvalidArgumentError, match="unknown provider 'amce'"):
        settle(provider="amce")


def test_a_file_that_is_no_toml_is_named(settle):
    assert refusal(settle, "bucket = ").startswith("polyserve.toml: not valid TOML: ")


@pytest.mark.parametrize(
    ("given", "where"),
    [
        ({"toml": 'aws_secret_access_key = "hush"'}, "polyserve.toml: aws_secret_access_key"),
        ({"toml": '[acme]\nclient_secret = "hush"', "provider": "local"}, "polyserve.toml: acme.client_secret"),
        ({"toml": '[profiles.unused.acme]\npassword = "hush"'}, "polyserve.toml: profiles.unused.acme.password"),
        ({"toml": '[zenith]\nconnection_string = "hush"'}, "polyserve.toml: zenith.connection_string"),
        (
            {"environ": {"POLYSERVE_ACME_ACCESS_KEY_ID": "hush"}, "provider": "acme"},
            "environment: POLYSERVE_ACME_ACCESS_KEY_ID",
        ),
        ({"provider": "acme", "options": {"token": "hush"}}, "argument options.token"),
        ({"api_key": "hush"}, "argument api_key"),
    ],
)
def test_a_credential_is_refused_with_the_reason_and_never_shown(settle, given, where):
    message = refusal(settle, **given)

    assert message.startswith(f"{where}: credentials are never settings of polyserve")
    assert "hush" not in message


def test_what_only_speaks_of_a_credential_is_a_setting(settle):
    assert settle("[acme]\ntoken_lifetime_s = 5", provider="acme").options.token_lifetime_s == 5


def test_the_functions_own_variables_may_be_called_what_they_like(settle):
    assert settle('[environment]\nAPI_TOKEN = "x"').environment == {"API_TOKEN": "x"}


def test_settings_are_frozen(settle):
    with pytest.raises(AttributeError):
        settle().bucket = "other"
    with pytest.raises(TypeError):
        settle().environment["A"] = "1"
