"""HACAN's global branch in plain torch, on a state dict with its authors' names; and such dicts of small sizes."""

import math
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

_WORDS = "a an the red blue old phone cat dog on run ##ning ##s house ! ."
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_WORDS.split()]
CONFIG = {"activation": "leaky_relu", "max_text_len": 32, "tokenizer": "/home/ls/bert-base-uncased"}


def state_dict(
    depths: Sequence[int] = (3, 3, 27, 3),
    widths: Sequence[int] = (4, 6, 8, 12),
    layers: int = 12,
    hidden: int = 16,
    seed: int = 0,
) -> dict[str, Tensor]:
    """The published model's tensors, by default in number, with small widths."""
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, inputs: int, outputs: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outputs, inputs), (outputs,)

    def norm(name: str, width: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    def convolution(name: str, shape: tuple[int, ...]) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    dim = 10
    for part, width in (("text", hidden), ("image", widths[3])):
        linear(f"cross_modal_{part}_transform", width, dim)
    linear("cross_modal_text_transform_1", hidden, dim)
    linear("cross_modal_text_transform_2", hidden, dim)
    linear("cross_modal_image_transform_1", widths[1], dim)
    linear("cross_modal_image_transform_2", widths[2], dim)
    convolution("convnexts.downsample_layers.0.0", (widths[0], 3, 4, 4))
    norm("convnexts.downsample_layers.0.1", widths[0])
    for stage in (1, 2, 3):
        norm(f"convnexts.downsample_layers.{stage}.0", widths[stage - 1])
        convolution(f"convnexts.downsample_layers.{stage}.1", (widths[stage], widths[stage - 1], 2, 2))
    for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
        for block in range(depth):
            name = f"convnexts.stages.{stage}.{block}"
            shapes[f"{name}.gamma"] = (width,)
            convolution(f"{name}.dwconv", (width, 1, 7, 7))
            norm(f"{name}.norm", width)
            linear(f"{name}.pwconv1", width, 4 * width)
            linear(f"{name}.pwconv2", 4 * width, width)
    norm("convnexts.norm", widths[3])
    linear("convnexts.head", widths[3], 5)
    for level in (1, 2, 3):
        linear(f"fc{level}", widths[level], dim)
    for head, width in (("txt_enc", hidden), ("img_enc", widths[3])):
        linear(f"{head}.v_fc1", width, width)
        linear(f"{head}.v_fc2", width, (width + hidden) // 2)
        linear(f"{head}.v_fc3", (width + hidden) // 2, hidden)
    for kind, rows in (("word", len(PIECES)), ("position", 40), ("token_type", 2)):
        shapes[f"text_transformer.embeddings.{kind}_embeddings.weight"] = (rows, hidden)
    norm("text_transformer.embeddings.LayerNorm", hidden)
    for layer in range(layers):
        name = f"text_transformer.encoder.layer.{layer}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            linear(f"{name}.attention.{part}", hidden, hidden)
        norm(f"{name}.attention.output.LayerNorm", hidden)
        linear(f"{name}.intermediate.dense", hidden, 20)
        linear(f"{name}.output.dense", 20, hidden)
        norm(f"{name}.output.LayerNorm", hidden)
    linear("text_transformer.pooler.dense", hidden, hidden)
    generator = torch.Generator().manual_seed(seed)
    drawn = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {name: _scaled(name, tensor) for name, tensor in drawn.items()}


def _scaled(name: str, drawn: Tensor) -> Tensor:
    # So that what goes in is still seen in what comes out of many layers.
    if drawn.ndim > 1 and "_embeddings" not in name:
        return drawn / math.sqrt(drawn[0].numel())
    return 1 + 0.2 * drawn if name.endswith("weight") and drawn.ndim == 1 else 0.3 * drawn


def save_lightning(
    path: Path, state: Mapping[str, Any], config: Mapping[str, Any] | None = CONFIG, **more: Any
) -> Path:
    """A checkpoint as Lightning 1.3 saves it: a callback's state is keyed by the callback's class."""
    module, name = "pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"
    callback = type(name, (), {"__module__": module})
    kept = {"epoch": 10, "callbacks": {callback: {"best_model_score": torch.tensor(1.0)}}, "state_dict": dict(state)}
    if config is not None:
        kept |= {"hparams_name": "config", "hyper_parameters": {"config": dict(config)}}
    names = [module.rsplit(".", depth)[0] for depth in (2, 1)] + [module]
    sys.modules.update({each: types.ModuleType(each) for each in names})
    setattr(sys.modules[module], name, callback)
    try:
        torch.save({**kept, **more}, path)
    finally:
        for each in names:
            del sys.modules[each]
    return path


def pixels(image: Image.Image) -> Tensor:
    """torchvision's Resize(256), CenterCrop(224), ToTensor, Normalize, literally."""
    image = image.convert("RGB")
    short, long = sorted(image.size)
    other = int(256 * long / short)
    resized = image.resize((256, other) if image.width <= image.height else (other, 256), Image.Resampling.BILINEAR)
    left, top = round((resized.width - 224) / 2.0), round((resized.height - 224) / 2.0)
    cropped = np.asarray(resized.crop((left, top, left + 224, top + 224)))
    tensor = torch.tensor(cropped).permute(2, 0, 1).float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (tensor - mean[:, None, None]) / std[:, None, None]


def image_global(state: Mapping[str, Tensor], image: Image.Image) -> Tensor:
    """ConvNeXt's normalised mean over the last map, of one picture."""

    def weights(name: str) -> tuple[Tensor, Tensor]:
        return state[f"convnexts.{name}.weight"], state[f"convnexts.{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x.movedim(1, -1), x.shape[1:2], *weights(name), 1e-6).movedim(-1, 1)

    x = pixels(image)[None]
    for stage in range(4):
        if stage == 0:
            x = norm(F.conv2d(x, *weights("downsample_layers.0.0"), stride=4), "downsample_layers.0.1")
        else:
            x = norm(x, f"downsample_layers.{stage}.0")
            x = F.conv2d(x, *weights(f"downsample_layers.{stage}.1"), stride=2)
        block = 0
        while (gamma := state.get(f"convnexts.stages.{stage}.{block}.gamma")) is not None:
            name = f"stages.{stage}.{block}"
            y = norm(F.conv2d(x, *weights(f"{name}.dwconv"), padding=3, groups=x.shape[1]), f"{name}.norm")
            y = F.gelu(F.linear(y.movedim(1, -1), *weights(f"{name}.pwconv1")))
            x = x + (gamma * F.linear(y, *weights(f"{name}.pwconv2"))).movedim(-1, 1)
            block += 1
    return F.layer_norm(x.mean((2, 3)), x.shape[1:2], *weights("norm"), 1e-6)[0]


def text_global(state: Mapping[str, Tensor], ids: Sequence[int], heads: int) -> Tensor:
    """BERT's tanh pooler of one text, padded to 32 tokens."""

    def weights(name: str) -> tuple[Tensor, Tensor]:
        return state[f"text_transformer.{name}.weight"], state[f"text_transformer.{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], *weights(name), 1e-12)

    padded = torch.tensor([*ids, *[0] * (32 - len(ids))])
    away = torch.where(torch.arange(32) < len(ids), 0.0, -10000.0)
    tables = {kind: state[f"text_transformer.embeddings.{kind}_embeddings.weight"] for kind in ("word", "position")}
    types_table = state["text_transformer.embeddings.token_type_embeddings.weight"]
    x = norm(tables["word"][padded] + tables["position"][:32] + types_table[0], "embeddings.LayerNorm")
    layer = 0
    while f"text_transformer.encoder.layer.{layer}.output.dense.weight" in state:
        name = f"encoder.layer.{layer}"
        query, key, value = (
            F.linear(x, *weights(f"{name}.attention.self.{part}")).view(32, heads, -1).transpose(0, 1)
            for part in ("query", "key", "value")
        )
        attention = (query @ key.transpose(1, 2) / math.sqrt(query.shape[-1]) + away).softmax(-1)
        context = (attention @ value).transpose(0, 1).reshape(32, -1)
        x = norm(
            x + F.linear(context, *weights(f"{name}.attention.output.dense")), f"{name}.attention.output.LayerNorm"
        )
        y = F.linear(F.gelu(F.linear(x, *weights(f"{name}.intermediate.dense"))), *weights(f"{name}.output.dense"))
        x = norm(x + y, f"{name}.output.LayerNorm")
        layer += 1
    return F.linear(x[0], *weights("pooler.dense")).tanh()


def head(state: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """A global head without dropout."""
    for layer in (1, 2, 3):
        x = F.leaky_relu(F.linear(x, state[f"{name}.v_fc{layer}.weight"], state[f"{name}.v_fc{layer}.bias"]), 0.01)
    return x / (x.norm() + 1e-8)
