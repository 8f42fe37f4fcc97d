"""HACAN's local similarity: how well the tokens of images and captions match, by cross attention."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from modalloy.align.cross_attention import EPSILON, SCAN, CrossAttention, Operands
from modalloy.align.pair_blocks import extents, score_all, score_pairs
from modalloy.errors import ConfigError, DataError
from modalloy.evaluation.ranks import DIRECTIONS, Direction

Prepared = tuple[Tensor, Tensor, Tensor]
"""Some items' part of `Operands`."""


@dataclass(frozen=True)
class Tokens:
    """A padded batch of items' tokens; what stands in the padding doesn't matter. `Tokens(*pad(packed, lengths))`."""

    values: Float[Tensor, "items tokens dim"]
    """Tokens of unequal lengths, as they come from a linear map."""
    mask: Bool[Tensor, "items tokens"]
    """Where a token is; an item without any has a score of 0 with everything."""

    def __post_init__(self) -> None:
        if self.values.shape[:2] != self.mask.shape:
            raise DataError(
                f"a mask must tell of each token, got one of shape {tuple(self.mask.shape)} for tokens of shape "
                f"{tuple(self.values.shape)}"
            )

    def __len__(self) -> int:
        return len(self.values)

    def to(self, device: torch.device) -> "Tokens":
        """The same tokens on another device."""
        return Tokens(self.values.to(device), self.mask.to(device))

    def __getitem__(self, items: Int[Tensor, "some"]) -> "Tokens":
        return Tokens(self.values.index_select(0, items), self.mask.index_select(0, items))

    def as_contexts(self) -> Prepared:
        """What scores need of them where tokens of the others attend to them: `context`, `gram`, `present`."""
        context, wide = self._unpadded(), torch.promote_types(self.values.dtype, torch.float32)
        # The weights, which it's multiplied by, are too large for float16.
        for_gram = context if context.dtype == torch.bfloat16 else context.to(wide)
        return context, for_gram @ for_gram.mT, self.mask.to(wide)

    def as_queries(self) -> Prepared:
        """What scores need of them where they attend to tokens of the others: `query`, `norm`, `share`."""
        query, wide = self._unpadded(), torch.promote_types(self.values.dtype, torch.float32)
        norm = torch.linalg.vector_norm(query, dim=-1, dtype=wide).clamp(min=EPSILON)
        return query, norm, self.mask.to(wide) / self.mask.sum(1, keepdim=True).clamp(min=1)

    def _unpadded(self) -> Float[Tensor, "items tokens dim"]:
        """The tokens, zeros in the place of padding."""
        return self.values if bool(self.mask.all()) else self.values.masked_fill(~self.mask[:, :, None], 0.0)


class ReusedTokens(Tokens):
    """Tokens that many scores are made of: what these need is made once. They mustn't change, nor have gradients."""

    @cached_property
    def _contexts(self) -> Prepared:
        return super().as_contexts()

    @cached_property
    def _queries(self) -> Prepared:
        return super().as_queries()

    def as_contexts(self) -> Prepared:
        """What scores need of them where tokens of the others attend to them."""
        return self._contexts

    def as_queries(self) -> Prepared:
        """What scores need of them where they attend to tokens of the others."""
        return self._queries


def local_similarity(
    images: Tokens, captions: Tokens, attention: CrossAttention = SCAN, *, block: int | None = None
) -> Float[Tensor, "images captions"]:
    """Scores every image with every caption by SCAN's cross attention, in HACAN's form.

    For "t2i": a_rw = LeakyReLU_0.1(<v_r, t_w>), divided by its norm over the caption's words; alpha = softmax of
    smoothing * a over the regions; u_w = sum_r alpha_rw v_r; the score is the mean of cos(t_w, u_w) over the words.
    "i2t" is the same with images and captions exchanged. Focal attention sets weights to 0 and shares theirs among
    the others; where that would leave none, all stay. Gradients don't flow through that choice, and can't be
    differentiated again. Under `torch.autocast` the affinities are made in its dtype, in bfloat16 also the products
    with the Gram matrices; all else in float32.

    Args:
        images: regions of the images.
        captions: words of the captions, of the same width.
        attention: its direction, focus and temperature.
        block: how many pairs are held at once; by default as many as suit the device.

    Returns:
        Scores between -1 and 1, at least in float32.

    Raises:
        DataError: the widths of the tokens differ.
        ConfigError: `block` isn't positive.

    >>> images = Tokens(torch.eye(3)[None], torch.ones(1, 3, dtype=torch.bool))
    >>> captions = Tokens(torch.eye(3)[None, :2], torch.ones(1, 2, dtype=torch.bool))
    >>> local_similarity(images, captions).round(decimals=4)
    tensor([[1.]])
    """
    _check(images, captions, block)
    images, captions = _for_products(images), _for_products(captions)
    contexts, queries = (images, captions) if attention.direction == "t2i" else (captions, images)
    # Items of about one length come into one block, which then has little padding.
    orders = [extents(tokens.mask).argsort() for tokens in (contexts, queries)]
    with torch.autocast(images.values.device.type, enabled=False):
        operands = operands_of(contexts[orders[0]], queries[orders[1]])
        scores = score_all(operands, attention, block)
    scores = scores[orders[0].argsort()][:, orders[1].argsort()]
    return scores if attention.direction == "t2i" else scores.T


def candidate_similarity(
    images: Tokens,
    captions: Tokens,
    candidates: Int[Tensor, "queries candidates"],
    direction: Direction,
    attention: CrossAttention = SCAN,
    *,
    block: int | None = None,
) -> Float[Tensor, "queries candidates"]:
    """Scores each query with its own candidates, as `local_similarity` does; what `rerank_ranks` takes.

    Args:
        images: regions of all images that are queries or candidates.
        captions: words of all such captions.
        candidates: rows of `captions` for each image, or of `images` for each caption; -1 fills an empty place.
        direction: what the queries are: "image_to_text" or "text_to_image"; whose tokens attend to whose is another
            matter, and stands in `attention`.
        attention: its direction, focus and temperature.
        block: how many pairs are held at once; by default as many as suit the device.

    Returns:
        The score of each candidate; -inf in an empty place.

    Raises:
        DataError: a candidate doesn't exist, there isn't one row for each query, or the widths of the tokens differ.
        ConfigError: the direction is another, or `block` isn't positive.

    >>> images = Tokens(torch.eye(3)[:, None], torch.ones(3, 1, dtype=torch.bool))
    >>> captions = Tokens(torch.eye(3)[:2, None], torch.ones(2, 1, dtype=torch.bool))
    >>> candidate_similarity(images, captions, torch.tensor([[2, 0], [1, -1]]), "text_to_image")
    tensor([[0., 1.],
            [1., -inf]])
    """
    _check(images, captions, block)
    by_image = direction == "image_to_text"
    _check_candidates(candidates, direction, *((images, captions) if by_image else (captions, images)))
    filled = candidates >= 0
    query, item = filled.nonzero()[:, 0], candidates[filled]
    image, caption = (query, item) if by_image else (item, query)
    t2i = attention.direction == "t2i"
    images, captions = _for_products(images), _for_products(captions)
    with torch.autocast(images.values.device.type, enabled=False):
        operands = operands_of(*((images, captions) if t2i else (captions, images)))
        pairs = torch.stack([image, caption] if t2i else [caption, image], dim=1)
        found = score_pairs(operands, pairs, attention, block)
    return found.new_full(candidates.shape, -torch.inf).masked_scatter(filled, found)


def operands_of(contexts: Tokens, queries: Tokens) -> Operands:
    """What scores of these items are made of."""
    context, gram, present = contexts.as_contexts()
    query, norm, share = queries.as_queries()
    return Operands(context, gram, query, norm, present, share)


def _for_products(tokens: Tokens) -> Tokens:
    """In the dtype of autocast, where it is enabled."""
    device = tokens.values.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tokens.values.dtype
    return tokens if tokens.values.dtype == dtype else Tokens(tokens.values.to(dtype), tokens.mask)


def require_one_width(images: Tokens, captions: Tokens) -> None:
    """Refuses tokens that can't be compared.

    Raises:
        DataError: their widths differ.
    """
    if images.values.shape[-1] != captions.values.shape[-1]:
        raise DataError(
            f"tokens of images and captions must be of one width, got {images.values.shape[-1]} and "
            f"{captions.values.shape[-1]}; map them to the same"
        )


def _check(images: Tokens, captions: Tokens, block: int | None) -> None:
    require_one_width(images, captions)
    if block is not None and block < 1:
        raise ConfigError(f"block must be at least 1 pair, got {block}")


def _check_candidates(candidates: Tensor, direction: str, queries: Tokens, items: Tokens) -> None:
    if direction not in DIRECTIONS:
        raise ConfigError(f"direction must be image_to_text or text_to_image, got {direction!r}")
    if len(candidates) != len(queries):
        raise DataError(f"each of {len(queries)} queries must have a row of candidates, got {len(candidates)} rows")
    if bool(((candidates < -1) | (candidates >= len(items))).any()):
        raise DataError(
            f"candidates must be rows from 0 to {len(items) - 1}, or -1 for an empty place, got "
            f"{int(candidates.min())} to {int(candidates.max())}"
        )
