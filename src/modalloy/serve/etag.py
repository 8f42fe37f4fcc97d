"""Whether a browser has an answer already."""

from starlette.requests import Request


def is_known(request: Request, etag: str) -> bool:
    """Whether the request says that it has what the tag stands for."""
    known = request.headers.get("if-none-match", "")
    return known.strip() == "*" or etag in (tag.strip().removeprefix("W/") for tag in known.split(","))
