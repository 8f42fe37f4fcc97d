"""HACAN's checkpoint becomes an aligned encoder: two backbones in transformers' layout, and a head on each.

    OUT/image/           ConvNextModel, with the authors' preprocessing for evaluation
    OUT/text/            BertModel, with its tokenizer
    OUT/model.safetensors, OUT/config.json    the heads and the local branch, as `AlignedEncoder.save` writes them

Notable: the heads read the summary tokens as they are, as in the authors' code, rather than unit-norm embeddings. Of a
text that is the raw CLS, so BERT's pooler is a part of the head (and of the backbone, whose embedding needs it too).
"""

import tempfile
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from modalloy.align import AlignedEncoder, Backbone, CrossAttention, LocalBranch, LocalConfig
from modalloy.align.encoder import FORMAT
from modalloy.encoders import Modality, load_encoder
from modalloy.encoders.checkpoint import CONFIG, WEIGHTS
from modalloy.encoders.hub.files import hub_file
from modalloy.encoders.hub.quiet import quiet
from modalloy.encoders.mid import MidLevel
from modalloy.errors import CheckpointError, ConfigError, one_line
from modalloy.files import atomic_path, read_json, sha256_of, write_json
from modalloy.interop.hacan_weights import HacanWeights, read_hacan_checkpoint

_MAX_LENGTH = 32
_PREPROCESSING = {
    "image_processor_type": "CLIPImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"shortest_edge": 256},
    "resample": 2,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "center_crop_rounding": "half_even",
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def import_hacan_checkpoint(
    path: str | Path,
    out: str | Path,
    *,
    tokenizer: str | Path = "bert-base-uncased",
    name: str | None = None,
    text_heads: int | None = None,
) -> AlignedEncoder:
    """Makes an aligned encoder of a checkpoint of HACAN's code (lvshuai789/HACAN): its embeddings and its local branch.

    Its backbones serve alone too, as "convnext:OUT/image" and "bert:OUT/text", and their earlier layers as
    "mid:convnext:OUT/image" and "mid:bert:OUT/text". What the encoder was made of stands in its `training`.

    Nothing in the checkpoint is run; see `read_lightning_checkpoint`.

    Args:
        path: Lightning's file, or one with its `state_dict` alone, which then counts as trained with the published
            settings: LeakyReLU, 32 tokens, lower-cased texts, Flickr30k's attention.
        out: the folder to write; "hacan:OUT" is the encoder's spec.
        tokenizer: BERT's: a folder, or a name on the hub, of which only `vocab.txt` is fetched.
        name: for people; by default "HACAN" and the file's name.
        text_heads: BERT's attention heads; by default as many as are 64 wide.

    Returns:
        The encoder, saved in `out`.

    Raises:
        CheckpointError: the file is damaged, unsafe to read, or not that of HACAN's published model.
        ConfigError: the tokenizer can't be had or isn't that of the checkpoint, or `out` holds something else.
    """
    path, out = Path(path), Path(out)
    _require_free(out)
    weights = read_hacan_checkpoint(path, text_heads=text_heads)
    attention = _attention(weights)
    words = _tokenizer(str(tokenizer), weights)
    # Without its configuration, a folder half written over can't pass for a whole one.
    (out / CONFIG).unlink(missing_ok=True)
    _save_model(out / "image", "ConvNextModel", weights.image_config, weights.image)
    write_json(out / "image" / "preprocessor_config.json", _PREPROCESSING)
    _save_model(out / "text", "BertModel", weights.text_config, weights.text)
    _save_tokenizer(words, out / "text")
    kinds: dict[Modality, str] = {"image": "convnext", "text": "bert"}
    backbones = {each: load_encoder(f"{kind}:{(out / each).resolve()}") for each, kind in kinds.items()}
    mid = {each: MidLevel(model) for each, model in backbones.items() if model.mid_layer(each) is not None}
    encoder = AlignedEncoder(
        {each: Backbone.of(model, each) for each, model in backbones.items()},
        {"image": weights.image_head, "text": weights.text_head},
        name=name or f"HACAN {path.stem}",
        training={
            "imported": "hacan-checkpoint",
            "file": path.name,
            "sha256": sha256_of(path),
        },
        local=_local_branch(weights, attention, mid),
        mid={each: Backbone.of(level, each) for each, level in mid.items()},
    )
    encoder.save(out)
    return encoder


def _require_free(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; name a folder for the encoder.")
    if (out / CONFIG).exists():
        config = read_json(out / CONFIG)
        if not isinstance(config, Mapping) or config.get("format") != FORMAT:
            raise ConfigError(f"{out} holds another model ({CONFIG}); name another folder, or remove that one.")


def _tokenizer(source: str, weights: HacanWeights) -> Any:
    """The authors': BERT's word pieces, lower-cased if "uncased" is in the name they took it from."""
    from transformers import BertTokenizer

    folder = Path(source).expanduser()
    if not folder.is_dir():
        try:
            folder = hub_file(source, "vocab.txt").parent
        except ConfigError as error:
            raise ConfigError(f"The tokenizer {source!r} is no folder. {error} Name a folder with it.") from None
    lowercase = "uncased" in str(weights.settings.get("tokenizer", "bert-base-uncased"))
    try:
        with quiet():
            words = BertTokenizer.from_pretrained(folder, do_lower_case=lowercase, local_files_only=True)
    # The library raises nearly anything at damaged files.
    except Exception as error:
        raise ConfigError(f"{source} has no usable tokenizer ({one_line(error)}).") from error
    # Without files the library gives a tokenizer of five words.
    expected = weights.text_config["vocab_size"]
    if len(words) != expected:
        raise ConfigError(
            f"The checkpoint's BERT knows {expected} word pieces, but the tokenizer of {source} has {len(words)}; "
            "give a folder with the vocab.txt or tokenizer.json that it was trained with."
        )
    longest = weights.settings.get("max_text_len", _MAX_LENGTH)
    positions = weights.text_config["max_position_embeddings"]
    if not isinstance(longest, int) or not 3 <= longest <= positions:
        raise CheckpointError(f"The checkpoint's max_text_len should lie in [3, {positions}], got {longest!r}.")
    words.model_max_length = longest
    return words


def _save_model(folder: Path, architecture: str, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    import transformers

    made = getattr(transformers, architecture).config_class(**config, architectures=[architecture])
    with atomic_path(folder / WEIGHTS) as temporary:
        save_file(dict(weights), temporary, {"format": "pt"})
    write_json(folder / CONFIG, made.to_dict())


def _save_tokenizer(tokenizer: Any, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as made:
        tokenizer.save_pretrained(made)
        for file in Path(made).iterdir():
            with atomic_path(folder / file.name) as temporary:
                temporary.write_bytes(file.read_bytes())


def _attention(weights: HacanWeights) -> CrossAttention:
    settings = weights.settings
    try:
        smoothing = float(settings.get("lambda_softmax", 9))
        return CrossAttention(settings.get("direction", "t2i"), settings.get("focal_type", "prob"), smoothing)
    except (ConfigError, TypeError, ValueError) as error:
        raise CheckpointError(f"The checkpoint's attention isn't HACAN's: {one_line(error)}") from None


def _local_branch(weights: HacanWeights, attention: CrossAttention, mid: Container[Modality]) -> LocalBranch:
    """The branch, with the maps of the levels that the backbones are deep enough to have."""

    def width(part: str) -> int:
        return weights.local[f"{part}.weight"].shape[1]

    config = LocalConfig(
        image_high=width("image_high"),
        image_mid=width("image_mid") if "image" in mid else None,
        text_high=width("text_high"),
        text_mid=width("text_mid") if "text" in mid else None,
        dim=weights.local["image_high.weight"].shape[0],
        attention=attention,
    )
    branch = LocalBranch(config)
    branch.load_state_dict({name: weights.local[name] for name in branch.state_dict()})
    return branch
