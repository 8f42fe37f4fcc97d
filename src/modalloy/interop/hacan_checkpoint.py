"""HACAN's checkpoint becomes an aligned encoder: two backbones in transformers' layout, and a head on each.

    OUT/image/           ConvNextModel, with the authors' preprocessing for evaluation
    OUT/text/            BertModel, with its tokenizer
    OUT/local.safetensors    the local branch's linear maps
    OUT/model.safetensors, OUT/config.json    the heads, as `AlignedEncoder.save` writes them

Notable: the heads read the summary tokens as they are, as in the authors' code, rather than unit-norm embeddings. Of a
text that is the raw CLS, so BERT's pooler is a part of the head (and of the backbone, whose embedding needs it too).
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from modalloy.align import AlignedEncoder, Backbone
from modalloy.align.encoder import FORMAT
from modalloy.encoders import Encoder, Modality, load_encoder
from modalloy.encoders.checkpoint import CONFIG, WEIGHTS
from modalloy.encoders.hub.files import hub_file
from modalloy.encoders.hub.quiet import quiet
from modalloy.errors import CheckpointError, ConfigError, one_line
from modalloy.files import atomic_path, read_json, sha256_of, write_json
from modalloy.interop.hacan_weights import HacanWeights, read_hacan_checkpoint

LOCAL_BRANCH = "local.safetensors"
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
    """Makes an aligned encoder of a checkpoint of HACAN's code (lvshuai789/HACAN), that gives its global embeddings.

    Its backbones serve alone too, as "convnext:OUT/image" and "bert:OUT/text". The linear maps of the local branch are
    kept in `OUT/local.safetensors` as {image,text}_{high,mid}.{weight,bias}, and nothing reads them yet: scores are
    those of HACAN's global branch. What the encoder was made of, and what is in that file, stands in its `training`.

    Nothing in the checkpoint is run; see `read_lightning_checkpoint`.

    Args:
        path: Lightning's file, or one with its `state_dict` alone, which then counts as trained with the published
            settings: LeakyReLU, 32 tokens, lower-cased texts.
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
    words = _tokenizer(str(tokenizer), weights)
    # Without its configuration, a folder half written over can't pass for a whole one.
    (out / CONFIG).unlink(missing_ok=True)
    _save_model(out / "image", "ConvNextModel", weights.image_config, weights.image)
    write_json(out / "image" / "preprocessor_config.json", _PREPROCESSING)
    _save_model(out / "text", "BertModel", weights.text_config, weights.text)
    _save_tokenizer(words, out / "text")
    with atomic_path(out / LOCAL_BRANCH) as temporary:
        save_file(weights.local, temporary, {"format": "pt"})
    encoder = AlignedEncoder(
        {
            "image": _backbone(load_encoder(f"convnext:{(out / 'image').resolve()}"), "image"),
            "text": _backbone(load_encoder(f"bert:{(out / 'text').resolve()}"), "text"),
        },
        {"image": weights.image_head, "text": weights.text_head},
        name=name or f"HACAN {path.stem}",
        training={
            "imported": "hacan-checkpoint",
            "file": path.name,
            "sha256": sha256_of(path),
            "local_branch": {key: list(tensor.shape) for key, tensor in weights.local.items()},
        },
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


def _backbone(encoder: Encoder, modality: Modality) -> Backbone:
    return Backbone(encoder.spec, encoder.fingerprint(modality), encoder.width(modality))
