import torch
from torch.nn.functional import gelu, normalize

from modalloy.fusion import count_parameters
from modalloy.fusion.concat import ConcatTower


def inputs(make_features, seed: int = 0):
    return [make_features(4, 3, 5, seed=seed), make_features(4, 2, 6, seed=seed + 1)]


def test_without_a_perceptron_it_is_one_linear_layer(make_features):
    torch.manual_seed(0)
    tower = ConcatTower([3, 2], 6, dropout=0.5, start="random").eval()
    batch = inputs(make_features)
    joined = torch.cat([features.embedding for features in batch], dim=-1)
    linear = tower.output.linear
    expected = normalize(joined @ linear.weight.T + linear.bias, dim=-1)
    torch.testing.assert_close(tower(batch), expected)
    assert count_parameters(tower) == 6 * 5 + 6


def test_a_perceptrons_result_enters_the_last_layer(make_features):
    torch.manual_seed(0)
    tower = ConcatTower([3, 2], 6, dropout=0.5, start="random", hidden=7).eval()
    batch = inputs(make_features)
    joined = torch.cat([features.embedding for features in batch], dim=-1)
    assert tower.perceptron is not None
    first, last = tower.perceptron[0], tower.perceptron[3]
    learned = gelu(joined @ first.weight.T + first.bias) @ last.weight.T + last.bias
    linear = tower.output.linear
    expected = torch.cat([joined, learned], dim=-1) @ linear.weight.T + linear.bias
    torch.testing.assert_close(tower(batch), normalize(expected, dim=-1))


def test_it_reads_no_tokens(make_features):
    tower = ConcatTower([3, 2], 6, dropout=0.0, start="random", hidden=4)
    batch = inputs(make_features)
    expected = tower(batch)
    for features in batch:
        features.tokens.fill_(torch.nan)
    assert torch.equal(tower(batch), expected)


def test_dropout_acts_in_training(make_features):
    tower = ConcatTower([3, 2], 6, dropout=0.5, start="identity")
    batch = inputs(make_features)
    assert not torch.equal(tower(batch), tower(batch))


def test_it_may_read_the_summaries(make_features):
    torch.manual_seed(0)
    tower = ConcatTower([3, 2], 6, dropout=0.5, start="random", summary_widths=[5, 6]).eval()
    batch = inputs(make_features)
    summaries = [features.tokens[:, 0] / features.tokens[:, 0].norm(dim=-1, keepdim=True) for features in batch]
    joined = torch.cat([*(features.embedding for features in batch), *summaries], dim=-1)
    linear = tower.output.linear
    torch.testing.assert_close(tower(batch), normalize(joined @ linear.weight.T + linear.bias, dim=-1))


def test_it_may_read_the_summaries_alone(make_features):
    torch.manual_seed(0)
    tower = ConcatTower([3, 2], 6, dropout=0.0, start="random", summary_widths=[5, 6], read_embeddings=False)
    batch = inputs(make_features)
    expected = tower(batch)
    assert tower.output.linear.in_features == 11
    for features in batch:
        features.embedding.fill_(torch.nan)
    assert torch.equal(tower(batch), expected)
