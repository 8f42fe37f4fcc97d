import hashlib
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops
from trainable_toys import TrainableToy

from modalloy.data import Item, Manifest
from modalloy.data.rand_augment import RandAugment
from modalloy.training.align_pictures import EpochRows, EpochSampler, PictureViews, TrainingPictures, WholePictures
from modalloy.training.batches import PairRows, PairSampler

VIEWS = RandAugment(operations=0, crop=(0.3, 1.0), seed=5)
SIZE = (24, 18)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Manifest:
    """Three pictures whose every pixel differs from the others, each with two captions."""
    root = tmp_path_factory.mktemp("pictures")
    return Manifest(root, tuple(item(root, number) for number in range(3)))


def item(root: Path, number: int) -> Item:
    picture = Image.new("RGB", SIZE)
    picture.putdata([(10 * x, 10 * y, number) for y in range(SIZE[1]) for x in range(SIZE[0])])
    path = root / f"{number}.png"
    picture.save(path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return Item(str(number), path.name, sha256, "train", (f"{number} 0 0", f"{number} 1 1"))


def test_a_view_is_a_crop_that_its_caption_epoch_and_seed_decide(manifest):
    views = PictureViews(manifest, VIEWS)
    seen = []
    for views.epoch in range(2):
        for row in range(6):
            view = views.load(row)
            assert view.tobytes() == views.load(row).tobytes()
            whole = Image.open(manifest.root / f"{row // 2}.png")
            (first, top, number), (last, *_) = view.getpixel((0, 0)), view.getpixel((view.width - 1, 0))
            assert number == row // 2 and views.path(row) == f"{number}.png"
            left = min(first, last) // 10
            crop = whole.crop((left, top // 10, left + view.width, top // 10 + view.height))
            if first > last:
                crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            assert ImageChops.difference(view, crop).getbbox() is None
            assert 0.2 < view.width * view.height / (SIZE[0] * SIZE[1]) <= 1
            seen.append((view.size, view.getpixel((0, 0)), views.content(row)))
    assert len({(size, corner) for size, corner, _ in seen}) > 8  # of 12: in each epoch and for each caption another
    assert len({content for *_, content in seen}) == 6
    other = PictureViews(manifest, RandAugment(operations=0, crop=(0.3, 1.0), seed=6))
    other.epoch = 1
    assert [other.load(row).tobytes() for row in range(6)] != [views.load(row).tobytes() for row in range(6)]


def test_whole_pictures_are_left_as_they_are(manifest):
    views = PictureViews(manifest, RandAugment(operations=0, crop=(1.0, 1.0), flip=False))
    for row in range(6):
        assert views.load(row).tobytes() == Image.open(manifest.root / f"{row // 2}.png").tobytes()


def test_a_sampler_s_batches_come_with_their_epoch():
    def pairs():
        return PairSampler(torch.arange(6), batch_size=3, seed=1)

    drawn = EpochSampler(pairs())
    plain = pairs()
    for epoch in (0, 4):
        drawn.set_epoch(epoch)
        plain.set_epoch(epoch)
        batches = list(drawn)
        assert len(batches) == len(drawn) == 2 and {each.epoch for each in batches} == {epoch}
        for each, rows in zip(batches, plain, strict=True):
            assert torch.equal(each.rows.images, rows.images) and torch.equal(each.rows.captions, rows.captions)


def test_what_cannot_be_read_is_told_and_left_out(manifest, tmp_path):
    items = tuple(item(tmp_path, number) for number in range(3))
    (tmp_path / "1.png").write_bytes(b"no picture")
    broken = Manifest(tmp_path, items)
    encoder = TrainableToy("image")
    # Of the captions' rows 1 to 5 are kept, which are drawn from by their places.
    training = TrainingPictures(encoder, broken, torch.arange(1, 6), VIEWS)
    drawn = EpochRows(3, PairRows(torch.tensor([2, 1, 0]), torch.tensor([4, 1, 0])))
    batch = training[drawn]
    assert batch.images.tolist() == [2, 0] and batch.captions.tolist() == [4, 0]
    assert len(batch.broken) == 1 and "1.png isn't a picture" in batch.broken[0]
    views = PictureViews(broken, VIEWS)
    views.epoch = 3
    for made, row in zip(batch.pictures, (5, 1), strict=True):
        assert torch.equal(made, encoder.preprocess("image", views.load(row)))
    whole = WholePictures(encoder, broken, torch.tensor([1, 2]))
    batch = whole[torch.tensor([0, 1])]
    assert batch.images.tolist() == [1] and batch.captions is None and len(batch.broken) == 1
    assert len(whole[torch.tensor([0])].pictures) == 0
    sound = WholePictures(encoder, manifest, torch.tensor([1, 2]))[torch.tensor([1, 0])]
    assert sound.images.tolist() == [1, 0] and sound.broken == () and sound.pictures.shape[0] == 2
