"""The edges' numbers against plain loops over sources and targets."""

import pytest
import torch
from star_graphs import random_batch, randomised
from torch import Tensor, nn

from modalloy.fusion.edges import LearnedEdges, OriginalEdges
from modalloy.fusion.star_graph import StarGATv2

LENGTHS = [[(4, 3), (1, 2)], [(2, 1, 5), (3, 4, 1)], [(1, 1, 1, 1)]]


def places(lengths: list[tuple[int, ...]]) -> list[tuple[int, bool]]:
    """The encoder of each column, and whether it is its summary token."""
    padded = [max(item[encoder] for item in lengths) for encoder in range(len(lengths[0]))]
    return [(encoder, position == 0) for encoder, count in enumerate(padded) for position in range(count)]


def counts_of(lengths: list[tuple[int, ...]]) -> list[int]:
    return [max(item[encoder] for item in lengths) for encoder in range(len(lengths[0]))]


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_each_kind_of_edge_learns_a_number_of_its_own(lengths: list[tuple[int, ...]]) -> None:
    encoders = len(lengths[0])
    edges = LearnedEdges(encoders)
    _, mask, _ = random_batch(lengths, 2)
    assert not edges(mask, counts_of(lengths)).any()
    numbers = {}
    with torch.no_grad():
        for target in range(encoders):
            for source in range(encoders):
                for summary in (False, True):
                    numbers[target, source, summary] = float(len(numbers) + 1)
                    edges.table[target, source + encoders * summary] = numbers[target, source, summary]
    expected = torch.tensor([[numbers[(target, *place)] for place in places(lengths)] for target in range(encoders)])
    assert torch.equal(edges(mask, counts_of(lengths)), expected.expand(len(mask), -1, -1))


def original(mask: Tensor, lengths: list[tuple[int, ...]]) -> Tensor:
    columns, encoders = places(lengths), len(lengths[0])
    expected = torch.zeros(len(mask), encoders, len(columns))
    for item in range(len(mask)):
        for target in range(encoders):
            others = []
            for column, (source, summary) in enumerate(columns):
                number = 0.9 if source == target else (1.1 if summary else 0.7)
                expected[item, target, column] = number
                if mask[item, column] and not (source == target and summary):
                    others.append(number)
            expected[item, target, columns.index((target, True))] = sum(others) / len(others) if others else 0
    return expected


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_the_authors_constants(lengths: list[tuple[int, ...]]) -> None:
    _, mask, _ = random_batch(lengths, 2)
    torch.testing.assert_close(OriginalEdges()(mask, counts_of(lengths)), original(mask, lengths))


def test_an_item_of_one_summary_token_alone_has_an_edge_of_zero() -> None:
    mask = torch.tensor([[True, False, False]])
    edges = OriginalEdges()(mask, [1, 2])
    torch.testing.assert_close(edges, torch.tensor([[[0.0, 1.1, 0.7], [1.1, 1.1, 0.9]]]))


def test_learned_edges_have_exact_gradients() -> None:
    torch.manual_seed(0)
    lengths = [(3, 2), (1, 4)]
    tokens, mask, targets = random_batch(lengths, 3)
    layer = randomised(StarGATv2(3, 2, 2, edge_attributes=True), 3).double()
    edges = LearnedEdges(2).double()
    nn.init.normal_(edges.table)

    def updated(table: Tensor) -> Tensor:
        carried = torch.func.functional_call(edges, {"table": table}, (mask, counts_of(lengths)))
        return layer(tokens.double(), mask, targets, edges=carried)

    assert torch.autograd.gradcheck(updated, [edges.table])
