"""What HACAN's stages give on a split: vectors alone, re-ranked by the focal score, and by the cross-layer score."""

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from modalloy.align import AlignedEncoder
from modalloy.encoders import Encoder, Level, Modality
from modalloy.errors import ConfigError, FeatureError
from modalloy.evaluation import EmbeddingScores, Ranks, compare, rank_queries
from modalloy.evaluation.ranks import DIRECTIONS
from modalloy.fusion import FeatureSet
from modalloy.search import HierarchicalSearch, HierarchyConfig, Side, StoredTokens
from modalloy.search.depths import DepthChoice, DepthLadder, choose_depths, stage_ranks
from modalloy.workflow.evaluate import with_counts
from modalloy.workflow.features import Collection
from modalloy.workflow.fuse import validation_split

CHOSEN, _ALL = "chosen", "all"


def stages_of(text: str) -> HierarchyConfig | None:
    """Reads numbers of candidates: "100:20" for the focal and the cross-layer stage, "100" for the focal stage alone.

    With "all:50" the focal stage gets all items, as in HACAN's code.

    Returns:
        None for "chosen": they are chosen on validation.

    Raises:
        ConfigError: the text is something else, or the numbers can't be.

    >>> stages_of("100").second is None, stages_of("chosen")
    (True, None)
    """
    if text == CHOSEN:
        return None
    counts = text.split(":")
    all_first = counts[0] == _ALL
    if len(counts) > 2 or not all(each.isdecimal() for each in counts[all_first:]):
        raise ConfigError(f"stages are {CHOSEN!r} or numbers of candidates like 100:20, 100, or all:50; got {text!r}.")
    first = None if all_first else int(counts[0])
    return HierarchyConfig(first, int(counts[1]) if len(counts) == 2 else None)


def evaluate_stages(
    encoder: Encoder,
    collection: Collection,
    split: str = "test",
    config: HierarchyConfig | None = None,
    ladder: DepthLadder | None = None,
) -> dict[str, Any]:
    """Ranks a split stage by stage, a truth that fell out of a stage's candidates being a miss.

    Args:
        encoder: an aligned encoder with a local branch.
        collection: features that aren't stored yet are extracted.
        split: the split to evaluate on.
        config: the candidates of each stage; by default they are chosen on the split "tune", or "val", for each
            direction of retrieval (see `choose_depths`).
        ladder: what to choose from.

    Returns:
        The items counted, each stage's metrics and the differences of the last one's from the others with their
        intervals, milliseconds a query, and what each depth gave where the depth was chosen; ready for JSON.

    Raises:
        ConfigError: the encoder has no local branch, a stage needs a level of tokens that it doesn't read, or the
            candidates would be chosen on the split itself.
        DataError: there is no such split, or it has no usable items.
        FeatureError: an item has embeddings, but no tokens of a level.
    """
    if not isinstance(encoder, AlignedEncoder) or encoder.local is None:
        raise ConfigError(
            f"{encoder.spec} has no local branch to re-rank by; align one: modalloy align ... --align.local.dim 256"
        )
    choose_on = validation_split(list(collection.manifest.counts()))
    if config is None and choose_on == split:
        raise ConfigError(
            f"the candidates would be chosen on {split!r}, the split to evaluate on; give them, such as 100:20."
        )
    found, caption_image = _search(encoder, collection, split)
    choices = {} if config else _choices(*_search(encoder, collection, choose_on), ladder or _ladder(encoder))
    ranks: dict[str, dict[str, Float[Tensor, " queries"]]] = {}
    milliseconds: dict[str, dict[str, float]] = {}
    for direction in DIRECTIONS:
        stages = found(direction, config or choices[direction].chosen.config)
        images = len(found.images.vectors)
        for name, each in stage_ranks(stages, caption_image, images, direction).items():
            ranks.setdefault(name, {})[direction] = each
        milliseconds[direction] = {stage.name: 1000 * stage.seconds / len(stage.candidates) for stage in stages}
    systems = {name: [Ranks(**each)] for name, each in ranks.items()}
    # By the vectors all items are ranked, not only the candidates.
    systems["global"] = [rank_queries(EmbeddingScores(found.images.vectors, found.captions.vectors), caption_image)]
    comparison = compare(systems, caption_image, reference=list(systems)[-1])
    counts = {"images": len(found.images.vectors), "captions": len(found.captions.vectors)}
    depths = {direction: {"split": choose_on, **choice.to_dict()} for direction, choice in choices.items()}
    return with_counts(split, counts, comparison.to_dict() | {"milliseconds": milliseconds, "depths": depths})


def _choices(
    search: HierarchicalSearch, caption_image: Int[Tensor, " captions"], ladder: DepthLadder
) -> dict[str, DepthChoice]:
    return {direction: choose_depths(search, caption_image, direction, ladder) for direction in DIRECTIONS}


def _ladder(encoder: AlignedEncoder) -> DepthLadder:
    """Without cross-layer terms there is no second number to choose."""
    assert encoder.local is not None
    return DepthLadder() if any(not term.focal for term in encoder.local.config.terms) else DepthLadder(second=())


def _levels(encoder: AlignedEncoder, modality: Modality) -> list[Level]:
    return ["high", "mid"] if modality in encoder.mid else ["high"]


def _search(
    encoder: AlignedEncoder, collection: Collection, split: str
) -> tuple[HierarchicalSearch, Int[Tensor, " captions"]]:
    """A split's items by their stored vectors and tokens, and the place of each caption's image."""
    assert encoder.local is not None
    collection.manifest.split(split)  # a misspelt one is found before the work
    items = collection.paired([encoder]).split(split)

    def side(modality: Modality, features: FeatureSet, rows: Int[Tensor, " items"]) -> Side:
        assert encoder.local is not None
        stores = {
            level: collection.store(encoder.backbone(modality, level), modality) for level in _levels(encoder, modality)
        }
        for store in stores.values():
            if rejected := int((~store.valid[rows]).sum()):
                raise FeatureError(
                    f"{store.spec} rejected {rejected} {modality}s that have embeddings; see "
                    f"{store.folder / 'rejects.jsonl'}, mend them, or leave them out of the collection."
                )
        readers = {level: store.tokens for level, store in stores.items()}
        return Side(features.embeddings(0, rows), StoredTokens(encoder.local, modality, readers, rows))

    images = side("image", items.paired.image, items.image_rows)
    captions = side("text", items.paired.text, items.caption_rows)
    local = encoder.local.config
    return HierarchicalSearch(images, captions, local.attention, local.terms), items.caption_image
