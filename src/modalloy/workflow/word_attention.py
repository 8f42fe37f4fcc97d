"""Where in some pictures an encoder's local branch finds the words of their captions."""

import logging
from collections.abc import Mapping, Sequence

from jaxtyping import Int
from torch import Tensor

from modalloy.align import AlignedEncoder
from modalloy.align.words import WordMap, word_maps
from modalloy.encoders import Encoder
from modalloy.errors import ModalloyError
from modalloy.fusion import SplitFeatures
from modalloy.report import WordExample

_log = logging.getLogger(__name__)
_MOST_WORDS = 8
# English words that nothing in a picture stands for; in other languages all words are shown.
_UNSEEN = (
    "a an and are as at be being by for from has have he her his in is it its of off on or s she that the their them "
    "there they this to was were which while who with"
)


def word_examples(
    encoders: Mapping[str, Encoder], test: SplitFeatures, pairs: Sequence[tuple[int, int]]
) -> list[WordExample]:
    """The words of some captions, each with the regions of its picture by the focal score of each local branch.

    Args:
        encoders: by name, in the order of the features; those without a local branch, a token grid or words are left
            out, as are, with a warning, those whose backbones can't be loaded.
        test: their features.
        pairs: places of an image and a caption in `test`.

    Returns:
        An example for each pair, of at most eight words; none without such an encoder.
    """
    manifest = test.paired.manifest
    images = test.image_rows[[image for image, _ in pairs]]
    captions = test.caption_rows[[caption for _, caption in pairs]]
    texts = [manifest.captions[row] for row in captions.tolist()]
    found: list[dict[str, list[WordMap]]] = [{} for _ in pairs]
    for position, (name, encoder) in enumerate(encoders.items()):
        if not isinstance(encoder, AlignedEncoder) or encoder.local is None:
            continue
        try:
            grid, tokens = encoder.token_grid(), [encoder.token_texts(text) for text in texts]
        except ModalloyError as error:
            # The backbone isn't needed for anything else where its features are stored.
            _log.warning("the report doesn't show the words of %s: %s", name, error)
            continue
        if grid is None or None in tokens:
            continue
        pieces = [each or [] for each in tokens]
        for each, words in zip(found, _maps(encoder, test, position, images, captions, pieces, grid), strict=True):
            if shown := _shown(words):
                each[name] = shown
    paths = [manifest.absolute(manifest[row]) for row in images.tolist()]
    return [WordExample(*example) for example in zip(paths, texts, found, strict=True) if example[2]]


def _maps(
    encoder: AlignedEncoder,
    test: SplitFeatures,
    position: int,
    images: Int[Tensor, " pairs"],
    captions: Int[Tensor, " pairs"],
    pieces: Sequence[Sequence[str]],
    grid: tuple[int, int],
) -> list[list[WordMap]]:
    """The attention of the score of the last tokens, which is the second stage of HACAN's inference."""
    regions = encoder.project_tokens("image", {"high": test.paired.image.stores[position].tokens(images)})["high"]
    words = encoder.project_tokens("text", {"high": test.paired.text.stores[position].tokens(captions)})["high"]
    return word_maps(regions, words, pieces, grid, encoder.branch().config.attention)


def _shown(words: Sequence[WordMap]) -> list[WordMap]:
    """Those that add most to the score, each word once, in reading order."""
    unseen = set(_UNSEEN.split())
    seen = [each for each in words if each.word.lower() not in unseen]
    best: dict[str, WordMap] = {}
    for each in sorted(seen, key=lambda each: each.score, reverse=True):
        best.setdefault(each.word.lower(), each)
    chosen = {id(each) for each in list(best.values())[:_MOST_WORDS]}
    return [each for each in seen if id(each) in chosen]
