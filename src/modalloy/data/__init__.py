"""Collections: what is in them, how they are read, and how their pictures are decoded."""

from modalloy.data.build import Record, Reject, build_manifest, write_rejects
from modalloy.data.demo import demo_manifest
from modalloy.data.doctor import Problem, check_collection
from modalloy.data.hf_dataset import import_dataset
from modalloy.data.images import MAX_PIXELS, check_image, open_image
from modalloy.data.item import SPLITS, Item
from modalloy.data.manifest import Manifest
from modalloy.data.readers import read_collection

__all__ = [
    "MAX_PIXELS",
    "SPLITS",
    "Item",
    "Manifest",
    "Problem",
    "Record",
    "Reject",
    "build_manifest",
    "check_collection",
    "check_image",
    "demo_manifest",
    "import_dataset",
    "open_image",
    "read_collection",
    "write_rejects",
]
