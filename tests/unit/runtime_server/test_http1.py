"""The parser: what it cuts out of any sequence of bytes, and what it refuses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyserve.runtime.http1 import Head, RequestReader, Stage, format_head, parse_head
from polyserve.runtime.messages import RequestError

SIMPLE = b"POST /v2/models/iris/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4;name=value\r\ndefg\r\n0\r\nX-Sum: 1\r\n\r\n"
PLAIN = b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n"


def read(data: bytes, *pieces: bytes, request_bytes: int = 1000, head_bytes: int = 4096) -> list[tuple[Head, bytes]]:
    reader = RequestReader(request_bytes=request_bytes, head_bytes=head_bytes)
    found = []
    for piece in (data, *pieces):
        reader.feed(piece)
        while (request := reader.next()) is not None:
            found.append((request[0], bytes(request[1])))
    return found


def refusal(data: bytes, **limits: int) -> RequestError:
    with pytest.raises(RequestError) as raised:
        read(data, **limits)
    return raised.value


def test_a_request_has_its_method_path_headers_and_body():
    [(head, body)] = read(
        b"POST /v2/x?a=1 HTTP/1.1\r\nHost: h\r\nX-Thing:  two words \t\r\ncontent-length: 2\r\n\r\nok"
    )

    assert (head.method, head.path) == ("POST", "/v2/x")
    assert head.headers == {"host": "h", "x-thing": "two words", "content-length": "2"}
    assert body == b"ok"


@given(st.lists(st.integers(1, 300), max_size=40))
def test_requests_are_the_same_however_their_bytes_are_cut(cuts: list[int]):
    stream = SIMPLE + CHUNKED + PLAIN + b"\r\n" + SIMPLE
    pieces = []
    rest = stream
    for cut in cuts:
        pieces.append(rest[:cut])
        rest = rest[cut:]
    found = read(b"", *pieces, rest)

    assert [body for _, body in found] == [b"hello", b"abcdefg", b"", b"hello"]
    assert [head.path for head, _ in found] == ["/v2/models/iris/infer", "/a", "/v2", "/v2/models/iris/infer"]


def test_a_large_body_is_received_in_place_without_reserving_what_is_only_announced():
    size = 5_000_000
    reader = RequestReader(request_bytes=size)
    reader.feed(b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\nstart" % size)
    assert reader.next() is None
    room = reader.room()
    assert room is not None
    assert len(room) <= 1024 * 1024
    expected = b"start" + bytes(range(256)) * (size // 256 + 1)
    sent = 5
    while sent < size:
        room = reader.room()
        assert room is not None
        count = min(len(room), 70_001)
        room[:count] = expected[sent : sent + count]
        room.release()
        reader.filled(count)
        sent += count

    found = reader.next()
    assert found is not None
    assert bytes(found[1]) == expected[:size]
    assert reader.room() is None
    assert reader.stage is Stage.IDLE


def test_a_large_body_may_also_be_fed():
    body = bytes(300_000)
    head = b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n"

    assert [body, b"hello"] == [
        found for _, found in read(head, body[:99_999], body[99_999:] + SIMPLE, request_bytes=300_000)
    ]


def test_the_stage_tells_what_is_being_read():
    reader = RequestReader(request_bytes=10)
    stages = [reader.stage]
    for piece in (SIMPLE[:20], SIMPLE[20:-2], SIMPLE[-2:]):
        reader.feed(piece)
        reader.next()
        stages.append(reader.stage)

    assert stages == [Stage.IDLE, Stage.HEAD, Stage.BODY, Stage.IDLE]


@pytest.mark.parametrize(
    ("version", "connection", "stays"),
    [
        ("1.1", "", True),
        ("1.1", "close", False),
        ("1.1", "Foo, CLOSE", False),
        ("1.0", "", False),
        ("1.0", "Keep-Alive", True),
    ],
)
def test_a_connection_stays_open_as_its_caller_says(version: str, connection: str, stays: bool):
    fields = f"\r\nConnection: {connection}" if connection else ""

    assert parse_head(f"GET / HTTP/{version}\r\nHost: x{fields}".encode()).keep_alive is stays


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/a%20b/%C3%A9", "/a b/é"),
        ("http://host:1/v2/health/live?x", "/v2/health/live"),
        ("https://host", "/"),
        ("*", "*"),
    ],
)
def test_every_form_of_target_gives_the_path(target: str, path: str):
    assert path == parse_head(f"GET {target} HTTP/1.1\r\nHost: x".encode()).path


REFUSED = {
    "two lengths": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "a length twice": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "a list of lengths": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5, 5\r\n\r\nhello",
    "a signed length": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +5\r\n\r\nhello",
    "a length in other digits": "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: ²\r\n\r\nhi".encode("latin-1"),
    "a length and chunks": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks in HTTP/1.0": b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a space before the colon": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length : 5\r\n\r\nhello",
    "a folded line": b"GET / HTTP/1.1\r\nHost: x\r\nX-A: b\r\n c\r\n\r\n",
    "a bare line feed": b"GET / HTTP/1.1\r\nHost: x\r\nX-A: b\nContent-Length: 5\r\n\r\n",
    "a bare carriage return": b"GET / HTTP/1.1\r\nHost: x\r\nX-A: b\rc\r\n\r\n",
    "a null": b"GET / HTTP/1.1\r\nHost: x\r\nX-A: b\x00c\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    "two spaces": b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n",
    "no target": b"GET HTTP/1.1\r\nHost: x\r\n\r\n",
    "a target that is no path": b"GET v2 HTTP/1.1\r\nHost: x\r\n\r\n",
    "a path that is not text": b"GET /%ff HTTP/1.1\r\nHost: x\r\n\r\n",
    "a chunk without size": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n\r\n\r\n",
    "a chunk of negative size": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
    "a chunk size with a prefix": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n",
    "a chunk longer than it says": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
    "an endless chunk line": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3;" + b"a" * 300,
    "a malformed trailer": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX Y: 1\r\n\r\n",
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED.keys())
def test_what_two_readers_could_understand_differently_is_refused(data: bytes):
    assert refusal(data).status == 400


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nHost: x\r\nExpect: the-impossible\r\n\r\n", 417),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X-A: b\r\n" * 200 + b"\r\n", 431),
        (b"GET /" + b"a" * 5000, 431),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n", 413),
    ],
    ids=["HTTP/2", "coding", "expectation", "fields", "head", "length", "chunk"],
)
def test_what_is_beyond_a_limit_is_refused_with_its_status(data: bytes, status: int):
    assert refusal(data).status == status


def test_a_refused_body_names_its_size_and_the_limit():
    message = refusal(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\n\r\n").message

    assert "1001" in message
    assert "1000" in message


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(data: bytes):
    statuses = [200]
    for before in (b"", b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"):
        try:
            read(before + data)
        except RequestError as error:
            statuses.append(error.status)

    assert set(statuses) <= {200, 400, 413, 417, 431, 501, 505}


def test_the_head_of_an_answer_frames_its_body_whatever_the_host_says():
    head = format_head(
        200, {"content-type": "a/b", "content-length": "999", "transfer-encoding": "chunked"}, 3, keep_alive=True
    )

    assert head.startswith(b"HTTP/1.1 200 OK\r\ncontent-type: a/b\r\ndate: ")
    assert head.endswith(b"content-length: 3\r\n\r\n")
    assert head.count(b"content-length") == 1
    assert b"transfer-encoding" not in head


def test_a_line_break_in_a_header_of_an_answer_is_refused():
    with pytest.raises(ValueError, match="line break"):
        format_head(200, {"x": "a\r\nset-cookie: b"}, 0, keep_alive=True)


@pytest.mark.parametrize(
    ("minor", "keep_alive", "line"),
    [(1, False, b"connection: close"), (0, True, b"connection: keep-alive"), (0, False, b"connection: close")],
)
def test_an_answer_says_whether_the_connection_stays(minor: int, keep_alive: bool, line: bytes):
    assert line in format_head(200, {}, 0, keep_alive=keep_alive, minor=minor).split(b"\r\n")
