"""What Lambda notes of its own accounts is told apart from what a function wrote; a report of a failure is not hidden."""

import pytest

from polyserve.testing.functions import NAME
from polyserve_aws.logs import _event

REPORT = "REPORT RequestId: 1\tDuration: 3.10 ms\tBilled Duration: 4 ms\tMemory Size: 512 MB\tMax Memory Used: 60 MB\t"


@pytest.mark.parametrize(
    ("message", "platform"),
    [
        ("START RequestId: 1 Version: 3\n", True),
        ("END RequestId: 1\n", True),
        (f"{REPORT}\n", True),
        (f"{REPORT}Init Duration: 120.00 ms\t\nXRAY TraceId: 1\tSegmentId: 2\tSampled: true\t\n", True),
        (
            "INIT_START Runtime Version: python:3.12.v40\tRuntime Version ARN: arn:aws:lambda:eu-central-1::runtime:1\n",
            True,
        ),
        ("INIT_REPORT Init Duration: 10.0 ms\tPhase: init\tStatus: success\n", True),
        ("RESTORE_START Runtime Version: python:3.12.v40\n", True),
        ("RESTORE_REPORT Restore Duration: 100.00 ms\n", True),
        (f"{REPORT}Status: error\tError Type: Runtime.OutOfMemory\n", False),
        ("INIT_REPORT Init Duration: 9999.0 ms\tPhase: init\tStatus: timeout\n", False),
        ("2026-11-21T09:00:00.000Z 1 Task timed out after 3.00 seconds\n", False),
        ("START of my own\n", False),
        ('{"event":"request","at":1.0}', False),
    ],
)
def test_a_line_of_lambda_itself_is_told_apart(message, platform):
    event = _event(
        {"message": message, "timestamp": 1_700_000_000_000, "logStreamName": "2026/11/21/[3]0123"}, {"3": 2}
    )

    assert (event.platform, event.revision) == (platform, 2)


def test_a_function_writes_as_much_as_lambda_notes(functions):
    functions.applied(2)
    functions.route({2: 100})
    with functions.endpoint() as endpoint:
        endpoint.invoke([[1.0, 2.0]])
    events = list(functions.platform.logs(NAME, since=None))

    own = [event.message for event in events if not event.platform]
    assert {event.message.partition(" ")[0] for event in events if event.platform} == {"START", "END", "REPORT"}
    assert own
    assert all(message.startswith("{") for message in own)
