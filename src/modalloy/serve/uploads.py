"""Reads questions: JSON, or a form with JSON and pictures, of which nothing but pixels is kept."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple, TypeVar

from PIL import Image
from pydantic import BaseModel
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request

from modalloy.data.images import OpenFile, decode_image
from modalloy.errors import ImageError
from modalloy.search import Part, Query
from modalloy.serve.errors import Refusal
from modalloy.serve.limits import MAX_JSON_BYTES
from modalloy.serve.models import SearchBody

MAX_PICTURES = 8
"""Pictures in one question."""
MAX_NAME = 100
"""Letters of a file's name in an error."""
JSON, FORM = "application/json", "multipart/form-data"

_Body = TypeVar("_Body", bound=BaseModel)


class Upload(NamedTuple):
    """A picture's file, not yet looked at."""

    name: str
    """What errors call it."""
    file: OpenFile


class Asked(NamedTuple):
    """A question as it came in."""

    body: SearchBody
    uploads: Sequence[Upload]

    def query(self, pictures: Sequence[Image.Image]) -> Query:
        """The question, with its files decoded."""
        body = self.body
        parts = tuple(
            Part(part.text, None if part.upload is None else pictures[part.upload], part.like, part.weight)
            for part in body.parts
        )
        where = tuple(condition.condition() for condition in body.where)
        return Query(parts, body.target, body.k, where, body.rerank, explain=body.explain, exact=body.exact, by=body.by)


async def read_json(request: Request, model: type[_Body]) -> _Body:
    """The request's body, which must be JSON.

    Raises:
        Refusal: it is of another type.
        ValidationError: it isn't JSON, or not what the model says.
    """
    _require(request, JSON)
    return model.model_validate_json(await request.body())


@asynccontextmanager
async def read_question(request: Request) -> AsyncIterator[Asked]:
    """The question in a request's body; its files are closed at the end.

    Raises:
        Refusal: the request is of another type, has too many parts, or its parts don't belong together.
        ValidationError: the question isn't one.
    """
    if _require(request, JSON, FORM) == JSON:
        yield _matched(await read_json(request, SearchBody), [])
        return
    try:
        form = await request.form(max_files=MAX_PICTURES, max_fields=1, max_part_size=MAX_JSON_BYTES)
    # A form may name any charset that Python has.
    except UnicodeError:
        raise Refusal(400, "the form can't be read by the charset that it names; leave it out.") from None
    try:
        yield _matched(*_parts_of(form))
    finally:
        await form.close()


def decode_uploads(uploads: Sequence[Upload], max_pixels: int) -> list[Image.Image]:
    """Decodes pictures that have at most so many pixels together.

    Raises:
        Refusal: they have more, or one isn't a picture.
    """
    pictures: list[Image.Image] = []
    for name, file in uploads:
        try:
            left = max_pixels - sum(picture.width * picture.height for picture in pictures)
            pictures.append(decode_image(file, name, left))
        except ImageError as error:
            raise Refusal(422, str(error), "bad_picture") from error
    return pictures


def _require(request: Request, *allowed: str) -> str:
    sent = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    # Forms and plain text can be sent from other sites' pages without being asked for.
    if sent not in allowed:
        raise Refusal(415, f"the request must be {' or '.join(allowed)}, got {sent[:100] or 'no type'!r}.")
    return sent


def _parts_of(form: FormData) -> tuple[SearchBody, list[Upload]]:
    query = form.get("query")
    files = [part for name, part in form.multi_items() if name == "pictures" and isinstance(part, UploadFile)]
    if not isinstance(query, str) or len(files) + 1 != len(form.multi_items()):
        raise Refusal(422, "a form has one field 'query' with the question as JSON, and files 'pictures'.")
    uploads = [Upload(_name(number, part.filename or ""), part.file) for number, part in enumerate(files)]
    return SearchBody.model_validate_json(query), uploads


def _name(number: int, sent: str) -> str:
    """What a client calls its file, without folders and what can't be seen; by its number if nothing is left."""
    last = sent.replace("\\", "/").rpartition("/")[2]
    name = "".join(letter for letter in last if letter.isprintable()).strip()[:MAX_NAME]
    return f"the file {name}" if name else f"upload {number}"


def _matched(body: SearchBody, uploads: Sequence[Upload]) -> Asked:
    used = {part.upload for part in body.parts if part.upload is not None}
    if used != set(range(len(uploads))):
        raise Refusal(
            422,
            f"the parts use the uploads {sorted(used)}, but {len(uploads)} came with the question; "
            'the n-th of the files "pictures" is {"upload": n}, from 0.',
        )
    return Asked(body, uploads)
