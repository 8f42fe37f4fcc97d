"""modalloy search"""

import shlex
from argparse import SUPPRESS
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from modalloy.cli.hits import show_hits
from modalloy.cli.verb import Verb
from modalloy.counted import counted
from modalloy.errors import ConfigError
from modalloy.progress import waiting

if TYPE_CHECKING:
    from modalloy.search import Part, Reranker

_DEFAULT = "index"
# As much as what is wanted, it would lead to what is merely unlike it.
_UNWANTED = 0.5


class Search(Verb):
    """Answers a question from an index."""

    name = "search"
    summary = "Search an index by text, by picture, or by both."
    example = 'modalloy search runs/demo "a red telephone" --without "a table" -k 5'

    def add_arguments(self, parser: ArgumentParser) -> None:
        """See `Verb`."""
        add = parser.add_argument
        add(
            "index",
            nargs="?",
            type=str | None,
            default=None,
            help=f"an index, or the folder of a run or an alloy; default: {_DEFAULT}",
        )
        add("query", nargs="?", type=str | None, default=None, help="the words to search by")
        # Not an argument to give: it catches words without quotes, so that the mistake can be named.
        add("unquoted", nargs="*", type=str, help=SUPPRESS)
        add("--image", type=str | None, default=None, help="a picture to search by, instead or besides")
        add("--like", type=str | None, default=None, help="the id of a picture in the index, to find more like it")
        several: dict[str, Any] = {"action": "append", "default": []}
        add("--without", type=str, **several, help="words for what the answers shouldn't be like; may be repeated")
        add(
            "--weight",
            nargs="+",
            type=float,
            default=[],
            help="how much each part counts, in the order words, --image, --like, each of --without; "
            f"default: 1, and {_UNWANTED} of what is unwanted",
        )
        add(
            "--where",
            type=str,
            **several,
            help="only answers for which this holds, such as 'year >= 2020'; several must all hold",
        )
        add("--target", type=Literal["image", "text"], default="image", help="what to find: pictures or captions")
        add(
            "--rerank",
            type=Literal["local", "itm"] | None,
            default=None,
            help="put the best answers in order again: local is HACAN's local score, itm a cross-encoder",
        )
        add("--itm", type=str | None, default=None, help="the cross-encoder: a BLIP's folder or name on the hub")
        add("--rerank-depth", type=int, default=20, help="how many of the best answers --rerank looks at")
        add("--explain", action="store_true", help="show what each encoder, and each part, added to the scores")
        add("--by", type=str | None, default=None, help="rank by this one input encoder, instead of by all")
        add("--exact", action="store_true", help="look at every vector, however large the index is")
        add("-k", type=int, default=5, help="how many")

    def execute(self, options: Namespace) -> dict[str, Any]:
        """See `Verb`."""
        if options.unquoted:
            place = [] if _is_place(options.index) else [options.index]
            quoted = shlex.quote(" ".join((*place, options.query, *options.unquoted)))
            raise ConfigError(f"too many arguments; put the words in quotes: {quoted}.")
        location, words = _place_and_words(options.index, options.query)
        with waiting(f"searching {location}; its encoder is loaded first"):
            return _answer(location, words, options)

    def show(self, result: dict[str, Any], console: Console) -> None:
        """See `Verb`."""
        if not result["hits"]:
            console.print(f"nothing found; {result['searched']:,} satisfy the conditions")
            return
        show_hits(result, console)


def _place_and_words(first: str | None, second: str | None) -> tuple[str, str | None]:
    """Where to search and for what words; a single argument is a place if there is one of that name."""
    if first is None or second is not None:
        return first or _DEFAULT, second
    return (first, None) if _is_place(first) else (_DEFAULT, first)


def _is_place(argument: str) -> bool:
    return "://" in argument or Path(argument).is_dir()


def _answer(location: str, words: str | None, options: Namespace) -> dict[str, Any]:
    from modalloy.index import parse_condition
    from modalloy.search import Query, Searcher

    parts = _parts(words, options)
    searcher = Searcher.open(location, rerankers=_second_stages(options))
    metadata = searcher.snapshot.metadata
    query = Query(
        parts=parts,
        target=options.target,
        k=options.k,
        where=tuple(parse_condition(each, metadata) for each in options.where),
        rerank=options.rerank,
        rerank_depth=options.rerank_depth,
        explain=options.explain,
        exact=options.exact,
        by=options.by,
    )
    answer = searcher.search(query)
    return {
        "query": parts[0].label if len(parts) == 1 else ", ".join(f"{p.weight:+g} {p.label}" for p in parts),
        "parts": [part.label for part in parts],
        "hits": [asdict(hit) | {"caption": hit.caption} for hit in answer.hits],
        "searched": answer.searched,
        "version": answer.version,
        "milliseconds": answer.milliseconds,
    }


def _parts(words: str | None, options: Namespace) -> "tuple[Part, ...]":
    from modalloy.search import Part

    given: Sequence[dict[str, Any]] = [
        *([] if words is None else [{"text": words}]),
        *([] if options.image is None else [{"image": options.image}]),
        *([] if options.like is None else [{"like": options.like}]),
        *({"text": text} for text in options.without),
    ]
    if len(given) == len(options.without):
        taken = (
            f" {options.index!r} was taken for the index's place; to search for it as words: "
            f"modalloy search {_DEFAULT} {shlex.quote(options.index or '')}"
        )
        raise ConfigError("give what to search by: words, --image or --like." + (taken if options.index else ""))
    unwanted = len(options.without)
    weights = options.weight or [1.0] * (len(given) - unwanted) + [_UNWANTED] * unwanted
    if len(weights) != len(given) or min(weights) <= 0:
        raise ConfigError(
            f"--weight takes one number above 0 for each part of the question, here {counted(len(given), 'part')}, got "
            f"{' '.join(f'{w:g}' for w in weights)}."
        )
    signs = [1] * (len(given) - unwanted) + [-1] * unwanted
    return tuple(Part(**each, weight=sign * w) for each, sign, w in zip(given, signs, weights, strict=True))


def _second_stages(options: Namespace) -> "dict[str, Reranker]":
    if options.rerank != "itm":
        return {}
    if options.itm is None:
        raise ConfigError("--rerank itm needs a cross-encoder: --itm FOLDER, such as Salesforce/blip-itm-base-coco.")
    from modalloy.search.cross_encoder import CrossEncoder

    return {"itm": CrossEncoder(options.itm)}
