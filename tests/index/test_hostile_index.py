"""Indexes that come from a stranger: what they say of themselves is checked, and nothing of it is run."""

import hashlib
import json
import os
import pickle

import lancedb
import pyarrow as pa
import pytest
from toy_index import toy_head

from modalloy.align import encoder as aligned
from modalloy.encoders import load_encoder, tuned
from modalloy.encoders.checkpoint import read_weights
from modalloy.errors import CheckpointError, ModalloyError
from modalloy.fusion import alloy
from modalloy.index import Source, create_index, open_index

FORMATS = {"hacan": aligned.FORMAT, "alloy": alloy.FORMAT, "tuned": tuned.FORMAT}
SOURCE = {"name": "", "collection": "/pictures", "images": None, "root": "/pictures"}


def write_head(location, text):
    """Puts something in the place of what an index says of itself."""
    table = pa.table({"head": [text]}, pa.schema([("head", pa.string())]))
    lancedb.connect(str(location)).create_table("head", table, mode="overwrite")


@pytest.fixture
def index(tmp_path):
    return create_index(tmp_path / "index", toy_head().with_source(Source(**SOURCE)))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"format": "modalloy-index-2"}, "expected 'modalloy-index-1', got 'modalloy-index-2'"),
        ({"spec": ["toy"]}, "spec must be a text"),
        ({"spec": None}, "spec must be a text"),
        ({"spec": "mid:" * 1000 + "minilm"}, "at most 1,000 characters"),
        ({"spec": "alloy:\0"}, "without NUL"),
        ({"dim": 2**40}, "dim must be a whole number from 1"),
        ({"dim": 0}, "dim must be a whole number from 1"),
        ({"dim": "8"}, "dim must be a whole number"),
        ({"dim": True}, "dim must be a whole number"),
        ({"dim": 8.0}, "dim must be a whole number"),
        ({"generation": -1}, "generation must be a whole number from 0"),
        ({"generation": 2**63}, "generation must be a whole number from 0"),
        ({"generation": "../../x"}, "generation must be a whole number"),
        ({"fingerprints": {"image": {}}}, "must hold the texts"),
        ({"fingerprints": []}, "doesn't describe an index"),
        (
            {"fingerprints": {"image": {"name": 1, "revision": "", "weights_sha256": "", "preprocessing_sha256": ""}}},
            "must hold the texts",
        ),
        ({"sources": None}, "doesn't describe an index"),
        ({"sources": ["/"]}, "doesn't describe an index"),
        ({"sources": [{**SOURCE, "more": 1}]}, "more"),
        ({"sources": [{**SOURCE, "root": "pictures"}]}, "root must be absolute, got 'pictures'"),
        ({"sources": [{**SOURCE, "root": "/pictures/../etc"}]}, "with '..'"),
        ({"sources": [{**SOURCE, "collection": "../pictures"}]}, "with '..'"),
        ({"sources": [{**SOURCE, "images": "/a/.."}]}, "with '..'"),
        ({"sources": [{**SOURCE, "root": 3}]}, "root must be a text"),
        ({"sources": [{**SOURCE, "name": None}]}, "name must be a text"),
    ],
)
def test_what_it_says_of_itself_is_checked(index, said, message):
    write_head(index.location, json.dumps({**index.head.to_dict(), **said}))
    for ask in (lambda: open_index(index.location), index.snapshot):
        with pytest.raises(CheckpointError, match=message) as error:
            ask()
        assert index.location in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", "null", '"modalloy-index-1"', "{", "[" * 100_000, "\0", '{"dim": 1}', None])
def test_what_is_no_description_is_refused(index, text):
    write_head(index.location, text)
    with pytest.raises(CheckpointError, match="index"):
        open_index(index.location)


class Runs:
    """A pickle of it makes a folder when it is read."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_in_the_place_of_weights_is_not_run(tmp_path, kind, protocol):
    proof, folder = tmp_path / "proof", tmp_path / "model"
    folder.mkdir()
    attack = pickle.dumps(Runs(proof), protocol)
    for name in ("model.safetensors", "pytorch_model.bin", "model.pt", "config.json", "config.pkl"):
        (folder / name).write_bytes(attack)
    with pytest.raises(ModalloyError):
        load_encoder(f"{kind}:{folder}")
    config = {"format": FORMATS[kind], "weights_sha256": hashlib.sha256(attack).hexdigest()}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModalloyError):
        load_encoder(f"{kind}:{folder}")
    with pytest.raises(CheckpointError, match="isn't a safetensors file"):
        read_weights(folder, config)
    assert not proof.exists()
    pickle.loads(attack)
    assert proof.exists()
