import dataclasses

import pytest
import torch

from modalloy.data import Manifest
from modalloy.fusion import PairedFeatures
from modalloy.fusion.subset import halves, subset


@pytest.fixture(scope="module")
def split(make_collection, make_paired, make_encoder, tmp_path_factory):
    """Twenty images of two captions, of which the first four are one family, and the next two another."""
    root = tmp_path_factory.mktemp("halves")
    manifest = make_collection(root / "pictures", {"train": 3, "val": 20})
    families = [*[None] * 3, *["a"] * 4, *["b"] * 2, *[None] * 14]
    items = [dataclasses.replace(item, family=family) for item, family in zip(manifest, families, strict=True)]
    paired = make_paired(Manifest(manifest.root, tuple(items)), root / "features", [make_encoder(0), make_encoder(1)])
    assert isinstance(paired, PairedFeatures)
    return paired.split("val")


def owners(part) -> list[int]:
    """The manifest rows of the captions' images."""
    return part.image_rows[part.caption_image].tolist()


def test_a_subset_keeps_each_caption_at_its_image(split):
    images = torch.arange(20) % 3 == 0
    part = subset(split, images)
    assert part.image_rows.tolist() == [row for row in split.image_rows.tolist() if (row - 3) % 3 == 0]
    assert owners(part) == split.paired.manifest.caption_image[part.caption_rows].tolist()
    assert len(part.caption_rows) == 2 * len(part.image_rows)
    second = torch.arange(40) % 2 == 1
    few = subset(split, images, second)
    assert torch.equal(few.image_rows, part.image_rows)
    assert few.caption_rows.tolist() == part.caption_rows[1::2].tolist() and owners(few) == few.image_rows.tolist()


@pytest.mark.parametrize("seed", range(4))
def test_halves_share_nothing_and_tear_no_family_apart(split, seed):
    parts = halves(split, seed)
    rows = [set(part.image_rows.tolist()) for part in parts]
    assert rows[0].isdisjoint(rows[1]) and rows[0] | rows[1] == set(split.image_rows.tolist())
    families = [set(split.paired.manifest.families[part.image_rows].tolist()) for part in parts]
    assert families[0].isdisjoint(families[1])
    assert abs(len(rows[0]) - len(rows[1])) <= 4
    assert sorted(row for part in parts for row in part.caption_rows.tolist()) == split.caption_rows.tolist()


def test_a_seed_decides_the_halves(split):
    first, again, other = (halves(split, seed)[0].image_rows for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_one_family_is_one_half(split):
    alone = subset(split, torch.arange(20) < 4)
    assert [len(half.image_rows) for half in halves(alone)] == [4, 0]
