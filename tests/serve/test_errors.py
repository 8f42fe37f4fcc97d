import asyncio

import pytest
from fastapi import HTTPException

from modalloy.errors import CheckpointError, ConfigError, DataError, FeatureError, ImageError
from modalloy.serve.errors import Guarded, Refusal, refusal_of, without_folders


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("/home/me/a.png is cut off", "a.png is cut off"),
        ("at '/home/me/a.png', twice", "at 'a.png', twice"),
        ("(/a/b/c)", "(c)"),
        ("C:\\Users\\me\\a.png is cut off", "a.png is cut off"),
        ("C:/Users/me/a.png", "a.png"),
        ("\\\\server\\share\\a.png", "a.png"),
        ("file:///home/me/a.png", "a.png"),
        ("alloy:/home/me/run has none", "alloy:run has none"),
        ("this and/or that, 1/2, image/jpeg, a path/in/it", "this and/or that, 1/2, image/jpeg, a path/in/it"),
        ("give https://example.org/a/b", "give https://example.org/a/b"),
    ],
)
def test_a_message_tells_no_folder(message, told):
    assert without_folders(message) == told


def test_what_a_client_can_mend_is_told():
    for error in (ConfigError("a"), DataError("a"), ImageError("a")):
        assert refusal_of(error).status_code == 422
    for error in (CheckpointError("a"), FeatureError("a"), OSError("a"), RuntimeError("a")):
        assert refusal_of(error) is None
    assert refusal_of(HTTPException(404, "gone")).kind == "not_found"
    unlisted = refusal_of(HTTPException(499, "gone early"))
    assert (unlisted.status_code, unlisted.detail) == (499, "gone early")
    assert refusal_of(Refusal(503, "full", "busy")).kind == "busy"


@pytest.mark.parametrize(
    ("said", "logged"),
    [
        ("unable to perform operation on <TCPTransport closed=True>; the handler is closed", 0),
        ("Response content longer than Content-Length", 1),
    ],
)
def test_a_client_that_is_gone_is_no_failure(caplog, said, logged):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):
        raise RuntimeError(said)

    async def receive():
        return received.pop(0)

    received = [{"type": "http.request"}, {"type": "http.disconnect"}]
    asyncio.run(Guarded(app)({"type": "http", "method": "GET", "path": "/"}, receive, send))
    assert len(caplog.records) == logged and len(received) == 2 * logged
