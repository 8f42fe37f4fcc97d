from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from modalloy.encoders.image_tensor import IMAGENET_MEAN, IMAGENET_STD, ImageTensor
from modalloy.errors import ConfigError

Draw = Callable[..., Image.Image]

HALF = (0.5, 0.5, 0.5)


def test_a_square_of_the_right_size_keeps_its_pixels(picture: Draw) -> None:
    image = picture(0, 32, 32)
    tensor = ImageTensor(32, HALF, HALF)(image)
    assert tensor.dtype == torch.uint8
    assert np.array_equal(tensor.permute(1, 2, 0).numpy(), np.asarray(image))


def test_the_centred_square_is_kept(picture: Draw) -> None:
    wide, high = picture(1, 96, 32), picture(1, 32, 96)
    prepare = ImageTensor(16, HALF, HALF)
    resized = wide.resize((48, 16), Image.Resampling.BICUBIC).crop((16, 0, 32, 16))
    assert np.array_equal(prepare(wide).permute(1, 2, 0).numpy(), np.asarray(resized))
    resized = high.resize((16, 48), Image.Resampling.BICUBIC).crop((0, 16, 16, 32))
    assert np.array_equal(prepare(high).permute(1, 2, 0).numpy(), np.asarray(resized))


def test_resizing_is_bicubic_and_antialiased(picture: Draw) -> None:
    image = picture(2, 64, 64)
    expected = np.asarray(image.resize((24, 24), Image.Resampling.BICUBIC))
    assert np.array_equal(ImageTensor(24, HALF, HALF)(image).permute(1, 2, 0).numpy(), expected)


def test_a_sliver_still_gives_a_square() -> None:
    assert ImageTensor(8, HALF, HALF)(Image.new("RGB", (1, 3000))).shape == (3, 8, 8)


def test_each_channel_is_normalised_by_its_own_figures(picture: Draw) -> None:
    prepare = ImageTensor(8, IMAGENET_MEAN, IMAGENET_STD)
    images = [prepare(picture(seed, 8, 8)) for seed in range(2)]
    pixels = np.stack([image.numpy() for image in images]).transpose(0, 2, 3, 1) / 255
    expected = ((pixels - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(prepare.normalise(images).numpy(), expected, atol=1e-5)


def test_every_setting_is_told() -> None:
    told = ImageTensor(8, HALF, HALF).settings()
    for other in (
        ImageTensor(9, HALF, HALF),
        ImageTensor(8, IMAGENET_MEAN, HALF),
        ImageTensor(8, HALF, IMAGENET_STD),
    ):
        assert other.settings() != told
    assert ImageTensor(8, HALF, HALF, Image.Resampling.BILINEAR).settings() != told


def test_a_size_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1 pixel, got 0"):
        ImageTensor(0, HALF, HALF)
