"""The page's files: read once when the service starts, so that no request ever names a path."""

import hashlib
import mimetypes
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import Response

from modalloy.serve.errors import Refusal
from modalloy.serve.etag import is_known

PAGE = Path(__file__).parent / "page"
"""Where they are."""
INDEX = "index.html"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
}


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    media_type: str
    etag: str

    @classmethod
    def read(cls, path: Path) -> "_File":
        content = path.read_bytes()
        kind = _TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        return cls(content, kind, f'"{hashlib.sha256(content).hexdigest()[:32]}"')

    def answer(self, request: Request) -> Response:
        headers = {"ETag": self.etag, "Cache-Control": "no-cache"}
        if is_known(request, self.etag):
            return Response(status_code=304, headers=headers)
        return Response(self.content, media_type=self.media_type, headers=headers)


def page_router(folder: Path) -> APIRouter:
    """The routes of the page: / and /static/NAME.

    Args:
        folder: its files; those in folders of it aren't served.
    """
    files = {path.name: _File.read(path) for path in sorted(folder.glob("*")) if path.is_file()}
    router = APIRouter(include_in_schema=False)

    def answer(name: str, request: Request) -> Response:
        if name not in files:
            raise Refusal(404, "the page has no such file.")
        return files[name].answer(request)

    @router.get("/")
    async def page(request: Request) -> Response:
        return answer(INDEX, request)

    @router.get("/static/{name}")
    async def file(name: str, request: Request) -> Response:
        return answer(name, request)

    return router
