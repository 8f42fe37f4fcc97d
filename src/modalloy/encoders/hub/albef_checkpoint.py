"""Reads a published checkpoint of ALBEF, and gives its weights to the ViT and the BERT of transformers."""

import math
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from modalloy.encoders.hub.quiet import quiet
from modalloy.errors import CheckpointError, one_line

_HEAD = 64
"""Width of an attention head, as in ViT-B and BERT-base."""
# For each part of a block by the authors' name (timm's) the hub's for ViT.
_BLOCK = {
    "norm1": "layernorm_before",
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


@dataclass(frozen=True)
class AlbefCheckpoint:
    """The weights of a checkpoint by the authors' names; the momentum copies and queues in it aren't asked for."""

    path: Path
    weights: Mapping[str, Tensor]
    pretrained: bool
    """Whether it comes from pretraining, and wasn't fine-tuned for retrieval."""
    training_files: str
    """What its configuration, if it holds one, says about the captions it was trained on."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads the file, without running any code that it may hold.

        Raises:
            CheckpointError: it is damaged, unsafe, or has no `model` with weights.
        """
        try:
            # Mapped, since most of the file is the momentum copy and the optimiser's state.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        except pickle.UnpicklingError:
            raise CheckpointError(
                f"{path} can't be read safely: it holds more than weights and plain settings, or isn't a checkpoint; "
                "take the file that ALBEF's authors published."
            ) from None
        # Damaged files make torch raise nearly anything.
        except Exception as error:
            raise CheckpointError(f"{path} is damaged ({one_line(error)}).") from None
        weights = content.get("model") if isinstance(content, dict) else None
        if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
            raise CheckpointError(f"{path} holds no weights under 'model', as ALBEF's checkpoints do.")
        names = {str(name).removeprefix("module."): value for name, value in weights.items()}
        config = content.get("config")
        return cls(
            path,
            # The text encoder was a part of BertForMaskedLM in pretraining, and is a BertModel afterwards.
            {name.replace("text_encoder.bert.", "text_encoder."): value for name, value in names.items()},
            any(name.startswith("text_encoder.cls.") for name in names),
            str(config.get("train_file", "")) if isinstance(config, dict) else "",
        )

    @property
    def positions(self) -> Float[Tensor, "1 positions width"]:
        """The ViT's position embedding, CLS first."""
        return self._get("visual_encoder.pos_embed")

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self._get("visual_encoder.patch_embed.proj.weight").shape[-1]

    @property
    def image_size(self) -> int:
        """Side of the pictures that it was trained on, in pixels."""
        return math.isqrt(self.positions.shape[1] - 1) * self.patch_size

    @property
    def vocabulary_size(self) -> int:
        """Words that the text encoder knows."""
        return self._get("text_encoder.embeddings.word_embeddings.weight").shape[0]

    def vision_model(self, image_size: int, positions: Float[Tensor, "1 positions width"]) -> nn.Module:
        """The image encoder, with the position embedding given."""
        from transformers import ViTConfig, ViTModel

        weights = {
            "embeddings.cls_token": self._get("visual_encoder.cls_token"),
            "embeddings.position_embeddings": positions,
            **self._both("visual_encoder.patch_embed.proj", "embeddings.patch_embeddings.projection"),
            **self._both("visual_encoder.norm", "layernorm"),
        }
        depth = self._count(r"visual_encoder\.blocks\.(\d+)\.")
        for block in range(depth):
            mine, theirs = f"visual_encoder.blocks.{block}", f"encoder.layer.{block}"
            for part, name in _BLOCK.items():
                weights |= self._both(f"{mine}.{part}", f"{theirs}.{name}")
            for kind in ("weight", "bias"):
                thirds = self._get(f"{mine}.attn.qkv.{kind}").chunk(3)
                for name, third in zip(("query", "key", "value"), thirds, strict=True):
                    weights[f"{theirs}.attention.attention.{name}.{kind}"] = third
        width = positions.shape[-1]
        config = ViTConfig(
            hidden_size=width,
            intermediate_size=self._get("visual_encoder.blocks.0.mlp.fc1.bias").shape[0],
            num_hidden_layers=depth,
            num_attention_heads=width // _HEAD,
            image_size=image_size,
            patch_size=self.patch_size,
            layer_norm_eps=1e-6,
        )
        return self._filled(ViTModel, config, weights, "visual_encoder")

    def text_model(self) -> nn.Module:
        """The text encoder: BERT's layers below those that look at the image."""
        from transformers import BertConfig, BertModel

        prefix = "text_encoder."
        # The fusion layers, which are BERT's upper half, have cross-attention besides.
        fusion = [int(found[1]) for name in self.weights if (found := _FUSION.match(name))]
        depth = min(fusion, default=self._count(r"text_encoder\.encoder\.layer\.(\d+)\."))
        words = self._get("text_encoder.embeddings.word_embeddings.weight")
        config = BertConfig(
            vocab_size=words.shape[0],
            hidden_size=words.shape[1],
            intermediate_size=self._get("text_encoder.encoder.layer.0.intermediate.dense.bias").shape[0],
            num_hidden_layers=depth,
            num_attention_heads=words.shape[1] // _HEAD,
            max_position_embeddings=self._get("text_encoder.embeddings.position_embeddings.weight").shape[0],
            type_vocab_size=self._get("text_encoder.embeddings.token_type_embeddings.weight").shape[0],
        )
        weights = {
            name.removeprefix(prefix): self._get(name)
            for name in self.weights
            if name.startswith(prefix) and not ((found := _LAYER.match(name)) and int(found[1]) >= depth)
        }
        return self._filled(BertModel, config, weights, "text_encoder")

    def linear(self, name: str) -> nn.Linear:
        """A projection."""
        weight, bias = self._get(f"{name}.weight"), self._get(f"{name}.bias")
        if weight.ndim != 2 or weight.shape[:1] != bias.shape:
            raise CheckpointError(f"{self.path}: {name} has the shapes {[*weight.shape]} and {[*bias.shape]}.")
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": weight, "bias": bias})
        return layer

    def _get(self, name: str) -> Tensor:
        if name not in self.weights:
            raise CheckpointError(
                f"{self.path} lacks {name}; it isn't a checkpoint of ALBEF for pretraining or retrieval."
            )
        # Copied, so that the file can be closed.
        return self.weights[name].to(torch.float32, copy=True)

    def _both(self, mine: str, theirs: str) -> dict[str, Tensor]:
        return {f"{theirs}.{kind}": self._get(f"{mine}.{kind}") for kind in ("weight", "bias")}

    def _count(self, pattern: str) -> int:
        return len({found[1] for name in self.weights if (found := re.match(pattern, name))})

    def _filled(self, architecture: Any, config: Any, weights: dict[str, Tensor], prefix: str) -> nn.Module:
        with quiet():
            try:
                model, report = architecture.from_pretrained(
                    None, config=config, state_dict=weights, add_pooling_layer=False, output_loading_info=True
                )
            except RuntimeError as error:
                raise CheckpointError(f"{self.path}: {prefix} can't be read ({one_line(error)}).") from None
        lacking = sorted(report["missing_keys"]) + [str(entry[0]) for entry in report.get("mismatched_keys", [])]
        if lacking:
            raise CheckpointError(
                f"{self.path} lacks {len(lacking)} weights of {prefix}, such as {lacking[0]}; it is damaged."
            )
        return model


_LAYER = re.compile(r"text_encoder\.encoder\.layer\.(\d+)\.")
_FUSION = re.compile(r"text_encoder\.encoder\.layer\.(\d+)\.crossattention\.")
