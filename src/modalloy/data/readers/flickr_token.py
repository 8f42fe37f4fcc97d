"""Reads the caption files that Flickr8k and Flickr30k came with: `results_20130124.token`, `Flickr8k.token.txt`."""

import re
from pathlib import Path

from modalloy.data.build import Record
from modalloy.data.readers.collection import Collection, id_of_path, image_folder, text_lines
from modalloy.errors import DataError

_LINE = re.compile(r"(?P<path>[^\t]+)#[0-9]+\t(?P<caption>.*)")


def read_token(path: str | Path, images: str | Path | None = None, split: str = "train") -> Collection:
    """Reads lines such as "1000092795.jpg#0<tab>Two young guys."; lines with the same picture make one item.

    Args:
        path: the file.
        images: the folder with the pictures; default: the file's folder.
        split: the split of all images, since the file names none.

    Raises:
        DataError: a line is of another form (named FILE:LINE).
    """
    path = Path(path)
    root = image_folder(images, path.parent)
    captions: dict[str, list[str]] = {}
    for number, line in enumerate(text_lines(path), start=1):
        if line.strip():
            match = _LINE.fullmatch(line.rstrip("\r"))
            if match is None:
                raise DataError(f"{path}:{number}: a line must be PICTURE#NUMBER, a tab and a caption.")
            captions.setdefault(match["path"], []).append(match["caption"])
    return Collection(root, tuple(Record(id_of_path(name), name, split, tuple(captions[name])) for name in captions))
