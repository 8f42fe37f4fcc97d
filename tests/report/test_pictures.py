import base64
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from modalloy.errors import DataError
from modalloy.report.pictures import OVERLAY, THUMBNAIL, Album, attention_overlay


def decode(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_a_thumbnail_is_small_and_keeps_its_shape(tmp_path: Path):
    Image.new("RGB", (640, 320), "red").save(tmp_path / "wide.png")
    album = Album()
    thumbnail = album.add(tmp_path / "wide.png")
    assert thumbnail.css_class is not None
    picture = decode(album.uris[thumbnail.css_class])
    assert picture.size == (THUMBNAIL, THUMBNAIL // 2)
    assert picture.convert("RGB").getpixel((80, 40))[0] > 240


def test_the_same_picture_is_kept_once(pictures: list[Path]):
    album = Album()
    assert album.add(pictures[0]) is album.add(pictures[0])
    album.add(pictures[1])
    assert len(album.uris) == 2


def test_an_unreadable_picture_has_a_reason_and_no_class(tmp_path: Path):
    album = Album()
    thumbnail = album.add(tmp_path / "gone.png")
    assert thumbnail.css_class is None and thumbnail.name == "gone.png"
    assert "doesn't exist" in thumbnail.reason
    assert album.uris == {}


def test_attention_darkens_where_it_is_high_and_leaves_the_rest_clear():
    weights = torch.zeros(4, 4)
    weights[0, 3] = 1.0
    overlay = np.asarray(attention_overlay(Image.new("RGB", (300, 200), "white"), weights))
    assert overlay.shape == (OVERLAY, OVERLAY, 3)
    assert overlay[20, -20].sum() < 250
    assert (overlay[-40:, :40] == 255).all()


def test_the_grid_lies_on_the_largest_centred_crop_of_its_shape():
    picture = Image.new("RGB", (300, 100), "black")
    picture.paste("white", (100, 0, 200, 100))
    overlay = np.asarray(attention_overlay(picture, torch.ones(2, 2)))
    # Resizing lets a little of the black in at the very edge.
    assert (overlay[:, 2:-2] == 255).all()
    assert attention_overlay(picture, torch.ones(2, 4)).size == (OVERLAY, OVERLAY // 2)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.5])
def test_what_is_no_attention_is_refused(value: float):
    with pytest.raises(DataError, match=r"Attention must be numbers of at least 0 .* \(2, 2\)"):
        attention_overlay(Image.new("RGB", (8, 8)), torch.tensor([[0.5, value], [0.1, 0.1]]))


def test_an_empty_grid_is_refused():
    with pytest.raises(DataError, match="Attention"):
        attention_overlay(Image.new("RGB", (8, 8)), torch.zeros(0, 0))


def test_an_overlay_may_be_smaller():
    assert attention_overlay(Image.new("RGB", (300, 200)), torch.ones(2, 4), 64).size == (64, 32)
