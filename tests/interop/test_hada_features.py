import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from modalloy import Alloy, Collection, fuse
from modalloy.data import Manifest, read_collection
from modalloy.encoders import load_encoder
from modalloy.errors import ConfigError, DataError, FeatureError
from modalloy.features import FeatureStore
from modalloy.features.stored import StoredFeatures
from modalloy.files import sha256_of
from modalloy.fusion import TowerConfig
from modalloy.interop import hada_features, hada_layout, import_hada_features, imported_store
from modalloy.search import Searcher
from modalloy.training.fusion_training import FusionTraining
from modalloy.workflow.config import load_config
from modalloy.workflow.features import ExtractConfig
from modalloy.workflow.fusion_config import FusionConfig
from modalloy.workflow.run import Run

TRAINING = FusionTraining(epochs=1, batch_size=4, queue_size=16)
TINY = FusionConfig(TowerConfig(token_dim=8, heads=2), TRAINING, TRAINING)


def imported(layout, out, **options):
    return import_hada_features(layout, out, progress=False, **options)


def image_file(layout, id, output="ALBEF_Output") -> Path:
    return layout / output / "flickr30k" / "images" / f"{id}.npz"


def text_file(layout, id, output="ALBEF_Output") -> Path:
    return layout / output / "flickr30k" / "texts" / f"{id}.npz"


def naive(layout, name, modality, id, number=None):
    """An item's embedding and tokens, read as the authors' own code does."""
    output = f"{name.upper()}_Output"
    path = image_file(layout, id, output) if modality == "image" else text_file(layout, id, output)
    with np.load(path, allow_pickle=True) as arrays:
        feat, embedding = arrays["feat"], arrays["proj_embed"]
        if number is not None:
            feat, embedding = feat[number][: sum(arrays["att"][number])], embedding[number]
        return embedding / np.linalg.norm(embedding), feat


def change(path: Path, **changes) -> None:
    with np.load(path, allow_pickle=True) as arrays:
        values = dict(arrays)
    for name, value in changes.items():
        if value is None:
            del values[name]
        else:
            values[name] = value(values[name]) if callable(value) else value
    np.savez(path, **values)


def reasons(out, name, modality):
    return {reject["id"]: reject["reason"] for reject in FeatureStore.open(out / name / modality).rejects()}


def test_every_row_is_what_the_authors_code_reads(layout, tmp_path):
    summary = imported(layout, tmp_path / "out")
    json.dumps(summary)
    manifest = Manifest.load(tmp_path / "out" / "manifest.jsonl")
    assert manifest.image_ids == [str(1000 + number) for number in range(21)]
    assert summary["counts"] == manifest.counts()
    assert manifest.counts()["train"] == {"images": 12, "captions": 60}
    assert set(summary["encoders"]) == {"albef", "dot"} and summary["rejects"] == 0
    for name in ("albef", "dot"):
        for modality in ("image", "text"):
            store = FeatureStore.open(tmp_path / "out" / name / modality, collection=manifest)
            assert store.rejects() == [] and store.verify() == []
            keys = [(id, None) for id in manifest.image_ids]
            if modality == "text":
                keys = [(id.split("#")[0], int(id.split("#")[1])) for id in manifest.caption_ids]
            for row, (id, number) in enumerate(keys):
                embedding, tokens = naive(layout, name, modality, id, number)
                packed, lengths = store.tokens(torch.tensor([row]))
                assert lengths.tolist() == [len(tokens)]
                assert torch.equal(packed, torch.from_numpy(tokens).half())
                assert np.allclose(store.embeddings(torch.tensor([row]))[0], embedding, atol=1e-6)


def test_augmented_copies_hold_the_images_that_have_them(layout, tmp_path):
    image_file(layout, "1003_1", "ALBEF_AUG_Output").unlink()
    image_file(layout, "1004_1", "ALBEF_AUG_Output").write_bytes(b"damaged")
    summary = imported(layout, tmp_path / "out")["encoders"]
    assert [copy["rows"] for copy in summary["albef"]["augmented"]] == [12, 11, 12]
    assert summary["dot"]["augmented"] == []
    store = FeatureStore.open(tmp_path / "out" / "albef" / "image" / "augment-1")
    assert "1003" not in store.ids and [reject["id"] for reject in store.rejects()] == ["1004"]
    with np.load(image_file(layout, "1005_1", "ALBEF_AUG_Output")) as arrays:
        tokens, _ = store.tokens(store.rows_of(["1005"]))
        assert torch.equal(tokens, torch.from_numpy(arrays["feat"]).half())
    plain = FeatureStore.open(tmp_path / "out" / "albef" / "image")
    assert store.fingerprint == plain.fingerprint


def test_augmented_copies_are_counted_from_0_without_gaps(layout, tmp_path):
    for file in image_file(layout, "1005_1", "ALBEF_AUG_Output").parent.glob("*_0.npz"):
        file.unlink()
    imported(layout, tmp_path / "out")
    stored = StoredFeatures(tmp_path / "out" / "albef")
    assert stored.copies == 2
    for copy, number in enumerate((1, 2)):
        store = stored.store("image", copy)
        with np.load(image_file(layout, f"1005_{number}", "ALBEF_AUG_Output")) as arrays:
            tokens, _ = store.tokens(store.rows_of(["1005"]))
            assert torch.equal(tokens, torch.from_numpy(arrays["feat"]).half())


def test_copies_that_an_earlier_import_had_are_removed(layout, tmp_path):
    imported(layout, tmp_path / "out")
    assert StoredFeatures(tmp_path / "out" / "albef").copies == 3
    for file in image_file(layout, "1005_1", "ALBEF_AUG_Output").parent.glob("*_[12].npz"):
        file.unlink()
    for _ in range(2):
        assert len(imported(layout, tmp_path / "out")["encoders"]["albef"]["augmented"]) == 1
        assert StoredFeatures(tmp_path / "out" / "albef").copies == 1
    shutil.rmtree(layout / "ALBEF_AUG_Output")
    imported(layout, tmp_path / "out")
    assert not list((tmp_path / "out" / "albef" / "image").glob("augment-*"))


def test_copies_of_images_that_are_not_listed_are_no_stores(layout, tmp_path):
    (layout / "JSON" / "train_matching_image_preprocessed_cap.json").unlink()
    summary = imported(layout, tmp_path / "out")
    assert summary["encoders"]["albef"]["augmented"] == [] and "train" not in summary["counts"]


def test_folders_that_differ_in_case_only_are_refused(small, tmp_path):
    shutil.copytree(small / "DOT_Output", small / "Dot_Output")
    with pytest.raises(DataError, match="differ in case only"):
        imported(small, tmp_path / "out")


def test_a_damaged_manifest_is_written_anew(small, tmp_path):
    imported(small, tmp_path / "out")
    whole = (tmp_path / "out" / "manifest.jsonl").read_bytes()
    (tmp_path / "out" / "manifest.jsonl").write_bytes(b"damaged")
    imported(small, tmp_path / "out")
    assert (tmp_path / "out" / "manifest.jsonl").read_bytes() == whole


@pytest.mark.parametrize("captions", [1, 2, 7])
def test_any_number_of_captions(make_layout, tmp_path, captions):
    layout = make_layout(splits={"train": 4}, captions=captions)
    summary = imported(layout, tmp_path / "out")
    assert summary["encoders"]["albef"]["text"] == {
        "folder": str(tmp_path / "out" / "albef" / "text"), "rows": 4 * captions, "rejects": 0
    }  # fmt: skip
    store = FeatureStore.open(tmp_path / "out" / "dot" / "text")
    _, tokens = naive(layout, "dot", "text", "1001", captions - 1)
    row = store.rows_of([f"1001#{captions - 1}"])
    assert torch.equal(store.tokens(row)[0], torch.from_numpy(tokens).half())
    # One caption is written without the axis of captions.
    with np.load(text_file(layout, "1001")) as arrays:
        assert arrays["feat"].ndim == (2 if captions == 1 else 3)


def test_half_precision_is_enough_for_what_the_originals_make_of_tokens(tmp_path):
    """L2 norm, then (x - m) / s with the originals' constants, of tokens as large as ALBEF's and DOT's."""
    mean, deviation = -0.0006847491604276001, 0.036077868193387985
    tokens = torch.randn(400, 768, generator=torch.Generator().manual_seed(0)) * torch.logspace(-1, 1, 400)[:, None]
    exact = (torch.nn.functional.normalize(tokens) - mean) / deviation
    stored = (torch.nn.functional.normalize(tokens.half().float()) - mean) / deviation
    assert float((stored - exact).abs().mean()) < 2e-4
    assert float(((stored - exact).abs() / exact.abs().clamp(min=1)).max()) < 1e-3


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"feat": None}, "holds no array 'feat'"),
        ({"proj_embed": None}, "holds no array 'proj_embed'"),
        ({"feat": lambda a: a[:, :5]}, r"\(embedding, token\) lengths are \(4, 5\), those of most are \(4, 6\)"),
        ({"proj_embed": lambda a: a[:3]}, r"lengths are \(3, 6\)"),
        ({"feat": lambda a: a[0]}, "its tokens should be numbers on 2 axes"),
        ({"feat": lambda a: a[:0]}, "its tokens should be numbers on 2 axes"),
        ({"feat": lambda a: a[None]}, "its tokens should be numbers on 2 axes"),
        ({"feat": lambda a: a.astype(int)}, "its tokens should be numbers on 2 axes, got int64"),
        ({"proj_embed": lambda a: a * 0}, "no direction"),
        ({"proj_embed": lambda a: a * np.nan}, "no direction"),
        ({"feat": lambda a: a * np.nan}, "non-finite token"),
        ({"feat": lambda a: a * 1e6}, "beyond float16"),
        ({"feat": np.array("text")}, "its tokens should be numbers"),
    ],
)
def test_an_odd_image_file_rejects_its_row(small, tmp_path, changes, reason):
    change(image_file(small, "1002"), **changes)
    assert imported(small, tmp_path / "out")["encoders"]["albef"]["image"]["rejects"] == 1
    found = reasons(tmp_path / "out", "albef", "image")
    assert list(found) == ["1002"] and re.search(reason, found["1002"]), found
    assert str(image_file(small, "1002")) in found["1002"]
    store = FeatureStore.open(tmp_path / "out" / "albef" / "image")
    assert store.valid.tolist() == [True, True, False, True, True]
    for row in (0, 1, 3, 4):
        expected, _ = naive(small, "albef", "image", store.ids[row])
        assert np.allclose(store.embeddings(torch.tensor([row]))[0], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "reason", "rejected"),
    [
        ({"att": None}, "holds no array 'att'", 5),
        ({"feat": lambda a: a[:4]}, "its 'feat' holds 4 captions, the JSON file lists 5", 5),
        ({"caption": lambda a: a[:4]}, "its 'caption' holds 4 captions", 5),
        ({"att": np.array(3)}, "its 'att' holds no list of captions", 5),
        ({"caption": lambda a: a[::-1]}, r"its caption is 'loud thing|its caption is '.* thing 1002 seen", 4),
        ({"caption": lambda a: np.array([*a[:4], "another"])}, "its caption is 'another', the JSON file's", 1),
        ({"caption": lambda a: np.arange(5)}, "its caption is '", 5),
        ({"att": lambda a: a[:, ::-1]}, "must be 1 for each token and 0 for the padding after them", None),
        ({"att": lambda a: a * 0}, "must be 1 for each token", 5),
        ({"att": lambda a: a * 2}, "must be 1 for each token", 5),
        ({"att": lambda a: a[:, :3]}, "must be 1 for each token", 5),
        ({"att": lambda a: a.astype(str)}, "must be 1 for each token", 5),
        ({"proj_embed": lambda a: a[:, 0]}, "its embedding should be numbers on 1 axes", 5),
        ({"feat": lambda a: np.array(["a"] * 5, dtype=object)}, "must be 1 for each token", 5),
    ],
)  # fmt: skip
def test_an_odd_text_file_rejects_its_captions(small, tmp_path, changes, reason, rejected):
    change(text_file(small, "1002"), **changes)
    imported(small, tmp_path / "out")
    found = reasons(tmp_path / "out", "albef", "text")
    assert found and {id.split("#")[0] for id in found} == {"1002"}
    assert rejected is None or len(found) == rejected
    assert re.search(reason, next(iter(found.values()))), found
    assert reasons(tmp_path / "out", "dot", "text") == {}


def test_captions_are_compared_but_for_white_space(layout, tmp_path):
    change(text_file(layout, "1002"), caption=lambda a: np.array([f" {text}  " for text in a]))
    assert imported(layout, tmp_path / "out")["encoders"]["albef"]["text"]["rejects"] == 0


def test_missing_and_damaged_files_reject_their_rows(layout, tmp_path):
    image_file(layout, "1001").unlink()
    text_file(layout, "1001", "DOT_Output").write_bytes(b"PK damaged")
    imported(layout, tmp_path / "out")
    assert reasons(tmp_path / "out", "albef", "image")["1001"].endswith("doesn't exist; check the path.")
    found = reasons(tmp_path / "out", "dot", "text")
    assert list(found) == [f"1001#{number}" for number in range(5)]
    # Its first file is now that of its captions.
    item = Manifest.load(tmp_path / "out" / "manifest.jsonl")[1]
    assert (item.id, item.path) == ("1001", "ALBEF_Output/flickr30k/texts/1001.npz")


def test_malicious_files_reject_their_rows(layout, tmp_path):
    marker = tmp_path / "ran"
    bad = type("Bad", (), {"__reduce__": lambda self: (eval, (f"open({str(marker)!r}, 'w')",))})()
    change(text_file(layout, "1002", "DOT_Output"), feat=np.array([bad] * 5, dtype=object))
    imported(layout, tmp_path / "out")
    assert all("names builtins.eval" in reason for reason in reasons(tmp_path / "out", "dot", "text").values())
    assert len(reasons(tmp_path / "out", "dot", "text")) == 5 and not marker.exists()


def test_an_unusable_caption_keeps_the_others_numbers(layout, tmp_path):
    path = layout / "JSON" / "val_matching_image_preprocessed_cap.json"
    listed = json.loads(path.read_text())
    listed["1013"][1] = "  "
    listed["1014"][0] = 7
    listed["10#15"] = listed.pop("1015")
    path.write_text(json.dumps(listed))
    texts = {id: naive(layout, "albef", "text", id, 2) for id in ("1013",)}
    change(text_file(layout, "1013"), caption=lambda a: np.array([a[0], "  ", *a[2:]]))
    summary = imported(layout, tmp_path / "out")
    assert summary["rejects"] == 3 and summary["encoders"]["albef"]["text"]["rejects"] == 0
    lines = (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["1013", "1014", "10#15"]
    store = FeatureStore.open(tmp_path / "out" / "albef" / "text")
    # The file's third caption is the manifest's second.
    assert torch.equal(store.tokens(store.rows_of(["1013#1"]))[0], torch.from_numpy(texts["1013"][1]).half())


def test_known_checksums_are_kept_unless_the_file_is_newer(layout, tmp_path, monkeypatch):
    imported(layout, tmp_path / "out")
    before = Manifest.load(tmp_path / "out" / "manifest.jsonl")
    hashed = []
    monkeypatch.setattr(hada_layout, "sha256_of", lambda path: hashed.append(path) or sha256_of(path))
    replaced = image_file(layout, "1018")
    change(replaced, feat=lambda a: a + 1)
    # As an archive's unpacking leaves it: the contents are new, the date isn't.
    os.utime(replaced, (0, 0))
    imported(layout, tmp_path / "out")
    after = Manifest.load(tmp_path / "out" / "manifest.jsonl")
    assert hashed == [replaced] and after[18].sha256 == sha256_of(replaced) != before[18].sha256
    assert after.items[:18] == before.items[:18]


def test_an_item_without_any_file_is_left_out(layout, tmp_path):
    for path in layout.rglob("1015*.npz"):
        path.unlink()
    summary = imported(layout, tmp_path / "out")
    assert summary["rejects"] == 1 and summary["counts"]["val"]["images"] == 3
    assert "1015" not in Manifest.load(tmp_path / "out" / "manifest.jsonl").image_ids


def test_with_pictures_the_manifest_is_of_them(layout, tmp_path):
    pictures = tmp_path / "pictures"
    (pictures / "deep").mkdir(parents=True)
    for id in range(1000, 1021):
        Image.new("RGB", (4, 4), (id % 256, 0, 0)).save(pictures / "deep" / f"{id}.jpg")
    imported(layout, tmp_path / "out", images=pictures)
    manifest, _ = read_collection(tmp_path / "out" / "manifest.jsonl")
    assert manifest.root.resolve() == pictures and manifest[0].path == "deep/1000.jpg"
    assert manifest.check_files() == []
    assert manifest[0].sha256 == sha256_of(pictures / "deep" / "1000.jpg")
    shutil.copy(pictures / "deep" / "1000.jpg", pictures / "1000.jpg")
    with pytest.raises(DataError, match="have the same id; remove one"):
        imported(layout, tmp_path / "out", images=pictures)
    (pictures / "1000.jpg").unlink()
    (pictures / "deep" / "1007.jpg").unlink()
    with pytest.raises(DataError, match=r"lacks the pictures of 1 of 21 images, the first is 1007\.jpg"):
        imported(layout, tmp_path / "out", images=pictures)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


def test_an_interrupted_import_gives_what_an_uninterrupted_one_does(layout, tmp_path, monkeypatch):
    monkeypatch.setattr(imported_store, "SHARD_SIZE", 4)
    monkeypatch.setattr(imported_store, "_SAMPLED_FILES", 2)
    imported(layout, tmp_path / "out")
    whole = contents(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    read, left = hada_features.read_npz, [60]

    def killed(path, names):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return read(path, names)

    for _ in range(20):
        left[0] = 60
        try:
            with monkeypatch.context() as patch:
                patch.setattr(hada_features, "read_npz", killed)
                imported(layout, tmp_path / "out")
            break
        except KeyboardInterrupt:
            pass
    else:
        raise AssertionError("it never gets on")
    assert contents(tmp_path / "out") == whole


def test_a_finished_import_reads_a_sample_only_and_a_mended_file_its_shard(layout, tmp_path, monkeypatch):
    monkeypatch.setattr(imported_store, "SHARD_SIZE", 4)
    sound = image_file(layout, "1018", "DOT_Output").read_bytes()
    image_file(layout, "1018", "DOT_Output").write_bytes(sound[:-40])
    imported(layout, tmp_path / "out")
    assert list(reasons(tmp_path / "out", "dot", "image")) == ["1018"]
    shards = {path: path.stat().st_ino for path in (tmp_path / "out").rglob("shard-*")}
    imported(layout, tmp_path / "out")
    assert shards == {path: path.stat().st_ino for path in shards}
    image_file(layout, "1018", "DOT_Output").write_bytes(sound)
    imported(layout, tmp_path / "out")
    assert reasons(tmp_path / "out", "dot", "image") == {}
    changed = [path for path in shards if path.stat().st_ino != shards[path]]
    assert changed == [tmp_path / "out" / "dot" / "image" / "shard-00004.safetensors"]


def test_another_encoders_features_do_not_overwrite(small, make_layout, tmp_path):
    imported(small, tmp_path / "out")
    with pytest.raises(FeatureError, match="made by another encoder"):
        imported(make_layout("other", splits={"val": 5}, seed=1), tmp_path / "out")


def test_other_weights_have_another_fingerprint(small, make_layout, tmp_path):
    imported(small, tmp_path / "a")
    imported(make_layout("same", splits={"val": 5}), tmp_path / "b")
    imported(make_layout("other", splits={"val": 5}, seed=1), tmp_path / "c")
    a, b, c = (FeatureStore.open(tmp_path / name / "dot" / "text").fingerprint for name in "abc")
    assert a == b and a.name == "dot (authors' features)"
    assert a.weights_sha256 != c.weights_sha256


@pytest.mark.parametrize(
    ("write", "message"),
    [
        ("[]", "must hold one JSON object"),
        ("7", "must hold one JSON object"),
        ('[["1000", ["a"]]]', "must hold one JSON object"),
        ("{", "can't be read as JSON"),
        ('{"1000": ["a"], "1000": ["b"]}', "'1000' is listed twice"),
        ('{"1013": ["a"]}', "'1013' is listed twice"),
    ],
)
def test_a_bad_caption_file_is_an_error(layout, tmp_path, write, message):
    (layout / "JSON" / "train_matching_image_preprocessed_cap.json").write_text(write)
    with pytest.raises(DataError, match=message):
        imported(layout, tmp_path / "out")


def test_other_layouts_are_errors(layout, tmp_path):
    with pytest.raises(DataError, match=r"holds no features in the authors' layout: .*ALBEF_Output/coco/images"):
        imported(layout, tmp_path / "out", collection="coco")
    with pytest.raises(DataError, match=r"absent doesn't exist; name the folder"):
        imported(tmp_path / "absent", tmp_path / "out")
    for path in image_file(layout, "1000").parent.iterdir():
        path.write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"albef, images of flickr30k: none of 21 feature files can be used"):
        imported(layout, tmp_path / "out")
    shutil.rmtree(layout / "JSON")
    with pytest.raises(DataError, match=r"holds none of .*_matching_image_preprocessed_cap\.json"):
        imported(layout, tmp_path / "out")


def test_an_encoder_may_have_one_modality(layout, tmp_path):
    shutil.rmtree(layout / "DOT_Output" / "flickr30k" / "images")
    (layout / "BUA_Output" / "flickr30k_101_ra").mkdir(parents=True)
    summary = imported(layout, tmp_path / "out")
    assert "image" not in summary["encoders"]["dot"] and "text" in summary["encoders"]["dot"]
    assert StoredFeatures(tmp_path / "out" / "dot").modalities == ("text",)


def test_imported_features_are_fused_saved_and_searched(layout, tmp_path):
    imported(layout, tmp_path / "out")
    manifest = Manifest.load(tmp_path / "out" / "manifest.jsonl")
    encoders = [load_encoder(f"features:{tmp_path / 'out' / name}") for name in ("albef", "dot")]
    collection = Collection(manifest, tmp_path / "features", ExtractConfig(augmentations=5))
    assert [len(collection.augmented(encoder)) for encoder in encoders] == [3, 0]
    fused = fuse(encoders, collection, tmp_path / "run" / "alloy", config=TINY)
    assert not list((tmp_path / "features").glob("features-*"))
    # The alloy finds its inputs when all is moved together.
    shutil.copytree(tmp_path / "out", tmp_path / "moved" / "out")
    shutil.copytree(tmp_path / "run", tmp_path / "moved" / "run")
    shutil.rmtree(tmp_path / "out")
    loaded = Alloy.from_pretrained(tmp_path / "moved" / "run" / "alloy")
    assert [encoder.name for encoder in loaded.encoders] == ["albef (authors' features)", "dot (authors' features)"]
    assert loaded.fingerprint("text") == fused.fingerprint("text")
    searcher = Searcher.open(tmp_path / "moved" / "run" / "alloy", loaded)
    with pytest.raises(ConfigError, match=r"a new text can't be encoded.*give the encoder itself"):
        searcher.by_text("a red thing")
    vectors = collection.store(loaded, "text").embeddings()
    assert vectors.isfinite().all() and len(vectors) == len(manifest.captions)


def test_a_run_of_imported_features(layout, tmp_path):
    image_file(layout, "1020").write_bytes(b"damaged")
    imported(layout, tmp_path / "out")
    config = {
        "collection": str(tmp_path / "out" / "manifest.jsonl"),
        "folder": str(tmp_path / "run"),
        "inputs": [{"name": name, "encoder": f"features:{tmp_path / 'out' / name}"} for name in ("albef", "dot")],
        "seeds": [0],
        "fusion": {
            "towers": {"token_dim": 8, "heads": 2},
            "first_stage": {"epochs": 1, "batch_size": 4, "queue_size": 16},
            "second_stage": {"epochs": 1, "batch_size": 4, "queue_size": 16},
        },
    }
    (tmp_path / "run.yaml").write_text(json.dumps(config))
    report = Run(load_config(tmp_path / "run.yaml")).execute()
    # The damaged file's image can be neither a query nor an answer, and its captions no queries.
    assert report["test"] == {"images": 4, "captions": 20}
    page = (tmp_path / "run" / "report.html").read_text()
    # There are no pictures to show, and the page says so.
    assert "data:image/webp" not in page and "isn&#39;t a picture" in page
