"""A service over a few tiny pictures, whose encoder takes any text."""

import hashlib
import io
import tarfile
import zlib

import pyarrow as pa
import torch
from index.memory_index import MemoryIndex
from PIL import Image
from toy_encoders import Toy

from modalloy.index import Head, Source
from modalloy.index.schema import rows_schema
from modalloy.search import Searcher

LOCAL = "http://127.0.0.1"
FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP", "tif": "TIFF"}


class Reader(Toy):
    """A toy that takes any text; its `calls` are the sizes of the batches that it was given."""

    def __init__(self):
        super().__init__(1)
        self.calls = []

    def preprocess(self, modality, item):
        return super().preprocess(modality, item) if modality == "image" else torch.tensor(zlib.crc32(item.encode()))

    def forward(self, modality, prepared):
        self.calls.append(len(prepared))
        return super().forward(modality, prepared)


def picture_bytes(number=0, format="PNG", size=(3, 2)):
    content = io.BytesIO()
    Image.new("RGB", size, (number, 0, 0)).save(content, format)
    return content.getvalue()


def rows_of(encoder, root, paths, camera="old"):
    """Rows of pictures, one caption each; a path in a tar is read through the tar."""
    rows = []
    for number, (id, path) in enumerate(paths.items()):
        content = contents(root, path)
        shared = {"picture_id": id, "source": "", "path": path, "sha256": hashlib.sha256(content).hexdigest()}
        shared |= {"split": "test", "bytes": len(content), "modified_ns": 1, "meta_camera": camera, "meta_year": 2000.0}
        image = encoder.encode_images([Image.new("RGB", (1, 1), (number, 0, 0))]).embedding[0].tolist()
        caption = f"picture {number}"
        small = picture_bytes(number, "JPEG", (1, 1))
        rows.append(
            {"id": id, "modality": "image", "captions": [caption], "width": 3, "height": 2}
            | {"thumbnail": small, "image_vector": image, **shared}
        )
        text = encoder.encode_texts([caption]).embedding[0].tolist()
        rows.append({"id": f"{id}#0", "modality": "text", "captions": [caption], "text_vector": text} | shared)
    return pa.Table.from_pylist(rows, rows_schema(encoder.dim("image"), {"camera": "text", "year": "number"}))


def contents(root, path):
    if ".tar/" not in path:
        return (root / path).read_bytes()
    tar, _, member = path.partition(".tar/")
    with tarfile.open(root / f"{tar}.tar") as archive:
        return archive.extractfile(member).read()


class World:
    """Pictures in a folder in all formats, one more in a tar, a secret beside it, an index of them, and a page."""

    def __init__(self, folder):
        self.root, self.page, self.encoder = folder / "pictures", folder / "page", Reader()
        (self.root / "deep").mkdir(parents=True)
        for number, (suffix, format) in enumerate(FORMATS.items()):
            (self.root / "deep" / f"{number}.{suffix}").write_bytes(picture_bytes(number, format))
        (folder / "secret.png").write_bytes(picture_bytes(99))
        with tarfile.open(self.root / "some.tar", "w") as tar:
            header = tarfile.TarInfo("in/6.png")
            header.size = len(picture_bytes(6))
            tar.addfile(header, io.BytesIO(picture_bytes(6)))
        paths = {f"deep:{path.name}": f"deep/{path.name}" for path in sorted((self.root / "deep").iterdir())}
        self.index = index_of(self.encoder, self.root, {**paths, "some.tar:in:6.png": "some.tar/in/6.png"})
        self.searcher = Searcher(self.index, self.encoder)
        self.encoder.calls.clear()
        (self.page / "fonts").mkdir(parents=True)
        (self.page / "index.html").write_text("<!doctype html><title>é</title>", encoding="utf-8")
        for name in ("app.js", "style.css", "icon.svg", "fonts/secret.txt"):
            (self.page / name).write_text(name)


def index_of(encoder, root, paths):
    """An index of the pictures at some paths in a folder, by their ids."""
    sides = {modality: encoder.fingerprint(modality) for modality in encoder.modalities}
    index = MemoryIndex(Head(encoder.spec, sides, encoder.dim("image"), (Source("", str(root), None, str(root)),)))
    index.commit(rows_of(encoder, root, paths))
    return index


def error(answer, status, kind=None):
    """The sentence of an answer that must be an error."""
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"} and set(answer.json()["error"]) == {"kind", "message"}
    assert kind is None or answer.json()["error"]["kind"] == kind
    return answer.json()["error"]["message"]
