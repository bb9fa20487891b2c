"""One call: values, errors, deadlines and retries, the same through `invoke` and `ainvoke`."""

import asyncio
import gc
import math
import os
import pickle
import socket
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import numpy as np
import pandas as pd
import pytest

from polyserve.driver import Request
from polyserve.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)
from polyserve.runtime import protocol
from polyserve.runtime.signature import Signature, TensorSpec
from polyserve.runtime.tensors import Tensor

ROWS = np.arange(8.0).reshape(2, 4)
SUMS = [6.0, 22.0]


def first(failure, then=None):
    """Return a behaviour that fails once, then predicts."""
    return lambda exchange: failure(exchange) if exchange.number == 1 else (then or type(exchange).predict)(exchange)


# --- values ---------------------------------------------------------------------------------------------------------


def test_numpy_is_answered_with_numpy_and_travels_as_binary(bench, call):
    server = bench.server()

    answer = call(bench.endpoint(server), ROWS)

    assert isinstance(answer, np.ndarray)
    assert answer.tolist() == SUMS
    assert server.seen[0].body.endswith(ROWS.tobytes())


def test_lists_are_answered_with_lists(bench, call):
    answer = call(bench.endpoint(bench.server()), ROWS.tolist())

    assert answer == SUMS
    assert isinstance(answer, list)


def test_a_data_frame_is_answered_with_numpy(bench, call):
    answer = call(bench.endpoint(bench.server()), pd.DataFrame(ROWS, columns=list("abcd")))

    assert isinstance(answer, np.ndarray)
    assert answer.tolist() == SUMS


def two_outputs(exchange):
    wanted = protocol.parse_infer(exchange.body, exchange.headers).outputs or ("total", "top")
    every = {"total": exchange.rows.sum(axis=1), "top": exchange.rows.max(axis=1)}
    tensors = [Tensor.from_numpy(name, every[name]) for name in wanted]
    body, headers = protocol.format_infer(tensors, model="m", version="1", binary=frozenset(wanted))
    exchange.answer(200, body, **headers)


TWO = Signature(
    input_kind="array",
    output_kind="mapping",
    inputs=(TensorSpec(name="input", datatype="FP64", shape=(-1, 4)),),
    outputs=tuple(TensorSpec(name=name, datatype="FP64", shape=(-1,)) for name in ("total", "top")),
)


def test_several_outputs_are_answered_with_a_dict(bench, call):
    endpoint = bench.endpoint(bench.server(two_outputs), signature=TWO)

    answer = call(endpoint, ROWS)

    assert {name: array.tolist() for name, array in answer.items()} == {"total": SUMS, "top": [3.0, 7.0]}


def test_only_the_outputs_asked_for_are_answered(bench, call):
    endpoint = bench.endpoint(bench.server(two_outputs), signature=TWO)

    assert list(call(endpoint, ROWS.tolist(), outputs=["top"])) == ["top"]


def test_an_output_the_model_does_not_have_is_refused_before_a_call(bench, call):
    server = bench.server()

    with pytest.raises(InvalidArgumentError, match="no output 'median'; it has predict"):
        call(bench.endpoint(server), ROWS, outputs=["median"])

    assert server.connections == 0


def test_inputs_that_do_not_fit_are_refused_before_a_call(bench, call):
    server = bench.server()

    with pytest.raises(InvalidArgumentError, match=r"invoke 'sums' failed on fake: input 'input': expected shape"):
        call(bench.endpoint(server), np.ones((2, 3)))

    assert server.connections == 0


def test_an_answer_that_cannot_be_read_is_an_internal_error_with_its_request(bench, call):
    with pytest.raises(InternalError, match="the answer cannot be read") as caught:
        call(bench.endpoint(bench.server(lambda exchange: exchange.answer(200, b"no"))), ROWS, request_id="mine")

    assert caught.value.request_id == "mine"


def test_every_call_carries_an_id_of_its_own(bench):
    server = bench.server()
    endpoint = bench.endpoint(server)

    endpoint.invoke(ROWS)
    endpoint.invoke(ROWS)
    endpoint.invoke(ROWS, request_id="mine")

    ids = [exchange.headers["x-request-id"] for exchange in server.seen]
    assert len(set(ids)) == 3
    assert ids[2] == "mine"


def test_a_request_id_that_would_break_the_head_is_refused(bench, call):
    server = bench.server()

    with pytest.raises(InvalidArgumentError):
        call(bench.endpoint(server), ROWS, request_id="a\r\nx-evil: 1")

    assert server.seen == []


def test_a_canonical_request_is_sent_as_it_is(bench):
    server = bench.server(lambda exchange: exchange.answer(200, b"ok"))

    response = bench.endpoint(server).send(Request(method="GET", path="/v2/health/ready"))

    assert (response.status, response.body, server.seen[0].path) == (200, b"ok", "/v2/health/ready")


# --- errors ---------------------------------------------------------------------------------------------------------


def test_an_error_body_becomes_the_error_of_its_code(bench, call):
    server = bench.server(lambda exchange: exchange.fail(404, "NOT_FOUND", "no such model"))

    with pytest.raises(NotFoundError, match="invoke 'sums' failed on fake: no such model"):
        call(bench.endpoint(server), ROWS)

    assert len(server.seen) == 1


def test_a_model_that_fails_is_not_asked_again(bench, call):
    server = bench.server(lambda exchange: exchange.fail(500, "INTERNAL", "ValueError"))

    with pytest.raises(InternalError):
        call(bench.endpoint(server), ROWS)

    assert len(server.seen) == 1


def test_an_error_page_of_a_proxy_is_unavailable_with_its_first_line(bench, call):
    page = b"<html>\n<head><style>b{}</style><title>502 Bad Gateway</title></head>\n<body>nginx</body></html>"

    with pytest.raises(UnavailableError, match="HTTP 502: 502 Bad Gateway"):
        call(bench.endpoint(bench.server(lambda exchange: exchange.answer(502, page)), timeout=1.0), ROWS)


def test_a_body_that_is_too_large_is_refused_by_its_own_reason(bench, call):
    server = bench.server(lambda exchange: exchange.fail(413, "INVALID_ARGUMENT", "48 bytes, the limit is 10"))

    with pytest.raises(InvalidArgumentError, match="the limit is 10"):
        call(bench.endpoint(server), ROWS)


def test_an_early_refusal_of_a_huge_body_is_heard(bench):
    def refuse(exchange):
        exchange.fail(413, "INVALID_ARGUMENT", "too large")
        # Read on for a moment, as servers do: a reset would take the answer with it.
        exchange.socket.settimeout(5)
        while exchange.socket.recv(1 << 20):
            pass

    server = bench.server(refuse)
    endpoint = bench.endpoint(bench.invoker(server, prepared_headers={"x-refuse-early": "1"}))

    with pytest.raises(InvalidArgumentError, match="too large"):
        endpoint.invoke(np.zeros((1 << 20, 4)))


def test_a_huge_body_arrives_whole(bench, call):
    rows = np.random.default_rng(0).random((1 << 19, 4))

    answer = call(bench.endpoint(bench.server()), rows)

    assert np.array_equal(answer, rows.sum(axis=1))


# --- connections ----------------------------------------------------------------------------------------------------


def test_calls_share_one_connection(bench):
    server = bench.server()
    endpoint = bench.endpoint(server)

    for _ in range(5):
        endpoint.invoke(ROWS)

    assert server.connections == 1


def test_a_connection_that_the_server_closed_while_idle_is_replaced(bench):
    server = bench.server()
    invoker = bench.invoker(server)
    endpoint = bench.endpoint(invoker)
    endpoint.invoke(ROWS)
    server.hang_up()

    assert endpoint.invoke(ROWS).tolist() == SUMS
    assert server.connections == 2
    assert len(invoker.resolved) == 1


def test_a_kept_connection_that_closes_as_it_is_used_is_tried_once_more_at_once(bench):
    # The server reads the second request, and hangs up on it: its idle timer ran out in that moment.
    server = bench.server(lambda exchange: exchange.hang_up() if exchange.number == 2 else exchange.predict())
    invoker = bench.invoker(server)
    endpoint = bench.endpoint(invoker)
    endpoint.invoke(ROWS)

    assert endpoint.invoke(ROWS).tolist() == SUMS
    assert len(invoker.resolved) == 1


def test_connection_close_is_honoured(bench):
    def once(exchange):
        exchange.answer(200, *_sums(exchange), connection="close")

    server = bench.server(once)
    endpoint = bench.endpoint(server)

    assert endpoint.invoke(ROWS).tolist() == endpoint.invoke(ROWS).tolist() == SUMS
    assert server.connections == 2


def _sums(exchange):
    return (
        b'{"outputs":[{"name":"predict","datatype":"FP64","shape":[2],"data":%s}]}'
        % str(exchange.rows.sum(axis=1).tolist()).encode(),
    )


def test_an_answer_in_chunks_after_an_interim_answer_is_read(bench, call):
    def chunks(exchange):
        (body,) = _sums(exchange)
        exchange.raw(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for at in range(0, len(body), 7):
            piece = body[at : at + 7]
            exchange.raw(b"%x;note=1\r\n%s\r\n" % (len(piece), piece))
        exchange.raw(b"0\r\nx-trailer: 1\r\n\r\n")

    server = bench.server(chunks)
    endpoint = bench.endpoint(server)

    assert call(endpoint, ROWS).tolist() == SUMS


def test_an_answer_that_ends_with_its_connection_is_read(bench, call):
    def old(exchange):
        exchange.raw(b"HTTP/1.0 200 OK\r\n\r\n" + _sums(exchange)[0])
        exchange.hang_up()

    assert call(bench.endpoint(bench.server(old)), ROWS).tolist() == SUMS


def cut_off(exchange):
    exchange.raw(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{")
    exchange.hang_up()


def test_a_truncated_answer_is_asked_for_again(bench, call):
    server = bench.server(first(cut_off))

    assert call(bench.endpoint(server), ROWS).tolist() == SUMS
    assert len(server.seen) == 2


def test_answers_that_stay_truncated_are_unavailable(bench, call):
    with pytest.raises(UnavailableError, match="cut off"):
        call(bench.endpoint(bench.server(cut_off), timeout=1.0), ROWS)


def test_time_that_runs_out_in_the_middle_of_a_retry_tells_the_failure_before_it(bench, call):
    calls = []

    def first_cut_off_then_silent(exchange):
        calls.append(exchange)
        if len(calls) > 2:
            time.sleep(1.5)
        cut_off(exchange)

    with pytest.raises(UnavailableError, match="cut off"):
        call(bench.endpoint(bench.server(first_cut_off_then_silent), timeout=1.0), ROWS)


@pytest.mark.parametrize("noise", [b"SSH-2.0-OpenSSH\r\n\r\n", b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n"])
def test_an_answer_that_is_not_http_is_unavailable(bench, call, noise):
    def babble(exchange):
        exchange.raw(noise)
        exchange.hang_up()

    with pytest.raises(UnavailableError):
        call(bench.endpoint(bench.server(babble), timeout=1.0), ROWS)


def test_many_threads_share_an_endpoint(bench):
    server = bench.server()
    endpoint = bench.endpoint(server)
    answers = {}

    def work(number):
        answers[number] = [endpoint.invoke(np.full((1, 4), number + step))[0] for step in range(20)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert answers == {number: [4.0 * (number + step) for step in range(20)] for number in range(8)}
    assert server.connections <= 8


def test_event_loops_one_after_the_other_and_side_by_side_share_an_endpoint(bench):
    endpoint = bench.endpoint(bench.server())
    answers = []

    async def several():
        return [answer.tolist() for answer in await asyncio.gather(*(endpoint.ainvoke(ROWS) for _ in range(4)))]

    threads = [threading.Thread(target=lambda: answers.append(asyncio.run(several()))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answers.append(asyncio.run(several()))

    assert answers == [[SUMS] * 4] * 4


def test_aclose_closes_the_connections_of_the_running_loop(bench):
    server = bench.server()

    async def main():
        async with bench.endpoint(server) as endpoint:
            await endpoint.ainvoke(ROWS)
        with pytest.raises(FailedPreconditionError):
            await endpoint.ainvoke(ROWS)

    asyncio.run(main())


def test_close_reaches_a_loop_that_runs(bench):
    endpoint = bench.endpoint(bench.server())

    async def main():
        await endpoint.ainvoke(ROWS)
        await asyncio.to_thread(endpoint.close)
        await asyncio.sleep(0)

    asyncio.run(main())


def test_a_closed_endpoint_refuses_and_says_what_to_do(bench):
    with bench.endpoint(bench.server()) as endpoint:
        endpoint.invoke(ROWS)

    with pytest.raises(FailedPreconditionError, match=r"polyserve\.connect"):
        endpoint.invoke(ROWS)


def test_pickling_is_refused_and_says_what_to_do(bench):
    with pytest.raises(TypeError, match=r"polyserve\.connect\('sums', provider='fake'\)"):
        pickle.dumps(bench.endpoint(bench.server()))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform cannot fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_does_not_use_its_parents_connections(bench):
    server = bench.server()
    endpoint = bench.endpoint(server)
    endpoint.invoke(ROWS)
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if endpoint.invoke(ROWS).tolist() == SUMS else 1)
        finally:
            os._exit(2)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert endpoint.invoke(ROWS).tolist() == SUMS
    assert [exchange.connection for exchange in server.seen] == [1, 2, 1]
    prefixes = {exchange.headers["x-request-id"][:16] for exchange in server.seen}
    assert len(prefixes) == 2


def test_loopback_never_goes_through_a_proxy(bench, call, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")

    assert call(bench.endpoint(bench.server()), ROWS).tolist() == SUMS


def test_other_hosts_go_through_the_proxy_of_the_environment(bench, call, monkeypatch):
    proxy = bench.server()
    monkeypatch.setenv("http_proxy", proxy.url)
    invoker = bench.invoker(proxy)
    invoker.url = "http://models.invalid:8080"

    assert call(bench.endpoint(invoker), ROWS).tolist() == SUMS
    assert proxy.seen[0].path == "http://models.invalid:8080/v2/models/m/infer"


# --- deadlines and retries ------------------------------------------------------------------------------------------


def test_a_server_that_is_slow_is_over_the_deadline(bench, call):
    over = threading.Event()
    server = bench.server(lambda exchange: over.wait(20) and None)
    try:
        with pytest.raises(DeadlineExceededError, match="no answer within the timeout") as caught:
            call(bench.endpoint(server), ROWS, timeout=timedelta(milliseconds=100), request_id="mine")
    finally:
        over.set()

    assert caught.value.request_id == "mine"
    assert len(server.seen) == 1


@pytest.mark.parametrize("timeout", [0, -1.0, timedelta(0), math.nan])
def test_a_timeout_that_is_none_is_refused(bench, call, timeout):
    with pytest.raises(InvalidArgumentError, match="timeout must be more than 0 seconds"):
        call(bench.endpoint(bench.server()), ROWS, timeout=timeout)


def test_unavailable_is_asked_again_until_it_answers(bench, call):
    server = bench.server(first(lambda exchange: exchange.fail(503, "UNAVAILABLE", "starting")))

    assert call(bench.endpoint(server), ROWS).tolist() == SUMS
    ids = {exchange.headers["x-request-id"] for exchange in server.seen}
    assert (len(server.seen), len(ids)) == (2, 1)


def test_retry_after_is_honoured(bench, call):
    times = []

    def throttle(exchange):
        times.append(time.monotonic())
        exchange.fail(429, "RESOURCE_EXHAUSTED", "slow down", retry_after="0.4")

    def predict(exchange):
        times.append(time.monotonic())
        exchange.predict()

    assert call(bench.endpoint(bench.server(first(throttle, predict))), ROWS).tolist() == SUMS
    assert times[1] - times[0] >= 0.4


@pytest.mark.parametrize("told", ["in seconds", "as a date"])
def test_a_wait_beyond_the_deadline_is_not_begun(bench, call, told):
    # A date is made here: between the collection of the tests and this one there may be any number of minutes.
    later = "3600" if told == "in seconds" else format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    server = bench.server(lambda exchange: exchange.fail(429, "RESOURCE_EXHAUSTED", "slow down", retry_after=later))

    with pytest.raises(ResourceExhaustedError, match="slow down") as caught:
        call(bench.endpoint(server), ROWS)

    assert len(server.seen) == 1
    assert caught.value.retry_after > timedelta(minutes=50)


def test_a_gateway_that_moved_is_found_again_at_once(bench, call):
    old, new = bench.server(), bench.server()
    invoker = bench.invoker(old)
    endpoint = bench.endpoint(invoker)
    call(endpoint, ROWS)
    old.stop()
    invoker.url = new.url

    assert call(endpoint, ROWS).tolist() == SUMS
    assert invoker.resolved == [old.url, new.url]


def test_nothing_that_listens_is_unavailable_after_asking_for_the_address_again(bench, call):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    server = bench.server()
    invoker = bench.invoker(server)
    invoker.url = url

    with pytest.raises(UnavailableError, match="refused"):
        call(bench.endpoint(invoker, timeout=1.0), ROWS)

    assert len(invoker.resolved) >= 2


def test_a_credential_that_was_replaced_is_fetched_again_once(bench, call):
    def guard(exchange):
        if exchange.headers["authorization"] == "Bearer good":
            exchange.predict()
        else:
            invoker.token = "good"
            exchange.fail(401, "UNAUTHENTICATED", "who are you")

    invoker = bench.invoker(bench.server(guard), token="old")

    assert call(bench.endpoint(invoker), ROWS).tolist() == SUMS
    assert len(invoker.resolved) == 2


def test_a_credential_that_stays_wrong_is_reported_after_the_second_try(bench, call):
    server = bench.server(lambda exchange: exchange.fail(401, "UNAUTHENTICATED", "who are you"))

    with pytest.raises(UnauthenticatedError, match="who are you"):
        call(bench.endpoint(server), ROWS)

    assert len(server.seen) == 2


def test_an_address_is_used_until_shortly_before_it_expires(bench, monkeypatch):
    server = bench.server()
    now = time.time()
    invoker = bench.invoker(server, expires_at=datetime.fromtimestamp(now + 3600, UTC))
    endpoint = bench.endpoint(invoker)
    found = []
    for later in (0, 3500, 3541, 3542):
        monkeypatch.setattr(time, "time", lambda later=later: now + later)
        endpoint.invoke(ROWS)
        found.append(len(invoker.resolved))

    # The address that was found 59 seconds before its end is used for what is left of it.
    assert found == [1, 1, 2, 2]


def test_what_the_provider_raises_is_wrapped_once_with_its_cause(bench, call):
    invoker = bench.invoker(bench.server())
    cause = KeyError("sums")

    def resolve(name, *, revision=None):
        raise cause

    invoker.resolve = resolve
    with pytest.raises(NotFoundError, match="invoke 'sums' failed on fake") as caught:
        call(bench.endpoint(invoker), ROWS)

    assert caught.value.__cause__ is cause


def test_an_endpoint_that_is_dropped_without_being_closed_leaves_nothing_open(bench):
    server = bench.server()
    invoker = bench.invoker(server)
    endpoint = bench.endpoint(invoker)
    bench._down.pop()
    endpoint.invoke(ROWS)
    asyncio.run(endpoint.ainvoke(ROWS))

    # A ResourceWarning would fail the test.
    del endpoint
    gc.collect()

    assert len(server.seen) == 2
