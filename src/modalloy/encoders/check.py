"""A test of any encoder against the contract that the rest of modalloy relies on."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from PIL import Image

from modalloy.encoders.base import Encoded, Encoder, Modality
from modalloy.errors import ModalloyError

_TEXTS = ("A small dog runs.", "a red telephone box stands beside the old road, and nobody waits", "Two")


class ContractError(ModalloyError):
    """An encoder doesn't keep the contract of `Encoder`."""


def check_encoder(
    encoder: Encoder,
    images: Sequence[Image.Image] | None = None,
    texts: Sequence[str] = _TEXTS,
    tolerance: float = 1e-4,
) -> None:
    """Checks that an encoder keeps its contract; meant for the tests of whoever writes one.

    For each modality: shapes as `dim` and `width` say, unit norms, no NaN, at least the summary token, the same
    answer again, alone, in any batch and from threads, and a fingerprint that stays.

    Args:
        encoder: the encoder.
        images: pictures in RGB, two or more; by default gradients of several shapes.
        texts: two or more, of different lengths.
        tolerance: by how much two answers may differ, relative to the largest number.

    Raises:
        ContractError: says which part of the contract isn't kept, for which modality.

    >>> from modalloy.encoders import load_encoder
    >>> check_encoder(load_encoder("subwords"))
    """
    if not encoder.modalities:
        raise ContractError(f"{encoder.spec}: modalities must name 'image', 'text' or both, got none.")
    for modality in encoder.modalities:
        _check_modality(encoder, modality, texts if modality == "text" else images or _gradients(), tolerance)


def _check_modality(encoder: Encoder, modality: Modality, items: Sequence[Any], tolerance: float) -> None:
    what = f"{encoder.spec}, {modality}"
    together = _encode(encoder, modality, items)
    _check_shapes(what, encoder, modality, together, len(items))
    _same(what, "the same batch twice", together, _encode(encoder, modality, items), tolerance)
    alone = Encoded.concatenate(_encode(encoder, modality, [item]) for item in items)
    _same(what, "items alone and in a batch", together, alone, tolerance)
    with ThreadPoolExecutor(4) as threads:
        prepared = list(threads.map(lambda item: encoder.preprocess(modality, item), [*items] * 4))
    fourfold = Encoded.concatenate([together] * 4)
    _same(what, "preprocessing in threads and without", fourfold, encoder.forward(modality, prepared), tolerance)
    if encoder.fingerprint(modality) != encoder.fingerprint(modality):
        raise ContractError(f"{what}: fingerprint must be the same at each call.")


def _encode(encoder: Encoder, modality: Modality, items: Sequence[Any]) -> Encoded:
    return encoder.forward(modality, [encoder.preprocess(modality, item) for item in items])


def _check_shapes(what: str, encoder: Encoder, modality: Modality, encoded: Encoded, count: int) -> None:
    dim, width = encoder.dim(modality), encoder.width(modality)
    for name, value, expected in (
        ("embedding", tuple(encoded.embedding.shape), (count, dim)),
        ("tokens", tuple(encoded.tokens.shape), (int(encoded.lengths.sum()), width)),
        ("lengths", tuple(encoded.lengths.shape), (count,)),
    ):
        if value != expected:
            raise ContractError(f"{what}: {name} must have the shape {expected} (see dim and width), got {value}.")
    if not (encoded.embedding.isfinite().all() and encoded.tokens.isfinite().all()):
        raise ContractError(f"{what}: embeddings and tokens must be finite numbers.")
    norms = encoded.embedding.float().norm(dim=1)
    if (norms - 1).abs().max() > 1e-3:
        raise ContractError(f"{what}: embeddings must have norm 1, got {float(norms.min())} to {float(norms.max())}.")
    if int(encoded.lengths.min()) < 1:
        raise ContractError(f"{what}: each item must have its summary token at least, got none for an item.")
    if encoded.embedding.requires_grad or encoded.tokens.requires_grad:
        raise ContractError(f"{what}: the model is frozen, so forward must run without gradients.")


def _same(what: str, between: str, one: Encoded, other: Encoded, tolerance: float) -> None:
    if one.lengths.tolist() != other.lengths.tolist():
        raise ContractError(f"{what}: {between} must give as many tokens, got {one.lengths} and {other.lengths}.")
    for name, here, there in (("embeddings", one.embedding, other.embedding), ("tokens", one.tokens, other.tokens)):
        apart = float((here - there).abs().max() / here.abs().max().clamp(min=1e-12))
        if apart > tolerance:
            raise ContractError(
                f"{what}: {between} must give the same {name} to {tolerance:g} of the largest, got {apart:.2g}."
            )


def _gradients() -> list[Image.Image]:
    """Pictures of several shapes and no two alike."""
    ramp = Image.linear_gradient("L")
    picture = Image.merge("RGB", (ramp, ramp.rotate(90), ramp.rotate(180)))
    return [picture.rotate(90 * turn).resize(size) for turn, size in enumerate(((256, 256), (200, 120), (97, 180)))]
