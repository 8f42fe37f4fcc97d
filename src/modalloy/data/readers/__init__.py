"""Readers of the forms that collections come in; `read_collection` picks one by what it finds.

Karpathy's JSON (karpathy.py), the caption lists of BLIP and ALBEF (caption_list.py), JSON lines and CSV tables
(table.py) and those in folders named after splits (split_tables.py), Flickr's own caption files (flickr_token.py),
webdataset tars (tars.py), and a folder of images with or without sidecar captions (folder.py). Each gives a
`Collection`: records not yet checked, and the folder that their paths start from. What a folder holds besides is
found by unread.py. The sizes of published benchmarks are in benchmarks.py.
"""

from modalloy.data.readers.caption_list import read_caption_lists
from modalloy.data.readers.collection import Collection
from modalloy.data.readers.flickr_token import read_token
from modalloy.data.readers.folder import read_folder
from modalloy.data.readers.karpathy import read_karpathy
from modalloy.data.readers.pick import read_collection
from modalloy.data.readers.table import read_csv, read_jsonl
from modalloy.data.readers.tars import read_tars
from modalloy.data.readers.unread import Unread, unread_in

__all__ = [
    "Collection",
    "Unread",
    "read_caption_lists",
    "read_collection",
    "read_csv",
    "read_folder",
    "read_jsonl",
    "read_karpathy",
    "read_tars",
    "read_token",
    "unread_in",
]
