"""What belongs to a call is made in order, and what comes after it whatever happened."""

import asyncio

import pytest

from polyserve.detours import acarry, carry
from polyserve.driver import Detour, HttpCall, HttpReply


def call(url, detour=None):
    return HttpCall(method="POST", url=url, headers={}, body=b"", detour=detour)


class Sender:
    """Answers each call with its own URL and a status of the test's choice; one that is an error is raised."""

    def __init__(self, **statuses):
        self.statuses, self.sent = statuses, []

    def __call__(self, sent, deadline):
        self.sent.append(sent.url)
        status = self.statuses.get(sent.url, 200)
        if isinstance(status, Exception):
            raise status
        return HttpReply(status=status, headers={}, body=sent.url.encode())


@pytest.fixture(params=["sync", "async"])
def carried(request):
    """Give both ways of carrying a call as one function."""

    def synchronous(send, sent):
        return carry(send, sent, 0.0)

    def asynchronous(send, sent):
        async def awaited(each, deadline):
            return send(each, deadline)

        return asyncio.run(acarry(awaited, sent, 0.0))

    return {"sync": synchronous, "async": asynchronous}[request.param]


def test_a_plain_call_is_sent_and_nothing_else(carried):
    send = Sender()

    assert carried(send, call("main")).body == b"main"
    assert send.sent == ["main"]


def test_what_comes_before_follows_and_comes_after_is_made_in_order(carried):
    send = Sender()
    fetch = call("fetch", Detour(after=(call("tidy fetched"),)))
    detour = Detour(
        before=call("store"), follow=lambda reply: fetch if reply.body == b"main" else None, after=(call("tidy"),)
    )

    assert carried(send, call("main", detour)).body == b"fetch"
    assert send.sent == ["store", "main", "fetch", "tidy fetched", "tidy"]


def test_where_the_first_call_is_refused_that_is_the_answer(carried):
    send = Sender(store=403)

    assert carried(send, call("main", Detour(before=call("store"), after=(call("tidy"),)))).status == 403
    assert send.sent == ["store", "tidy"]


def test_a_call_that_is_lost_is_tidied_up_after_and_told(carried):
    send = Sender(main=ConnectionError("lost"))

    with pytest.raises(ConnectionError, match="lost"):
        carried(send, call("main", Detour(after=(call("tidy"),))))
    assert send.sent == ["main", "tidy"]


def test_what_becomes_of_the_tidying_is_nobodys_business(carried):
    send = Sender(tidy=ConnectionError("lost"))

    assert carried(send, call("main", Detour(after=(call("tidy"), call("tidy more"))))).status == 200
    assert send.sent == ["main", "tidy", "tidy more"]
