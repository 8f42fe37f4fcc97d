"""Tiny unimodal backbones with random weights, saved as a user of transformers saves them."""

from pathlib import Path
from typing import Any

import transformers
from encoders.hub.families import bert_tokenizer, randomise
from encoders.hub.models import TOWER, VISION, word_tokenizer

# Each drops something at random in training, which does nothing otherwise.
_TINY = {"hidden_sizes": [8, 8, 16, 32], "depths": [1, 1, 1, 1], "num_stages": 4, "drop_path_rate": 0.3}
_DINO = {**VISION, "image_size": 48, "mlp_ratio": 2, "drop_path_rate": 0.3}
IMAGES = {
    "convnext": ("convnext", transformers.ConvNextConfig(**_TINY, image_size=64)),
    "convnextv2": ("convnext", transformers.ConvNextV2Config(**_TINY, image_size=64)),
    "vit": ("vit", transformers.ViTConfig(**{**VISION, "image_size": 64, "hidden_dropout_prob": 0.1})),
    "dinov2": ("dinov2", transformers.Dinov2Config(**_DINO)),
    "registers": ("dinov2", transformers.Dinov2WithRegistersConfig(**_DINO, num_register_tokens=4)),
}
TEXT = {**TOWER, "vocab_size": 60, "max_position_embeddings": 40}
_ROBERTA = {**TEXT, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
TEXT_CONFIGS = {
    "bert": transformers.BertConfig(**TEXT),
    "roberta": transformers.RobertaConfig(**_ROBERTA),
    "xlm-roberta": transformers.XLMRobertaConfig(**_ROBERTA),
    "mpnet": transformers.MPNetConfig(**_ROBERTA),
    "distilbert": transformers.DistilBertConfig(
        dim=32, hidden_dim=48, n_layers=2, n_heads=2, vocab_size=60, max_position_embeddings=40
    ),
    "electra": transformers.ElectraConfig(**TEXT, embedding_size=16),
    "albert": transformers.AlbertConfig(**TEXT, embedding_size=16, hidden_dropout_prob=0.1),
    "deberta-v2": transformers.DebertaV2Config(**TEXT),
}
POOLED = ["bert", "roberta", "xlm-roberta", "mpnet", "albert"]


def save_backbone(folder: Path, name: str) -> Path:
    """Saves one of `IMAGES` or `TEXT_CONFIGS`."""
    processor: Any
    if name in IMAGES:
        config: Any = IMAGES[name][1]
        processor = transformers.ViTImageProcessorPil(size={"height": 64, "width": 64})
        if name.startswith("convnext"):
            processor = transformers.ConvNextImageProcessorPil(size={"shortest_edge": 64}, crop_pct=0.875)
    else:
        config = TEXT_CONFIGS[name]
        offset = name in ("roberta", "xlm-roberta", "mpnet")
        processor = _offset_tokenizer() if offset else bert_tokenizer(lowercase=False)
    randomise(transformers.AutoModel.from_config(config)).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _offset_tokenizer() -> Any:
    tokenizer = word_tokenizer(pad="<pad>", begin="<s>")
    # RoBERTa's padding has the id 1, from which its positions count on.
    assert tokenizer.convert_tokens_to_ids("</s>") == 1
    tokenizer.pad_token = "</s>"
    return tokenizer
