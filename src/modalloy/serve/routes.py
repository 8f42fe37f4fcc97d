"""The HTTP interface, version 1."""

import hashlib
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request, Response

from modalloy.data.item import check_id
from modalloy.errors import DataError
from modalloy.index import Snapshot
from modalloy.index.picture_files import PictureFiles
from modalloy.index.schema import metadata_columns, metadata_of
from modalloy.serve.errors import Refusal
from modalloy.serve.etag import is_known
from modalloy.serve.headers import PICTURE_POLICY
from modalloy.serve.models import (
    ErrorAnswer,
    IndexAnswer,
    ItemAnswer,
    SearchAnswer,
    SearchBody,
    WordsAnswer,
    WordsBody,
)
from modalloy.serve.pictures import COLUMNS, OriginalResponse
from modalloy.serve.service import Service
from modalloy.serve.uploads import FORM, JSON, read_json, read_question

_FACTS = ("captions", "width", "height", "split", "source")


def api_router(service: Service) -> APIRouter:
    """The routes under /v1.

    Args:
        service: what answers.
    """
    said: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorAnswer} for status in (400, 401, 404, 413, 415, 422, 503)
    }
    router = APIRouter(prefix="/v1", responses=said)
    _add_questions(router, service)
    _add_pictures(router, service)
    return router


def _add_questions(router: APIRouter, service: Service) -> None:
    @router.get("/index", summary="What there is to search")
    async def index() -> IndexAnswer:
        return service.facts

    @router.post(
        "/search",
        summary="Search by words, pictures and items",
        response_model=SearchAnswer,
        openapi_extra=_body(SearchBody, form=True),
    )
    async def search(request: Request) -> Response:
        async with service.admitted(), read_question(request) as asked:
            answer = await service.search(asked)
        took = answer.milliseconds
        timing = ", ".join(f"{step};dur={took[step]:.2f}" for step in took)
        # Written at once: FastAPI would take the answer apart, check it again and write it by slower means.
        said = SearchAnswer.model_validate(answer).model_dump_json()
        return Response(said, media_type=JSON, headers={"Server-Timing": timing})

    @router.post("/words", summary="Find words in a picture", openapi_extra=_body(WordsBody))
    async def words(request: Request) -> WordsAnswer:
        async with service.admitted():
            return await service.words(await read_json(request, WordsBody))


def _add_pictures(router: APIRouter, service: Service) -> None:
    # Not asynchronous, so that they run in threads: they read the index and files.
    @router.get("/item", summary="What the index knows of a picture")
    def item(id: str) -> ItemAnswer:
        snapshot = service.searcher.snapshot
        fields = snapshot.metadata
        row = _row(snapshot, id, (*_FACTS, *metadata_columns(fields)))
        return ItemAnswer(
            id=row["id"],
            captions=row["captions"] or [],
            metadata={**metadata_of(row, fields)},
            **{name: row[name] for name in _FACTS[1:]},
        )

    @router.get("/thumbnail", summary="A small JPEG of a picture", response_class=Response)
    def thumbnail(id: str, request: Request) -> Response:
        row = _row(service.searcher.snapshot, id, ("thumbnail",))
        if not row["thumbnail"]:
            raise Refusal(404, f"there is no thumbnail of {row['id']!r}.")
        # A picture may be replaced under its id; the tag is asked about again after some minutes.
        headers = _picture_headers(f'"{hashlib.sha256(row["thumbnail"]).hexdigest()}"', "private, max-age=300")
        if is_known(request, headers["ETag"]):
            return Response(status_code=304, headers=headers)
        return Response(row["thumbnail"], media_type="image/jpeg", headers=headers)

    @router.get("/picture", summary="A picture's original", response_class=Response)
    def picture(id: str, request: Request) -> Response:
        snapshot = service.searcher.snapshot
        files = PictureFiles(snapshot.head.sources)
        original = service.originals.open(_row(snapshot, id, COLUMNS), files)
        headers = _picture_headers(original.etag, "private, no-cache")
        if is_known(request, original.etag):
            original.file.close()
            return Response(status_code=304, headers=headers)
        return OriginalResponse(original, headers)


def _row(snapshot: Snapshot, id: str, columns: tuple[str, ...]) -> Mapping[str, Any]:
    """A picture's row, by its id or that of one of its captions."""
    id = id.partition("#")[0]
    try:
        check_id(id)
    except DataError:
        raise Refusal(404, "there is no such picture: it isn't an id.") from None
    rows = snapshot.rows([id], list(dict.fromkeys(["id", *columns]))).to_pylist()
    if not rows:
        raise Refusal(404, f"there is no picture {id[:200]!r} in the index.")
    return rows[0]


def _picture_headers(etag: str, caching: str) -> dict[str, str]:
    return {"ETag": etag, "Cache-Control": caching, "Content-Security-Policy": PICTURE_POLICY}


def _body(model: type[SearchBody] | type[WordsBody], form: bool = False) -> dict[str, Any]:
    """How OpenAPI describes a body that the service reads itself."""
    schema = model.model_json_schema()
    content: dict[str, Any] = {JSON: {"schema": _inlined(schema, schema.pop("$defs", {}))}}
    if form:
        files = {"type": "array", "items": {"type": "string", "format": "binary"}}
        fields = {"query": {"type": "string", "description": f"{model.__name__} as JSON"}, "pictures": files}
        content[FORM] = {"schema": {"type": "object", "properties": fields, "required": ["query", "pictures"]}}
    return {"requestBody": {"required": True, "content": content}}


def _inlined(schema: Any, definitions: Mapping[str, Any]) -> Any:
    """A schema without references, which would be looked for in the whole document."""
    if isinstance(schema, list):
        return [_inlined(each, definitions) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {key: _inlined(value, definitions) for key, value in schema.items()}
