"""One small function in a real project of Google Cloud: what no emulator proves. Opt-in: `python -m pytest -m live tests/live`.

Takes the project from `GOOGLE_CLOUD_PROJECT` and a service account from google-auth's own chain of credentials. Costs less than a cent.
What it makes has the run's name and is destroyed at the end.
"""

import secrets

import pytest

import polyserve
from polyserve.testing.packages import times

pytestmark = [pytest.mark.live, pytest.mark.timeout(3600)]


@pytest.fixture
def name():
    """Give a name that nobody has; it is the bucket's too."""
    return f"polyserve-live-{secrets.token_hex(4)}"


@pytest.mark.parametrize("platform", ["functions", "run"])
def test_a_model_is_deployed_called_updated_split_rolled_back_and_destroyed(name, platform, monkeypatch):
    monkeypatch.setenv("POLYSERVE_BUCKET", name)
    options = {"platform": platform}
    deployment = polyserve.deploy(times(2), name=name, provider="gcp", options=options)
    try:
        assert deployment.invoke([[1.0, 2.0]]) == [[2.0, 4.0]]
        updated = polyserve.deploy(times(3), name=name, provider="gcp", canary=50, options=options)
        assert {updated.invoke([[1.0, 2.0]])[0][0] for _ in range(40)} == {2.0, 3.0}
        updated.rollback()
        assert updated.invoke([[1.0, 2.0]]) == [[2.0, 4.0]]
        rows = [[float(number), 1.0] for number in range(350_000)]
        assert updated.invoke(rows)[-1] == [2.0 * 349_999, 2.0]
    finally:
        deployment.destroy()
