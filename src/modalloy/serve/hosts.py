"""Names by which the service may be asked: a page of another site whose name leads here mustn't read answers."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from modalloy.serve.errors import Refusal, error_response

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
"""What this machine is called by its own browsers."""


class HostCheck:
    """Answers 400 to requests by any other name.

    Without it, a site that makes its own name lead to 127.0.0.1 (DNS rebinding) could read everything here.

    Args:
        app: what is asked.
        names: the names, in small letters, without ports; an IPv6 address in brackets.
    """

    def __init__(self, app: ASGIApp, names: tuple[str, ...]) -> None:
        self.app, self.names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "http" and host_name(Headers(scope=scope).get("host", "")) not in self.names:
            refusal = Refusal(400, f"the service is asked as {', '.join(self.names)}; use one of these.", "bad_host")
            return await error_response(refusal)(scope, receive, send)
        await self.app(scope, receive, send)


def host_name(header: str) -> str:
    """The name in a Host header.

    >>> host_name("LocalHost:8765"), host_name("[::1]:80"), host_name("[::1]"), host_name("a.example")
    ('localhost', '[::1]', '[::1]', 'a.example')
    """
    name = header.strip().lower()
    return name.partition("]")[0] + "]" if name.startswith("[") and "]" in name else name.partition(":")[0]
