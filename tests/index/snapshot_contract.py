"""What every snapshot must give; plain Python says what that is."""

from collections.abc import Sequence
from typing import Any, Protocol

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_index import DIM, toy_head, toy_rows, unit_vectors

from modalloy.errors import ConfigError
from modalloy.index import Condition, Head, Index, Snapshot
from modalloy.index.condition import column_of
from modalloy.index.schema import VECTOR

COUNT = 40
CAMERAS = ["M6", "m6 II", "X100", "100%", "it's", "Größe", None]
VALUES: dict[str, list[Any]] = {
    "camera": [CAMERAS[place % 7] for place in range(COUNT)],
    "year": [float(2000 + place % 9) if place % 5 else None for place in range(COUNT)],
    "indoors": [None if place % 4 == 0 else place % 3 == 0 for place in range(COUNT)],
}
KINDS = {"camera": "text", "year": "number", "indoors": "truth"}
NAMES = [f"p{place:02}" for place in range(COUNT)]


class Store(Protocol):
    """Where indexes of a kind can be made."""

    orders_texts: bool
    """Whether texts can be compared by < and >."""

    def create(self, head: Head) -> Index:
        """A new index, in a place where there was none."""

    def create_again(self, head: Head) -> Index:
        """A new index in the place of the newest."""

    def open(self) -> Index:
        """The newest index again, as another process would see it."""


def holds(condition: Condition, row: dict[str, Any]) -> bool:
    """Plain Python's opinion."""
    got, value = row[column_of(condition.field)], condition.value
    if got is None:
        return False
    match condition.comparison:
        case "=":
            return got == value
        case "!=":
            return got != value
        case "<":
            return got < value
        case "<=":
            return got <= value
        case ">":
            return got > value
        case ">=":
            return got >= value
        case "in":
            return got in value
        case _:
            return value.lower() in got.lower()


def fields() -> dict[str, tuple[Any, list[Any]]]:
    return {name: (KINDS[name], VALUES[name]) for name in KINDS}


def all_rows(snapshot: Snapshot, columns: Sequence[str], **options: Any) -> list[dict[str, Any]]:
    return [row for batch in snapshot.scan(columns, **options) for row in batch.to_pylist()]


# What conditions are made of; making one checks types, which draws numbers at random.
_texts = st.sampled_from(
    ["M6", "m6 II", "100%", "it's", "Größe", "x100", "", "ö", "6", "p03.png", "image", "' OR '1'='1"]
)
_numbers = st.sampled_from([2003.0, 2008.0, 2003.5, 4.0, 0.0, -1.0, 1e300])
_of_texts = st.sampled_from(["camera", "path", "modality", "id", "source"])
_of_numbers = st.sampled_from(["year", "width", "bytes"])
CONDITIONS = st.one_of(
    st.tuples(_of_texts, st.sampled_from(["=", "!=", "contains"]), _texts),
    st.tuples(_of_texts, st.just("in"), st.lists(_texts, max_size=3).map(tuple)),
    st.tuples(_of_numbers, st.sampled_from(["=", "!=", "<", "<=", ">", ">="]), _numbers),
    st.tuples(_of_numbers, st.just("in"), st.lists(_numbers, max_size=3).map(tuple)),
    st.tuples(st.just("indoors"), st.sampled_from(["=", "!="]), st.booleans()),
)
ORDERS = st.tuples(_of_texts, st.sampled_from(["<", "<=", ">", ">="]), _texts)
# A fixture's index is only read, and several classes have the same tests.
_READ = settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
)


class SnapshotContract:
    """Tests of what is read from a store, which a subclass gives as the fixture `store`."""

    @pytest.fixture(scope="class")
    @classmethod
    def store(cls) -> Store:
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def filled(cls, store: Store) -> Snapshot:
        """Pictures and captions with metadata, for tests that only read."""
        index = store.create(toy_head())
        index.commit(toy_rows(NAMES, unit_vectors(COUNT), unit_vectors(COUNT, seed=1), fields()))
        return index.snapshot()

    @pytest.mark.parametrize("exact", [False, True])
    def test_finds_what_a_loop_finds(self, filled: Snapshot, exact: bool) -> None:
        queries = torch.cat([unit_vectors(3, seed=2), -2 * unit_vectors(1), torch.zeros(1, DIM)])
        for modality, seed, ending in (("image", 0, ""), ("text", 1, "#0")):
            vectors = unit_vectors(COUNT, seed=seed)
            for query, found in zip(queries, filled.search(modality, queries, 7, exact=exact), strict=True):
                scores = {f"{name}{ending}": float(query @ vector) for name, vector in zip(NAMES, vectors, strict=True)}
                assert found.scores == pytest.approx(sorted(scores.values(), reverse=True)[:7], abs=1e-6)
                assert [scores[id] for id in found.ids] == pytest.approx(found.scores, abs=1e-6)
                assert len(set(found.ids)) == 7

    def test_finds_all_where_there_are_fewer(self, filled: Snapshot) -> None:
        (found,) = filled.search("text", unit_vectors(1, seed=2), 10 * COUNT)
        assert sorted(found.ids) == [f"{name}#0" for name in NAMES]

    @given(given=st.lists(CONDITIONS, max_size=2))
    @_READ
    def test_conditions_mean_what_they_mean_to_python(self, filled: Snapshot, given: list[Any]) -> None:
        where = [Condition(*each) for each in given]
        rows = all_rows(filled, ["id", *dict.fromkeys(column_of(each.field) for each in where if each.field != "id")])
        assert len(rows) == 2 * COUNT
        expected = {row["id"] for row in rows if all(holds(each, row) for each in where)}
        assert {row["id"] for row in all_rows(filled, ["id"], where=where)} == expected
        assert filled.count(where) == len(expected)
        (found,) = filled.search("image", unit_vectors(1, seed=2), COUNT, where)
        assert set(found.ids) == expected & set(NAMES) and len(found.ids) == len(set(found.ids))
        assert found.scores == sorted(found.scores, reverse=True)

    @given(given=ORDERS)
    @_READ
    def test_texts_are_ordered_or_that_is_refused(self, store: Store, filled: Snapshot, given: Any) -> None:
        where = Condition(*given)
        if not store.orders_texts:
            with pytest.raises(ConfigError, match="orders numbers only"):
                filled.count([where])
            return
        rows = all_rows(filled, ["id", *({column_of(where.field)} - {"id"})])
        expected = {row["id"] for row in rows if holds(where, row)}
        assert {row["id"] for row in all_rows(filled, ["id"], where=[where])} == expected

    def test_rows_come_whole_and_in_the_order_asked_for(self, filled: Snapshot) -> None:
        table = toy_rows(NAMES, unit_vectors(COUNT), unit_vectors(COUNT, seed=1), fields())
        given = {row["id"]: row for row in table.to_pylist()}
        asked = ["p07", "nowhere", "p03#0", "p00"]
        found = filled.rows(asked, table.column_names)
        assert found.schema.equals(table.schema)
        assert found.to_pylist() == [given[id] for id in asked if id in given]
        assert filled.rows(asked, ["path"]).column_names == ["path"]
        shown = [name for name in table.column_names if name not in ("thumbnail", *VECTOR.values())]
        assert filled.rows(asked, shown).equals(found.select(shown))
        assert sorted(all_rows(filled, table.column_names), key=lambda row: row["id"]) == [
            given[id] for id in sorted(given)
        ]

    def test_pages_of_a_scan_make_the_whole(self, filled: Snapshot) -> None:
        where = [Condition("modality", "=", "text")]
        whole = [row["id"] for row in all_rows(filled, ["id"], where=where)]
        pages = [
            row["id"]
            for offset in range(0, 60, 7)
            for row in all_rows(filled, ["id"], where=where, limit=7, offset=offset)
        ]
        assert pages == whole and sorted(pages) == [f"{name}#0" for name in NAMES]
        assert all_rows(filled, ["id"], limit=0) == []
