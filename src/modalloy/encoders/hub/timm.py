"""Image backbones of the timm library (https://github.com/huggingface/pytorch-image-models)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from modalloy.encoders.hub.base import HubEncoder, Output
from modalloy.encoders.hub.files import Layout, model_files
from modalloy.encoders.hub.model import or_checkpoint_error
from modalloy.encoders.hub.optional import optional_library
from modalloy.encoders.hub.transforms import TransformedPictures

# timm reads pickles without weights_only.
_LAYOUT = Layout(pickles=())


class TimmEncoder(HubEncoder):
    """An image backbone of timm, such as "convnext_base.fb_in22k" or "vit_base_patch16_224.augreg_in21k".

    The embedding is what the model's classifier would be given. The tokens are its last feature map's cells or its
    patches; the summary is its class token where it pools that one, the embedding where that is as wide as a token,
    and else the mean of the tokens.

    Args:
        kind: what the spec begins with.
        source: a folder with config.json and model.safetensors, a name of timm's ("convnext_base.fb_in22k"), or one
            on the hub ("timm/convnext_base.fb_in22k"), with a revision after "@" if wanted.

    Raises:
        ConfigError: timm or its torchvision isn't installed or can't be loaded, or the model can't be had.
        CheckpointError: its files are damaged or not whole.
    """

    def __init__(self, kind: str, source: str) -> None:
        timm = optional_library("timm", "timm", "a torchvision that fits your torch")
        data = optional_library("timm.data", "timm", "a torchvision that fits your torch")
        short = "/" not in source and not Path(source).expanduser().is_dir()
        files = model_files(f"timm/{source}" if short else source, _LAYOUT)
        network = or_checkpoint_error(
            files.folder, lambda: timm.create_model(f"local-dir:{files.folder}", pretrained=True)
        )
        preprocessing = data.resolve_data_config(model=network)
        super().__init__(
            kind,
            source,
            files,
            network.float().requires_grad_(False).eval(),
            pictures=TransformedPictures(data.create_transform(**preprocessing), preprocessing),
        )

    def _images(self, inputs: Mapping[str, Tensor]) -> Output:
        network: Any = self._network
        features = network.forward_features(inputs["pixels"])
        pooled = network.forward_head(features, pre_logits=True)
        if features.ndim == 4:
            channels_last = getattr(network, "output_fmt", "NCHW") == "NHWC"
            features = features.flatten(1, 2) if channels_last else features.flatten(2).transpose(1, 2)
        if getattr(network, "num_prefix_tokens", 0) and getattr(network, "global_pool", "") == "token":
            return Output(pooled, features)
        summary = pooled if pooled.shape[1] == features.shape[2] else features.mean(dim=1)
        return Output(pooled, features, summary)
