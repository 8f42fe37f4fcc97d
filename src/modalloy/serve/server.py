"""Runs the service until it is told to stop."""

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType

import uvicorn

from modalloy.index import open_index
from modalloy.progress import waiting
from modalloy.search import Searcher
from modalloy.search.searcher import find_index
from modalloy.serve.app import create_app
from modalloy.serve.auth import api_key
from modalloy.serve.config import ServeConfig
from modalloy.serve.connection import Connection
from modalloy.serve.service import Service

_log = logging.getLogger(__name__)


def serve(location: str, config: ServeConfig) -> str:
    """Serves an index until SIGTERM or SIGINT, then finishes the requests under way; returns where it did.

    What can't work is found before the encoder is loaded, the index first, and the port opens after that.

    Args:
        location: the index, or the run or alloy that holds one.
        config: where to listen, who may ask, and how much at once.

    Raises:
        CheckpointError: there is no index, it is damaged, or was made by another encoder.
        ConfigError: others can reach the service and there is no API key, or the key can't be read.
        OSError: the port is taken, or the address isn't this machine's.
    """
    index = open_index(find_index(location))
    api_key(config)
    with _bound(config.host, config.port) as bound:
        with waiting(f"loading the encoder of {location}"):
            app = create_app(Searcher(index), config)
        name = f"[{config.host}]" if ":" in config.host else config.host
        address = f"http://{name}:{bound.getsockname()[1]}"
        service: Service = app.state.service
        server = _Server(uvicorn_settings(app, config), service, address)
        server.run(sockets=[bound])
    if not service.close(config.stop_s):
        _log.warning("a search didn't end within %g s; it is given up", config.stop_s)
        # Python would wait for its thread.
        logging.shutdown()
        os._exit(0)
    return address


class _Server(uvicorn.Server):
    """Uvicorn, except that a stop by a signal is a success, and says where it listens when it does."""

    def __init__(self, config: uvicorn.Config, service: Service, address: str) -> None:
        super().__init__(config)
        self._service, self._address = service, address

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            _log.info("listening on %s", self._address)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Before the port closes, so that nothing more is sent here.
        self._service.ready = False
        super().handle_exit(sig, frame)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {sig: signal.signal(sig, self.handle_exit) for sig in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            # Uvicorn would raise the signal again, and so end the process by it.
            for sig, handler in before.items():
                signal.signal(sig, handler)


def uvicorn_settings(app: object, config: ServeConfig) -> uvicorn.Config:
    """How uvicorn runs the service; `benchmarks/service.py` measures the same."""
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        http=Connection,
        lifespan="on",
        ws="none",
        # What a client says of its address isn't believed.
        proxy_headers=False,
        server_header=False,
        access_log=False,
        log_config=None,
        log_level=logging.WARNING,
        timeout_graceful_shutdown=max(1, round(config.stop_s)),
    )


def _bound(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    bound = socket.socket(family, kind, protocol)
    try:
        if os.name != "nt":
            # So that a service can be started again at once.
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise OSError(f"can't listen on {host} port {port}: {error.strerror}; choose another by --port.") from None
    return bound
