"""One stronger image-text retriever out of the encoders you already have: HACAN aligns, HADA amalgamates."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

__version__ = version("modalloy")

if TYPE_CHECKING:
    from modalloy.align import AlignedEncoder
    from modalloy.data import Manifest, demo_manifest, read_collection
    from modalloy.encoders import Encoder, load_encoder
    from modalloy.errors import ModalloyError
    from modalloy.fusion import Alloy
    from modalloy.search import Searcher
    from modalloy.workflow.align import align_backbones
    from modalloy.workflow.evaluate import evaluate
    from modalloy.workflow.features import Collection
    from modalloy.workflow.fusion_config import FusionConfig
    from modalloy.workflow.make_alloy import fuse

# The public names and where they live; loaded on first use, since PyTorch takes seconds to import.
_PUBLIC = {
    "AlignedEncoder": "modalloy.align",
    "Alloy": "modalloy.fusion",
    "Collection": "modalloy.workflow.features",
    "Encoder": "modalloy.encoders",
    "FusionConfig": "modalloy.workflow.fusion_config",
    "Manifest": "modalloy.data",
    "ModalloyError": "modalloy.errors",
    "Searcher": "modalloy.search",
    "align_backbones": "modalloy.workflow.align",
    "demo_manifest": "modalloy.data",
    "evaluate": "modalloy.workflow.evaluate",
    "fuse": "modalloy.workflow.make_alloy",
    "load_encoder": "modalloy.encoders",
    "read_collection": "modalloy.data",
}

__all__ = [
    "AlignedEncoder",
    "Alloy",
    "Collection",
    "Encoder",
    "FusionConfig",
    "Manifest",
    "ModalloyError",
    "Searcher",
    "align_backbones",
    "demo_manifest",
    "evaluate",
    "fuse",
    "load_encoder",
    "read_collection",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'modalloy' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
