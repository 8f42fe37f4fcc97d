"""Tiny models with random weights, saved as the hub lays them out."""

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

WORDS = "a an the red blue old phone telephone cat dog on of with house big small runs"
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**TOWER, "image_size": 32, "patch_size": 8}


def save_clip(folder: Path, seed: int = 0, **text: Any) -> Path:
    """A CLIP of 16 patches, 32 wide, whose embeddings are 24 wide."""
    tokenizer = clip_tokenizer()
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = transformers.CLIPConfig(
        text_config={**TOWER, "vocab_size": len(tokenizer), "max_position_embeddings": 77, **ids, **text},
        vision_config=VISION,
        projection_dim=24,
    )
    return save(folder, transformers.CLIPModel, config, tokenizer, clip_pictures(), seed)


def save_siglip(folder: Path, padding_side: str = "right", seed: int = 0) -> Path:
    """A SigLIP whose text embeddings are wider than its text tokens, as in the giant one, and a cased tokenizer."""
    tokenizer = word_tokenizer(pad="[PAD]", lowercase=False)
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = padding_side
    text = {**TOWER, "hidden_size": 16, "vocab_size": len(tokenizer), "max_position_embeddings": 64}
    config = transformers.SiglipConfig(text_config={**text, "projection_size": 32}, vision_config=VISION)
    pictures = transformers.SiglipImageProcessorPil(size={"height": 32, "width": 32})
    return save(folder, transformers.SiglipModel, config, tokenizer, pictures, seed)


def save_detr(folder: Path, seed: int = 0) -> Path:
    """A DETR of 12 queries and 4 classes, whose pictures keep their shape."""
    config = transformers.DetrConfig(
        use_timm_backbone=False,
        backbone_config=transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", out_features=["stage2"]
        ),
        **_DETECTOR,
        num_queries=12,
    )
    pictures = transformers.DetrImageProcessorPil(size={"shortest_edge": 32, "longest_edge": 64})
    return save(folder, transformers.DetrForObjectDetection, config, None, pictures, seed, norms=False)


def save_rt_detr(folder: Path, seed: int = 0, version: str = "") -> Path:
    """An RT-DETR, or with version "V2" that, of 12 queries and 4 classes on squares of 64 pixels."""
    config = getattr(transformers, f"RTDetr{version}Config")(
        backbone_config=transformers.RTDetrResNetConfig(
            embedding_size=8,
            hidden_sizes=[8, 8, 16, 16],
            depths=[1, 1, 1, 1],
            layer_type="basic",
            out_features=["stage2", "stage3", "stage4"],
        ),
        **_DETECTOR,
        encoder_in_channels=[8, 16, 16],
        encoder_hidden_dim=32,
        decoder_in_channels=[32, 32, 32],
        num_queries=12,
    )
    pictures = transformers.RTDetrImageProcessorPil(size={"height": 64, "width": 64})
    architecture = getattr(transformers, f"RTDetr{version}ForObjectDetection")
    return save(folder, architecture, config, None, pictures, seed, norms=False)


_DETECTOR: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "num_labels": 4,
}


def save(
    folder: Path, architecture: Any, config: Any, tokenizer: Any, pictures: Any, seed: int, norms: bool = True
) -> Path:
    """Saves a model with random weights and its processors as save_pretrained does."""
    torch.manual_seed(seed)
    model = architecture(config)
    # The library's start is nearly zero, which would hide a wrong token or a wrong mask.
    with torch.no_grad():
        for parameter in model.parameters():
            # Random norms over many layers make a detector's queries nearly equal.
            if norms or parameter.ndim > 1:
                parameter.normal_(std=0.2)
    for part in (model, tokenizer, pictures):
        if part is not None:
            part.save_pretrained(folder)
    return folder


def clip_pictures(side: int = 32) -> Any:
    """CLIP's picture processor for small pictures."""
    return transformers.CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


def clip_tokenizer() -> Any:
    """CLIP's tokenizer over letters alone."""
    letters = [chr(code) for code in range(33, 127)]
    vocabulary = {piece: row for row, piece in enumerate([*letters, *(letter + "</w>" for letter in letters)])}
    vocabulary |= {"<|startoftext|>": len(vocabulary), "<|endoftext|>": len(vocabulary) + 1}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def word_tokenizer(pad: str, begin: str | None = None, end: str = "</s>", lowercase: bool = True) -> Any:
    """A tokenizer of whole words, with an end and possibly a begin token."""
    special = [pad, end, "[UNK]", *([begin] if begin else [])]
    vocabulary = {word: row for row, word in enumerate([*special, *WORDS.split()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    if lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}" if begin else f"$A {end}",
        special_tokens=[(token, vocabulary[token]) for token in (begin, end) if token],
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, eos_token=end, unk_token="[UNK]", cls_token=begin
    )
