import io
import tarfile

import pytest
from index.memory_index import MemoryIndex
from serve.service_toys import FORMATS, LOCAL, Reader, picture_bytes, rows_of
from starlette.testclient import TestClient

from modalloy.index import Head, Source
from modalloy.search import Searcher
from modalloy.serve import ServeConfig, create_app, static


@pytest.fixture
def root(tmp_path):
    """A folder of pictures in all formats, one more in a tar, and a secret beside it."""
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    for number, (suffix, format) in enumerate(FORMATS.items()):
        (folder / "deep" / f"{number}.{suffix}").write_bytes(picture_bytes(number, format))
    (tmp_path / "secret.png").write_bytes(picture_bytes(99))
    with tarfile.open(folder / "some.tar", "w") as tar:
        header = tarfile.TarInfo("in/6.png")
        header.size = len(picture_bytes(6))
        tar.addfile(header, io.BytesIO(picture_bytes(6)))
    return folder


@pytest.fixture
def encoder():
    return Reader()


@pytest.fixture
def index(encoder, root):
    sides = {modality: encoder.fingerprint(modality) for modality in encoder.modalities}
    made = MemoryIndex(Head(encoder.spec, sides, encoder.dim("image"), (Source("", str(root), None, str(root)),)))
    paths = {f"deep:{path.name}": f"deep/{path.name}" for path in sorted((root / "deep").iterdir())}
    made.commit(rows_of(encoder, root, {**paths, "some.tar:in:6.png": "some.tar/in/6.png"}))
    return made


@pytest.fixture
def searcher(index, encoder):
    made = Searcher(index, encoder)
    encoder.calls.clear()
    return made


@pytest.fixture
def page(tmp_path, monkeypatch):
    folder = tmp_path / "page"
    (folder / "fonts").mkdir(parents=True)
    (folder / "index.html").write_text("<!doctype html><title>é</title>", encoding="utf-8")
    (folder / "app.js").write_text("export {};")
    (folder / "style.css").write_text("a {}")
    (folder / "icon.svg").write_text("<svg/>")
    (folder / "fonts" / "secret.txt").write_text("x")
    monkeypatch.setattr(static, "PAGE", folder)
    return folder


@pytest.fixture
def serving(searcher, page):
    """Starts a service with some configuration, and gives a client of it."""
    clients = []

    def start(**config):
        client = TestClient(create_app(searcher, ServeConfig(**config)), base_url=LOCAL, client=("127.0.0.1", 1))
        clients.append(client)
        return client.__enter__()

    yield start
    for client in clients:
        client.__exit__(None, None, None)
        assert client.app.state.service.close(10.0)


@pytest.fixture
def client(serving):
    return serving()
