"""The contract of deployments over every provider that can keep a record, and of being cut short anywhere."""

import pytest

from polyserve import registry
from polyserve.testing.deployments import DeploymentContract
from polyserve.testing.interruptions import CrashContract, FaultContract

REAL = [*registry.providers(), "gcp-run"]
"""All that runs in processes of its own."""

RECORDING = [*REAL, "memory", "single", "fronted"]
"""All but the one that cannot write conditionally: there every deploy is refused. "single" cannot split traffic."""


@pytest.mark.parametrize("harness", RECORDING, indirect=True)
class TestDeployments(DeploymentContract):
    pass


@pytest.mark.parametrize("harness", RECORDING, indirect=True)
class TestFaults(FaultContract):
    pass


@pytest.mark.parametrize("harness", REAL, indirect=True)
class TestCrashes(CrashContract):
    pass
