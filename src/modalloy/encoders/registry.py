"""From a spec such as "minilm", "clip:openai/clip-vit-base-patch32" or "hacan:runs/x" to an encoder.

Built-in encoders stand in the tables below; other packages add theirs by an entry point of the group
`modalloy.encoders`, whose name is the spec's kind and whose object is called with the rest of the spec.
"""

import difflib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from modalloy.encoders.base import Encoder
from modalloy.encoders.mid import MID, MidLevel
from modalloy.errors import ConfigError

_GROUP = "modalloy.encoders"


@dataclass(frozen=True)
class _BuiltIn:
    module: str
    class_name: str
    arguments: dict[str, Any]
    option: str
    """The argument that a number after "@" sets."""


_BUILT_IN = {
    "efficientnet-lite0": _BuiltIn("efficientnet_lite", "EfficientNetLite", {"variant": 0}, "image_size"),
    "efficientnet-lite2": _BuiltIn("efficientnet_lite", "EfficientNetLite", {"variant": 2}, "image_size"),
    "vit-s14-focus": _BuiltIn("vit", "ViT", {}, "image_size"),
    "minilm": _BuiltIn("minilm", "MiniLM", {}, "max_length"),
    "subwords": _BuiltIn("subwords", "Subwords", {}, "max_length"),
}

_HUB = {
    **dict.fromkeys(("clip", "siglip", "align", "chinese-clip", "altclip", "dual"), "dual:HubDualEncoder"),
    "blip": "blip:HubBlip",
    "albef": "albef:Albef",
    **dict.fromkeys(("convnext", "vit", "dinov2"), "backbone:ImageBackbone"),
    "bert": "backbone:TextBackbone",
    **dict.fromkeys(("detr", "rt-detr"), "regions:RegionEncoder"),
    "sentence-transformers": "sentence_transformers:SentenceTransformersEncoder",
    "open-clip": "open_clip:OpenClipEncoder",
    "timm": "timm:TimmEncoder",
}
"""For each kind of hub model "module:class" in `modalloy.encoders.hub`; called with the kind and the source."""

TUNED = "tuned"


def load_encoder(spec: str) -> Encoder:
    """Builds the encoder that `spec` names.

    Args:
        spec: a built-in name ("efficientnet-lite0", "minilm"), a built-in name with its option after "@" (the
            image size of "vit-s14-focus@168", the maximum length of "minilm@128"); "kind:model" for a model in a
            folder or on the hub ("clip:openai/clip-vit-base-patch32", "siglip:models/mine"); "kind:argument"
            for an encoder registered by an entry point ("hacan:runs/x", "alloy:runs/y"); "tuned:" and a folder for a
            backbone that was trained further; or "mid:" and a spec for the second token level of that encoder
            ("mid:minilm").

    Raises:
        ConfigError: the spec is unknown, its option can't work, or its encoder's package isn't installed.

    >>> load_encoder("minilm").modalities
    ('text',)
    """
    name, at, option = spec.partition("@")
    if name in _BUILT_IN:
        return _build(_BUILT_IN[name], spec, option if at else None)
    kind, _, argument = spec.partition(":")
    if kind == MID and argument:
        return MidLevel(load_encoder(argument))
    registered = {entry.name: entry for entry in entry_points(group=_GROUP)}
    if kind not in (*_HUB, TUNED, *registered):
        raise ConfigError(_unknown(spec, registered))
    if not argument:
        what = "model" if kind in _HUB else "folder"
        raise ConfigError(f'The encoder spec {spec!r} needs an argument after a colon: "{kind}:<{what}>".')
    if kind in _HUB:
        module, _, name = _HUB[kind].partition(":")
        return getattr(import_module(f"modalloy.encoders.hub.{module}"), name)(kind, argument)
    if kind == TUNED:
        from modalloy.encoders.tuned import TunedEncoder

        return TunedEncoder.from_pretrained(argument)
    return registered[kind].load()(argument)


def _build(built_in: _BuiltIn, spec: str, option: str | None) -> Encoder:
    factory = getattr(import_module(f"modalloy.encoders.{built_in.module}"), built_in.class_name)
    if option is None:
        return factory(**built_in.arguments)
    if not (option.isascii() and option.isdecimal()) or int(option) == 0:
        raise ConfigError(
            f"The encoder spec {spec!r} needs a whole number after the @ (its {built_in.option}), got {option!r}."
        )
    return factory(**built_in.arguments, **{built_in.option: int(option)})


def _unknown(spec: str, registered: Iterable[str]) -> str:
    names = [*_BUILT_IN, *_HUB, TUNED, *sorted(registered)]
    name = spec.partition(":")[0].partition("@")[0]
    close = difflib.get_close_matches(name.lower(), names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"Unknown encoder {spec!r}.{hint} Known: {', '.join(names)} (docs/encoders.md)."


def relative_spec(spec: str, folder: Path) -> str:
    """The spec with its folder or file, if it names one, seen from `folder`, so that both can be moved together.

    >>> relative_spec("minilm", Path("runs/demo"))
    'minilm'
    """
    kind, colon, argument = spec.partition(":")
    if kind == MID:
        return f"{kind}{colon}{relative_spec(argument, folder)}"
    path, option = _path_and_option(argument, Path())
    return f"{kind}:{os.path.relpath(path, folder)}{option}" if colon and path else spec


def absolute_spec(spec: str, folder: Path) -> str:
    """Undoes `relative_spec`, wherever `folder` is now."""
    kind, colon, argument = spec.partition(":")
    if kind == MID:
        return f"{kind}{colon}{absolute_spec(argument, folder)}"
    path, option = _path_and_option(argument, folder)
    return f"{kind}:{(folder / path).resolve()}{option}" if colon and path else spec


def _path_and_option(argument: str, folder: Path) -> tuple[str, str]:
    """What of a spec's argument names something seen from `folder`, if anything, and what stands behind it."""
    head, at, option = argument.rpartition("@")
    for path, rest in ((argument, ""), (head, at + option)):
        if path and (folder / path).exists():
            return path, rest
    return "", ""
