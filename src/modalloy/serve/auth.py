"""Who may ask: one key, compared in constant time."""

import hashlib
import hmac
import os
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from modalloy.errors import ConfigError
from modalloy.serve.config import ServeConfig
from modalloy.serve.errors import Refusal, error_response

ENVIRONMENT_VARIABLE = "MODALLOY_API_KEY"
"""Where the key is looked for if no file is named."""


def api_key(config: ServeConfig) -> str | None:
    """The key that clients must send, if one is set.

    Raises:
        ConfigError: the file can't be read or holds no key, or others can reach the service and there is none.
    """
    key = os.environ.get(ENVIRONMENT_VARIABLE, "").strip()
    if config.api_key_file is not None:
        try:
            key = config.api_key_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the API key's file {config.api_key_file} can't be read ({error}).") from None
        if not key:
            raise ConfigError(f"{config.api_key_file} is empty; write the API key into it, on one line.")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError("the API key must be one word of printable ASCII letters, so that a header can hold it.")
    if not key and not config.loopback and not config.insecure:
        raise ConfigError(
            f"others can reach {config.host}, so an API key is needed: name a file by --api-key-file, set "
            f"{ENVIRONMENT_VARIABLE}, or give --insecure if something else keeps them out."
        )
    return key or None


class KeyCheck:
    """Answers 401 to requests without the key, except those that are open.

    Args:
        app: what only those with the key may reach.
        key: what they must send, as "Authorization: Bearer KEY" or "X-API-Key: KEY".
        is_open: whether a path may be reached without.
    """

    def __init__(self, app: ASGIApp, key: str, is_open: Callable[[str], bool]) -> None:
        self.app, self.is_open = app, is_open
        # Digests have one length, which the time of a comparison would tell otherwise.
        self._digest = _digest(key)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "http" and not self.is_open(scope["path"]) and not self._allows(Headers(scope=scope)):
            sentence = "the API key is missing or wrong; send it as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'."
            refusal = Refusal(401, sentence, headers={"WWW-Authenticate": "Bearer"})
            return await error_response(refusal)(scope, receive, send)
        await self.app(scope, receive, send)

    def _allows(self, headers: Headers) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        sent = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        return hmac.compare_digest(_digest(sent), self._digest)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
