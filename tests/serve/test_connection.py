import asyncio
import socket

import pytest
import uvicorn

from modalloy.serve import connection
from modalloy.serve.connection import MAX_HEAD_BYTES, Connection

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST / HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
LARGE = b"a" * MAX_HEAD_BYTES


async def answer(scope, receive, send):
    """Answers with the size of the body that came."""
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    said = str(size).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(said))]})
    await send({"type": "http.response.body", "body": said})


def sent(*parts, pause=0.0):
    """All that a server said to parts sent one after the other, until it or the client hung up."""

    async def ask():
        with socket.create_server(("127.0.0.1", 0)) as bound:
            config = uvicorn.Config(answer, http=Connection, lifespan="off", log_config=None, timeout_keep_alive=60)
            server = uvicorn.Server(config)
            running = asyncio.create_task(server.serve([bound]))
            reader, writer = await asyncio.open_connection(*bound.getsockname())
            try:
                for part in parts:
                    writer.write(part)
                    await writer.drain()
                    await asyncio.sleep(pause)
                said = await asyncio.wait_for(reader.read(), 20)
            except (BrokenPipeError, ConnectionResetError):
                said = b"reset"
            finally:
                writer.close()
                server.should_exit = True
                await running
            return said

    return asyncio.run(ask())


@pytest.mark.parametrize(
    "start",
    [
        GET + b"x: ",
        GET + b"x: 1\r\n" * 20_000,
        b"GET /",
        CHUNKED + b"0\r\nx: ",
        CHUNKED + b"1;",
        GET + b"Connection: upgrade\r\nUpgrade: x\r\n\r\n",
    ],
    ids=["one header", "many headers", "the path", "trailers", "an extension of a chunk", "what follows an upgrade"],
)
def test_a_head_without_end_is_not_kept(start):
    said = sent(start, *[LARGE] * 30, pause=0.001)
    assert said == b"reset" or b" 400 " in said


def test_bodies_may_be_larger_than_heads():
    length = b"Content-Length: %d\r\n" % (5 * len(LARGE))
    pieces = [b"%x\r\n%s\r\n" % (len(LARGE), LARGE)] * 3
    said = sent(
        POST + length + b"\r\n", *[LARGE] * 5, CHUNKED, *pieces, b"0\r\n\r\n", GET + b"Connection: close\r\n\r\n"
    )
    assert said.count(b"HTTP/1.1 200") == 3
    assert str(5 * len(LARGE)).encode() in said and str(3 * len(LARGE)).encode() in said


@pytest.mark.parametrize("parts", [(b"",), (b"GET /",), (GET + b"\r\n",), (GET + b"\r\n", b"GET ")])
def test_a_connection_without_a_request_is_not_kept(monkeypatch, parts):
    monkeypatch.setattr(connection, "HEAD_S", 0.1)
    assert sent(*parts).count(b"HTTP/1.1 200") == parts[0].count(b"\r\n\r\n")


def test_a_request_that_takes_its_time_is_answered(monkeypatch):
    monkeypatch.setattr(connection, "HEAD_S", 0.05)
    start = POST + b"Content-Length: 4\r\n\r\n"
    assert sent(start, b"a", b"b", b"c", b"d", pause=0.03).endswith(b"\r\n\r\n4")
