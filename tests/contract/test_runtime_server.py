"""The server on real loopback sockets, in front of a host whose predicts the tests hold and release."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from polyserve.runtime.limits import Limits
from polyserve.runtime.messages import Request, Response
from polyserve.runtime.server import Server
from polyserve.runtime.watchdog import PULSE

PATIENCE = 20.0
INFER = "/v2/models/m/infer"


class HeldHost:
    """Echoes requests; the body `hold` waits for `release`, `next` for `second_release`, and `raise` fails."""

    revision = 7
    digest = "d" * 64

    def __init__(self) -> None:
        self.batches: list[list[bytes]] = []
        self.paths: list[tuple[str, str]] = []
        self.held = threading.Event()
        self.release = threading.Event()
        self.second_held = threading.Event()
        self.second_release = threading.Event()
        self.answer: Response | None = None

    def handle(self, request: Request, /) -> Response:
        if request.method == "GET":
            self.paths.append((request.method, request.path))
            return Response(status=200, headers={"content-type": "text/plain"}, body=request.path.encode())
        return self.handle_many([request])[0]

    def handle_many(self, requests: Sequence[Request], /) -> list[Response]:
        bodies = [bytes(request.body) for request in requests]
        self.batches.append(bodies)
        for body in bodies:
            if body == b"hold":
                self.held.set()
                assert self.release.wait(PATIENCE)
            if body == b"next":
                self.second_held.set()
                assert self.second_release.wait(PATIENCE)
            if body == b"raise":
                raise RuntimeError("secret detail")
        return [self.answer or Response(status=200, headers={"x-thing": "a"}, body=body) for body in bodies]


class Running:
    """A server on a thread of its own."""

    def __init__(self, host: HeldHost, **options: Any) -> None:
        self.host = host
        self.lines: list[dict[str, Any]] = []
        self.stuck = threading.Event()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        options = {"token": None, "timeout": PATIENCE, "on_stuck": self.stuck.set} | options
        self.server = Server(host, sink=lambda data: self.lines.extend(map(json.loads, data.splitlines())), **options)
        self.port = self.listen()
        self.sockets: list[socket.socket] = []

    def on_loop(self, act: Callable[[], Any]) -> Any:
        async def run() -> Any:
            result = act()
            return await result if asyncio.iscoroutine(result) else result

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(PATIENCE)

    def listen(self) -> int:
        self.listener = socket.create_server(("127.0.0.1", 0))
        port: int = self.listener.getsockname()[1]
        self.on_loop(lambda: self.server.add_listener(self.listener))
        return port

    def connect(self, data: bytes = b"", port: int | None = None) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", port or self.port), timeout=PATIENCE)
        self.sockets.append(sock)
        sock.sendall(data)
        return sock

    def until(self, true: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE
        while not true():
            assert time.monotonic() < end, "it did not happen in time"
            time.sleep(0.002)  # other threads' counters have no event to wait for

    def stop(self) -> None:
        self.host.release.set()
        self.host.second_release.set()
        self.on_loop(self.server.close)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(PATIENCE)
        self.loop.close()
        for sock in self.sockets:
            sock.close()


@pytest.fixture
def host() -> HeldHost:
    return HeldHost()


@pytest.fixture
def start(host: HeldHost) -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def begin(**options: Any) -> Running:
        started.append(Running(host, **options))
        return started[-1]

    yield begin
    for running in started:
        running.stop()


def post(body: bytes, *fields: str, path: str = INFER, version: str = "1.1") -> bytes:
    lines = [f"POST {path} HTTP/{version}", "Host: x", f"Content-Length: {len(body)}", *fields]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def get(path: str, *fields: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: x", *fields]).encode() + b"\r\n\r\n"


def answer(sock: socket.socket, method: str = "POST") -> tuple[int, dict[str, str], bytes]:
    """Read one answer, and not a byte more."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = sock.recv(1)
        assert byte, f"closed after {head!r}"
        head += byte
    lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines[1:-2])
    body = b""
    length = 0 if method == "HEAD" else int(headers.get("content-length", 0))
    while len(body) < length:
        body += sock.recv(length - len(body))
    return int(lines[0].split()[1]), headers, body


def closed(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_connection_answers_one_request_after_the_other(start):
    sock = start().connect()
    for body in (b"one", b"two", b""):
        sock.sendall(post(body))
        status, headers, got = answer(sock)

        assert (status, got) == (200, body)
        assert headers["x-thing"] == "a"
        assert headers["date"].endswith("GMT")


def test_pipelined_requests_are_answered_in_their_order_even_where_the_later_ones_are_ready_first(start, host):
    sock = start().connect(post(b"hold") + get("/v2") + post(b"after") + get("/v2/health/live"))
    host.held.wait(PATIENCE)
    host.release.set()

    assert [answer(sock)[2] for _ in range(4)] == [b"hold", b"/v2", b"after", b"/v2/health/live"]


def test_more_pipelined_requests_than_are_read_ahead_are_all_answered(start):
    running = start(limits=Limits(pipelined=4))
    bodies = [b"%d" % number for number in range(100)]
    sock = running.connect(b"".join(map(post, bodies)) + get("/v2") * 50)

    assert [answer(sock)[2] for _ in bodies] == bodies
    assert [answer(sock)[2] for _ in range(50)] == [b"/v2"] * 50


def test_requests_that_wait_for_the_model_reach_it_together(start, host):
    running = start()
    first = running.connect(post(b"hold"))
    assert host.held.wait(PATIENCE)
    others = [running.connect(post(b"%d" % number)) for number in range(5)]
    running.until(lambda: running.server.inflight == 6)
    host.release.set()

    assert [answer(sock)[2] for sock in (first, *others)] == [b"hold", b"0", b"1", b"2", b"3", b"4"]
    assert len(host.batches) == 2
    assert running.server.completed == 6
    assert running.server.inflight == 0


def test_health_is_answered_while_a_slow_predict_runs(start, host):
    running = start()
    slow = running.connect(post(b"hold"))
    assert host.held.wait(PATIENCE)

    assert answer(running.connect(get("/v2/health/ready")))[2] == b"/v2/health/ready"
    assert running.server.busy_since > 0.0
    host.release.set()
    assert answer(slow)[2] == b"hold"
    running.until(lambda: running.server.busy_since == 0.0)


def test_a_batch_has_no_more_requests_than_the_limit(start, host):
    running = start(limits=Limits(batch_requests=3))
    first = running.connect(post(b"hold"))
    assert host.held.wait(PATIENCE)
    others = [running.connect(post(b"x")) for _ in range(7)]
    running.until(lambda: running.server.inflight == 8)
    host.release.set()
    for sock in (first, *others):
        answer(sock)

    assert [len(batch) for batch in host.batches] == [1, 3, 3, 1]


def test_requests_over_the_queue_are_refused_and_told_when_to_come_back(start, host):
    running = start(limits=Limits(queue_requests=2))
    held = running.connect(post(b"hold"))
    assert host.held.wait(PATIENCE)
    queued = [running.connect(post(b"q")) for _ in range(2)]
    running.until(lambda: running.server.inflight == 3)
    status, headers, body = answer(running.connect(post(b"over", "x-request-id: mine")))

    assert status == 429
    assert headers["retry-after"] == "1"
    assert (json.loads(body)["code"], json.loads(body)["request_id"]) == ("RESOURCE_EXHAUSTED", "mine")
    assert running.lines[-1]["request_id"] == "mine"
    assert running.lines[-1]["status"] == 429
    host.release.set()
    assert [answer(sock)[0] for sock in (held, *queued)] == [200, 200, 200]


def test_a_queued_request_past_its_time_gets_504_and_the_process_lives(start, host):
    running = start(timeout=1.0, limits=Limits(batch_requests=1))
    held = running.connect(post(b"hold"))
    assert host.held.wait(PATIENCE)
    next_one = running.connect(post(b"next"))
    running.until(lambda: running.server.inflight == 2)
    queued = running.connect(post(b"queued"))
    # The second predict starts so late that the request behind it is over its time long before that predict is.
    running.until(lambda: time.monotonic() - running.server.busy_since > 0.5)
    host.release.set()
    assert host.second_held.wait(PATIENCE)
    status, _, body = answer(queued)
    host.second_release.set()

    assert answer(held)[2] == b"hold"
    assert answer(next_one)[0] in {200, 504}
    assert status == 504
    assert json.loads(body)["code"] == "DEADLINE_EXCEEDED"
    queued.sendall(post(b"again"))
    assert answer(queued)[2] == b"again"
    assert [b"queued"] not in host.batches
    assert not running.stuck.is_set()


def test_a_predict_that_does_not_return_is_answered_before_the_process_ends(start, host):
    running = start(timeout=0.3)
    sock = running.connect(post(b"hold"))
    status, headers, body = answer(sock)

    assert status == 504
    assert json.loads(body)["code"] == "DEADLINE_EXCEEDED"
    assert headers["x-polyserve-revision"] == "7"
    assert running.stuck.wait(PATIENCE)


def test_a_predict_that_blocks_the_loop_is_answered_by_the_watchdog(start, host):
    running = start(timeout=0.3)
    sock = running.connect()
    # The first call runs on the worker, and shows that the model is quick: the next runs on the loop.
    for _ in range(3):
        sock.sendall(post(b"quick"))
        answer(sock)
    sock.sendall(post(b"hold"))
    assert host.held.wait(PATIENCE)
    late = running.connect(get("/v2"))
    status, headers, body = answer(sock)

    assert status == 504
    assert json.loads(body)["code"] == "DEADLINE_EXCEEDED"
    # What is sent next on this connection would be lost with the process.
    assert headers["connection"] == "close"
    assert running.stuck.wait(PATIENCE)
    host.release.set()
    assert answer(late)[2] == b"/v2"
    assert answer(running.connect(post(b"alive")))[2] == b"alive"


def test_idle_connections_and_those_that_wait_to_be_accepted_are_left_to_another_process_before_a_stuck_one_ends(
    start, host
):
    taken: list[int] = []
    running = start(timeout=0.5, hand_over=lambda sock: taken.append(sock.getpeername()[1]) is None)
    idle, sock = running.connect(), running.connect()
    for each in (idle, sock):
        each.sendall(post(b"quick"))
        answer(each)
    sock.sendall(post(b"hold"))
    assert host.held.wait(PATIENCE)
    # It is read by whoever goes on with the connection.
    idle.sendall(post(b"not lost"))

    assert answer(sock)[0] == 504
    assert running.stuck.wait(PATIENCE)
    assert taken == [idle.getsockname()[1]]


def test_a_server_goes_on_with_a_connection_that_another_one_parts_with(start, host):
    to = start()
    fro = start(hand_over=lambda sock: to.on_loop(lambda: to.server.take(sock.dup())) is None)
    sock = fro.connect()
    for body in (b"one", b"two"):
        sock.sendall(post(body))
        assert answer(sock)[2] == body
    fro.on_loop(lambda: fro.server.rebalance(1.0))
    sock.sendall(post(b"three"))

    assert answer(sock)[2] == b"three"
    assert (fro.server.connections, to.server.connections) == (0, 1)


def test_a_stuck_process_tells_those_who_only_waited_to_try_again(start, host):
    running = start(timeout=0.6)
    running.connect(post(b"hold"))
    assert host.held.wait(PATIENCE)
    running.until(lambda: time.monotonic() - running.server.busy_since > 0.3)
    status, headers, body = answer(running.connect(post(b"waiting")))

    assert status == 503
    assert headers["retry-after"] == "1"
    assert json.loads(body)["code"] == "UNAVAILABLE"


@pytest.mark.parametrize(
    "given", ["", "Authorization: Bearer wrong", "Authorization: Basic secret", "Authorization: Bearer \xff"]
)
def test_callers_without_the_token_are_refused(start, host, given):
    running = start(token="secret")
    sock = running.connect()
    lines = ["POST /invocations HTTP/1.1", "Host: x", "Content-Length: 1000000", *([given] if given else [])]
    # Refused on the head alone: the body was never sent.
    sock.sendall("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n")
    status, headers, body = answer(sock)

    assert status == 401
    assert headers["www-authenticate"] == "Bearer"
    assert json.loads(body)["code"] == "UNAUTHENTICATED"
    assert closed(sock)
    assert host.batches == []


def test_callers_with_the_token_are_served(start):
    sock = start(token="secret").connect(post(b"a", "authorization: bearer secret"))

    assert answer(sock)[2] == b"a"


def test_a_body_over_the_limit_is_refused_before_it_is_sent(start):
    sock = start(request_bytes=1000).connect(
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\nExpect: 100-continue\r\n\r\n"
    )
    status, headers, body = answer(sock)

    assert status == 413
    assert headers["connection"] == "close"
    assert "1000" in json.loads(body)["error"]
    assert closed(sock)


def test_a_caller_that_sends_a_body_over_the_limit_anyway_can_read_why_it_was_refused(start):
    running = start(request_bytes=1000)
    sock = running.connect()
    with contextlib.suppress(ConnectionError):
        sock.sendall(post(bytes(2_000_000)))

    assert answer(sock)[0] == 413


def test_a_caller_that_expects_to_continue_is_told_to_after_the_answers_before(start, host):
    head = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
    sock = start().connect(post(b"hold") + head)
    assert host.held.wait(PATIENCE)
    host.release.set()

    assert answer(sock)[2] == b"hold"
    assert answer(sock)[0] == 100
    sock.sendall(b"body")
    assert answer(sock)[2] == b"body"


def test_a_chunked_body_arrives_whole(start):
    head = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    sock = start().connect(head + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")

    assert answer(sock)[2] == b"abcde"


def test_large_bodies_travel_both_ways(start):
    body = bytes(range(256)) * 40_000
    sock = start().connect()
    threading.Thread(target=sock.sendall, args=(post(body),)).start()

    assert answer(sock)[2] == body


def test_a_caller_that_does_not_read_stops_being_read(start):
    running = start(limits=Limits(write_bytes=100_000, pipelined=1000))
    body = bytes(90_000)
    sock = running.connect()
    sent = threading.Thread(target=sock.sendall, args=(post(body) * 200,))
    sent.start()
    # It reads nothing: answers fill the socket, then the server stops taking requests.
    running.until(lambda: running.server.completed >= 1)
    assert running.server.completed < 200

    assert [len(answer(sock)[2]) for _ in range(200)] == [90_000] * 200
    sent.join(PATIENCE)


def test_head_is_answered_as_get_without_its_body(start, host):
    sock = start().connect(b"HEAD /v2 HTTP/1.1\r\nHost: x\r\n\r\n" + get("/v2/models/m"))
    status, headers, _ = answer(sock, "HEAD")

    assert (status, headers["content-length"]) == (200, "3")
    assert answer(sock)[2] == b"/v2/models/m"
    assert host.paths[0] == ("GET", "/v2")


def test_a_connection_closes_after_the_answer_where_the_caller_asks_for_it(start):
    running = start()
    modern = running.connect(post(b"a", "connection: close"))
    old = running.connect(post(b"b", version="1.0"))
    kept = running.connect(post(b"c", "connection: keep-alive", version="1.0"))

    assert answer(modern)[1]["connection"] == "close"
    assert closed(modern)
    assert answer(old)[2] == b"b"
    assert closed(old)
    assert answer(kept)[1]["connection"] == "keep-alive"
    kept.sendall(post(b"d", version="1.0"))
    assert answer(kept)[2] == b"d"
    assert closed(kept)


def test_a_caller_that_has_shut_its_sending_side_still_gets_its_answer(start):
    sock = start().connect(post(b"last"))
    sock.shutdown(socket.SHUT_WR)

    assert answer(sock)[2] == b"last"
    assert closed(sock)


def test_a_malformed_request_is_refused_after_the_answers_before_it_and_closes(start):
    sock = start().connect(post(b"good") + b"nonsense\r\n\r\n" + post(b"smuggled"))

    assert answer(sock)[2] == b"good"
    status, headers, body = answer(sock)
    assert (status, headers["connection"]) == (400, "close")
    assert json.loads(body)["code"] == "INVALID_ARGUMENT"
    assert closed(sock)


@pytest.mark.parametrize(
    ("data", "part"), [(b"GET /v2 HT", "head"), (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nab", "body")]
)
def test_a_request_that_does_not_arrive_in_time_is_refused(start, data, part):
    sock = start(limits=Limits(head_seconds=0.05, body_seconds=0.05)).connect(data)
    status, _, body = answer(sock)

    assert status == 408
    assert part in json.loads(body)["error"]
    assert closed(sock)


def test_an_idle_connection_is_closed(start):
    assert closed(start(limits=Limits(idle_seconds=0.05)).connect())


def test_a_caller_that_goes_away_frees_its_place(start, host):
    running = start()
    held = running.connect(post(b"hold"))
    assert host.held.wait(PATIENCE)
    gone = running.connect(post(b"gone"))
    running.until(lambda: running.server.inflight == 2)
    # A reset, not a farewell.
    gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    gone.close()
    running.until(lambda: running.server.inflight == 1)
    host.release.set()

    assert answer(held)[0] == 200
    assert host.batches == [[b"hold"]]
    running.until(lambda: running.server.connections == 1)


def test_what_goes_wrong_in_the_host_stays_out_of_the_answer(start, capsys):
    running = start()
    status, _, body = answer(running.connect(post(b"raise")))

    assert status == 500
    assert b"secret detail" not in body
    assert json.loads(body)["code"] == "INTERNAL"
    assert "secret detail" in capsys.readouterr().err


def test_a_header_that_would_break_the_answer_becomes_an_internal_error(start, host, capsys):
    host.answer = Response(status=200, headers={"x": "a\r\nset-cookie: b"}, body=b"")
    status, headers, _ = answer(start().connect(post(b"a")))

    assert status == 500
    assert "set-cookie" not in headers
    assert "line break" in capsys.readouterr().err


def test_a_removed_listener_finishes_its_connections_and_leaves_the_others(start, host):
    running = start()
    first, first_port = running.listener, running.port
    other_port = running.listen()
    busy = running.connect(post(b"hold"), first_port)
    assert host.held.wait(PATIENCE)
    staying = running.connect(get("/v2"), other_port)
    answer(staying)
    shared = first.dup()
    closing = running.on_loop(lambda: running.server.remove_listener(first))
    host.release.set()
    _, headers, body = answer(busy)

    assert closing == 1
    assert (headers["connection"], body) == ("close", b"hold")
    assert closed(busy)
    staying.sendall(get("/v2"))
    assert answer(staying)[2] == b"/v2"
    # The other copy of the socket still takes callers.
    with shared, socket.create_connection(("127.0.0.1", first_port)):
        shared.settimeout(PATIENCE)
        shared.accept()[0].close()


def test_rebalancing_closes_a_share_of_the_connections_after_their_next_answer(start):
    running = start()
    sockets = [running.connect(get("/v2")) for _ in range(4)]
    for sock in sockets:
        answer(sock)
    assert running.on_loop(lambda: running.server.rebalance(0.5)) == 2
    for sock in sockets:
        sock.sendall(get("/v2"))

    assert sorted(answer(sock)[1].get("connection", "") for sock in sockets) == ["", "", "close", "close"]


def test_draining_answers_what_was_read_and_closes_everything(start, host):
    running = start()
    idle = running.connect()
    busy = running.connect(post(b"hold"))
    assert host.held.wait(PATIENCE)
    running.until(lambda: running.server.connections == 2)
    draining = asyncio.run_coroutine_threadsafe(running.server.drain(), running.loop)
    assert closed(idle)
    host.release.set()

    assert answer(busy)[1]["connection"] == "close"
    draining.result(PATIENCE)
    assert running.server.connections == 0
    with pytest.raises(ConnectionRefusedError):
        running.connect()


def test_the_pulse_is_kept_for_other_processes(start, host):
    page = bytearray(32)
    running = start(pulse=memoryview(page))
    sock = running.connect(post(b"hold"))
    assert host.held.wait(PATIENCE)
    busy_since, last_activity, inflight, connections, completed = PULSE.unpack(page)

    assert 0.0 < busy_since <= time.monotonic()
    assert 0.0 < last_activity <= time.monotonic()
    assert (inflight, connections, completed) == (1, 1, 0)
    host.release.set()
    answer(sock)
    running.until(lambda: PULSE.unpack(page)[0] == 0.0)
    assert PULSE.unpack(page)[2:] == (0, 1, 1)


def test_two_servers_on_one_socket_share_its_callers(start):
    one = start()
    other = start()
    shared = one.listener.dup()
    other.on_loop(lambda: other.server.add_listener(shared))
    for _ in range(30):
        assert answer(one.connect(get("/v2")))[0] == 200

    assert one.server.connections + other.server.connections == 30


def test_the_standard_library_client_is_served(start):
    connection = http.client.HTTPConnection("127.0.0.1", start().port, timeout=PATIENCE)
    with contextlib.closing(connection):
        for body in (b"a", bytes(200_000), b"c"):
            connection.request("POST", INFER, body=body)

            assert connection.getresponse().read() == body


def test_a_timeout_that_is_not_positive_is_refused(host):
    with pytest.raises(ValueError, match="timeout"):
        Server(host, token=None, timeout=0)
