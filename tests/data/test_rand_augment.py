import dataclasses
import hashlib
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps

from modalloy.data import rand_augment
from modalloy.data.rand_augment import OPERATIONS, RandAugment, enhancement
from modalloy.errors import ConfigError

GREY = (128, 128, 128)
DRAWN = [("TranslateY", -7.0), ("ShearY", -7.0), (30, 26), ("Rotate", 7.0), ("Identity", 7.0), (31, 27)]
GEOMETRIC = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
STRENGTHLESS = {
    "Identity": lambda image: image,
    "AutoContrast": ImageOps.autocontrast,
    "Equalize": ImageOps.equalize,
}


def picture(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    """Smooth in some places and noisy in others, of narrow contrast."""
    noise = np.random.default_rng(seed).integers(60, 180, (height, width, 3), dtype=np.uint8)
    noise[: height // 2] = np.linspace(70, 160, width, dtype=np.uint8)[None, :, None]
    return Image.fromarray(noise)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.float64)


def sampled(image: Image.Image, source) -> np.ndarray:
    """Bilinear by its definition: `source` maps an output pixel's centre to where it comes from."""
    data, out = pixels(image), np.empty((image.height, image.width, 3))
    for y in range(image.height):
        for x in range(image.width):
            u, v = source(x + 0.5, y + 0.5)
            if not (0 <= u < image.width and 0 <= v < image.height):
                out[y, x] = GREY
                continue
            u, v = u - 0.5, v - 0.5
            left, top = int(np.floor(u)), int(np.floor(v))
            value = np.zeros(3)
            for column, row in ((left, top), (left + 1, top), (left, top + 1), (left + 1, top + 1)):
                share = (1 - abs(u - column)) * (1 - abs(v - row))
                value += share * data[min(max(row, 0), image.height - 1), min(max(column, 0), image.width - 1)]
            out[y, x] = value
    return out


def turned(image: Image.Image, degrees: float):
    angle, cx, cy = np.radians(degrees), image.width / 2, image.height / 2
    cos, sin = np.cos(angle), np.sin(angle)

    def source(x: float, y: float) -> tuple[float, float]:
        # Anticlockwise on the screen, where y points down: so the source lies clockwise.
        return cx + cos * (x - cx) - sin * (y - cy), cy + sin * (x - cx) + cos * (y - cy)

    return source


@pytest.mark.parametrize("magnitude", [10.0, -10.0, 7.0, 2.0])
@pytest.mark.parametrize("name", GEOMETRIC)
def test_geometric_operations_sample_where_their_definition_says(name, magnitude):
    image = picture(40, 30)
    sources = {
        "ShearX": lambda x, y: (x + 0.3 * magnitude / 10 * y, y),
        "ShearY": lambda x, y: (x, y + 0.3 * magnitude / 10 * x),
        "TranslateX": lambda x, y: (x + 10 / 384 * 40 * magnitude / 10, y),
        "TranslateY": lambda x, y: (x, y + 10 / 384 * 30 * magnitude / 10),
        "Rotate": turned(image, 30 * magnitude / 10),
    }
    found = OPERATIONS[name](image, magnitude)
    assert found.size == image.size and found.mode == "RGB"
    difference = np.abs(pixels(found) - sampled(image, sources[name]))
    # At the border of the picture a rounding decides between a pixel and the grey around it.
    assert np.mean(difference.max(axis=2) > 1.5) < 0.01
    assert np.abs(pixels(found) - pixels(image)).max() > 5


@pytest.mark.parametrize("name", STRENGTHLESS)
@pytest.mark.parametrize("magnitude", [0.0, 7.0])
def test_operations_without_a_strength_are_pillows(name, magnitude):
    assert OPERATIONS[name](picture(), magnitude) == STRENGTHLESS[name](picture())


@pytest.mark.parametrize(("magnitude", "factor"), [(0.0, 0.1), (5.0, 1.0), (7.0, 1.36), (10.0, 1.9)])
def test_brightness_and_sharpness_are_pillows_enhancements(magnitude, factor):
    assert enhancement(magnitude) == pytest.approx(factor)
    for name in ("Brightness", "Sharpness"):
        expected = getattr(ImageEnhance, name)(picture()).enhance(factor)
        assert np.abs(pixels(OPERATIONS[name](picture(), magnitude)) - pixels(expected)).max() <= 1


def test_no_strength_changes_nothing():
    for name in GEOMETRIC:
        assert OPERATIONS[name](picture(), 0.0) == picture()
    for name in ("Brightness", "Sharpness"):
        assert OPERATIONS[name](picture(), 5.0) == picture()


def test_the_operations_are_albefs():
    assert set(OPERATIONS) == {*STRENGTHLESS, "Brightness", "Sharpness", *GEOMETRIC}


# The whole ------------------------------------------------------------------------------------------------


def digest(image: Image.Image) -> str:
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()


def test_a_key_decides_the_picture_on_every_thread_and_in_every_process():
    augment, keys = RandAugment(), [f"{number}/{copy}" for number in range(20) for copy in range(2)]
    expected = [digest(augment(picture(), key)) for key in keys]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda key: digest(RandAugment()(picture(), key)), reversed(keys))) == expected[::-1]
    program = (
        "import sys; from PIL import Image; from modalloy.data.rand_augment import RandAugment\n"
        "image = Image.frombytes('RGB', (40, 30), sys.stdin.buffer.read())\n"
        "for key in sys.argv[1:]: sys.stdout.buffer.write(RandAugment()(image, key).tobytes())"
    )
    made = subprocess.run(
        [sys.executable, "-c", program, *keys], input=picture().tobytes(), capture_output=True, check=True
    )
    assert made.stdout == b"".join(augment(picture(), key).tobytes() for key in keys)


def test_keys_and_seeds_give_different_pictures():
    image = picture()
    assert len({digest(RandAugment()(image, f"a/{copy}")) for copy in range(50)}) > 45
    assert RandAugment(seed=1)(image, "a/0") != RandAugment()(image, "a/0")
    assert image == picture()


def test_the_draws_have_not_changed():
    """Stored features are found by their settings, so a change of the draws needs a new version."""
    augment, drawn = RandAugment(operations=2, probability=1.0), []
    for key in ("a/0", "b/1"):
        with pytest.MonkeyPatch.context() as patch:
            for name in OPERATIONS:
                patch.setitem(
                    OPERATIONS, name, lambda image, magnitude, name=name: drawn.append((name, magnitude)) or image
                )
            drawn.append(augment(picture(), key).size)
    assert (rand_augment._VERSION, drawn) == (1, DRAWN)


def test_operations_are_drawn_evenly_and_happen_half_of_the_time(monkeypatch):
    seen: Counter = Counter()
    for name in OPERATIONS:
        monkeypatch.setitem(
            OPERATIONS, name, lambda image, magnitude, name=name: seen.update([(name, magnitude)]) or image
        )
    augment, image, times = RandAugment(crop=(1.0, 1.0), flip=False), Image.new("RGB", (2, 2)), 6000
    for number in range(times):
        augment(image, f"{number}/0")
    counts: Counter = Counter()
    for (name, magnitude), count in seen.items():
        counts[name] += count
        assert abs(magnitude) == 7
        assert name in GEOMETRIC or magnitude == 7
    assert set(counts) == set(OPERATIONS)
    assert all(abs(count / (times * 2 * 0.5 / 10) - 1) < 0.15 for count in counts.values())
    for name in GEOMETRIC:
        assert 0.4 < seen[name, 7] / counts[name] < 0.6


def test_half_of_the_pictures_are_flipped():
    left = Image.new("RGB", (2, 1))
    left.putpixel((0, 0), (255, 255, 255))
    plain = RandAugment(operations=0, crop=(1.0, 1.0))
    whites = [plain(left, str(number)).getpixel((0, 0))[0] for number in range(1000)]
    assert set(whites) == {0, 255} and 0.44 < whites.count(0) / 1000 < 0.56
    kept = dataclasses.replace(plain, flip=False)
    assert all(kept(left, str(number)) == left for number in range(50))


def test_crops_keep_the_area_the_shape_and_the_place_that_they_should():
    ramp = np.stack([*np.meshgrid(np.arange(120), np.arange(90)), np.zeros((90, 120))], axis=2).astype(np.uint8)
    image = Image.fromarray(ramp)
    augment = RandAugment(operations=0, flip=False)
    areas, ratios, lefts, tops = [], [], [], []
    for number in range(600):
        crop = augment(image, str(number))
        data = np.asarray(crop)
        left, top = int(data[0, 0, 0]), int(data[0, 0, 1])
        assert np.array_equal(data, ramp[top : top + crop.height, left : left + crop.width])
        areas.append(crop.width * crop.height / (120 * 90))
        ratios.append(crop.width / crop.height)
        lefts.append(left / max(120 - crop.width, 1))
        tops.append(top / max(90 - crop.height, 1))
    assert 0.49 < min(areas) < 0.53 and max(areas) > 0.95
    assert 0.74 < min(ratios) < 0.85 and 1.25 < max(ratios) < 1.35
    for places in (lefts, tops):
        assert 0.4 < np.mean(places) < 0.6 and min(places) == 0 and max(places) == 1


@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 1000))
def test_a_picture_of_any_size_can_be_augmented(width, height, number):
    image = picture(width, height)
    made = RandAugment(operations=4, magnitude=10.0, probability=1.0)(image, str(number))
    assert made.mode == "RGB"
    assert 1 <= made.width <= width and 1 <= made.height <= height


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (3, 1000)])
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_takes_odd_pictures(name, size):
    for magnitude in (-10.0, 0.0, 10.0):
        assert OPERATIONS[name](picture(*size), magnitude).size == size


def test_a_picture_too_long_for_any_crop_stays_whole():
    assert RandAugment(operations=0, flip=False)(picture(100, 10), "a/0") == picture(100, 10)


def test_the_settings_tell_every_field():
    settings = RandAugment().settings()
    assert set(settings) == {"version", *(field.name for field in dataclasses.fields(RandAugment))}
    assert RandAugment(flip=False).settings() != settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"operations": -1}, "operations must be at least 0, got -1"),
        ({"magnitude": -0.1}, r"magnitude must lie in \[0, 10\], got -0.1"),
        ({"magnitude": 10.5}, "magnitude"),
        ({"magnitude": float("nan")}, "magnitude"),
        ({"probability": 1.5}, r"probability must lie in \[0, 1\], got 1.5"),
        ({"crop": (0.0, 1.0)}, "crop must be two parts of the area"),
        ({"crop": (0.9, 0.5)}, "crop"),
        ({"crop": (0.5, 1.1)}, "crop"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        RandAugment(**changes)
