"""Options of the provider are part of a revision: a change of one alone is deployed."""

import pytest

import polyserve
from polyserve.testing.packages import times

NAME = "options-of-aws"
FUNCTION = f"polyserve-{NAME}"


@pytest.fixture
def deployed(aws, monkeypatch):
    """Give a function that deploys the same package with options, and returns the deployment."""
    monkeypatch.setenv("POLYSERVE_BUCKET", "contract-of-the-options")
    made = []

    def given(**options):
        made.append(polyserve.deploy(times(2), name=NAME, provider="aws", options={**aws.options, **options}))
        return made[-1]

    yield given
    for each in made[1:]:
        each.close()
    made[0].destroy()


def test_an_option_that_was_changed_alone_is_deployed_and_the_same_again_is_not(aws, deployed):
    lambda_ = aws.client("lambda")
    assert deployed().record.weights == {1: 100}
    changed = {"ephemeral_storage_mb": 700, "log_retention_days": 7}

    assert deployed(**changed).record.weights == {2: 100}

    config = lambda_.get_function_configuration(FunctionName=FUNCTION, Qualifier="live")
    assert config["EphemeralStorage"] == {"Size": 700}
    (group,) = aws.client("logs").describe_log_groups(logGroupNamePrefix=f"/aws/lambda/{FUNCTION}")["logGroups"]
    assert group["retentionInDays"] == 7
    assert deployed(**changed).record.weights == {2: 100}
    assert deployed(fast_transfers=False, **changed).record.weights == {2: 100}


def test_the_way_in_changes_with_its_option_and_calls_go_on(aws, deployed):
    closed, open_to_all = deployed(), deployed(public=True)
    lambda_ = aws.client("lambda")
    where = {"FunctionName": FUNCTION, "Qualifier": "live"}

    assert lambda_.get_function_url_config(**where)["AuthType"] == "NONE"
    assert closed.invoke([[1.0, 2.0]]) == open_to_all.invoke([[1.0, 2.0]]) == [[2.0, 4.0]]
    assert deployed(invoke="http-api").invoke([[1.0, 2.0]]) == [[2.0, 4.0]]
    assert lambda_.list_function_url_configs(FunctionName=FUNCTION)["FunctionUrlConfigs"] == []
    # Options as they were first: the revision is still there, and the way in is made anew.
    assert deployed().invoke([[1.0, 2.0]]) == [[2.0, 4.0]]
    assert lambda_.get_function_url_config(**where)["AuthType"] == "AWS_IAM"
