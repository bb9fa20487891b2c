"""The contract of `ProviderInfo` over every provider."""

from polyserve.testing.info import InfoContract


class TestInfo(InfoContract):
    pass
