import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from index.memory_index import MemoryIndex
from index.picture_rows import DIM, head, unit_vectors
from toy_encoders import Toy

from modalloy.errors import CheckpointError, ConfigError, DataError
from modalloy.index import open_index
from modalloy.index.exchange.npy_parquet import export_npy_parquet
from modalloy.index.exchange.take_in import index_of, take_in
from modalloy.index.verify import verify_index


@pytest.fixture
def index(tmp_path):
    return MemoryIndex(head(tmp_path))


@pytest.fixture
def folder(tmp_path):
    """Writes a part as clip-retrieval would; a list of vectors is stored as it is."""

    def write(number, columns, image=None, text=None, dtype=np.float16):
        for name, vectors in (("img_emb", image), ("text_emb", text)):
            if vectors is not None:
                (tmp_path / "peer" / name).mkdir(parents=True, exist_ok=True)
                np.save(tmp_path / "peer" / name / f"{name}_{number}.npy", vectors.astype(dtype))
        path = tmp_path / "peer" / "metadata" / f"metadata_{number}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path)
        return tmp_path / "peer"

    return write


def vectors(count, seed=0, dim=DIM):
    return unit_vectors(np.random.default_rng(seed), count, dim)


def rows_of(index, *columns):
    batches = index.snapshot().scan(["id", *columns])
    return {row.pop("id"): row for batch in batches for row in batch.to_pylist()}


def test_pairs_of_others(tmp_path, folder, index, caplog):
    images, texts = vectors(3), vectors(3, 1)
    paths = [f"{tmp_path}/pictures/a.jpg", "000000007", f"{tmp_path}/pictures/a.jpg"]
    folder(
        "0", {"image_path": paths, "caption": ["A.", "B.", "C."], "year": [2020.0, float("nan"), 2020.0]}, images, texts
    )
    more = {"image_path": paths[:2], "caption": ["D.", "B."], "tags": [["x"], ["y"]]}
    (tmp_path / "pictures").mkdir()
    caplog.set_level(logging.INFO)
    for _ in range(2):
        result = take_in(index, "npy-parquet", folder("1", more, images[:2], texts[:2]), images=tmp_path / "pictures")
    assert "doesn't say which encoder made its vectors" in caplog.text and not result.made_by_encoder
    assert "'tags' (2: a list)" in caplog.text
    rows = rows_of(index, "captions", "path", "meta_year", "meta_image_path", "image_vector", "text_vector", "split")
    assert {id: (row["captions"], row["path"]) for id, row in rows.items()} == {
        "peer:a.jpg": (["A.", "C.", "D."], "a.jpg"),
        "peer:a.jpg#0": (["A."], "a.jpg"),
        "peer:a.jpg#1": (["C."], "a.jpg"),
        "peer:a.jpg#2": (["D."], "a.jpg"),
        "peer:000000007": (["B."], "000000007"),
        "peer:000000007#0": (["B."], "000000007"),
    }
    assert np.array_equal(rows["peer:000000007"]["image_vector"], images[1].astype(np.float16).astype(np.float32))
    assert np.array_equal(rows["peer:a.jpg#1"]["text_vector"], texts[2].astype(np.float16).astype(np.float32))
    assert {row["split"] for row in rows.values()} == {"unused"}
    assert verify_index(index).findings == ()
    assert (index.head.sources[-1].name, index.head.sources[-1].root) == ("peer", str(tmp_path / "pictures"))


@pytest.mark.parametrize("place", ["/etc/passwd", "../../etc/passwd", "a/../../b", "C:\\x", "~\\..", ".."])
def test_paths_out_of_the_folder_are_kept_as_text_alone(folder, index, place):
    take_in(index, "npy-parquet", folder("0", {"image_path": [place]}, vectors(1)))
    ((id, row),) = rows_of(index, "path", "meta_image_path").items()
    assert "/" not in id and id.startswith("peer:")
    assert row["meta_image_path"] == place
    assert row["path"].startswith("elsewhere/_peer:") and row["path"].count("/") == 1
    assert verify_index(index, files=True).findings[0].kind == "file missing or unreadable"
    assert all(finding.kind != "path out of its folder" for finding in verify_index(index).findings)


def test_rows_that_cannot_be_used_are_counted(folder, index):
    columns = {"image_path": ["a.jpg", None, "b\n.jpg", "c.jpg"], "caption": ["A.", "B.", "C.", " "]}
    result = take_in(index, "npy-parquet", folder("0", columns, vectors(4), vectors(4)))
    assert result.left_out == {"it has no image_path": 1, "its id can't be one": 1}
    assert set(rows_of(index)) == {"peer:a.jpg", "peer:a.jpg#0", "peer:c.jpg"}


def test_vectors_of_another_norm_are_brought_to_1(folder, index):
    images = vectors(3) * np.array([[3.0], [1.0], [0.0]])
    result = take_in(index, "npy-parquet", folder("0", {"image_path": ["a", "b", "c"]}, images, dtype=np.float32))
    assert result.normalised == 1
    rows = rows_of(index, "image_vector")
    np.testing.assert_allclose(rows["peer:a"]["image_vector"], vectors(3)[0], atol=1e-6)
    assert np.array_equal(rows["peer:b"]["image_vector"], images[1].astype(np.float32))
    assert rows["peer:c"]["image_vector"] is None


class Evil:
    def __reduce__(self):
        return (print, ("run",))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, DIM + 1), np.float16), "vectors are 7 long, but the encoder's 6"),
        (np.zeros((3, DIM), np.float16), "has 2 rows, but its img_emb 3"),
        (np.zeros((1, DIM), np.float16), "has 2 rows, but its img_emb 1"),
        (np.zeros(DIM, np.float16), r"must hold float16 or float32 vectors, rows x dim, got float16 \(6,\)"),
        (np.zeros((2, DIM), np.int64), "got int64"),
        (np.full((2, DIM), np.nan, np.float16), "isn't finite"),
        (np.array([Evil(), Evil()], dtype=object), "can't be read as vectors"),
    ],
)
def test_bad_vectors_are_refused(folder, index, array, message, capsys):
    path = folder("0", {"image_path": ["a.jpg", "b.jpg"]}, vectors(2))
    np.save(path / "img_emb" / "img_emb_0.npy", array, allow_pickle=True)
    with pytest.raises(DataError, match=message):
        take_in(index, "npy-parquet", path)
    assert "run" not in capsys.readouterr().out


def test_folders_that_are_none(folder, index, tmp_path):
    with pytest.raises(DataError, match=r"holds no metadata/metadata_0000\.parquet"):
        take_in(index, "npy-parquet", tmp_path)
    path = folder("0", {"image_path": ["a.jpg"]})
    with pytest.raises(DataError, match=r"neither img_emb_0\.npy nor text_emb_0\.npy is there"):
        take_in(index, "npy-parquet", path)
    folder("0", {"image_path": ["a.jpg"]}, vectors(1))
    (path / "metadata" / "metadata_0.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="can't be read as parquet"):
        take_in(index, "npy-parquet", path)
    for damaged in (b"", b"\x93NUMPY\x01\x00", b"PK\x03\x04"):
        (path / "img_emb" / "img_emb_0.npy").write_bytes(damaged)
        with pytest.raises(DataError):
            take_in(index, "npy-parquet", path)


def test_an_exports_rows_are_not_trusted(tmp_path, index):
    index.commit(head=head(tmp_path))
    export_npy_parquet(index.snapshot(), tmp_path / "out")
    forged = {
        "id": ["a", "b", "c/d", "e"],
        "source": ["", "another", "", ""],
        "path": ["../../etc/passwd", "b.png", "c.png", "e.png"],
        "split": ["secret", "train", "train", "train"],
        "thumbnail": [b"<script>", None, None, None],
        "caption_number": [7, 0, 0, None],
        "caption": ["A.", "B.", "C.", ""],
    }
    (tmp_path / "out" / "metadata").mkdir()
    pq.write_table(pa.table(forged), tmp_path / "out" / "metadata" / "metadata_0000.parquet")
    (tmp_path / "out" / "img_emb").mkdir()
    np.save(tmp_path / "out" / "img_emb" / "img_emb_0000.npy", vectors(4))
    result = take_in(index, "npy-parquet", tmp_path / "out")
    assert result.left_out == {"its source isn't one of the index's": 1, "its id can't be one": 1}
    rows = rows_of(index, "path", "split", "thumbnail", "captions")
    assert rows["a"] == {"path": "elsewhere/_a", "split": "unused", "thumbnail": None, "captions": ["A."]}
    assert set(rows) == {"a", "e"}
    pq.write_table(pa.table({**forged, "bytes": ["x"] * 4}), tmp_path / "out" / "metadata" / "metadata_0000.parquet")
    with pytest.raises(DataError, match="the metadata don't fit an index"):
        take_in(index, "npy-parquet", tmp_path / "out")


def test_faiss_indexes_of_others(folder, index):
    faiss = pytest.importorskip("faiss")
    images = vectors(200)
    path = folder("0", {"image_path": [f"{row}.jpg" for row in range(200)]})
    for factory, exact in (("Flat", True), ("IVF4,Flat", True), ("SQ8", False), ("IVF4,SQ8", False), ("HNSW8", True)):
        made = faiss.index_factory(DIM, factory, faiss.METRIC_INNER_PRODUCT)
        made.train(images)
        made.add(images)
        faiss.write_index(made, str(path / "image.index"))
        take_in(index, "faiss", path)
        rows = rows_of(index, "image_vector")
        stored = np.array([rows[f"peer:{row}.jpg"]["image_vector"] for row in range(200)], np.float32)
        np.testing.assert_allclose(stored, images, atol=0 if exact else 0.02)


def test_faiss_indexes_that_do_not_fit(folder, index, tmp_path):
    faiss = pytest.importorskip("faiss")
    path = folder("0", {"image_path": ["a.jpg", "b.jpg"]})
    with pytest.raises(DataError, match=r"holds neither image\.index nor text\.index"):
        take_in(index, "faiss", path)
    for count, message in ((1, "1 vectors, fewer than metadata rows"), (3, "3 vectors, but 2 metadata rows")):
        flat = faiss.IndexFlatIP(DIM)
        flat.add(vectors(count))
        faiss.write_index(flat, str(path / "image.index"))
        with pytest.raises(DataError, match=message):
            take_in(index, "faiss", path)
    (path / "image.index").write_bytes(b"no index")
    with pytest.raises(DataError, match="FAISS can't give its vectors back"):
        take_in(index, "faiss", path)
    numbered = faiss.IndexIDMap(faiss.IndexFlatIP(DIM))
    numbered.add_with_ids(vectors(2), np.arange(2))
    faiss.write_index(numbered, str(path / "image.index"))
    with pytest.raises(DataError, match="FAISS can't give its vectors back"):
        take_in(index, "faiss", path)


def test_the_index_of_an_import(tmp_path, folder):
    path = folder("0", {"image_path": ["a.jpg"]}, vectors(1))
    made = index_of(str(tmp_path / "new"), Toy(2), path)
    assert made.head == open_index(tmp_path / "new").head == index_of(str(tmp_path / "new"), Toy(2), path).head
    with pytest.raises(CheckpointError, match="is an index of toy-2, not of toy-1"):
        index_of(str(tmp_path / "new"), Toy(1), path)
    with pytest.raises(DataError, match="isn't a folder"):
        index_of(str(tmp_path / "none"), Toy(2), tmp_path / "nowhere")
    assert not (tmp_path / "none").exists()

    class Halved(Toy):
        modalities = ("image",)

    with pytest.raises(ConfigError, match="choose a dual encoder"):
        index_of(str(tmp_path / "none"), Halved(1), path)


def test_an_import_has_no_collection_to_be_updated_from(index, folder):
    path = folder("0", {"image_path": ["a.jpg"]}, vectors(1))
    with pytest.raises(ConfigError, match="a source is named with letters"):
        take_in(index, "npy-parquet", path, name="a/b")
    take_in(index, "npy-parquet", path)
    (source,) = (each for each in index.head.sources if each.name == "peer")
    assert (source.collection, source.root) == ("", str(path))
