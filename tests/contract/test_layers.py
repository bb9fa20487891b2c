"""The contract of layers over every provider, and the contract of stores over the layers: they conform like a driver."""

import subprocess
import sys

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


def test_nothing_that_waits_is_imported_while_nothing_fails():
    code = (
        "import sys\n"
        "from polyserve.layers.retrying import retrying\n"
        "from polyserve.testing.memory import MemoryProvider\n"
        "retrying(MemoryProvider()).ensure_bucket('bucket')\n"
        "print('stamina' in sys.modules or 'tenacity' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "False\n"
