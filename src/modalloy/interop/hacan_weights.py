"""Reads the checkpoint that HACAN's code (lvshuai789/HACAN) writes: a Lightning file with 573 tensors in `state_dict`.

convnexts.*                        344   ConvNeXt in its authors' naming, with ImageNet's classifier, `head`
text_transformer.*                 199   BERT in transformers' naming
{img_enc,txt_enc}.v_fc{1,2,3}.*     12   the global heads
fc3, fc2, cross_modal_text_transform{,_2}, and five more linear layers that nothing reads: 18
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modalloy.align import GlobalHead, HeadConfig
from modalloy.errors import CheckpointError, ConfigError
from modalloy.interop.lightning_checkpoint import read_lightning_checkpoint, some

_IMAGE, _TEXT = "convnexts.", "text_transformer."
_LOCAL = {
    "image_high": "fc3",
    "image_mid": "fc2",
    "text_high": "cross_modal_text_transform",
    "text_mid": "cross_modal_text_transform_2",
}
_UNREAD = (
    f"{_IMAGE}head.",
    "fc1.",
    *(f"cross_modal_image_transform{suffix}." for suffix in ("", "_1", "_2")),
    "cross_modal_text_transform_1.",
    f"{_TEXT}embeddings.position_ids",  # a row of numbers that transformers stored until 4.31
)
# From transformers' names to the authors'; the first that fits counts.
_CONVNEXT_NAMES = (
    (r"embeddings\.patch_embeddings\.", "downsample_layers.0.0."),
    (r"embeddings\.layernorm\.", "downsample_layers.0.1."),
    (r"encoder\.stages\.(\d+)\.downsampling_layer\.", r"downsample_layers.\1."),
    (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.layer_scale_parameter", r"stages.\1.\2.gamma"),
    (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.layernorm\.", r"stages.\1.\2.norm."),
    (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.", r"stages.\1.\2."),
    (r"layernorm\.", "norm."),
)
_ACTIVATION, _HEAD_WIDTH = "leaky_relu", 64


@dataclass(frozen=True)
class HacanWeights:
    """What a HACAN checkpoint holds, in the names of those who will read it."""

    image_config: dict[str, Any]
    """Of transformers' ConvNextModel."""
    image: dict[str, Tensor]
    """Its weights."""
    text_config: dict[str, Any]
    """Of transformers' BertModel."""
    text: dict[str, Tensor]
    """Its weights."""
    image_head: GlobalHead
    text_head: GlobalHead
    """With BERT's pooler in front."""
    local: dict[str, Tensor]
    """The local branch's linear maps: {image,text}_{high,mid}.{weight,bias}."""
    settings: Mapping[str, Any]
    """The authors' configuration; empty where the file has none."""


def read_hacan_checkpoint(path: str | Path, *, text_heads: int | None = None) -> HacanWeights:
    """Reads the file without running anything in it; sizes are those of its tensors.

    Args:
        path: Lightning's file, or one with its `state_dict` alone.
        text_heads: BERT's attention heads; by default as many as are 64 wide.

    Raises:
        CheckpointError: it can't be read safely, lacks tensors, or holds others than HACAN's model has.
        ConfigError: the number of heads doesn't divide BERT's width.
    """
    path = Path(path)
    state, hyper_parameters = read_lightning_checkpoint(path)
    settings = _settings(path, hyper_parameters)
    tensors = _Tensors(path, state)
    tensors.require_family()
    image_config, text_config = _image_config(tensors), _text_config(tensors, text_heads)
    weights = HacanWeights(
        image_config,
        tensors.take(_shapes("ConvNextModel", image_config), _original_convnext_name),
        text_config,
        tensors.take(_shapes("BertModel", text_config), _below(_TEXT), keep="pooler."),
        _head(tensors, "img_enc", image_config["hidden_sizes"][-1]),
        _head(tensors, "txt_enc", text_config["hidden_size"], pooler=f"{_TEXT}pooler.dense"),
        _local(tensors, image_config, text_config),
        settings,
    )
    tensors.finish()
    return weights


class _Tensors:
    """A state dict from which the parts take what is theirs; `finish` names all that is wrong at once."""

    def __init__(self, path: Path, state: Mapping[str, Tensor]) -> None:
        self.path = path
        self._left = dict(state)
        self._missing: list[str] = []
        self._odd: list[str] = []

    def require_family(self) -> None:
        """Refuses other models' files before anything is looked for in them."""
        for prefix, what in ((_IMAGE, "a ConvNeXt"), (_TEXT, "a BERT")):
            if not any(name.startswith(prefix) for name in self._left):
                raise CheckpointError(
                    f"{self.path} isn't a HACAN checkpoint: it holds no {prefix}*, {what}; it holds "
                    f"{some(sorted(self._left))}. Only HACAN's published model, ConvNeXt with BERT, can be imported."
                )

    def size(self, name: str, axis: int) -> int:
        """A dimension of a tensor that the model's sizes are read from."""
        if name not in self._left:
            raise CheckpointError(f"{self.path} lacks {name}; name a whole checkpoint of HACAN.")
        shape = self._left[name].shape
        if axis >= len(shape):
            raise CheckpointError(f"{self.path}: {name} can't have the shape {tuple(shape)}; it isn't HACAN's.")
        return shape[axis]

    def count(self, pattern: str) -> int:
        """How many numbers stand in the place of the pattern's group; at least 1."""
        found = (re.match(pattern, name) for name in self._left)
        return max(1, len({match[1] for match in found if match}))

    def take(
        self, shapes: Mapping[str, torch.Size], original: Callable[[str], str], keep: str | None = None
    ) -> dict[str, Tensor]:
        """The tensors of those shapes in float32, by new name; what begins with `keep` can be taken once more."""
        return {
            name: self._one(original(name), shape, keep is not None and name.startswith(keep))
            for name, shape in shapes.items()
        }

    def _one(self, name: str, shape: torch.Size, keep: bool) -> Tensor:
        tensor = self._left.get(name) if keep else self._left.pop(name, None)
        if tensor is None:
            self._missing.append(name)
        elif tensor.shape != shape:
            self._odd.append(f"{name} of shape {tuple(tensor.shape)} instead of {tuple(shape)}")
        elif not tensor.isfinite().all():
            self._odd.append(f"{name} with numbers that aren't finite")
        else:
            return tensor.float().contiguous()
        return torch.zeros(shape)

    def finish(self) -> None:
        """Raises unless everything was there, and nothing is left."""
        unknown = [name for name in self._left if not name.startswith(_UNREAD)]
        found = {
            "lacks": self._missing,
            "holds odd tensors:": self._odd,
            "holds unknown tensors:": unknown,
        }
        wrong = [f"{what} {some(list(dict.fromkeys(names)))}" for what, names in found.items() if names]
        if wrong:
            raise CheckpointError(f"{self.path} isn't HACAN's published model: it {'; it '.join(wrong)}.")


def _settings(path: Path, hyper_parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """The authors' configuration, which Lightning keeps as the argument `config`."""
    settings = hyper_parameters.get("config", {})
    if not isinstance(settings, Mapping):
        raise CheckpointError(f"{path}: hyper_parameters' config should be a mapping, got {type(settings).__name__}.")
    activation = settings.get("activation", _ACTIVATION)
    if activation != _ACTIVATION:
        raise CheckpointError(
            f"{path} was trained with the activation {activation!r}; only the published {_ACTIVATION!r} is supported."
        )
    return settings


def _image_config(tensors: _Tensors) -> dict[str, Any]:
    stages = tensors.count(rf"{_IMAGE}stages\.(\d+)\.")
    stem = f"{_IMAGE}downsample_layers.0.0.weight"
    # A stage's downsampling is a norm and a convolution; the stem's the other way round.
    later = [tensors.size(f"{_IMAGE}downsample_layers.{stage}.1.weight", 0) for stage in range(1, stages)]
    return {
        "num_channels": 3,
        "patch_size": tensors.size(stem, 2),
        "num_stages": stages,
        "hidden_sizes": [tensors.size(stem, 0), *later],
        "depths": [tensors.count(rf"{_IMAGE}stages\.{stage}\.(\d+)\.") for stage in range(stages)],
        "layer_norm_eps": 1e-6,
    }


def _text_config(tensors: _Tensors, heads: int | None) -> dict[str, Any]:
    words = f"{_TEXT}embeddings.word_embeddings.weight"
    width = tensors.size(words, 1)
    heads = heads if heads is not None else width // _HEAD_WIDTH
    if heads < 1 or width % heads:
        raise ConfigError(f"BERT's width {width} can't be shared by {heads} attention heads; set text_heads.")
    return {
        "vocab_size": tensors.size(words, 0),
        "hidden_size": width,
        "num_hidden_layers": tensors.count(rf"{_TEXT}encoder\.layer\.(\d+)\."),
        "num_attention_heads": heads,
        "intermediate_size": tensors.size(f"{_TEXT}encoder.layer.0.intermediate.dense.weight", 0),
        "max_position_embeddings": tensors.size(f"{_TEXT}embeddings.position_embeddings.weight", 0),
        "type_vocab_size": tensors.size(f"{_TEXT}embeddings.token_type_embeddings.weight", 0),
    }


def _shapes(architecture: str, config: Mapping[str, Any]) -> dict[str, torch.Size]:
    """The names and shapes of the weights of a model of transformers, which isn't filled."""
    import transformers

    model_class = getattr(transformers, architecture)
    with torch.device("meta"):
        model = model_class(model_class.config_class(**config))
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def _below(prefix: str) -> Callable[[str], str]:
    return lambda name: prefix + name


def _original_convnext_name(name: str) -> str:
    for pattern, original in _CONVNEXT_NAMES:
        if re.match(pattern, name):
            return _IMAGE + re.sub(pattern, original, name, count=1)
    raise AssertionError(name)


def _head(tensors: _Tensors, name: str, input_width: int, pooler: str | None = None) -> GlobalHead:
    layers = [f"{name}.v_fc{layer}" for layer in (1, 2, 3)]
    widths = tuple(tensors.size(f"{layer}.weight", 0) for layer in layers)
    head = GlobalHead(HeadConfig(input_width, widths, input="summary", pooler=pooler is not None))
    linears = [module for module in head.modules() if isinstance(module, nn.Linear)]
    for linear, original in zip(linears, [*([pooler] if pooler else []), *layers], strict=True):
        shapes = {key: value.shape for key, value in linear.state_dict().items()}
        linear.load_state_dict(tensors.take(shapes, _below(f"{original}.")))
    return head


def _local(tensors: _Tensors, image: Mapping[str, Any], text: Mapping[str, Any]) -> dict[str, Tensor]:
    high, mid = image["hidden_sizes"][-1], image["hidden_sizes"][-2:][0]
    inputs = {"image_high": high, "image_mid": mid, "text_high": text["hidden_size"], "text_mid": text["hidden_size"]}
    taken: dict[str, Tensor] = {}
    width = tensors.size(f"{_LOCAL['image_high']}.weight", 0)
    for part, original in _LOCAL.items():
        shapes = {"weight": torch.Size((width, inputs[part])), "bias": torch.Size((width,))}
        found = tensors.take(shapes, _below(f"{original}."))
        taken |= {f"{part}.{key}": tensor for key, tensor in found.items()}
    return taken
