"""What every store of an index must do, whatever keeps it; `test_contract.py` holds each store to it."""

import threading
from typing import Any

import pyarrow as pa
import pytest
import torch
from index.snapshot_contract import COUNT, NAMES, SnapshotContract, Store, all_rows
from toy_index import DIM, toy_head, toy_rows, unit_vectors

from modalloy.errors import ConfigError, DataError
from modalloy.index import Condition, Index, Snapshot, Source

AWKWARD = [
    "it's", 'say "hi"', "100%", "a_b", "a\\b", "*", "Größe İ.png", "日本 🐕", " blank ", "x'; DROP TABLE items; --",
    "' OR '1'='1", "NULL", "a,b", "{}", "a\nb",
]  # fmt: skip


class IndexContract(SnapshotContract):
    """Tests of a store, which a subclass gives as the fixture `store`."""

    @pytest.fixture
    def empty(self, store: Store) -> Index:
        return store.create(toy_head())

    def test_an_empty_index_finds_nothing(self, store: Store, empty: Index) -> None:
        for snapshot in (empty.snapshot(), store.open().snapshot()):
            assert isinstance(snapshot, Snapshot) and snapshot.head == toy_head()
            assert snapshot.count() == 0 and snapshot.metadata == {}
            assert snapshot.search("image", unit_vectors(2), 3) == [([], []), ([], [])]
            assert snapshot.rows(["p0"], ["id", "path"]).to_pylist() == [] and all_rows(snapshot, ["id"]) == []

    def test_a_commit_adds_replaces_and_removes_at_once(self, store: Store, empty: Index) -> None:
        empty.commit(toy_rows(["a", "b", "c"], unit_vectors(3), unit_vectors(3, seed=1)))
        before = empty.snapshot()
        other = store.open()
        new = toy_rows(["b", "d"], unit_vectors(2, seed=5))
        other.commit(new, removed=["a", "a#0", "nowhere"])
        after = empty.snapshot()
        assert {row["id"] for row in all_rows(after, ["id"])} == {"b", "b#0", "c", "c#0", "d"}
        assert after.version != before.version and after.count() == 5
        (found,) = after.search("image", unit_vectors(2, seed=5)[:1], 1)
        assert found.ids == ["b"] and found.scores == pytest.approx([1.0])
        # What was replaced is as it was to who reads the earlier state.
        assert {row["id"] for row in all_rows(before, ["id"])} == {"a", "a#0", "b", "b#0", "c", "c#0"}
        (old,) = before.search("image", unit_vectors(3), 1)[:1]
        assert old.ids == ["a"] and before.count() == 6
        vectors = before.rows(["b"], ["image_vector"])["image_vector"].to_pylist()
        assert vectors == [pytest.approx(unit_vectors(3)[1].tolist())]

    def test_removing_alone_and_committing_nothing(self, empty: Index) -> None:
        empty.commit(toy_rows(["a", "b"], unit_vectors(2)))
        empty.commit(removed=["a"])
        empty.commit(removed=["a"])
        empty.commit()
        empty.commit(toy_rows([], unit_vectors(0)))
        assert [row["id"] for row in all_rows(empty.snapshot(), ["id"])] == ["b"]

    def test_a_row_that_is_both_given_and_removed_stays(self, empty: Index) -> None:
        empty.commit(toy_rows(["a"], unit_vectors(1)), removed=["a"])
        assert empty.snapshot().count() == 1

    def test_new_fields_appear_and_are_null_before(self, store: Store, empty: Index) -> None:
        empty.commit(toy_rows(["a"], unit_vectors(1), metadata={"camera": ("text", ["M6"])}))
        before = empty.snapshot()
        empty.commit(toy_rows(["b"], unit_vectors(1), metadata={"year": ("number", [2020.0])}))
        snapshot = store.open().snapshot()
        assert snapshot.metadata == {"camera": "text", "year": "number"} and before.metadata == {"camera": "text"}
        rows = snapshot.rows(["a", "b"], ["meta_camera", "meta_year"]).to_pylist()
        assert rows == [{"meta_camera": "M6", "meta_year": None}, {"meta_camera": None, "meta_year": 2020.0}]
        assert snapshot.count([Condition("year", "!=", 1.0)]) == 1
        with pytest.raises(ConfigError, match="no field"):
            before.count([Condition("year", "!=", 1.0)])

    def test_any_text_is_an_id(self, empty: Index) -> None:
        empty.commit(toy_rows(AWKWARD, unit_vectors(len(AWKWARD))))
        snapshot = empty.snapshot()
        assert snapshot.rows(AWKWARD, ["id"])["id"].to_pylist() == AWKWARD
        for place, id in enumerate(AWKWARD):
            assert snapshot.count([Condition("id", "=", id)]) == 1
            where = [Condition("path", "contains", id)]
            assert {row["id"] for row in all_rows(snapshot, ["id"], where=where)} == {
                each for each in AWKWARD if id.lower() in f"{each}.png".lower()
            }
            assert snapshot.search("image", unit_vectors(len(AWKWARD))[place : place + 1], 1)[0].ids == [id]
        empty.commit(toy_rows([AWKWARD[0]], unit_vectors(1)), removed=AWKWARD[1:])
        assert [row["id"] for row in all_rows(empty.snapshot(), ["id"])] == AWKWARD[:1]

    def test_the_head_changes_with_a_commit(self, store: Store, empty: Index) -> None:
        source = Source("", "/pictures", None, "/pictures")
        version = empty.snapshot().version
        empty.commit(head=empty.head.with_source(source))
        assert store.open().head.sources == empty.snapshot().head.sources == (source,)
        assert empty.snapshot().version != version
        with pytest.raises(ConfigError, match="next generation"):
            empty.commit(head=toy_head("1"))

    def test_the_next_generation_is_switched_to_at_once(self, store: Store, empty: Index) -> None:
        empty.commit(toy_rows(["a"], unit_vectors(1)))
        beside = empty.begin(toy_head("1", dim=4))
        beside.commit(toy_rows(["b"], unit_vectors(1, 4)))
        assert beside.snapshot().count() == 1 and store.open().head.dim == empty.snapshot().head.dim == DIM
        # An interrupted attempt goes on; another encoder's starts anew.
        again = store.open().begin(toy_head("1", dim=4))
        assert again.snapshot().count() == 1 and empty.begin(toy_head("2", dim=4)).snapshot().count() == 0
        again.commit(toy_rows(["c"], unit_vectors(1, 4, seed=1)))
        held = empty.snapshot()
        again.switch()
        for now in (store.open().snapshot(), empty.snapshot()):
            assert (now.head.generation, now.head.dim, now.count()) == (1, 4, 2)
            assert now.version != held.version
        again.optimize()
        assert held.search("image", unit_vectors(1), 3)[0].ids == ["a"]
        with pytest.raises(ConfigError, match="counts already"):
            again.switch()

    def test_optimizing_changes_no_answer_and_keeps_what_is_read(self, empty: Index) -> None:
        empty.commit(toy_rows(NAMES, unit_vectors(COUNT)))
        held = empty.snapshot()
        for place in range(3):
            empty.commit(toy_rows([f"q{place}"], unit_vectors(1, seed=place)), removed=[NAMES[place]])
        queries, before = unit_vectors(4, seed=2), empty.snapshot()
        empty.optimize()
        found, after = before.search("image", queries, 9), empty.snapshot().search("image", queries, 9)
        assert [each.ids for each in found] == [each.ids for each in after]
        assert held.rows(NAMES[:1], ["id"]).num_rows == 1
        assert sorted(held.search("image", queries[:1], COUNT)[0].ids) == NAMES

    def test_who_opened_it_before_a_switch_writes_nothing_any_more(self, store: Store, empty: Index) -> None:
        late, beside = empty.begin(toy_head("2")), empty.begin(toy_head("1"))
        beside.switch()
        for write in (
            lambda: empty.commit(toy_rows(["a"], unit_vectors(1))),
            lambda: empty.commit(removed=["a"]),
            lambda: empty.commit(head=empty.head),
            # Another one's attempt at the same generation.
            lambda: late.commit(head=late.head),
        ):
            with pytest.raises(ConfigError, match="newer generation by now; open it again"):
                write()
        now = store.open().snapshot()
        assert now.head.fingerprints == toy_head("1").fingerprints and now.count() == 0

    def test_readers_see_commits_whole(self, store: Store, empty: Index) -> None:
        """Each commit replaces a pair of rows, whose years must always agree."""
        wrong, seen, done = list[Any](), set[float](), threading.Event()

        def read() -> None:
            while not done.is_set():
                rows = store.open().snapshot().rows(["a", "b"], ["meta_year"])["meta_year"].to_pylist()
                seen.update(rows)
                if len(rows) != 2 or len(set(rows)) > 1:
                    wrong.append(rows)

        pair = [toy_rows(["a", "b"], unit_vectors(2), metadata={"year": ("number", [year] * 2)}) for year in (0.0, 1.0)]
        empty.commit(pair[0])
        reader = threading.Thread(target=read)
        reader.start()
        try:
            for turn in range(10):
                empty.commit(pair[turn % 2])
        finally:
            done.set()
            reader.join()
        assert not wrong and seen

    @pytest.mark.parametrize(
        "rows",
        [
            lambda: toy_rows(["a", "a"], unit_vectors(2)),
            lambda: toy_rows(["a"], unit_vectors(1, 5)),
            lambda: toy_rows(["a"], unit_vectors(1)).drop_columns(["path"]),
            lambda: toy_rows(["a"], unit_vectors(1)).append_column("further", pa.array([1])),
            lambda: toy_rows(["a"], unit_vectors(1), metadata={"year": ("text", ["x"])}),
            lambda: toy_rows(["a"], unit_vectors(1)).append_column("meta_when", pa.array([1], pa.int16())),
            lambda: toy_rows(["a"], unit_vectors(1)).append_column("meta_", pa.array(["x"])),
            lambda: toy_rows([""], unit_vectors(1)),
        ],
    )
    def test_rows_that_do_not_fit_change_nothing(self, empty: Index, rows: Any) -> None:
        empty.commit(toy_rows(["b"], unit_vectors(1), metadata={"year": ("number", [1.0])}))
        with pytest.raises(DataError):
            empty.commit(rows(), removed=["b"])
        assert [row["id"] for row in all_rows(empty.snapshot(), ["id"])] == ["b"]
        assert empty.snapshot().metadata == {"year": "number"}

    @pytest.mark.parametrize(
        ("ask", "error", "message"),
        [
            (lambda s: s.search("image", unit_vectors(1), 0), ConfigError, "at least 1"),
            (lambda s: s.search("image", unit_vectors(1, 3), 1), DataError, "8 long"),
            (lambda s: s.search("image", torch.full((1, DIM), torch.nan), 1), DataError, "NaN"),
            (lambda s: s.search("text", unit_vectors(1), 1, [Condition("no", "=", 1.0)]), ConfigError, "no field 'no'"),
            (lambda s: s.count([Condition("year", "=", "x")]), ConfigError, "can't be compared"),
            (lambda s: list(s.scan(["id"], [Condition("year", "contains", "x")])), ConfigError, "can't be compared"),
        ],
    )
    def test_bad_questions_are_refused(self, filled: Snapshot, ask: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            ask(filled)

    def test_there_is_one_index_in_a_place(self, store: Store, empty: Index) -> None:
        with pytest.raises(ConfigError, match="is an index already"):
            store.create_again(toy_head())
