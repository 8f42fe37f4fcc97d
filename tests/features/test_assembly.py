from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from modalloy.encoders.base import Encoded, Modality
from modalloy.errors import FeatureError
from modalloy.features.assembly import Features, Rejection, assemble, encode


def test_rejected_items_keep_their_rows(encoder) -> None:
    prepared = [Rejection("first"), torch.tensor([2.0]), Rejection("third"), torch.tensor([5.0])]
    answers = encode(encoder, "text", prepared)
    alone = encode(encoder, "text", [torch.tensor([5.0])])
    assert [isinstance(answer, Rejection) for answer in answers] == [True, False, True, False]
    shard = assemble(answers, 3, 2)
    assert shard.valid.tolist() == [False, True, False, True]
    assert shard.embedding[0].isnan().all() and shard.embedding[2].isnan().all()
    assert shard.offsets.tolist() == [0, 0, 3, 3, 5]
    assert isinstance(alone[0], Features)
    torch.testing.assert_close(shard.embedding[3], alone[0].embedding)
    torch.testing.assert_close(shard.tokens[3:], alone[0].tokens)


def test_batch_without_a_good_item_never_reaches_the_encoder(make_encoder) -> None:
    class Unreachable(make_encoder):
        def forward(self, modality: Modality, prepared: Sequence[Tensor]) -> Encoded:
            raise AssertionError("called")

    rejection = Rejection("broken")
    assert encode(Unreachable(), "image", [rejection, rejection]) == [rejection, rejection]


@pytest.mark.parametrize("number", [torch.nan, torch.inf, 1e6])
def test_token_that_float16_cannot_hold_rejects_its_item_only(make_encoder, number: float) -> None:
    class Overflowing(make_encoder):
        def forward(self, modality: Modality, prepared: Sequence[Tensor]) -> Encoded:
            encoded = super().forward(modality, prepared)
            encoded.tokens_of_each()[1][-1, 0] = number
            return encoded

    answers = encode(Overflowing(), "text", [torch.tensor([1.0]), torch.tensor([2.0]), torch.tensor([3.0])])
    assert [isinstance(answer, Rejection) for answer in answers] == [False, True, False]
    assert answers[1] == Rejection("non-finite token (NaN, or beyond float16)")


def test_non_finite_embedding_rejects_its_item_only(make_encoder) -> None:
    class Infinite(make_encoder):
        def forward(self, modality: Modality, prepared: Sequence[Tensor]) -> Encoded:
            encoded = super().forward(modality, prepared)
            encoded.embedding[0, 1] = torch.nan
            return encoded

    answers = encode(Infinite(), "text", [torch.tensor([1.0]), torch.tensor([2.0])])
    assert answers[0] == Rejection("non-finite embedding")
    assert isinstance(answers[1], Features)


@pytest.mark.parametrize(
    "answer",
    [
        Encoded(torch.ones(1, 3), torch.ones(2, 2), torch.tensor([2])),
        Encoded(torch.ones(2, 4), torch.ones(2, 2), torch.tensor([1, 1])),
        Encoded(torch.ones(2, 3), torch.ones(2, 1), torch.tensor([1, 1])),
        Encoded(torch.ones(2, 3), torch.ones(2, 2), torch.tensor([2, 0])),
    ],
    ids=["batch", "dim", "width", "no tokens"],
)
def test_encoder_that_breaks_its_contract_is_named(make_encoder, answer: Encoded) -> None:
    class Broken(make_encoder):
        def forward(self, modality: Modality, prepared: Sequence[Tensor]) -> Encoded:
            return answer

    with pytest.raises(FeatureError, match="fake broke its contract"):
        encode(Broken(), "text", [torch.tensor([1.0]), torch.tensor([2.0])])
