"""How the service says no: every error is {"error": {"kind", "message"}}, without traces or this machine's paths."""

import json
import logging
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modalloy.errors import ConfigError, DataError, ModalloyError

OPENAPI = "/v1/openapi.json"
"""Where the interface is described."""

_log = logging.getLogger(__name__)
_GONE = "the handler is closed"
"""What uvloop says where a client is gone in the middle of an answer."""

_KINDS = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "bad_method",
    413: "too_large",
    415: "bad_media_type",
    422: "invalid",
    429: "too_many",
    503: "busy",
}
# What the checks of `modalloy.serve.models` expect, by the names that Pydantic gives to what is wrong.
_LENGTHS = {
    "string_too_short": "a length of at least {min_length}",
    "string_too_long": "a length of at most {max_length}",
    "too_short": "a length of at least {min_length}",
    "too_long": "a length of at most {max_length}",
}
_EXPECTED = _LENGTHS | {
    "missing": "a value",
    "value_error": "{error}",
    "literal_error": "{expected}",
    "model_type": "an object",
    "list_type": "a list",
    "string_type": "a text",
    "string_unicode": "a text in Unicode",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
}
_SHOWN = 100
"""Letters of what a client sent, in an error."""
# A path from the root, on POSIX or Windows, up to its last folder.
_FOLDERS = re.compile(r"(?<![\w./])(?:file:/{2,3}|/|[A-Za-z]:[\\/]|\\\\)(?:[^\s/\\'\"]+[/\\])+")


class Refusal(HTTPException):
    """A request that isn't answered, with its status and one clear sentence.

    Args:
        status: the HTTP status.
        message: what is wrong and how to mend it.
        kind: a word for programs; by default the status's.
        headers: further headers.
    """

    def __init__(
        self, status: int, message: str, kind: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status, message, dict(headers) if headers else None)
        self.kind = kind or _KINDS.get(status, "error")


def error_response(refusal: Refusal) -> JSONResponse:
    """The answer that says why there is none."""
    content = {"error": {"kind": refusal.kind, "message": refusal.detail}}
    return JSONResponse(content, refusal.status_code, refusal.headers)


def refusal_of(error: Exception) -> Refusal | None:
    """What a client is told of an error; None where it is none of the client's making.

    >>> refusal_of(ConfigError("k must be at least 1, got 0.")).status_code
    422
    """
    if isinstance(error, Refusal):
        return error
    if isinstance(error, HTTPException):
        return Refusal(error.status_code, _sentence(error), headers=error.headers)
    if isinstance(error, (ValidationError, RequestValidationError)):
        return _refusal_of_validation(error)
    # What a question or a picture is refused for; a damaged index or model is nothing that a client can mend.
    if isinstance(error, (ConfigError, DataError)):
        return Refusal(422, without_folders(str(error)))
    return None


def without_folders(message: str) -> str:
    """A message in which paths from the root are only their last part.

    >>> without_folders("/home/me/pictures/cat.jpg is cut off; it has and/or text")
    'cat.jpg is cut off; it has and/or text'
    """
    return _FOLDERS.sub("", message)


def add_error_handlers(app: FastAPI) -> None:
    """Makes the app answer its errors in the service's form."""

    async def answer(_: Request, error: Exception) -> JSONResponse:
        refusal = refusal_of(error)
        if refusal is None:
            raise error
        return error_response(refusal)

    for kind in (HTTPException, RequestValidationError, ValidationError, ModalloyError):
        app.add_exception_handler(kind, answer)


class Guarded:
    """Answers an error that nobody foresaw with 500 and a sentence; the trace goes to the log.

    Args:
        app: what may fail.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except ClientDisconnect:
            return
        except Exception as error:
            if scope["type"] != "http":
                raise
            if isinstance(error, RuntimeError) and _GONE in str(error):
                # Uvicorn, which learns it a little later, would take the end of the answer for a mistake.
                while (await receive())["type"] != "http.disconnect":
                    pass
                return
            _log.exception("%s %s failed", scope["method"], scope["path"])
            if not started:
                sentence = "the service failed to answer; its log says why."
                await error_response(Refusal(500, sentence, "internal"))(scope, receive, send)


def _sentence(error: HTTPException) -> str:
    """What the framework's own errors, which are only named, tell a client."""
    # In this order, as a status needn't be one of `HTTPStatus`.
    if error.status_code not in (404, 405) or error.detail != HTTPStatus(error.status_code).phrase:
        return str(error.detail)
    methods = (error.headers or {}).get("Allow", "another method")
    wrong = "there is nothing at this address" if error.status_code == 404 else f"this address takes {methods} alone"
    return f"{wrong}; the interface is described at {OPENAPI}."


def _refusal_of_validation(error: ValidationError | RequestValidationError) -> Refusal:
    first = error.errors()[0]
    kind, given, known = first["type"], first["input"], first.get("ctx", {})
    if kind == "json_invalid":
        return Refusal(400, f"the request isn't JSON: {known['error']}.", "bad_json")
    place = ".".join(str(part) for part in first["loc"] if part not in ("query", "body"))[:200] or "the request"
    if kind == "extra_forbidden":
        return Refusal(422, f"{place}: there is no such field.")
    expected = _EXPECTED[kind].format(**known) if kind in _EXPECTED else first["msg"]
    got = "none" if kind == "missing" else len(given) if kind in _LENGTHS else _shown(given)
    return Refusal(422, f"{place}: expected {expected}, got {got}.")


def _shown(given: Any) -> str:
    """What a client sent, as it wrote it, cut off where it is long."""
    # A form that names a strange charset can hold halves of letters, which can't be sent back as they are.
    text = json.dumps(given, ensure_ascii=False, default=repr).encode(errors="backslashreplace").decode()
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
