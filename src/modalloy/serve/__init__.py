"""The service: searches over HTTP, and a page in the browser."""

from modalloy.serve.app import create_app
from modalloy.serve.config import ServeConfig
from modalloy.serve.server import serve

__all__ = ["ServeConfig", "create_app", "serve"]
