"""The contract of layers over every provider, and the contract of stores over the layers: they conform like a driver."""

import pytest

from polyserve.testing.harness import Layered
from polyserve.testing.layers import LayerContract
from polyserve.testing.stores import ObjectStoreContract


class TestLayers(LayerContract):
    pass


class TestStoreBehindLayers(ObjectStoreContract):
    @pytest.fixture
    def harness(self, harness):
        return Layered(harness)
