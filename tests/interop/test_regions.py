import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from modalloy import Collection
from modalloy.data import Item, Manifest
from modalloy.errors import ConfigError, DataError, FeatureError
from modalloy.features import FeatureStore
from modalloy.interop import import_regions
from modalloy.interop.regions import RegionChoice
from modalloy.training.align_config import AlignConfig
from modalloy.workflow.align import align_backbones

WIDTH, HEIGHT = 200, 100


@pytest.fixture
def manifest(tmp_path):
    captions = ("a red thing", "an old thing")
    splits = ["train"] * 6 + ["val"] * 2
    return Manifest(
        tmp_path, tuple(Item(f"p{n}", f"p{n}.jpg", f"{n:064x}", split, captions) for n, split in enumerate(splits))
    )


def arrays_of(seed, regions=20, width=5):
    random = np.random.default_rng(seed)
    corners = np.sort(random.random((regions, 2, 2)), axis=1) * (WIDTH, HEIGHT)
    return {
        "features": random.standard_normal((regions, width)).astype(np.float32),
        "boxes": corners.reshape(regions, 4).astype(np.float32),
        "image_w": np.array(WIDTH),
        "image_h": np.array(HEIGHT),
        "conf": random.random(regions).astype(np.float32) * 0.4,
    }


@pytest.fixture
def dump(tmp_path, manifest):
    folder = tmp_path / "dump"
    folder.mkdir()
    for seed, id in enumerate(manifest.image_ids):
        np.savez(folder / f"{id}.npz", **arrays_of(seed))
    return folder


def imported(dump, manifest, out, **options):
    return import_regions(dump, out, manifest, progress=False, choice=RegionChoice(**options) if options else None)


def naive(arrays, threshold=0.2, least=10, most=100):
    """UNITER's choice and geometry, region by region."""
    order = sorted(range(len(arrays["conf"])), key=lambda region: -arrays["conf"][region])
    above = [region for region in order if arrays["conf"][region] > threshold]
    kept = order[: min(max(len(above), least), most)]
    tokens = []
    for region in kept:
        x1, y1, x2, y2 = (float(value) for value in arrays["boxes"][region])
        x1, x2, y1, y2 = x1 / WIDTH, x2 / WIDTH, y1 / HEIGHT, y2 / HEIGHT
        tokens.append([*arrays["features"][region], x1, y1, x2, y2, x2 - x1, y2 - y1, (x2 - x1) * (y2 - y1)])
    tokens = np.array(tokens, dtype=np.float64)
    mean = tokens.mean(0)
    return mean / np.linalg.norm(mean), np.vstack([mean, tokens])


def stored(out, id):
    store = FeatureStore.open(out / "image")
    row = store.rows_of([id])
    return store.embeddings(row)[0].numpy(), store.tokens(row)[0].float().numpy()


def reason_of(out, id):
    return {reject["id"]: reject["reason"] for reject in FeatureStore.open(out / "image").rejects()}[id]


@pytest.mark.parametrize("options", [{}, {"threshold": 0.3, "least": 2, "most": 5}, {"least": 20}, {"threshold": 0.0}])
def test_tokens_are_uniters_region_by_region(dump, manifest, tmp_path, options):
    summary = imported(dump, manifest, tmp_path / "out", **options)
    json.dumps(summary)
    assert summary == {
        "spec": f"features:{tmp_path / 'out'}",
        "folder": str(tmp_path / "out" / "image"),
        "rows": 8,
        "rejects": 0,
        "width": 12,
    }
    for seed, id in enumerate(manifest.image_ids):
        embedding, tokens = naive(arrays_of(seed), **options)
        got_embedding, got_tokens = stored(tmp_path / "out", id)
        assert got_tokens.shape == tokens.shape
        assert np.allclose(got_embedding, embedding, atol=1e-6) and np.allclose(got_tokens, tokens, atol=2e-3)
    FeatureStore.open(tmp_path / "out" / "image", collection=manifest)


@pytest.mark.parametrize(
    "renamed",
    [
        {"x": "features", "bbox": "boxes", "scores": "conf"},
        {"feat": "features", "image_width": "image_w", "image_height": "image_h"},
        {"bbox_ft": "features", "bbox_pos": "boxes", "objects_conf": "conf"},
    ],
)
def test_other_dumps_names(dump, manifest, tmp_path, renamed):
    arrays = arrays_of(0)
    for new, old in renamed.items():
        arrays[new] = arrays.pop(old)
    np.savez(dump / "p0.npz", **arrays)
    imported(dump, manifest, tmp_path / "out")
    assert np.allclose(stored(tmp_path / "out", "p0")[0], naive(arrays_of(0))[0], atol=1e-6)


def test_normalized_boxes(dump, manifest, tmp_path):
    for seed, id in enumerate(manifest.image_ids):
        arrays = arrays_of(seed)
        shares = arrays.pop("boxes") / [WIDTH, HEIGHT, WIDTH, HEIGHT]
        del arrays["image_w"], arrays["image_h"]
        # UNITER's own files have the width and height after the corners.
        name = "norm_bb" if seed % 2 else "boxes"
        np.savez(dump / f"{id}.npz", **arrays, **{name: np.hstack([shares, shares[:, :2]]) if seed % 2 else shares})
    imported(dump, manifest, tmp_path / "out", normalized=True)
    for seed, id in enumerate(manifest.image_ids):
        assert np.allclose(stored(tmp_path / "out", id)[0], naive(arrays_of(seed))[0], atol=1e-6)


def test_padding_rows_are_no_regions(dump, manifest, tmp_path):
    arrays = arrays_of(0)
    for name in ("features", "boxes", "conf"):
        arrays[name] = np.concatenate([arrays[name], np.zeros_like(arrays[name])])
    arrays["num_boxes"] = np.array([20])
    np.savez(dump / "p0.npz", **arrays)
    imported(dump, manifest, tmp_path / "out")
    assert np.allclose(stored(tmp_path / "out", "p0")[0], naive(arrays_of(0))[0], atol=1e-6)


def test_without_scores_the_files_order_decides(dump, manifest, tmp_path):
    arrays = arrays_of(0)
    del arrays["conf"]
    np.savez(dump / "p0.npz", **arrays)
    imported(dump, manifest, tmp_path / "out", most=15)
    tokens = stored(tmp_path / "out", "p0")[1]
    assert np.allclose(tokens[1:, :5], arrays["features"][:15], atol=2e-3)


def test_object_and_attribute_scores_are_joined(dump, manifest, tmp_path):
    arrays, random = arrays_of(0), np.random.default_rng(9)
    objects = arrays.pop("conf")
    attributes = random.random(20).astype(np.float32)
    np.savez(dump / "p0.npz", **arrays, objects_conf=objects, attrs_conf=attributes)
    imported(dump, manifest, tmp_path / "out")
    expected = naive({**arrays, "conf": (2 * objects.astype(float) + attributes) / 3})
    assert np.allclose(stored(tmp_path / "out", "p0")[0], expected[0], atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"features": None}, "holds no region features"),
        ({"boxes": None}, "holds no boxes"),
        ({"image_w": None}, "boxes are in pixels, but it has no image_w"),
        ({"image_w": np.array(0)}, "a picture of 0 x 100 pixels"),
        ({"image_w": np.array([1, 2])}, "should be one number"),
        ({"image_w": np.array("wide")}, "should be one number"),
        ({"image_w": np.array(20)}, "stand out of the picture.*another size"),
        ({"boxes": lambda a: a[:5]}, "20 regions and 5 boxes"),
        ({"boxes": lambda a: a[:, :3]}, "a box has 4 numbers"),
        ({"boxes": lambda a: a[:, [2, 3, 0, 1]]}, "perhaps they are x, y, width, height"),
        ({"boxes": lambda a: a * np.nan}, "boxes must be"),
        ({"boxes": lambda a: -a[:, [2, 3, 0, 1]]}, "stand out"),
        ({"features": lambda a: a[0]}, "should be numbers on 2 axes"),
        ({"features": lambda a: a.astype(str)}, "should be numbers on 2 axes"),
        ({"features": lambda a: a[:0]}, "0 regions in 0 rows"),
        ({"features": lambda a: a[:, :3]}, r"lengths are \(10, 10\), those of most are \(12, 12\)"),
        ({"features": lambda a: a * np.inf}, "no direction"),
        ({"features": lambda a: a * 1e6}, "beyond float16"),
        ({"num_boxes": np.array(21)}, "21 regions in 20 rows"),
        ({"num_boxes": np.array(np.nan)}, "should be one number"),
        ({"conf": lambda a: a[:5]}, "20 regions, and 5 scores"),
        ({"conf": lambda a: a * np.nan}, "aren't finite"),
        ({"conf": lambda a: a[None]}, "should be numbers on 1 axes"),
        ({"objects_conf": np.zeros(20), "attrs_conf": np.zeros(19)}, "20 objects and of 19 attributes"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_an_odd_file_rejects_its_row(dump, manifest, tmp_path, changes, reason):
    arrays = arrays_of(3)
    for name, change in changes.items():
        arrays[name] = change(arrays[name]) if callable(change) else change
    np.savez(dump / "p3.npz", **{name: array for name, array in arrays.items() if array is not None})
    (dump / "p4.npz").write_bytes(b"damaged")
    (dump / "p5.npz").unlink()
    assert imported(dump, manifest, tmp_path / "out")["rejects"] == 3
    store = FeatureStore.open(tmp_path / "out" / "image")
    assert store.valid.tolist() == [True] * 3 + [False] * 3 + [True] * 2
    assert re.search(reason, reason_of(tmp_path / "out", "p3")), reason_of(tmp_path / "out", "p3")
    assert "p4.npz can't be read as .npz" in reason_of(tmp_path / "out", "p4")
    assert "p5.npz doesn't exist" in reason_of(tmp_path / "out", "p5")
    assert np.allclose(stored(tmp_path / "out", "p6")[0], naive(arrays_of(6))[0], atol=1e-6)


def test_normalized_boxes_taken_for_pixels_and_the_reverse(dump, manifest, tmp_path):
    with pytest.raises(
        DataError, match=r"none of 8 feature files can be used; the first: .*perhaps they are in pixels"
    ):
        imported(dump, manifest, tmp_path / "out", normalized=True)
    for seed, id in enumerate(manifest.image_ids):
        arrays = arrays_of(seed)
        arrays["boxes"] = arrays["boxes"] / [WIDTH, HEIGHT, WIDTH, HEIGHT]
        np.savez(dump / f"{id}.npz", **arrays)
    with pytest.raises(DataError, match=r"none of 8 feature files can be used; the first: .*perhaps they are shares"):
        imported(dump, manifest, tmp_path / "out")


@pytest.mark.parametrize(
    "options", [{"least": 0}, {"least": 11, "most": 10}, {"threshold": -0.1}, {"threshold": float("nan")}]
)
def test_a_choice_out_of_range_is_refused(options):
    with pytest.raises(ConfigError, match=r"expected|must lie"):
        RegionChoice(**options)


def test_another_choice_does_not_overwrite(dump, manifest, tmp_path):
    imported(dump, manifest, tmp_path / "out")
    with pytest.raises(FeatureError, match="made by another encoder or preprocessing"):
        imported(dump, manifest, tmp_path / "out", most=12)


def test_regions_are_an_image_backbone(dump, manifest, tmp_path):
    (dump / "p1.npz").unlink()
    spec = imported(dump, manifest, tmp_path / "out")["spec"]
    collection = Collection(manifest, tmp_path / "features")
    config = AlignConfig(epochs=1, dim=8, batch_size=2)
    aligned = align_backbones(spec, "subwords", collection, tmp_path / "aligned", config)
    assert aligned.backbones["image"].spec == spec
    store = collection.store(aligned, "image")
    with pytest.raises(ConfigError, match="a new image can't be encoded"):
        aligned.encode_images([Image.new("RGB", (4, 4))])
    assert (store.dim, store.width) == (8, 12) and store.valid.tolist() == [True, False] + [True] * 6
    assert torch.allclose(store.embeddings(torch.tensor([0])).norm(), torch.tensor(1.0))


def test_a_folder_that_is_none_is_refused(manifest, tmp_path):
    with pytest.raises(DataError, match=r"nowhere is no folder; name the one that holds the region features"):
        import_regions(tmp_path / "nowhere", tmp_path / "out", manifest)
