"""The service as an ASGI application."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from modalloy.search import Searcher
from modalloy.serve import static
from modalloy.serve.auth import KeyCheck, api_key
from modalloy.serve.config import ServeConfig
from modalloy.serve.errors import OPENAPI, Guarded, add_error_handlers
from modalloy.serve.headers import SecurityHeaders
from modalloy.serve.health import HEALTH, health_router
from modalloy.serve.hosts import LOOPBACK_NAMES, HostCheck
from modalloy.serve.limits import BodyLimit
from modalloy.serve.metrics import Measured
from modalloy.serve.routes import api_router
from modalloy.serve.service import Service
from modalloy.serve.sites import SiteCheck

DEFAULT = ServeConfig()


def create_app(searcher: Searcher, config: ServeConfig = DEFAULT) -> FastAPI:
    """The service over an index, for any ASGI server; its `state.service` is the `Service`.

    Args:
        searcher: what answers, loaded.
        config: who may ask, and how much at once.

    Raises:
        ConfigError: others can reach it and there is no API key, or the key can't be read.
    """
    service = Service(searcher, config)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = FastAPI(
        title="modalloy",
        description="Searches pictures and captions by words and by pictures.",
        version=version("modalloy"),
        lifespan=lifespan,
        middleware=_middleware(service, api_key(config)),
        openapi_url=OPENAPI,
        # Their pages load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    add_error_handlers(app)
    app.include_router(api_router(service))
    app.include_router(health_router(service))
    if config.page:
        app.include_router(static.page_router(static.PAGE))
    return app


def _middleware(service: Service, key: str | None) -> list[Middleware]:
    """What a request goes through, in this order."""
    config = service.config
    layers = [Middleware(Measured, metrics=service.metrics), Middleware(SecurityHeaders), Middleware(Guarded)]
    if config.loopback:
        layers.append(Middleware(HostCheck, names=(*LOOPBACK_NAMES, config.host)))
    if config.allow_origin:
        layers.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(config.allow_origin),
                allow_methods=["GET", "POST"],
                allow_headers=["Authorization", "X-API-Key", "Content-Type"],
                expose_headers=["Retry-After", "Server-Timing"],
            )
        )
    layers.append(Middleware(SiteCheck, allowed=config.allow_origin))
    if key is not None:
        layers.append(Middleware(KeyCheck, key=key, is_open=_is_open))
    return [*layers, Middleware(BodyLimit, most=config.max_upload_bytes)]


def _is_open(path: str) -> bool:
    # The page holds nothing of the index; it asks for the key itself.
    return path == "/" or path.startswith(("/static/", HEALTH))
