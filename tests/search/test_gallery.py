import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from modalloy.encoders import Fingerprint
from modalloy.errors import CheckpointError, ConfigError, DataError
from modalloy.files import read_json, sha256_of, write_json
from modalloy.search import Entry, Gallery

MADE_BY = {
    "image": Fingerprint("one", "1", "a" * 64, "b" * 64),
    "text": Fingerprint("two", "1", "c" * 64, "d" * 64),
}


@pytest.fixture
def gallery() -> Gallery:
    entries = (
        Entry("a", "a.png", "A cat."),
        Entry("b", "sub/b.png", "Zwei\u2028Zeilen\nund «mehr»."),
        Entry("c", "c.png", None),
        Entry("d", None, "No vector."),
    )
    vectors = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [torch.nan, torch.nan]])
    return Gallery("image", entries, vectors, "colours", MADE_BY, Path("/pictures"))


def test_search_gives_hits_best_first(gallery: Gallery) -> None:
    first, second = gallery.search(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), k=2)
    assert [(hit.id, hit.score) for hit in first] == [("a", 1.0), ("b", pytest.approx(0.6))]
    assert [hit.id for hit in second] == ["c", "b"]
    assert second[1].path == "/pictures/sub/b.png"
    assert second[0].caption is None


def test_k_beyond_the_gallery_finds_all_that_have_a_vector(gallery: Gallery) -> None:
    assert [hit.id for hit in gallery.search(torch.tensor([[1.0, 0.0]]), k=100)[0]] == ["a", "b", "c"]


def test_an_entry_without_a_file_has_no_path() -> None:
    gallery = Gallery("text", (Entry("a"),), torch.ones(1, 2), "colours", {}, Path("/pictures"))
    assert gallery.search(torch.ones(1, 2))[0][0].path is None


def test_equal_scores_come_in_row_order() -> None:
    entries = tuple(Entry(name) for name in "zyxw")
    gallery = Gallery("image", entries, torch.ones(4, 2), "colours", {})
    assert [hit.id for hit in gallery.search(torch.ones(1, 2), k=3)[0]] == ["z", "y", "x"]


def test_an_empty_gallery_and_no_queries_give_nothing(gallery: Gallery) -> None:
    empty = Gallery("image", (), torch.empty(0, 2), "colours", {})
    assert len(empty) == 0
    assert empty.search(torch.ones(3, 2)) == [[], [], []]
    assert gallery.search(torch.empty(0, 2)) == []


def test_half_precision_vectors_and_gradients_are_left_behind() -> None:
    vectors = torch.ones(1, 2, dtype=torch.float16, requires_grad=True)
    gallery = Gallery("image", (Entry("a"),), vectors, "colours", {})
    assert gallery.vectors.dtype == torch.float32
    assert not gallery.vectors.requires_grad


@pytest.mark.parametrize("k", [0, -1])
def test_k_below_one_is_refused(gallery: Gallery, k: int) -> None:
    with pytest.raises(ConfigError, match=f"at least 1, got {k}"):
        gallery.search(torch.ones(1, 2), k)


def test_a_query_of_another_length_is_refused(gallery: Gallery) -> None:
    with pytest.raises(DataError, match=r"2 long, but the queries 3.*colours"):
        gallery.search(torch.ones(1, 3))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_query_that_is_not_finite_is_refused(gallery: Gallery, value: float) -> None:
    with pytest.raises(DataError, match="Query 1 holds NaN or infinity"):
        gallery.search(torch.tensor([[1.0, 0.0], [value, 0.0]]))


def test_one_vector_for_each_entry(gallery: Gallery) -> None:
    with pytest.raises(DataError, match="got 3 for 4"):
        replace(gallery, vectors=torch.ones(3, 2))


def test_ids_must_be_unique(gallery: Gallery) -> None:
    with pytest.raises(DataError, match="'a' more than once"):
        replace(gallery, entries=(*gallery.entries[:3], Entry("a")))


def test_save_and_load_give_the_same_gallery(gallery: Gallery, tmp_path: Path) -> None:
    gallery.save(tmp_path)
    loaded = Gallery.load(tmp_path)
    assert torch.equal(loaded.vectors.nan_to_num(9), gallery.vectors.nan_to_num(9))
    for name in ("modality", "entries", "spec", "fingerprints", "root"):
        assert getattr(loaded, name) == getattr(gallery, name)
    assert loaded.search(torch.ones(1, 2)) == gallery.search(torch.ones(1, 2))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "entries.jsonl",
        "gallery.json",
        "vectors.safetensors",
    ]


def test_an_empty_gallery_can_be_saved(tmp_path: Path) -> None:
    Gallery("text", (), torch.empty(0, 5), "colours", {}).save(tmp_path)
    assert Gallery.load(tmp_path).vectors.shape == (0, 5)


def test_saving_again_replaces(gallery: Gallery, tmp_path: Path) -> None:
    gallery.save(tmp_path)
    replace(gallery, entries=gallery.entries[:2], vectors=gallery.vectors[:2]).save(tmp_path)
    assert len(Gallery.load(tmp_path)) == 2


def test_pictures_may_have_moved(gallery: Gallery, tmp_path: Path) -> None:
    gallery.save(tmp_path)
    moved = Gallery.load(tmp_path, root="/elsewhere")
    assert moved.search(torch.tensor([[1.0, 0.0]]))[0][0].path == "/elsewhere/a.png"


def test_a_run_moves_as_a_whole(gallery: Gallery, tmp_path: Path) -> None:
    (tmp_path / "run" / "alloy").mkdir(parents=True)
    of_alloy = replace(gallery, spec=f"alloy:{tmp_path / 'run' / 'alloy'}")
    of_alloy.save(tmp_path / "run" / "gallery")
    assert str(tmp_path) not in read_json(tmp_path / "run" / "gallery" / "gallery.json")["spec"]
    (tmp_path / "run").rename(tmp_path / "moved")
    assert Gallery.load(tmp_path / "moved" / "gallery").spec == f"alloy:{tmp_path / 'moved' / 'alloy'}"


def test_a_folder_without_a_gallery(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no gallery"):
        Gallery.load(tmp_path / "nothing")


def test_an_interrupted_save_is_not_loaded(gallery: Gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery.save(tmp_path)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("modalloy.search.gallery.write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        replace(gallery, vectors=-gallery.vectors).save(tmp_path)
    with pytest.raises(CheckpointError, match="saving was interrupted"):
        Gallery.load(tmp_path)


@pytest.mark.parametrize("name", ["vectors.safetensors", "entries.jsonl"])
def test_a_truncated_file(gallery: Gallery, tmp_path: Path, name: str) -> None:
    gallery.save(tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-3])
    with pytest.raises(CheckpointError, match=f"{name} isn't the file"):
        Gallery.load(tmp_path)


@pytest.mark.parametrize("name", ["vectors.safetensors", "entries.jsonl"])
def test_a_missing_file(gallery: Gallery, tmp_path: Path, name: str) -> None:
    gallery.save(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        Gallery.load(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"format": "another"}', "\udcff"])
def test_a_manifest_that_is_not_a_gallerys(gallery: Gallery, tmp_path: Path, content: str) -> None:
    gallery.save(tmp_path)
    (tmp_path / "gallery.json").write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(CheckpointError, match=r"gallery\.json"):
        Gallery.load(tmp_path)


@pytest.mark.parametrize("key", ["modality", "rows", "dim", "root", "spec", "fingerprints", "sha256"])
@pytest.mark.parametrize("value", ["missing", 7, None, "sound"])
def test_a_manifest_with_a_damaged_value(gallery: Gallery, tmp_path: Path, key: str, value: object) -> None:
    gallery.save(tmp_path)
    manifest = read_json(tmp_path / "gallery.json")
    del manifest[key]
    if value != "missing":
        manifest[key] = value
    write_json(tmp_path / "gallery.json", manifest)
    if value == "sound" and key in ("root", "spec"):
        Gallery.load(tmp_path)
        return
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        Gallery.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("entries.jsonl", '{"id": "a"}\n'),
        ("entries.jsonl", '{"id": "a", "colour": "red"}\n' * 4),
        ("entries.jsonl", '{"id": "a", "path": null, "caption": null}\n' * 4),
        ("entries.jsonl", "not json\n"),
        ("vectors.safetensors", "not safetensors"),
    ],
)
def test_files_that_do_not_fit_the_manifest(gallery: Gallery, tmp_path: Path, name: str, content: str) -> None:
    gallery.save(tmp_path)
    (tmp_path / name).write_text(content)
    manifest = read_json(tmp_path / "gallery.json")
    manifest["sha256"][name] = sha256_of(tmp_path / name)
    write_json(tmp_path / "gallery.json", manifest)
    with pytest.raises(CheckpointError, match="can't be loaded as a gallery"):
        Gallery.load(tmp_path)


@pytest.mark.parametrize(
    "tensors", [{"vectors": torch.ones(4)}, {"vectors": torch.ones(4, 3)}, {"other": torch.ones(4, 2)}]
)
def test_vectors_of_another_shape(gallery: Gallery, tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    gallery.save(tmp_path)
    save_file(tensors, tmp_path / "vectors.safetensors")
    manifest = json.loads((tmp_path / "gallery.json").read_text())
    manifest["sha256"]["vectors.safetensors"] = sha256_of(tmp_path / "vectors.safetensors")
    write_json(tmp_path / "gallery.json", manifest)
    with pytest.raises(CheckpointError, match="can't be loaded as a gallery"):
        Gallery.load(tmp_path)
