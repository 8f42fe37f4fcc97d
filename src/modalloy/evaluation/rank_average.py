"""B1, the rank average: HADA's baseline that averages the rank positions given by the input models."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from scipy.stats import rankdata
from torch import Tensor

from modalloy.evaluation.blocks import check_captions, even_slices, own_items
from modalloy.evaluation.ranks import Ranks
from modalloy.evaluation.scores import ScoreFunction, check_same_size
from modalloy.evaluation.ties import first_rank


@torch.no_grad()
def rank_average(systems: Sequence[ScoreFunction], caption_image: Int[Tensor, "captions"], block: int = 256) -> Ranks:
    """Rank by the mean over systems of each item's position in the query's list (HADA, baseline B1).

    A position depends on the query, so each direction is ranked apart, some whole rows at a time. Tied
    items share their average position and ties of the mean follow the rule of `rank_queries`. An item
    without a score (NaN or minus infinity) takes the last position of that system; without a score in any
    system it never scores.

    Args:
        systems: the input models' scores of the same images and captions.
        caption_image: row of each caption's image.
        block: queries taken at once; memory grows with `block` times the larger gallery.

    Raises:
        DataError: the systems differ in size, there are none, or `caption_image` doesn't fit.
        ConfigError: `block` is less than 1.

    >>> from modalloy.evaluation.scores import EmbeddingScores
    >>> system = EmbeddingScores(torch.eye(2), torch.eye(2))
    >>> rank_average([system, system], torch.tensor([0, 1])).text_to_image
    tensor([1., 1.], dtype=torch.float64)
    """
    systems = check_same_size(systems)
    n_images, n_captions = systems[0].n_images, systems[0].n_captions
    image_of = check_captions(caption_image, n_images, n_captions).cpu()
    images, captions = slice(0, n_images), slice(0, n_captions)
    image_to_text, text_to_image = [], []
    for queries in even_slices(n_images, block):
        mean = _mean_position([system.score(queries, captions).cpu() for system in systems])
        image_to_text.append(first_rank(-mean, own_items(image_of, queries, captions)))
    for queries in even_slices(n_captions, block):
        mean = _mean_position([system.score(images, queries).cpu().T for system in systems])
        text_to_image.append(first_rank(-mean, own_items(image_of, images, queries).T))
    return Ranks(torch.cat(image_to_text), torch.cat(text_to_image))


def _mean_position(rows: list[Float[Tensor, "queries items"]]) -> Float[Tensor, "queries items"]:
    """Mean over systems of the positions in descending order; NaN where no system has a score."""
    total = torch.zeros(rows[0].shape, dtype=torch.float64)
    unscored = torch.ones(rows[0].shape, dtype=torch.bool)
    for scores in rows:
        broken = scores.isnan() | (scores == -torch.inf)
        position = torch.from_numpy(rankdata(-scores.masked_fill(broken, -torch.inf).numpy(), axis=1))
        total += position.masked_fill(broken, scores.shape[1])
        unscored &= broken
    return (total / len(rows)).masked_fill(unscored, torch.nan)
