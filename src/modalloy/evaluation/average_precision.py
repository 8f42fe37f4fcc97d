"""mAP@R: the precision over a query's first R results, R being the number of its positives."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from modalloy.evaluation.blocks import check_captions, even_slices, own_items
from modalloy.evaluation.metrics import queries_among
from modalloy.evaluation.scores import ScoreFunction
from modalloy.evaluation.ties import never_nan


@dataclass(frozen=True, eq=False)
class AveragePrecision:
    """Average precision at R of each query, from 0 to 1; NaN for an image without captions."""

    image_to_text: Float[Tensor, "images"]
    """Images as queries."""
    text_to_image: Float[Tensor, "captions"]
    """Captions as queries; R is 1 here, so this is the chance that the caption's image comes first."""

    def to_dict(self) -> dict[str, float]:
        """Return mAP@R of each direction in percent."""
        return {
            "image_to_text": _mean(self.image_to_text),
            "text_to_image": _mean(self.text_to_image),
        }


@torch.no_grad()
def map_at_r(scores: ScoreFunction, caption_image: Int[Tensor, "captions"], block: int = 256) -> AveragePrecision:
    """Average precision at R of each query (Musgrave et al., A Metric Learning Reality Check, section 3.2).

    AP@R = 1/R sum over k <= R of rel(k) precision(k). Ties are counted by the expectation over a uniformly
    random order of the tied items. A positive whose score is NaN or minus infinity is never found.

    Args:
        scores: where blocks of the score matrix come from.
        caption_image: row of each caption's image.
        block: queries taken at once; memory grows with `block` times the larger gallery.

    Raises:
        DataError: `caption_image` doesn't fit the scores, or a gallery is empty.
        ConfigError: `block` is less than 1.

    >>> from modalloy.evaluation.scores import EmbeddingScores
    >>> images, texts = torch.eye(2), torch.tensor([[0.9, 0.0], [0.2, 1.0], [0.1, 0.8]])
    >>> map_at_r(EmbeddingScores(images, texts), torch.tensor([0, 1, 0])).image_to_text
    tensor([0.5000, 1.0000], dtype=torch.float64)
    """
    image_of = check_captions(caption_image, scores.n_images, scores.n_captions)
    images, captions = slice(0, scores.n_images), slice(0, scores.n_captions)
    image_to_text, text_to_image = [], []
    for queries in even_slices(scores.n_images, block):
        rows = scores.score(queries, captions)
        positive = own_items(image_of.to(rows.device), queries, captions)
        image_to_text.append(_average_precision(never_nan(rows), positive))
    for queries in even_slices(scores.n_captions, block):
        rows = scores.score(images, queries).T
        positive = own_items(image_of.to(rows.device), images, queries).T
        text_to_image.append(_average_precision(never_nan(rows), positive))
    return AveragePrecision(torch.cat(image_to_text).cpu(), torch.cat(text_to_image).cpu())


def _average_precision(
    scores: Float[Tensor, "queries items"], positive: Bool[Tensor, "queries items"]
) -> Float[Tensor, "queries"]:
    """Expected AP@R when ties are ordered at random.

    Let the items tied at place k be n, r of them positive, with s items and p positives above. The item at
    place k is then positive with probability r / n, and if so p + 1 + (k - s - 1)(r - 1) / (n - 1)
    positives are expected among the first k.
    """
    relevant = positive.sum(1)
    deepest = max(1, int(relevant.max()))
    place = torch.arange(1, deepest + 1, device=scores.device).double()
    found = scores.masked_fill(~positive, -torch.inf)
    # Ascending order of the negated scores is what searchsorted needs.
    everything, positives = ((-part).sort(dim=1).values.contiguous() for part in (scores, found))
    top = everything[:, :deepest].contiguous()
    above, through = (torch.searchsorted(everything, top, right=right).double() for right in (False, True))
    hits_above, hits_through = (torch.searchsorted(positives, top, right=right).double() for right in (False, True))
    tied, tied_hits = through - above, hits_through - hits_above
    expected_hits = hits_above + 1 + (place - above - 1) * (tied_hits - 1) / (tied - 1).clamp(min=1)
    gain = (tied_hits / tied) * expected_hits / place
    counted = (place <= relevant[:, None]) & (top < torch.inf)
    return torch.where(counted, gain, 0.0).sum(1) / torch.where(relevant > 0, relevant.double(), torch.nan)


def _mean(precision: Float[Tensor, "queries"]) -> float:
    return 100 * float(precision.nansum() / queries_among(precision))
