import asyncio
import json
import math

import pytest
from fastapi import HTTPException
from pydantic import ValidationError

from modalloy.errors import CheckpointError, ConfigError, DataError, FeatureError, ImageError
from modalloy.serve.errors import Guarded, Refusal, refusal_of, without_folders
from modalloy.serve.models import SearchBody

PART = {"text": "a"}
CONDITION = {"field": "id", "comparison": "=", "value": 1}


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


A_VALUE = "where.0.value: expected a text, a finite number, true or false, or a list of at most 1000 of these, got "


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"parts": []}, "parts: expected a length of at least 1, got 0."),
        ({"parts": [PART] * 17}, "parts: expected a length of at most 16, got 17."),
        ({"parts": {}}, "parts: expected a list, got {}."),
        ({"parts": [3]}, "parts.0: expected an object, got 3."),
        ({"parts": [PART, {}]}, "parts.1: expected exactly one of text, like and upload, got {}."),
        ({"parts": [{"text": ""}]}, "parts.0.text: expected a length of at least 1, got 0."),
        ({"parts": [{"text": "a" * 2001}]}, "parts.0.text: expected a length of at most 2000, got 2001."),
        ({"parts": [{"text": ["\u96ea"]}]}, 'parts.0.text: expected a text, got ["\u96ea"].'),
        ({"parts": [PART | {"weight": -101}]}, "parts.0.weight: expected at least -100.0, got -101."),
        ({"parts": [PART | {"weight": 101}]}, "parts.0.weight: expected at most 100.0, got 101."),
        ({"parts": [PART | {"weight": "x"}]}, 'parts.0.weight: expected a number, got "x".'),
        ({"parts": [PART | {"weight": None}]}, "parts.0.weight: expected a number, got null."),
        ({"parts": [PART | {"weight": math.inf}]}, "parts.0.weight: expected a finite number, got Infinity."),
        ({"k": 0}, "k: expected at least 1, got 0."),
        ({"k": 2.5}, "k: expected a whole number, got 2.5."),
        ({"k": "x" * 200}, f'k: expected a whole number, got "{"x" * 99}....'),
        ({"k": "9" * 5000}, f'k: expected a whole number, got "{"9" * 99}....'),
        ({"k": []}, "k: expected a whole number, got []."),
        ({"target": "sound"}, "target: expected 'image' or 'text', got \"sound\"."),
        ({"explain": "perhaps"}, 'explain: expected true or false, got "perhaps".'),
        ({"explain": {}}, "explain: expected true or false, got {}."),
        ({"where": [{"field": "id", "value": 1}]}, "where.0.comparison: expected a value, got none."),
        *(
            ({"where": [CONDITION | {"value": value}]}, f"{A_VALUE}{json.dumps(value)}.")
            for value in ({}, None, [1, []])
        ),
        ({"colour": 1}, "colour: there is no such field."),
    ],
)
def test_a_malformed_question_is_told_its_field_what_was_expected_and_what_came(change, told):
    with pytest.raises(ValidationError) as caught:
        SearchBody.model_validate_json(json.dumps({"parts": [PART], **change}))
    refusal = refusal_of(caught.value)
    assert (refusal.status_code, refusal.kind, refusal.detail) == (422, "invalid", told)


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        ("[]", 422, "the request: expected an object, got []."),
        ("\ud800", 422, r'the request: expected a text in Unicode, got "\ud800".'),
        ("{", 400, "the request isn't JSON: EOF while parsing an object at line 1 column 1."),
    ],
)
def test_a_body_that_is_no_question_is_told_what_was_expected(body, status, told):
    with pytest.raises(ValidationError) as caught:
        SearchBody.model_validate_json(body)
    assert (refusal_of(caught.value).status_code, refusal_of(caught.value).detail) == (status, told)


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
