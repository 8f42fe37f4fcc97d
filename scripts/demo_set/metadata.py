"""What an Open Clip Art SVG says of itself: title, description, keywords, author, licence."""

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

PUBLIC_DOMAIN = (
    "http://web.resource.org/cc/PublicDomain",
    "http://creativecommons.org/licenses/publicdomain/",
)

_DC = "{http://purl.org/dc/elements/1.1/}"
_HREF = "{http://www.w3.org/1999/xlink}href"
_RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"


class MetadataError(ValueError):
    """An SVG's metadata can't be read safely; the message is the reason it is dropped for."""


@dataclass(frozen=True)
class Work:
    """One entry of the library as its RDF describes it."""

    path: str
    """Path below `svg/` without the suffix, e.g. `animals/bugs/bee`; the PNG has the same."""
    title: str
    description: str
    keywords: tuple[str, ...]
    author: str
    licence: str
    links_picture: bool = False
    """Whether the SVG links to a picture outside itself, which the PNG then may lack."""


def read_work(svg: Path, root: Path) -> Work:
    """Reads the RDF of `svg`, a file below `root`.

    Raises:
        MetadataError: the file isn't XML, declares entities (they could expand without bound) or has no
            `cc:Work`.
    """
    data = svg.read_bytes()
    # A UTF-16 file would hide the declaration behind its zero bytes.
    if b"<!ENTITY" in data.replace(b"\0", b""):
        raise MetadataError("the SVG declares XML entities")
    try:
        tree = ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError):
        raise MetadataError("the SVG isn't well-formed XML") from None
    # The namespace of `cc:` differs between versions of Inkscape.
    work = next((element for element in tree.iter() if _local_name(element) == "Work"), None)
    if work is None:
        raise MetadataError("the SVG has no metadata")
    licence = next((child for child in work if _local_name(child) == "license"), None)
    return Work(
        path=svg.relative_to(root).with_suffix("").as_posix(),
        title=_text(work.find(f"{_DC}title")),
        description=_text(work.find(f"{_DC}description")),
        keywords=tuple(_text(item) for item in work.iterfind(f"{_DC}subject//{_RDF}li")),
        author=_text(work.find(f"{_DC}creator")),
        licence="" if licence is None else licence.get(f"{_RDF}resource", ""),
        links_picture=any(_local_name(item) == "image" and not _is_embedded(item) for item in tree.iter()),
    )


def _is_embedded(image: ElementTree.Element) -> bool:
    return image.get(_HREF, "").startswith("data:")


def _local_name(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def _text(element: ElementTree.Element | None) -> str:
    return "" if element is None else " ".join("".join(element.itertext()).split())
