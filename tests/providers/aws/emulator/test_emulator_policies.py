"""Policy documents say what IAM says they do."""

import pytest

from polyserve_aws.emulator.policies import Verdict, judge

OBJECT = "arn:aws:s3:::bucket/models/iris"


def rule(effect="Allow", action="s3:GetObject", resource="*", **more):
    """Return a statement."""
    return {"Effect": effect, "Action": action, "Resource": resource, **more}


def under(operator, key, value, effect="Allow"):
    """Return a statement with a condition."""
    return rule(effect, Condition={operator: {key: value}})


CASES = {
    "nothing said": ([], Verdict.SILENT),
    "allowed": ([rule()], Verdict.ALLOWED),
    "another action": ([rule(action="s3:PutObject")], Verdict.SILENT),
    "actions in any case": ([rule(action="S3:getobject")], Verdict.ALLOWED),
    "a wildcard": ([rule(action="s3:Get*")], Verdict.ALLOWED),
    "a single character": ([rule(action="s3:Get?bject")], Verdict.ALLOWED),
    "one of several": ([rule(action=["s3:PutObject", "s3:GetObject"])], Verdict.ALLOWED),
    "the resource": ([rule(resource="arn:aws:s3:::bucket/*")], Verdict.ALLOWED),
    "another resource": ([rule(resource="arn:aws:s3:::bucket/other/*")], Verdict.SILENT),
    "a resource is not a pattern of its own": ([rule(resource="arn:aws:s3:::bucket/[models]*")], Verdict.SILENT),
    "all but one action": ([{"Effect": "Allow", "NotAction": "s3:PutObject", "Resource": "*"}], Verdict.ALLOWED),
    "all but this action": ([{"Effect": "Allow", "NotAction": "s3:Get*", "Resource": "*"}], Verdict.SILENT),
    "all but this resource": (
        [{"Effect": "Allow", "Action": "*", "NotResource": "arn:aws:s3:::bucket/*"}], Verdict.SILENT
    ),
    "a denial wins": ([rule(), rule("Deny")], Verdict.DENIED),
    "a denial of something else": ([rule(), rule("Deny", action="s3:PutObject")], Verdict.ALLOWED),
    "a condition that holds": ([under("StringEquals", "aws:Place", "here")], Verdict.ALLOWED),
    "one of several values": ([under("StringEquals", "aws:Place", ["there", "here"])], Verdict.ALLOWED),
    "a condition that fails": ([under("StringEquals", "aws:Place", "there")], Verdict.SILENT),
    "a condition on what is not known": ([under("StringEquals", "aws:Nothing", "x")], Verdict.SILENT),
    "a condition only if it is known": ([under("StringEqualsIfExists", "aws:Nothing", "x")], Verdict.ALLOWED),
    "a condition on absence": ([under("Null", "aws:Nothing", "true")], Verdict.ALLOWED),
    "a pattern": ([under("StringLike", "aws:Place", "he*")], Verdict.ALLOWED),
    "not a pattern": ([under("StringNotLike", "aws:Place", "he*")], Verdict.SILENT),
    "an operator that is not known allows nothing": ([under("IpAddress", "aws:Place", "here")], Verdict.SILENT),
    "an operator that is not known still denies": (
        [rule(), under("IpAddress", "aws:Place", "here", effect="Deny")], Verdict.DENIED
    ),
}  # fmt: skip


@pytest.mark.parametrize(("rules", "expected"), CASES.values(), ids=CASES)
def test_a_policy_is_judged_as_iam_does(rules, expected):
    assert judge(rules, "s3:GetObject", [OBJECT], {"aws:place": "here"}) is expected


USER = "arn:aws:iam::123456789012:user/ann"


@pytest.mark.parametrize(
    ("principal", "expected"),
    [
        ("*", Verdict.ALLOWED),
        ({"AWS": "*"}, Verdict.ALLOWED),
        ({"AWS": USER}, Verdict.ALLOWED),
        ({"AWS": "arn:aws:iam::123456789012:root"}, Verdict.ALLOWED),
        ({"AWS": "arn:aws:iam::123456789012:user/bob"}, Verdict.SILENT),
        ({"Service": "lambda.amazonaws.com"}, Verdict.SILENT),
    ],
    ids=["all", "all of AWS", "the user", "the account", "another user", "a service"],
)
def test_the_policy_of_a_resource_is_for_whom_it_names(principal, expected):
    assert judge([rule(Principal=principal)], "s3:GetObject", [OBJECT], principals=[USER]) is expected
