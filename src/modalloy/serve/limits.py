"""The size of requests, kept while they come in: whatever a header says, no more than the limit is ever read."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modalloy.serve.errors import Refusal, error_response

MAX_JSON_BYTES = 1_000_000
"""The largest request that isn't an upload."""


class BodyLimit:
    """Refuses a request with a larger body with 413, by its header or as soon as that much has come in.

    Args:
        app: what reads the body.
        most: bytes of an upload (multipart/form-data).
        most_json: bytes of any other request.
    """

    def __init__(self, app: ASGIApp, most: int, most_json: int = MAX_JSON_BYTES) -> None:
        self.app, self.most, self.most_json = app, most, min(most, most_json)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        # The first of several headers counts here as everywhere.
        headers = Headers(scope=scope)
        upload = headers.get("content-type", "").lower().startswith("multipart/form-data")
        limit = self.most if upload else self.most_json
        refusal = Refusal(413, f"the request is larger than {limit:,} bytes; send less.")
        declared = headers.get("content-length", "0")
        if not (declared.isascii() and declared.isdigit()):
            return await error_response(Refusal(400, "the Content-Length isn't a number."))(scope, receive, send)
        # Python refuses to read a number of thousands of digits.
        if int(declared[:20]) > limit:
            return await error_response(refusal)(scope, receive, send)
        read = 0

        async def limited() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > limit:
                raise refusal
            return message

        await self.app(scope, limited, send)
