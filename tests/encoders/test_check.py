import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from modalloy.encoders import Encoded, Encoder, Fingerprint, Modality
from modalloy.encoders.base import require_text
from modalloy.encoders.check import ContractError, check_encoder

Change = Callable[[Encoded], Encoded]


class LetterCounts(Encoder):
    """Counts letters; one token a letter after the summary."""

    name = spec = "letter-counts"
    modalities: tuple[Modality, ...] = ("text",)

    def fingerprint(self, modality: Modality) -> Fingerprint:
        return Fingerprint(self.spec, "1", "0" * 64, "0" * 64)

    def dim(self, modality: Modality) -> int:
        return 128

    def width(self, modality: Modality) -> int:
        return 128

    def preprocess(self, modality: Modality, item: Image.Image | str) -> Tensor:
        return torch.tensor([ord(letter) for letter in require_text(item)])

    def forward(self, modality: Modality, prepared: Sequence[Any]) -> Encoded:
        letters = [F.one_hot(ids, 128).float() for ids in prepared]
        tokens = [torch.cat([each.mean(0, keepdim=True), each]) for each in letters]
        embedding = F.normalize(torch.stack([each[0] for each in tokens]), dim=-1)
        return Encoded(embedding, torch.cat(tokens), torch.tensor([len(each) for each in tokens]))


class Changed(LetterCounts):
    """The same with one fault."""

    def __init__(self, change: Change) -> None:
        self._change = change

    def forward(self, modality: Modality, prepared: Sequence[Any]) -> Encoded:
        return self._change(super().forward(modality, prepared))


def test_an_encoder_that_keeps_the_contract_passes() -> None:
    check_encoder(LetterCounts())


_calls = itertools.count()


def _with_lengths(encoded: Encoded, lengths: Tensor) -> Encoded:
    """The same with lengths that the shape checker of these tests would refuse first."""
    object.__setattr__(encoded, "lengths", lengths)
    return encoded


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("norm 1, got 1.99|norm 1, got 2", lambda e: Encoded(2 * e.embedding, e.tokens, e.lengths)),
        ("embedding must have the shape", lambda e: Encoded(e.embedding[:, :5], e.tokens, e.lengths)),
        ("tokens must have the shape", lambda e: Encoded(e.embedding, e.tokens[:, :5], e.lengths)),
        ("lengths must have the shape", lambda e: _with_lengths(e, e.lengths.sum()[None])),
        ("finite", lambda e: Encoded(e.embedding, e.tokens / 0, e.lengths)),
        ("summary token", lambda e: Encoded(e.embedding, e.tokens[:0], e.lengths * 0)),
        ("without gradients", lambda e: Encoded(e.embedding, e.tokens.requires_grad_(), e.lengths)),
        ("the same batch twice", lambda e: Encoded(e.embedding, e.tokens + next(_calls), e.lengths)),
        ("items alone and in a batch", lambda e: Encoded(e.embedding, e.tokens + len(e), e.lengths)),
        (
            "as many tokens",
            lambda e: Encoded(
                e.embedding,
                e.tokens[: 2 * len(e) + (len(e) > 1)],
                torch.tensor([2 + (len(e) > 1)] + [2] * (len(e) - 1)),
            ),
        ),
    ],
)
def test_each_fault_is_told(message: str, change: Change) -> None:
    with pytest.raises(ContractError, match=f"letter-counts, text: .*({message})"):
        check_encoder(Changed(change))


def test_preprocessing_that_threads_disturb_is_told() -> None:
    class Shared(LetterCounts):
        def __init__(self) -> None:
            self.seen = 0

        def preprocess(self, modality: Modality, item: Image.Image | str) -> Tensor:
            self.seen += 1
            prepared = super().preprocess(modality, item)
            return prepared if self.seen <= 12 else prepared[:1]

    with pytest.raises(ContractError, match="preprocessing in threads"):
        check_encoder(Shared())


def test_a_fingerprint_that_changes_is_told() -> None:
    class Restless(LetterCounts):
        def fingerprint(self, modality: Modality) -> Fingerprint:
            return Fingerprint(self.spec, str(next(_calls)), "0" * 64, "0" * 64)

    with pytest.raises(ContractError, match="fingerprint"):
        check_encoder(Restless())


def test_an_encoder_of_nothing_is_told() -> None:
    class Nothing(LetterCounts):
        modalities: tuple[Modality, ...] = ()

    with pytest.raises(ContractError, match="got none"):
        check_encoder(Nothing())
