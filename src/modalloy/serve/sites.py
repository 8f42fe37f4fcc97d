"""Which sites' pages may ask: browsers let any page send a form anywhere, though it can't read the answer."""

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from modalloy.serve.errors import Refusal, error_response

_ELSEWHERE = ("cross-site", "same-site")


class SiteCheck:
    """Answers 403 to questions of other sites' pages, so that nobody's visitors keep the encoder busy.

    Browsers say so themselves, behind a proxy too, and no page can make them say otherwise. Links from elsewhere work.

    Args:
        app: what is asked.
        allowed: the origins that may ask all the same.
    """

    def __init__(self, app: ASGIApp, allowed: Sequence[str]) -> None:
        self.app, self.allowed = app, allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "http" and scope["method"] == "POST" and self._refuses(Headers(scope=scope)):
            refusal = Refusal(403, "pages of other sites may not ask; the service can name theirs by --allow-origin.")
            return await error_response(refusal)(scope, receive, send)
        await self.app(scope, receive, send)

    def _refuses(self, headers: Headers) -> bool:
        return headers.get("sec-fetch-site") in _ELSEWHERE and headers.get("origin") not in self.allowed
