import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from index.picture_rows import DIM, head, picture_rows, table_of, unit_vectors

from modalloy.errors import CheckpointError, ConfigError, DataError
from modalloy.files import read_json, write_json
from modalloy.index import create_index
from modalloy.index.exchange.faiss_index import export_faiss
from modalloy.index.exchange.folder import NAME, head_of_folder
from modalloy.index.exchange.npy_parquet import export_npy_parquet
from modalloy.index.exchange.take_in import take_in
from modalloy.index.verify import verify_index

EXPORTS = {"npy-parquet": export_npy_parquet, "faiss": export_faiss}


@pytest.fixture
def rows(tmp_path):
    some = picture_rows(tmp_path / "pictures", 5) + picture_rows(tmp_path / "pictures", 8, 0)[5:]
    # As one that the encoder refused.
    return [row for row in some if row["id"] != "sub:1.png#0"]


@pytest.fixture
def index(tmp_path, rows):
    index = create_index(tmp_path / "index", head(tmp_path / "pictures"))
    index.commit(table_of(rows))
    return index


def content(index):
    snapshot = index.snapshot()
    columns = table_of([]).column_names
    table = pa.Table.from_batches(list(snapshot.scan(columns))).sort_by("id")
    return {name: table[name].to_pylist() for name in columns}


@pytest.mark.parametrize("kind", EXPORTS)
@pytest.mark.parametrize("per_part", [1, 50_000])
def test_what_is_exported_comes_back_bit_by_bit(tmp_path, index, kind, per_part):
    said = EXPORTS[kind](index.snapshot(), tmp_path / "out", rows=per_part)
    assert said["rows"] == 5 * 2 + 3
    other = create_index(tmp_path / "other", head("/nowhere"))
    for _ in range(2):  # Again changes nothing.
        result = take_in(other, kind, tmp_path / "out")
        assert (result.pictures, result.captions, result.normalised, result.left_out) == (8, 9, 0, {})
        assert result.made_by_encoder
        assert content(other) == content(index)
        assert other.head.sources == index.head.sources
    assert verify_index(other, files=True).findings == ()


def test_a_second_import_replaces_captions_that_are_no_more(tmp_path, index, rows):
    export_npy_parquet(index.snapshot(), tmp_path / "out")
    picture = next(row for row in rows if row["id"] == "sub:0.png")
    more = {**next(row for row in rows if row["id"] == "sub:0.png#0"), "id": "sub:0.png#2", "captions": ["More."]}
    other = create_index(tmp_path / "other", head(tmp_path))
    other.commit(table_of([{**picture, "captions": [*picture["captions"], "More."]}, more]))
    take_in(other, "npy-parquet", tmp_path / "out")
    assert content(other) == content(index)


def test_the_layout_is_clip_retrievals(tmp_path, index, rows):
    export_npy_parquet(index.snapshot(), tmp_path / "out", half=True)
    table = pq.read_table(tmp_path / "out" / "metadata" / "metadata_0000.parquet").to_pylist()
    images = np.load(tmp_path / "out" / "img_emb" / "img_emb_0000.npy")
    texts = np.load(tmp_path / "out" / "text_emb" / "text_emb_0000.npy")
    assert images.dtype == texts.dtype == np.float16
    by_id = {row["id"]: row for row in rows}
    for row, image, text in zip(table, images, texts, strict=True):
        assert row["image_path"] == (tmp_path / "pictures" / by_id[row["id"]]["path"]).as_posix()
        assert np.array_equal(image, by_id[row["id"]]["image_vector"].astype(np.float16))
        caption = by_id.get(f"{row['id']}#{row['caption_number']}")
        assert np.array_equal(text, np.zeros(DIM) if caption is None else caption["text_vector"].astype(np.float16))
        if caption is not None:
            assert row["caption"] == caption["captions"][0]
    assert read_json(tmp_path / "out" / NAME)["rows"] == len(table) == 13


def test_faiss_finds_what_the_index_finds(tmp_path, index):
    faiss = pytest.importorskip("faiss")
    export_faiss(index.snapshot(), tmp_path / "out")
    flat = faiss.read_index(str(tmp_path / "out" / "text.index"))
    table = pq.read_table(tmp_path / "out" / "metadata" / "metadata_0000.parquet")
    import torch

    query = unit_vectors(np.random.default_rng(3), 1)
    scores, places = flat.search(query, 3)
    found = index.snapshot().search("text", torch.from_numpy(query), 3)[0]
    ids = [f"{table['id'][place]}#{table['caption_number'][place]}" for place in places[0].tolist()]
    assert ids == found.ids
    np.testing.assert_allclose(scores[0], found.scores, atol=1e-6)


def test_an_index_without_captions_has_no_text_vectors(tmp_path):
    index = create_index(tmp_path / "index", head(tmp_path))
    index.commit(table_of(picture_rows(tmp_path, 2, 0)))
    export_npy_parquet(index.snapshot(), tmp_path / "out")
    assert not (tmp_path / "out" / "text_emb").exists()


@pytest.mark.parametrize("kind", EXPORTS)
def test_a_failed_export_leaves_nothing(tmp_path, index, kind, monkeypatch):
    def fail(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr("modalloy.index.exchange.folder.write_json", fail)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OSError, match="no space left"):
        EXPORTS[kind](index.snapshot(), tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before
    monkeypatch.undo()
    # What a killed one left is no hindrance.
    (tmp_path / ".partial-out").mkdir()
    (tmp_path / ".partial-out" / "x").write_text("x")
    EXPORTS[kind](index.snapshot(), tmp_path / "out")
    with pytest.raises(ConfigError, match="isn't empty; export to a new folder"):
        EXPORTS[kind](index.snapshot(), tmp_path / "out")


def test_another_encoders_export_is_refused(tmp_path, index):
    export_npy_parquet(index.snapshot(), tmp_path / "out")
    other = create_index(tmp_path / "other", head(tmp_path, "another"))
    with pytest.raises(CheckpointError, match="exported from an index of toy, whose vectors can't be compared"):
        take_in(other, "npy-parquet", tmp_path / "out")
    assert other.snapshot().count() == 0


def test_a_damaged_export_is_named(tmp_path, index):
    export_npy_parquet(index.snapshot(), tmp_path / "out")
    write_json(tmp_path / "out" / NAME, {"format": "another"})
    with pytest.raises(DataError, match="isn't what modalloy writes there"):
        take_in(index, "npy-parquet", tmp_path / "out")
    (tmp_path / "out" / NAME).write_text(json.dumps({"format": "modalloy-exchange-1", "head": {"format": "x"}}))
    with pytest.raises(CheckpointError, match="isn't an index"):
        take_in(index, "npy-parquet", tmp_path / "out")
    with pytest.raises(DataError, match="isn't a folder"):
        head_of_folder(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="'csv' can't be imported, only npy-parquet, faiss"):
        take_in(index, "csv", tmp_path / "out")
