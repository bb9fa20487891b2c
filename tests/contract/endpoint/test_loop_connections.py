"""A connection on an event loop reads whatever form an answer has, in whatever pieces it comes, and is never used after it went wrong."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
import time
import warnings
from datetime import UTC, datetime, timedelta

import pytest

from polyserve import connection_async
from polyserve.driver import HttpCall
from polyserve.transport import Origin
from polyserve.transport_async import LoopConnections

ANSWERS = {
    "counted": (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: 1\r\nx-a: 2\r\n\r\nhello", b"hello", True),
    "empty": (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", b"", True),
    "without content": (b"HTTP/1.1 204 No Content\r\n\r\n", b"", True),
    "in chunks": (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3;x=y\r\nhel\r\n2\r\nlo\r\n0\r\nx-t: 1\r\n\r\n", b"hello", True,
    ),
    "after interim answers": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        b"hello", True,
    ),
    "to be closed": (b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello", b"hello", False),
    "of HTTP/1.0": (b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello", b"hello", False),
    "kept in HTTP/1.0": (b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 5\r\n\r\nhello", b"hello", True),
}  # fmt: skip
BROKEN = {
    "cut in its head": (b"HTTP/1.1 200 OK\r\ncont", "cut off in its head"),
    "cut in its body": (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhel", "cut off after 3 of 5 bytes"),
    "cut in a chunk": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhel", "cut off within a chunk"),
    "cut after an interim answer": (b"HTTP/1.1 100 Continue\r\n\r\n", "cut off after an interim answer"),
    "too long": (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhello", "longer than its content-length"),
    "of no length": (b"HTTP/1.1 200 OK\r\ncontent-length: five\r\n\r\nhello", "content-length 'five'"),
    "a malformed chunk": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nfive\r\nhello", "a chunk of size"),
    "another protocol": (b"SSH-2.0-OpenSSH\r\n\r\n", "is not HTTP/1.1"),
    "a malformed header": (b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", "malformed header"),
    "a head without an end": (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 20_000, "head of the answer is over"),
    "nothing": (b"", "without an answer"),
}


class Server:
    """Answers each request on a connection with the next of its scripts: pieces of bytes, `None` to close, what else is waited for."""

    def __init__(self, *scripts):
        self.scripts, self.connections, self.requests, self.ended = list(scripts), 0, 0, 0

    async def serve(self, reader, writer):
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                await reader.readexactly(length)
                self.requests += 1
                for piece in self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]:
                    if piece is None:
                        return
                    if not isinstance(piece, bytes):
                        await piece()
                        continue
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            self.ended += 1
            writer.close()


def run(server, use, context=None):
    """Serve, and give `use` a function that sends a call and returns the reply."""

    async def main():
        listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=context)
        port = listening.sockets[0].getsockname()[1]
        connections = LoopConnections()
        scheme = "http" if context is None else "https"

        async def send(*, seconds=5.0, body=b"x", method="POST"):
            call = HttpCall(method=method, url=f"{scheme}://localhost:{port}/p?q=1", headers={"a": "b"}, body=body)
            return await connections.send(call, time.monotonic() + seconds)

        try:
            return await use(send)
        finally:
            await connections.close()
            listening.close()
            await listening.wait_closed()

    return asyncio.run(main())


@pytest.mark.parametrize("form", ANSWERS)
def test_an_answer_is_read_whole_and_byte_by_byte(form):
    answer, body, kept = ANSWERS[form]
    # Two chunks of every length, then single bytes, all on one connection where the server keeps it.
    splits = [
        [answer],
        *([answer[:at], answer[at:]] for at in range(1, len(answer), 7)),
        [bytes([one]) for one in answer],
    ]
    server = Server(*splits)

    async def use(send):
        return [await send() for _ in splits]

    replies = run(server, use)

    assert {reply.body for reply in replies} == {body}
    assert server.connections == (1 if kept else len(splits))
    if form == "counted":
        assert {reply.headers["x-a"] for reply in replies} == {"1, 2"}


def test_an_answer_may_end_with_its_connection():
    server = Server([b"HTTP/1.1 200 OK\r\n\r\nhel", b"lo", None])

    async def use(send):
        return [(await send()).body for _ in range(2)]

    assert run(server, use) == [b"hello", b"hello"]
    assert server.connections == 2


@pytest.mark.parametrize("form", BROKEN)
def test_an_answer_that_is_none_breaks_the_call_and_the_connection_is_not_used_again(form):
    answer, reason = BROKEN[form]
    sound = ANSWERS["counted"][0]
    server = Server([answer, None], [sound])

    async def use(send):
        with pytest.raises(ConnectionError, match=reason):
            await send()
        return await send()

    assert run(server, use).body == b"hello"
    assert server.connections == 2


def test_a_kept_connection_that_closes_as_it_is_used_is_tried_once_more():
    sound = ANSWERS["counted"][0]
    server = Server([sound], [None], [sound])

    async def use(send):
        return [(await send()).body for _ in range(2)]

    assert run(server, use) == [b"hello", b"hello"]
    assert (server.connections, server.requests) == (2, 3)


def test_what_a_server_says_unasked_closes_the_connection():
    sound = ANSWERS["counted"][0]
    answered = asyncio.Event()
    server = Server([sound, answered.wait, b"HTTP/1.1 408 Too Late\r\n\r\n"], [sound])

    async def use(send):
        first = await send()
        answered.set()
        while not server.ended:
            await asyncio.sleep(0)
        return first.body, (await send()).body

    assert run(server, use) == (b"hello", b"hello")
    assert server.connections == 2


def test_a_deadline_ends_the_call_and_its_connection():
    silent = asyncio.Event()

    class Silent(Server):
        async def serve(self, reader, writer):
            self.connections += 1
            if self.connections == 1:
                await silent.wait()
                writer.close()
                return
            await super().serve(reader, writer)
            self.connections -= 1

    server = Silent([ANSWERS["counted"][0]])

    async def use(send):
        with pytest.raises(TimeoutError):
            await send(seconds=0.05)
        with pytest.raises(TimeoutError):
            await send(seconds=-1)
        reply = await send()
        silent.set()
        return reply

    assert run(server, use).body == b"hello"


def test_a_call_that_is_cancelled_takes_its_connection_along():
    late = [b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n", b"la", b"te"]
    server = Server(late, [ANSWERS["counted"][0]])

    async def use(send):
        task = asyncio.create_task(send())
        while server.requests == 0:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await send()

    assert run(server, use).body == b"hello"
    assert server.connections == 2


def test_calls_in_flight_have_a_connection_each_and_keep_it_for_the_next():
    server = Server([ANSWERS["counted"][0]])

    async def use(send):
        for _ in range(3):
            await asyncio.gather(*(send() for _ in range(8)))

    run(server, use)

    assert (server.connections, server.requests) == (8, 24)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Give the path of a certificate for localhost, signed by itself, with its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "localhost.pem"
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(secret + made.public_bytes(serialization.Encoding.PEM))
    return path


def test_a_server_of_https_is_verified_and_its_connection_kept(certificate, monkeypatch):
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(certificate)
    server = Server([ANSWERS["in chunks"][0]])

    async def use(send):
        return [(await send()).body for _ in range(3)]

    monkeypatch.setattr(connection_async, "tls_context", lambda: ssl.create_default_context(cafile=certificate))
    assert run(server, use, serving) == [b"hello"] * 3
    assert server.connections == 1
    monkeypatch.setattr(connection_async, "tls_context", ssl.create_default_context)
    with pytest.raises(ssl.SSLCertVerificationError):
        run(Server([b""]), use, serving)


def test_nothing_that_listens_is_told_with_its_place():
    async def use():
        await connection_async.connect(Origin("http", "127.0.0.1", 1), time.monotonic() + 5)

    with pytest.raises(ConnectionError, match=r"cannot connect to 127\.0\.0\.1:1: Connection refused"):
        asyncio.run(use())


@pytest.mark.parametrize("names", [["127.0.0.1"], ["127.0.0.1", "127.0.0.2"], ["127.0.0.2", "127.0.0.1"]], ids="-".join)
def test_a_connection_given_up_while_it_is_made_leaves_no_socket(names, monkeypatch):
    looked_up = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *more, **named: [at for name in names for at in looked_up(name, *more, **named)],
    )

    async def give_up(port, rounds):
        connecting = asyncio.create_task(
            connection_async.connect(Origin("http", "many.example", port), time.monotonic() + 30)
        )
        for _ in range(rounds):
            await asyncio.sleep(0)
        connecting.cancel()
        done = await asyncio.gather(connecting, return_exceptions=True)
        if isinstance(done[0], connection_async.LoopConnection):
            done[0].abort()
            await asyncio.sleep(0)
        return isinstance(done[0], asyncio.CancelledError)

    given_up = []
    with socket.create_server(("127.0.0.1", 0)) as listening, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", ResourceWarning)
        for rounds in range(20):
            given_up.append(asyncio.run(give_up(listening.getsockname()[1], rounds)))
            gc.collect()

    assert [str(warning.message) for warning in told] == []
    assert given_up[0]
    assert not given_up[-1]
