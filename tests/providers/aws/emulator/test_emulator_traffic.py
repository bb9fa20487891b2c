"""Versions, aliases with weights, and concurrency."""

import pytest
from botocore.exceptions import ClientError

EVENTS = 500


@pytest.fixture
def two_versions(account, upload):
    """Return a function with versions 1 and 2, whose marks are their numbers."""
    name = account.function(upload(1))
    account.publish(name)
    account.client("lambda").update_function_code(FunctionName=name, ZipFile=upload(2))
    account.settle(name)
    account.publish(name)
    return name


def test_a_published_version_stays_what_it_was(account, two_versions):
    found = [account.invoke(two_versions, {}, Qualifier=number) for number in ("1", "2", "$LATEST")]

    assert [answered.value["mark"] for answered in found] == [1, 2, 2]
    assert [answered.version for answered in found] == ["1", "2", "$LATEST"]
    assert [answered.value["version"] for answered in found] == ["1", "2", "$LATEST"]


def test_publishing_what_has_not_changed_gives_the_same_version(account, two_versions):
    assert account.publish(two_versions) == "2"


def test_publishing_other_code_than_expected_is_refused(account, two_versions):
    client = account.client("lambda")

    with pytest.raises(client.exceptions.InvalidParameterValueException, match="is different from current CodeSHA256"):
        client.publish_version(FunctionName=two_versions, CodeSha256="b" * 43 + "=")


def test_an_alias_leads_to_its_version_and_names_itself(account, two_versions):
    account.client("lambda").create_alias(FunctionName=two_versions, Name="live", FunctionVersion="1")
    answered = account.invoke(two_versions, {}, Qualifier="live")

    assert answered.version == "1"
    assert answered.value["arn"].endswith(f":{two_versions}:live")


@pytest.mark.parametrize("form", ["{name}:live", "123456789012:function:{name}:live", "{arn}:live"])
def test_a_qualifier_may_be_part_of_the_name(account, two_versions, form):
    client = account.client("lambda")
    client.create_alias(FunctionName=two_versions, Name="live", FunctionVersion="1")
    arn = client.get_function_configuration(FunctionName=two_versions)["FunctionArn"]

    assert account.invoke(form.format(name=two_versions, arn=arn), {}).version == "1"


def test_weights_split_the_traffic(account, two_versions):
    weights = {"AdditionalVersionWeights": {"2": 0.3}}
    account.client("lambda").create_alias(
        FunctionName=two_versions, Name="live", FunctionVersion="1", RoutingConfig=weights
    )
    found = [account.invoke(two_versions, {"do": "echo"}, Qualifier="live").version for _ in range(EVENTS)]

    # Five standard deviations of a fair draw: one run in a million is further off.
    assert abs(found.count("2") - 0.3 * EVENTS) < 5 * (EVENTS * 0.3 * 0.7) ** 0.5
    assert found.count("1") + found.count("2") == EVENTS


def test_an_alias_moves_at_once(account, two_versions):
    client = account.client("lambda")
    client.create_alias(FunctionName=two_versions, Name="live", FunctionVersion="1")
    client.update_alias(FunctionName=two_versions, Name="live", FunctionVersion="2")

    assert account.invoke(two_versions, {}, Qualifier="live").version == "2"


def test_an_unknown_qualifier_is_not_found(account, two_versions):
    client = account.client("lambda")

    with pytest.raises(client.exceptions.ResourceNotFoundException):
        account.invoke(two_versions, {}, Qualifier="nobody")


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"FunctionVersion": "9"}, "ResourceNotFoundException"),
        (
            {"FunctionVersion": "1", "RoutingConfig": {"AdditionalVersionWeights": {"9": 0.5}}},
            "ResourceNotFoundException",
        ),
        ({"FunctionVersion": "1", "RoutingConfig": {"AdditionalVersionWeights": {"1": 0.5}}}, "InvalidParameterValue"),
        (
            {"FunctionVersion": "$LATEST", "RoutingConfig": {"AdditionalVersionWeights": {"1": 0.5}}},
            "InvalidParameterValue",
        ),
    ],
    ids=["unknown version", "weight of an unknown version", "weight of its own version", "weights beside latest"],
)
def test_an_alias_that_lambda_refuses_is_refused(account, two_versions, settings, error):
    with pytest.raises(ClientError, match=error):
        account.client("lambda").create_alias(FunctionName=two_versions, Name="live", **settings)


def test_a_change_meant_for_another_state_is_refused(account, two_versions):
    client = account.client("lambda")
    seen = client.create_alias(FunctionName=two_versions, Name="live", FunctionVersion="1")["RevisionId"]
    client.update_alias(FunctionName=two_versions, Name="live", FunctionVersion="2", RevisionId=seen)

    with pytest.raises(client.exceptions.PreconditionFailedException):
        client.update_alias(FunctionName=two_versions, Name="live", FunctionVersion="1", RevisionId=seen)


def test_a_version_that_an_alias_needs_cannot_be_deleted(account, two_versions):
    client = account.client("lambda")
    client.create_alias(FunctionName=two_versions, Name="live", FunctionVersion="1")

    with pytest.raises(client.exceptions.ResourceConflictException, match="live"):
        client.delete_function(FunctionName=two_versions, Qualifier="1")

    client.delete_alias(FunctionName=two_versions, Name="live")
    client.delete_function(FunctionName=two_versions, Qualifier="1")
    with pytest.raises(client.exceptions.ResourceNotFoundException):
        account.invoke(two_versions, {}, Qualifier="1")


def test_during_an_update_what_was_there_still_answers_and_nothing_else_can_be_changed(slow_account, upload):
    name = slow_account.function(upload("old"))
    client = slow_account.client("lambda")
    # An instance runs and the client is warm: the clock matters from here on.
    assert slow_account.invoke(name, {}).value["mark"] == "old"
    changed = client.update_function_code(FunctionName=name, ZipFile=upload("new"))
    served = slow_account.invoke(name, {}).value["mark"]

    assert (changed["State"], changed["LastUpdateStatus"], served) == ("Active", "InProgress", "old")

    with pytest.raises(client.exceptions.ResourceConflictException, match="An update is in progress"):
        client.publish_version(FunctionName=name)


def test_provisioned_environments_are_there_before_the_first_event(account, two_versions):
    client = account.client("lambda")
    client.create_alias(FunctionName=two_versions, Name="live", FunctionVersion="1")
    asked = client.put_provisioned_concurrency_config(
        FunctionName=two_versions, Qualifier="live", ProvisionedConcurrentExecutions=2
    )

    def look():
        return client.get_provisioned_concurrency_config(FunctionName=two_versions, Qualifier="live")

    found = next(state for state in iter(look, None) if state["Status"] != "IN_PROGRESS")
    answered = account.invoke(two_versions, {}, Qualifier="live")

    assert asked["Status"] == "IN_PROGRESS"
    assert (found["Status"], found["AvailableProvisionedConcurrentExecutions"]) == ("READY", 2)
    assert answered.value["start"] == "provisioned-concurrency"
    assert account.invoke(two_versions, {}, Qualifier="2").value["start"] == "on-demand"


def test_latest_cannot_be_provisioned(account, function):
    with pytest.raises(ClientError, match="unpublished"):
        account.client("lambda").put_provisioned_concurrency_config(
            FunctionName=function, Qualifier="$LATEST", ProvisionedConcurrentExecutions=1
        )


def test_the_account_keeps_a_hundred_unreserved(account, function):
    with pytest.raises(ClientError, match=r"below its minimum value of \[100\]"):
        account.client("lambda").put_function_concurrency(FunctionName=function, ReservedConcurrentExecutions=901)


def test_deleting_a_function_deletes_all_of_it(account, two_versions):
    client = account.client("lambda")
    client.create_alias(FunctionName=two_versions, Name="live", FunctionVersion="1")
    client.delete_function(FunctionName=two_versions)

    with pytest.raises(client.exceptions.ResourceNotFoundException):
        account.invoke(two_versions, {}, Qualifier="live")
    assert two_versions not in [found["FunctionName"] for found in client.list_functions()["Functions"]]
