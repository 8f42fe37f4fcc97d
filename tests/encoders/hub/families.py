"""Tiny dual encoders with random weights, saved with their processors as a user of transformers saves them."""

from pathlib import Path
from typing import Any

import torch
import transformers
from encoders.hub.models import TOWER, VISION, WORDS, clip_pictures, word_tokenizer

_SIDE = {"height": 32, "width": 32}
_BERT_TOWER = {**TOWER, "max_position_embeddings": 64}


def bert_tokenizer(lowercase: bool = True) -> Any:
    """BERT's own tokenizer over a few words, among them some with capitals, Chinese and punctuation."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [
        *special,
        *WORDS.split(),
        "A",
        "Red",
        "##s",
        "只",
        "红",
        "色",
        "的",
        "猫",
        "狗",
        '"',
        "“",
        "!",
        ",",
        "'",
        "-",
    ]
    return transformers.BertTokenizer(vocab={word: row for row, word in enumerate(words)}, do_lower_case=lowercase)


def randomise(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Weights large enough that a wrong token or a wrong mask shows."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model.eval()


def _save(folder: Path, model: torch.nn.Module, processor: Any) -> Path:
    randomise(model).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def save_siglip2(folder: Path) -> Path:
    """A SigLIP 2 for pictures of any shape, of 12 patches at most."""
    tokenizer = word_tokenizer(pad="[PAD]", lowercase=False)
    # As the published ones say; by default their class pads on the left.
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "right"
    text = {**TOWER, "vocab_size": len(tokenizer), "max_position_embeddings": 64, "projection_size": 32}
    vision = {**TOWER, "patch_size": 8, "num_patches": 16}
    config = transformers.Siglip2Config(text_config=text, vision_config=vision)
    pictures = transformers.Siglip2ImageProcessorPil(patch_size=8, max_num_patches=12)
    randomise(model := transformers.Siglip2Model(config)).save_pretrained(folder)
    for part in (tokenizer, pictures):
        part.save_pretrained(folder)
    assert model.config.model_type == "siglip2"
    return folder


def save_align(folder: Path) -> Path:
    tokenizer = bert_tokenizer()
    vision = {
        "image_size": 64,
        "width_coefficient": 0.25,
        "depth_coefficient": 0.2,
        "hidden_dim": 32,
        "kernel_sizes": [3, 3],
        "in_channels": [32, 16],
        "out_channels": [16, 32],
        "strides": [2, 2],
        "num_block_repeats": [1, 1],
        "expand_ratios": [1, 6],
    }
    config = transformers.AlignConfig(
        text_config={**_BERT_TOWER, "vocab_size": len(tokenizer)}, vision_config=vision, projection_dim=32
    )
    pictures = transformers.EfficientNetImageProcessorPil(
        size={"height": 64, "width": 64}, do_center_crop=False, rescale_offset=True
    )
    model = transformers.AlignModel(config)
    return _save(folder, model, transformers.AlignProcessor(pictures, tokenizer))


def save_chinese_clip(folder: Path) -> Path:
    tokenizer = bert_tokenizer()
    config = transformers.ChineseCLIPConfig(
        text_config={**_BERT_TOWER, "vocab_size": len(tokenizer)}, vision_config=VISION, projection_dim=24
    )
    pictures = transformers.ChineseCLIPImageProcessorPil(size=_SIDE, do_center_crop=False)
    processor = transformers.ChineseCLIPProcessor(pictures, tokenizer)
    return _save(folder, transformers.ChineseCLIPModel(config), processor)


def save_altclip(folder: Path) -> Path:
    tokenizer = word_tokenizer(pad="<pad>", begin="<s>")
    text = {**TOWER, "vocab_size": len(tokenizer), "max_position_embeddings": 130, "project_dim": 20}
    config = transformers.AltCLIPConfig(
        text_config={**text, "pad_token_id": tokenizer.pad_token_id}, vision_config=VISION, projection_dim=24
    )
    processor = transformers.AltCLIPProcessor(clip_pictures(), tokenizer)
    return _save(folder, transformers.AltCLIPModel(config), processor)


def save_dual(folder: Path, vision: str = "vit") -> Path:
    """A VisionTextDualEncoder of a cased BERT and the vision tower named."""
    tokenizer = bert_tokenizer(lowercase=False)
    towers = {
        "vit": transformers.ViTConfig(**VISION),
        "clip": transformers.CLIPVisionConfig(**VISION),
        "siglip": transformers.SiglipVisionConfig(**VISION),
    }
    return save_dual_of(
        folder, towers[vision], transformers.BertConfig(**_BERT_TOWER, vocab_size=len(tokenizer)), tokenizer
    )


def save_dual_of(folder: Path, vision: Any, text: Any, tokenizer: Any) -> Path:
    """A VisionTextDualEncoder of the towers configured."""
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=24)
    processor = transformers.VisionTextDualEncoderProcessor(transformers.ViTImageProcessorPil(size=_SIDE), tokenizer)
    return _save(folder, transformers.VisionTextDualEncoderModel(config), processor)


def save_blip(folder: Path) -> Path:
    tokenizer = bert_tokenizer()
    config = transformers.BlipConfig(
        text_config={**_BERT_TOWER, "vocab_size": len(tokenizer), "encoder_hidden_size": 32},
        vision_config=VISION,
        image_text_hidden_size=24,
    )
    processor = transformers.BlipProcessor(transformers.BlipImageProcessorPil(size=_SIDE), tokenizer)
    return _save(folder, transformers.BlipForImageTextRetrieval(config), processor)
