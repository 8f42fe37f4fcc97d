from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from modalloy.encoders import Encoded, Encoder, Fingerprint, Modality
from modalloy.encoders.base import require_image, require_text, sha256_of_settings
from modalloy.errors import ConfigError, DataError, FeatureError, ImageError


class LetterCounts(Encoder):
    """Counts letters; one token a letter."""

    name = "Letter counts"
    spec = "letter-counts"
    modalities: tuple[Modality, ...] = ("text",)

    def fingerprint(self, modality: Modality) -> Fingerprint:
        return Fingerprint(self.spec, "1", "0" * 64, "0" * 64)

    def dim(self, modality: Modality) -> int:
        return 26

    def width(self, modality: Modality) -> int:
        return 26

    def preprocess(self, modality: Modality, item: Image.Image | str) -> Tensor:
        return torch.tensor([ord(letter) - ord("a") for letter in require_text(item)])

    def forward(self, modality: Modality, prepared: Sequence[Tensor]) -> Encoded:
        letters = [F.one_hot(ids, 26).float() for ids in prepared]
        tokens = [torch.cat([each.mean(0, keepdim=True), each]) for each in letters]
        embedding = F.normalize(torch.stack([each[0] for each in tokens]), dim=-1)
        return Encoded(embedding, torch.cat(tokens), torch.tensor([len(each) for each in tokens]))


class MeanColour(LetterCounts):
    """The mean of a picture's pixels."""

    spec = "mean-colour"
    modalities: tuple[Modality, ...] = ("image",)

    def preprocess(self, modality: Modality, item: Image.Image | str) -> Tensor:
        return torch.tensor(require_image(item).resize((1, 1)).getpixel((0, 0)), dtype=torch.float32)

    def forward(self, modality: Modality, prepared: Sequence[Tensor]) -> Encoded:
        colours = torch.stack(list(prepared))
        return Encoded(F.normalize(colours, dim=-1), colours, torch.ones(len(colours), dtype=torch.long))


def test_texts_keep_their_order_over_batches() -> None:
    encoder = LetterCounts()
    words = ["abc", "z", "hello", "aa", "q"]
    together, in_twos = encoder.encode_texts(words), encoder.encode_texts(words, batch_size=2)
    assert together.lengths.tolist() == [4, 2, 6, 3, 2]
    for one, other in zip(together.tokens_of_each(), in_twos.tokens_of_each(), strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(together.embedding, in_twos.embedding)
    assert len(in_twos) == 5


def test_no_texts_give_an_empty_batch() -> None:
    encoded = LetterCounts().encode_texts([])
    assert encoded.embedding.shape == (0, 26)
    assert encoded.tokens.shape == (0, 26)
    assert encoded.tokens_of_each() == ()


def test_images_come_as_pictures_or_paths(tmp_path: Path) -> None:
    picture = Image.new("RGB", (4, 3), (255, 0, 0))
    picture.save(tmp_path / "red.png")
    encoded = MeanColour().encode_images([picture, tmp_path / "red.png", str(tmp_path / "red.png")])
    assert encoded.embedding.tolist() == [[1.0, 0.0, 0.0]] * 3


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"missing\.png"):
        MeanColour().encode_images([tmp_path / "missing.png"])


def test_the_wrong_modality_is_refused() -> None:
    with pytest.raises(ConfigError, match="letter-counts encodes text, not image"):
        LetterCounts().encode_images([Image.new("RGB", (2, 2))])
    with pytest.raises(ConfigError, match="mean-colour encodes image, not text"):
        MeanColour().encode_texts(["red"])


def test_a_single_item_is_refused() -> None:
    with pytest.raises(DataError, match="wrap it"):
        LetterCounts().encode_texts("abc")
    with pytest.raises(DataError, match="wrap it"):
        MeanColour().encode_images("picture.png")


def test_a_batch_size_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        LetterCounts().encode_texts(["a"], batch_size=0)


@pytest.mark.parametrize("text", ["", "  \n", "half a pair \ud800", None, 7])
def test_texts_that_cannot_be_encoded(text: object) -> None:
    with pytest.raises(DataError, match="A text must"):
        require_text(text)


@pytest.mark.parametrize("image", [None, "a.png", Image.new("RGBA", (2, 2)), Image.new("L", (2, 2))])
def test_images_that_cannot_be_encoded(image: object) -> None:
    with pytest.raises(DataError, match="An image must"):
        require_image(image)


@pytest.mark.parametrize("size", [(1001, 1), (2, 2001)])
def test_lines_are_no_images(size: tuple[int, int]) -> None:
    """To scale one's short side to a model's 224 pixels would take gigabytes."""
    with pytest.raises(DataError, match=rf"at most 1000 times as long as it is wide, got {size[0]} x {size[1]}"):
        require_image(Image.new("RGB", size))
    require_image(Image.new("RGB", (1000, 1)))


def test_lengths_must_cover_the_tokens() -> None:
    with pytest.raises(DataError, match="add up to 3 tokens, but 4 are given"):
        Encoded(torch.eye(2), torch.zeros(4, 2), torch.tensor([1, 2]))


def test_a_fingerprint_survives_json_and_tells_changes() -> None:
    made = Fingerprint("a", "1", "w" * 64, sha256_of_settings({"size": 224}))
    assert Fingerprint.from_dict(made.to_dict()) == made
    other = Fingerprint("a", "1", "w" * 64, sha256_of_settings({"size": 225}))
    assert made.digest != other.digest
    assert len(made.digest) == 64


@pytest.mark.parametrize("change", [{"name": None}, {"extra": "x"}, {"name": ...}])
def test_a_damaged_fingerprint_is_refused(change: dict[str, object]) -> None:
    values: dict[str, object] = Fingerprint("a", "1", "b", "c").to_dict() | change  # type: ignore[assignment]
    if values["name"] is ...:
        del values["name"]
    with pytest.raises(FeatureError, match="A fingerprint must hold"):
        Fingerprint.from_dict(values)
