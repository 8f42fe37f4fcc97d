"""docs/http.md: its JSON is what the service takes and gives, and its Python runs against one."""

import json
import re

import httpx
import pytest
from doc_examples import DOCS, blocks, commands, prose
from index.memory_index import MemoryIndex
from serve.service_toys import LOCAL, Reader, picture_bytes, rows_of
from starlette.testclient import TestClient

from modalloy.index import Head, Source
from modalloy.search import Searcher
from modalloy.serve import ServeConfig, create_app, models

PAGE = DOCS / "http.md"
ADDRESS = "http://127.0.0.1:8765"
BODIES = {"/v1/search": models.SearchBody, "/v1/words": models.WordsBody}
ANSWERS = {
    "POST /v1/search": models.SearchAnswer,
    "POST /v1/words": models.WordsAnswer,
    "GET /v1/index": models.IndexAnswer,
    "GET /v1/item": models.ItemAnswer,
    "error": models.ErrorAnswer,
}


@pytest.fixture
def searcher(tmp_path, monkeypatch):
    """A few pictures, and the folder that they are in as the present one."""
    monkeypatch.chdir(tmp_path)
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(picture_bytes(number))
    (tmp_path / "picture.png").write_bytes(picture_bytes(9))
    encoder, root = Reader(), str(tmp_path)
    sides = {modality: encoder.fingerprint(modality) for modality in encoder.modalities}
    index = MemoryIndex(Head(encoder.spec, sides, encoder.dim("image"), (Source("", root, None, root),)))
    index.commit(rows_of(encoder, tmp_path, {f"{number}.png": f"{number}.png" for number in range(4)}))
    return Searcher(index, encoder)


@pytest.fixture
def client(searcher):
    with TestClient(create_app(searcher, ServeConfig()), base_url=LOCAL, client=("127.0.0.1", 1)) as client:
        yield client


def curls():
    """Method, path and JSON of each curl."""
    for _, *words in (each for each in commands(PAGE) if each[0] == "curl"):
        path = next(word for word in words if word.startswith(ADDRESS)).removeprefix(ADDRESS)
        body = next((word.removeprefix("query=") for word in words if word.startswith(("{", "query={"))), None)
        yield path, body


@pytest.mark.parametrize(("path", "body"), [each for each in curls() if each[1]])
def test_every_question_is_one(path, body):
    assert BODIES[path].model_validate_json(body)


@pytest.mark.parametrize("block", blocks(PAGE, "json"), ids=lambda block: block.title)
def test_every_example_is_what_the_service_takes_or_gives(block):
    if block.title == "SearchBody":
        models.SearchBody.model_validate_json(block.code)
        # It shows all that can be said.
        assert set(json.loads(block.code)) == set(models.SearchBody.model_fields)
        return
    model = ANSWERS[block.title].model_validate_json(block.code)
    # Not a field less or more.
    assert model.model_dump() == json.loads(block.code)


def test_every_route_is_listed(client):
    paths = client.get("/v1/openapi.json").json()["paths"]
    described = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    listed = {
        route.partition("?")[0]
        for row in re.findall(r"^\| (`[A-Z]+ /.*?) \|", prose(PAGE), re.MULTILINE)
        for route in re.findall(r"`([^`]+)`", row)
    }
    assert listed == described | {"GET /"}


def test_the_python_example_runs(client, monkeypatch, capsys):
    def connected(*, base_url, **_):
        assert base_url == ADDRESS
        return client

    monkeypatch.setattr(httpx, "Client", connected)
    (example,) = blocks(PAGE, "python")
    exec(compile(example.code, str(PAGE), "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_the_guides_search_runs(searcher, monkeypatch, capsys):
    monkeypatch.setattr(Searcher, "open", lambda location: searcher)
    page = DOCS / "guide" / "search.md"
    (example,) = blocks(page, "python")
    exec(compile(example.code, str(page), "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_every_limit_in_the_guide_has_its_default():
    rows = re.findall(r"^\| `--([\w-]+)` \| ([\d,.]+)", prose(DOCS / "guide" / "production.md"), re.MULTILINE)
    assert len(rows) >= 8
    for name, default in rows:
        assert float(default.replace(",", "")) == getattr(ServeConfig(), name.replace("-", "_")), name
