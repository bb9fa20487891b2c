"""The contract of deployments over every provider that can keep a record, and of being cut short anywhere."""

import pytest

from polyserve import registry
from polyserve.testing.deployments import DeploymentContract
from polyserve.testing.interruptions import CrashContract, FaultContract

RECORDING = [*registry.providers(), "memory", "single", "fronted"]
"""All but the one that cannot write conditionally: there every deploy is refused. "single" cannot split traffic."""


@pytest.mark.parametrize("harness", RECORDING, indirect=True)
class TestDeployments(DeploymentContract):
    pass


@pytest.mark.parametrize("harness", RECORDING, indirect=True)
class TestFaults(FaultContract):
    pass


@pytest.mark.parametrize("harness", list(registry.providers()), indirect=True)
class TestCrashes(CrashContract):
    pass
