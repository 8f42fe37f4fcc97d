"""Reads what other systems wrote, above all the originals' features, into modalloy's own forms."""

from modalloy.interop.hacan_checkpoint import import_hacan_checkpoint
from modalloy.interop.hada_features import import_hada_features
from modalloy.interop.regions import import_regions

__all__ = ["import_hacan_checkpoint", "import_hada_features", "import_regions"]
