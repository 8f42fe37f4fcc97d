"""One client's connection: ended where the head of a request is too large, or doesn't come."""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 65_536
"""The largest head of a request, give or take one read of the network."""
HEAD_S = 20.0
"""How long a connection is kept on which no request is under way, whatever else is sent."""


class Connection(HttpToolsProtocol):
    """Uvicorn's connection, bounded before anybody is asked for a key.

    httptools keeps heads, trailers and single headers of any size, and uvicorn waits for their end for ever.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self._unfinished = 0
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._waiting.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        # Back at 0 with each head and each piece of a body that is complete.
        self._unfinished += len(data)
        super().data_received(data)
        if self._unfinished > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(f"The request's head is larger than {MAX_HEAD_BYTES:,} bytes.")

    def on_headers_complete(self) -> None:
        """See `httptools`."""
        self._unfinished = 0
        self._waiting.cancel()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """See `httptools`."""
        self._unfinished = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """See `httptools`."""
        self._unfinished = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """See uvicorn."""
        super().on_response_complete()
        self._waiting.cancel()
        self._wait()

    def _wait(self) -> None:
        self._waiting = self.loop.call_later(HEAD_S, self._give_up)

    def _give_up(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
