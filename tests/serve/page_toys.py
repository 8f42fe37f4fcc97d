"""What the page is tried with: drawn pictures, an encoder that sees their colours, and a service in a thread."""

import hashlib
import io
import threading
import time
from contextlib import contextmanager

import pyarrow as pa
import torch
import uvicorn
from PIL import Image, ImageDraw
from torch.nn.functional import normalize

from modalloy.encoders import Encoded, Encoder, Fingerprint
from modalloy.index import Head, Source, create_index
from modalloy.index.schema import rows_schema
from modalloy.search import Searcher
from modalloy.serve import create_app

COLOURS = {
    "red": (220, 40, 40),
    "green": (30, 160, 70),
    "blue": (40, 70, 220),
    "yellow": (240, 210, 40),
    "pink": (240, 120, 190),
}
SIZES = ((150, 100), (100, 150), (120, 120), (240, 100), (90, 130), (160, 110), (140, 100))
MARKUP = "<script>document.title = 'run'</script><img src=x onerror=\"document.title='run'\"> a red <b>thing</b>"
PICTURES = len(COLOURS) * len(SIZES)


class Eye(Encoder):
    """Sees the mean colour of a picture, and reads the names of colours."""

    name, spec, modalities = "Eye", "eye", ("image", "text")

    def fingerprint(self, modality):
        return Fingerprint(f"eye {modality}", "1", "a" * 64, "b" * 64)

    def dim(self, modality):
        return 4

    def width(self, modality):
        return 4

    def preprocess(self, modality, item):
        if modality == "image":
            colours = [item.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))]
        else:
            colours = [colour for name, colour in COLOURS.items() if name in item.split()] or [(128, 128, 128)]
        return torch.tensor(colours).float().mean(0)

    def forward(self, modality, prepared):
        shades = torch.stack(list(prepared)) / 128 - 1
        seen = normalize(torch.cat([shades, torch.full((len(shades), 1), 0.3)], 1), dim=-1)
        return Encoded(seen, seen, torch.ones(len(seen), dtype=torch.int64))


def drawn(colour, size=(120, 90), number=0):
    """A picture of one colour with a spot in a darker one, as PNG."""
    picture = Image.new("RGB", size, COLOURS[colour])
    width, height = size
    spot = (width // 4, height // 4, width // 2 + 3 * number, height // 2 + 3 * number)
    ImageDraw.Draw(picture).ellipse(spot, fill=tuple(part // 2 for part in COLOURS[colour]))
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


def drawn_index(folder):
    """An index of drawn pictures, which lie in the folder; the caption of one holds markup."""
    eye, rows = Eye(), []
    for colour in COLOURS:
        for number, size in enumerate(SIZES):
            content, name = drawn(colour, size, number), f"{colour}-{number}.png"
            (folder / name).write_bytes(content)
            captions = [
                MARKUP if (colour, number) == ("red", 0) else f"a {colour} thing",
                f"a {colour} picture, number {number}",
            ]
            rows += _rows(
                eye,
                name,
                content,
                captions,
                {"camera": f"{colour}cam", "year": 2000.0 + number, "kept": number % 2 == 0},
            )
    fingerprints = {modality: eye.fingerprint(modality) for modality in eye.modalities}
    index = create_index(folder / "index", Head("eye", fingerprints, 4, (Source("", str(folder), None, str(folder)),)))
    kinds = {"camera": "text", "year": "number", "kept": "truth"}
    index.commit(pa.Table.from_pylist(rows, rows_schema(4, kinds)))
    return index


def _rows(eye, name, content, captions, metadata):
    picture = Image.open(io.BytesIO(content))
    shared = {
        "picture_id": name,
        "source": "",
        "path": name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "split": "test",
    }
    shared |= {"bytes": len(content), "modified_ns": 1} | {f"meta_{field}": value for field, value in metadata.items()}
    small = io.BytesIO()
    picture.save(small, "JPEG")
    yield shared | {
        "id": name,
        "modality": "image",
        "captions": captions,
        "width": picture.width,
        "height": picture.height,
        "thumbnail": small.getvalue(),
        "image_vector": eye.encode_images([picture]).embedding[0].tolist(),
    }
    for number, caption in enumerate(captions):
        vector = eye.encode_texts([caption]).embedding[0].tolist()
        yield shared | {"id": f"{name}#{number}", "modality": "text", "captions": [caption], "text_vector": vector}


@contextmanager
def served(index, config):
    """The address of a service over an index, while it lasts."""
    app = create_app(Searcher(index, Eye()), config)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the service didn't start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        app.state.service.close(10.0)
