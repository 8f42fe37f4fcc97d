"""Readers of the forms that collections come in; `read_collection` picks one by what it finds.

Karpathy's JSON (karpathy.py), JSON lines and CSV tables (table.py), and a folder of images with or without
sidecar captions (folder.py). Each gives a `Collection`: records not yet checked, and the folder that their
paths start from.
"""

from modalloy.data.readers.collection import Collection
from modalloy.data.readers.folder import read_folder
from modalloy.data.readers.karpathy import read_karpathy
from modalloy.data.readers.pick import read_collection
from modalloy.data.readers.table import read_csv, read_jsonl

__all__ = ["Collection", "read_collection", "read_csv", "read_folder", "read_jsonl", "read_karpathy"]
