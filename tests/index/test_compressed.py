import pytest
import torch
from toy_index import unit_vectors

from modalloy.index import compressed
from modalloy.index.compressed import CompressedVectors
from modalloy.index.exact import best_rows


@pytest.fixture(params=[True, False], ids=["8 bits", "float32"])
def eight_bits(request) -> bool:
    return request.param


@pytest.fixture(autouse=True)
def few_candidates(monkeypatch):
    monkeypatch.setattr(compressed, "CANDIDATES", 200)


def with_few_directions(count: int, dim: int = 96, seed: int = 0) -> torch.Tensor:
    """Unit vectors around a mean that vary much in some directions, and little in others, as embeddings do."""
    random = torch.Generator().manual_seed(seed)
    turned = torch.linalg.qr(torch.randn(dim, dim, generator=torch.Generator().manual_seed(7)))[0]
    strengths = 1 / (1 + torch.arange(dim) / 5)
    return torch.nn.functional.normalize((torch.randn(count, dim, generator=random) * strengths + 0.2) @ turned, dim=1)


def in_a_narrow_cone(count: int, seed: int = 0) -> torch.Tensor:
    """Unit vectors that all point nearly the same way."""
    return torch.nn.functional.normalize(with_few_directions(count, seed=seed) + 3.0, dim=1)


@pytest.mark.parametrize(
    "drawn", [with_few_directions, in_a_narrow_cone, lambda count, seed=0: unit_vectors(count, 96, seed)]
)
def test_finds_what_exact_search_finds(drawn, eight_bits, monkeypatch):
    vectors, queries = drawn(6000), drawn(25, seed=1)
    searched, hits = CompressedVectors(vectors, eight_bits), 0
    for query in queries:
        expected, scores = best_rows(query, vectors, 10)
        rows, found = searched.best_rows(query, 10)
        assert torch.equal(found, (vectors[rows].double() @ query.double()).float())
        assert (found.diff() <= 0).all() and torch.equal(found[0], scores[0])
        hits += len(set(rows.tolist()) & set(expected.tolist()))
    assert hits >= 249


@pytest.mark.parametrize("minority", [3, 60, 200, 600])
def test_finds_a_minority_that_varies_in_directions_of_its_own(minority, eight_bits, monkeypatch):
    vectors, queries = unit_vectors(6000, 96), unit_vectors(minority, 96, seed=1)
    vectors[:, 48:], queries[:, :48] = 0, 0
    vectors, queries = (torch.nn.functional.normalize(each, dim=1) for each in (vectors, queries))
    vectors[torch.randperm(6000, generator=torch.Generator().manual_seed(3))[:minority]] = queries
    searched = CompressedVectors(vectors, eight_bits)
    for query in queries[:25]:
        assert searched.best_rows(query, 1)[0].tolist() == best_rows(query, vectors, 1)[0].tolist()


def test_rows_that_repeat_in_a_rhythm_hide_nothing(eight_bits, monkeypatch):
    monkeypatch.setattr(compressed, "CANDIDATES", 200)
    monkeypatch.setattr(compressed, "_SAMPLE", 1500)
    vectors, queries = unit_vectors(6000, 96), unit_vectors(25, 96, seed=1)
    vectors[::4] = vectors[0].clone()
    searched = CompressedVectors(vectors, eight_bits)
    for query in queries:
        assert searched.best_rows(query, 1)[0].tolist() == best_rows(query, vectors, 1)[0].tolist()


def test_one_of_another_length_hides_nothing(eight_bits, monkeypatch):
    vectors, queries = with_few_directions(6000), with_few_directions(25, seed=1)
    vectors[11] *= 1e6
    searched = CompressedVectors(vectors, eight_bits)
    for query in queries:
        assert searched.best_rows(query, 2)[0].tolist() == best_rows(query, vectors, 2)[0].tolist()


def test_keeps_few_numbers_of_vectors_that_vary_in_few_directions():
    for eight_bits, size in ((True, 1), (False, 4)):
        components = CompressedVectors(with_few_directions(2000), eight_bits)._components
        assert components.shape[1] <= 60 and components.element_size() == size


@pytest.mark.parametrize("kept", [0, 1, 5, 300, 2999, 3000])
@pytest.mark.parametrize("k", [1, 50])
def test_finds_only_what_is_allowed(kept, k, eight_bits, monkeypatch):
    monkeypatch.setattr(compressed, "CANDIDATES", 300)
    vectors, query = unit_vectors(3000, 32), unit_vectors(1, 32, seed=1)[0]
    allowed = torch.zeros(3000, dtype=torch.bool)
    allowed[torch.randperm(3000, generator=torch.Generator().manual_seed(2))[:kept]] = True
    rows, scores = CompressedVectors(vectors, eight_bits).best_rows(query, k, allowed)
    assert allowed[rows].all() and len(rows) == len(scores) == min(k, kept)
    if kept <= 300:  # so that all are compared by their whole vectors
        assert torch.equal(rows, best_rows(query, vectors, k, allowed)[0])


def test_compares_many_even_for_one_answer(eight_bits, monkeypatch):
    monkeypatch.setattr(compressed, "KEPT", 0.01)
    monkeypatch.setattr(compressed, "CANDIDATES", 3000)
    vectors, query = unit_vectors(3000, 32), unit_vectors(1, 32, seed=1)[0]
    rows, _ = CompressedVectors(vectors, eight_bits).best_rows(query, 1)
    assert rows.tolist() == best_rows(query, vectors, 1)[0].tolist()


def test_compares_as_many_as_many_answers_need(eight_bits, monkeypatch):
    monkeypatch.setattr(compressed, "CANDIDATES", 1)
    vectors, query = unit_vectors(3000, 32), unit_vectors(1, 32, seed=1)[0]
    rows, _ = CompressedVectors(vectors, eight_bits).best_rows(query, 100)
    assert rows.tolist() == best_rows(query, vectors, 100)[0].tolist()


@pytest.mark.parametrize(
    "vectors",
    [
        torch.zeros(1500, 8),
        torch.ones(1500, 8),
        torch.eye(8)[torch.arange(1500) % 2],
        1e30 * unit_vectors(1500, 8),
        1e-30 * unit_vectors(1500, 8),
        unit_vectors(1, 8),
        unit_vectors(1500, 1),
    ],
    ids=["zero", "equal", "two points", "large", "small", "one", "one number"],
)
def test_takes_whatever_is_finite(vectors, eight_bits):
    query = unit_vectors(1, vectors.shape[1], seed=1)[0]
    rows, scores = CompressedVectors(vectors, eight_bits).best_rows(query, 3)
    # Equal ones among which no first look can tell are found in any choice.
    assert torch.equal(scores, best_rows(query, vectors, 3)[1]) and len(rows.unique()) == min(3, len(vectors))


def test_of_equal_rows_the_lower_comes_first(eight_bits):
    vectors = unit_vectors(2000, 16)
    vectors[[3, 700, 1999]] = vectors[1200].clone()
    rows, scores = CompressedVectors(vectors, eight_bits).best_rows(vectors[3], 4)
    assert rows.tolist() == [3, 700, 1200, 1999] and len(set(scores.tolist())) == 1


def test_eight_bits_are_the_default_where_the_processor_has_instructions_for_them(monkeypatch):
    for capable in (True, False):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda capable=capable: {"avx512_vnni": capable})
        assert (CompressedVectors(unit_vectors(5))._scales is not None) == capable
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert CompressedVectors(unit_vectors(5))._scales is None
