"""How the service listens, and what it allows."""

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from modalloy.data.images import MAX_PIXELS
from modalloy.errors import ConfigError

_ORIGIN = re.compile(r"https?://[^/\s*?#@]+")
_COUNTS = ("k_most", "queue", "batch", "decodes", "max_upload_bytes", "max_pixels")


@dataclass(frozen=True)
class ServeConfig:
    """Where the service listens, who may ask, and how much at once.

    Raises:
        ConfigError: a value can't work.
    """

    host: str = "127.0.0.1"
    """The address to listen on. Any but this machine's own asks for an API key."""
    port: int = 8765
    """The port to listen on; 0: any that is free, which is printed."""
    api_key_file: Path | None = None
    """A file with the key that clients must send; by default it is the value of MODALLOY_API_KEY, if there is one."""
    allow_origin: tuple[str, ...] = ()
    """Other sites whose pages may ask from a browser, such as https://example.org; by default none."""
    k_most: int = 200
    """The most answers that one search may ask for."""
    queue: int = 64
    """Searches under way or waiting; one more is refused with 503 at once."""
    batch: int = 16
    """The most texts and pictures that go through the encoder together, of whatever searches ask at the same time."""
    batch_wait_ms: float = 3.0
    """How long the encoder waits for other searches that have already come in; a search alone never waits."""
    decodes: int = 4
    """How many searches may hold decoded pictures at the same time."""
    max_upload_bytes: int = 20_000_000
    """The largest request, with all its pictures."""
    max_pixels: int = MAX_PIXELS
    """The most pixels that the pictures of one request may have together."""
    timeout_s: float = 30.0
    """A search that takes longer, the upload included, is given up with 503."""
    stop_s: float = 10.0
    """When the service is told to stop, how long it lets requests finish."""
    page: bool = True
    """Whether the page for the browser is served, too."""
    insecure: bool = False
    """Listen beyond this machine without an API key, for instance behind a proxy that asks for one."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port must be from 0 to 65535, got {self.port}.")
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not 0 <= self.batch_wait_ms <= 1000:
            raise ConfigError(f"batch_wait_ms must be from 0 to 1000, got {self.batch_wait_ms}.")
        for name in ("timeout_s", "stop_s"):
            if not 0 < getattr(self, name) <= 3600:
                raise ConfigError(f"{name} must be above 0 and at most 3600, got {getattr(self, name)}.")
        for origin in self.allow_origin:
            if not _ORIGIN.fullmatch(origin):
                raise ConfigError(
                    f"allow_origin names sites one by one, such as https://example.org, without a path, got {origin!r}."
                )

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the service.

        >>> ServeConfig().loopback, ServeConfig("::1").loopback, ServeConfig("0.0.0.0").loopback
        (True, True, False)
        """
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"
