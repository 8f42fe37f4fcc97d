"""A run's index, made of stored features: what is in it, and what becomes of an earlier or damaged one."""

import io
from dataclasses import replace

import pytest
import torch
from PIL import Image
from toy_encoders import Toy, toy_pairs

from modalloy.data import Manifest
from modalloy.data.known_files import KnownFiles
from modalloy.data.metadata import Metadata
from modalloy.errors import CheckpointError, ConfigError
from modalloy.index import Source, open_index
from modalloy.index.columns import vectors_in
from modalloy.index.encoder_spec import spec_at, spec_from
from modalloy.index.held import held_pictures
from modalloy.search import Part, Query, Searcher
from modalloy.workflow import index as indexing
from modalloy.workflow.features import Collection
from modalloy.workflow.index import index


@pytest.fixture
def collection(tmp_path) -> Collection:
    return toy_pairs(tmp_path, {"train": 3, "test": 4})


def held(folder) -> set[str]:
    return {id for batch in open_index(folder).snapshot().scan(["id"]) for id in batch["id"].to_pylist()}


@pytest.mark.parametrize("at_once", [2, 100])
def test_all_pictures_and_captions_are_in_it(collection, tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(indexing, "_COMMIT", at_once)
    toy, manifest = Toy(1), collection.manifest
    searcher = index(toy, collection, tmp_path / "run")
    assert held(tmp_path / "run" / "index") == {*manifest.image_ids, *manifest.caption_ids}
    for modality, ids, made in (
        ("image", manifest.image_ids, toy.encode_images([manifest.absolute(item) for item in manifest])),
        ("text", manifest.caption_ids, toy.encode_texts(manifest.captions)),
    ):
        column = f"{modality}_vector"
        assert torch.equal(vectors_in(searcher.snapshot.rows(ids, [column]), column), made.embedding)
    (row,) = searcher.snapshot.rows(["5"], ["path", "sha256", "split", "captions", "width", "thumbnail"]).to_pylist()
    assert (row["path"], row["split"], row["width"]) == ("5.png", "test", 1) and len(row["captions"]) == 2
    assert Image.open(io.BytesIO(row["thumbnail"])).size == (1, 1)
    hits = searcher.search(Query((Part(like="5"),), target="text", k=3)).hits
    assert all(hit.path == str(manifest.root / f"{hit.picture_id}.png") for hit in hits)
    assert Searcher.open(tmp_path / "run", toy).search(Query((Part(like="5"),), target="text", k=3)).hits == hits


def test_a_picture_without_an_embedding_is_not_in_it_nor_are_its_captions(collection, tmp_path):
    collection.manifest.absolute(collection.manifest[2]).write_bytes(b"broken")
    index(Toy(1), collection, tmp_path / "run")
    assert held(tmp_path / "run" / "index") == {
        id for item in collection.manifest for id in (item.id, *item.caption_ids) if item.id != "2"
    }


def test_a_picture_that_is_gone_since_its_features_were_made_has_no_looks(collection, tmp_path):
    collection.store(Toy(1), "image")
    collection.manifest.absolute(collection.manifest[2]).unlink()
    searcher = index(Toy(1), collection, tmp_path / "run")
    columns = ["width", "height", "bytes", "thumbnail"]
    assert searcher.snapshot.rows(["2"], columns).to_pylist() == [dict.fromkeys(columns)]


def test_a_picture_that_is_another_since_its_features_were_made_is_found_by_an_update(collection, tmp_path):
    collection.store(Toy(1), "image")
    Image.new("RGB", (9, 9)).save(collection.manifest.absolute(collection.manifest[2]))
    searcher = index(Toy(1), collection, tmp_path / "run")
    (row,) = searcher.snapshot.rows(["2"], ["sha256", "bytes", "modified_ns", "thumbnail"]).to_pylist()
    assert row == {"sha256": collection.manifest[2].sha256, "bytes": None, "modified_ns": None, "thumbnail": None}


def test_what_is_known_of_pictures_is_kept(collection, tmp_path):
    known = [Metadata({"year": 2000.0 + number} if number % 2 else {}) for number in range(7)]
    items = [replace(item, metadata=fields) for item, fields in zip(collection.manifest, known, strict=True)]
    described = replace(collection, manifest=Manifest(collection.manifest.root, tuple(items)))
    snapshot = index(Toy(1), described, tmp_path / "run").snapshot
    found = snapshot.rows(["1", "1#0", "2"], ["meta_year"])["meta_year"].to_pylist()
    assert found == [2001.0, 2001.0, None] and snapshot.metadata == {"year": "number"}


def test_an_update_of_a_runs_index_embeds_nothing(collection, tmp_path):
    searcher = index(Toy(1), collection, tmp_path / "run")
    states = held_pictures(searcher.snapshot, "")
    for item in collection.manifest:
        assert states[item.id].file == KnownFiles().look(collection.manifest.root, item.path)


def test_made_again_it_is_that_of_the_new_encoder_and_readers_see_old_or_new(collection, tmp_path):
    old = index(Toy(1), collection, tmp_path / "run")
    few = Collection(collection.manifest[:5], tmp_path / "few", collection.extraction)
    new = index(Toy(2), few, tmp_path / "run", Source("", "/somewhere", None, str(collection.manifest.root)))
    assert new.snapshot.head.generation == old.snapshot.head.generation + 1
    assert new.snapshot.head.sources[0].collection == "/somewhere"
    assert held(tmp_path / "run" / "index") == {*few.manifest.image_ids, *few.manifest.caption_ids}
    assert len(old.by_text("3 in words", k=9)) == 7
    with pytest.raises(CheckpointError, match="made by toy-2"):
        old.refresh()


def test_what_an_interrupted_attempt_left_is_not_kept(collection, tmp_path, monkeypatch):
    index(Toy(1), collection, tmp_path / "run")

    def stop(*_):
        raise KeyboardInterrupt

    from modalloy.index.lance import LanceIndex

    with monkeypatch.context() as context:
        context.setattr(LanceIndex, "switch", stop)
        with pytest.raises(KeyboardInterrupt):
            index(Toy(2), collection, tmp_path / "run")
    assert Searcher.open(tmp_path / "run", Toy(1)).snapshot.head.generation == 0
    few = Collection(collection.manifest[:5], tmp_path / "few", collection.extraction)
    index(Toy(2), few, tmp_path / "run")
    assert held(tmp_path / "run" / "index") == {*few.manifest.image_ids, *few.manifest.caption_ids}


def test_a_damaged_one_is_made_anew(collection, tmp_path):
    index(Toy(1), collection, tmp_path / "run")
    for path in (tmp_path / "run" / "index").glob("head.lance/data/*"):
        path.write_bytes(b"broken")
    assert len(index(Toy(1), collection, tmp_path / "run").by_text("3 in words", k=9)) == 7


def test_an_encoder_of_one_side_is_refused(collection, tmp_path):
    toy = Toy(1)
    toy.modalities = ("image",)
    with pytest.raises(ConfigError, match="encodes no texts"):
        index(toy, collection, tmp_path / "run")


def test_an_encoder_in_a_folder_moves_with_the_index(tmp_path):
    (tmp_path / "run" / "index").mkdir(parents=True)
    spec = spec_from(f"alloy:{tmp_path / 'run'}", tmp_path / "run" / "index")
    assert spec == "alloy:.."
    (tmp_path / "run").rename(tmp_path / "moved")
    assert spec_at(spec, tmp_path / "moved" / "index") == f"alloy:{tmp_path / 'moved'}"
    assert spec_from("alloy:/runs/a", "s3://bucket/index") == spec_at("alloy:/runs/a", "s3://b/i") == "alloy:/runs/a"
