import numpy as np
from toy_index import unit_vectors

from modalloy.index import compressed
from modalloy.index.cached_vectors import CachedVectors


def test_few_are_compared_one_by_one_and_many_unless_they_must_be_are_not(monkeypatch):
    # So that one sees which search was used.
    monkeypatch.setattr(compressed, "CANDIDATES", 1)
    monkeypatch.setattr(compressed, "KEPT", 0.01)
    vectors, queries = unit_vectors(500, 16), unit_vectors(8, 16, seed=1)
    ids, numbers = [f"p{place:03}" for place in range(500)], np.arange(500, dtype=np.uint64)
    best = [[ids[place] for place in (vectors @ query).argsort(descending=True)[:2]] for query in queries]

    def found(exact_up_to: int, exact: bool) -> list[list[str]]:
        cached = CachedVectors(ids, numbers, [vectors], exact_up_to)
        return [each.ids for each in cached.search(queries, 2, exact=exact)]

    assert found(500, False) == found(500, True) == found(499, True) == best
    assert found(499, False) != best
