"""LanceDB as an index; what every store must do is in `index_contract`."""

import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from toy_index import DIM, toy_head, toy_rows, unit_vectors

from modalloy.errors import CheckpointError, ConfigError, DataError
from modalloy.index import Condition, Source, cached_rows, cached_vectors, create_index, lance_snapshot, open_index
from modalloy.index.ann import ApproximateConfig
from modalloy.index.base import Found
from modalloy.index.lance import LanceIndex
from modalloy.index.lance_snapshot import LanceSnapshot


@pytest.fixture
def filled(tmp_path: Path) -> LanceIndex:
    index = create_index(tmp_path / "index", toy_head())
    years = [float(2000 + place) if place % 4 else None for place in range(60)]
    names = [f"p{place}" for place in range(60)]
    index.commit(toy_rows(names, unit_vectors(60), unit_vectors(60, seed=1), {"year": ("number", years)}))
    return index


def test_finds_what_numpy_finds(filled: LanceIndex) -> None:
    queries = unit_vectors(5, seed=2)
    for modality, seed, ending in (("image", 0, ""), ("text", 1, "#0")):
        scores = queries.numpy() @ unit_vectors(60, seed=seed).numpy().T
        for query, found in zip(scores, filled.snapshot().search(modality, queries, 7), strict=True):
            best = np.argsort(-query)[:7]
            assert found.ids == [f"p{place}{ending}" for place in best]
            assert found.scores == pytest.approx(query[best], abs=1e-6)


def test_conditions_leave_the_rest_out(filled: LanceIndex) -> None:
    query, where = unit_vectors(1, seed=2), [Condition("year", ">", 2030.0), Condition("path", "contains", "P5")]
    scores = (unit_vectors(60) @ query[0]).tolist()
    kept = [place for place in range(31, 60) if place % 4 and "p5" in f"p{place}.png"]
    expected = sorted(kept, key=lambda place: -scores[place])
    assert filled.snapshot().search("image", query, 60, where)[0].ids == [f"p{place}" for place in expected]
    assert filled.snapshot().count(where) == 2 * len(kept)


def test_a_snapshot_never_changes(filled: LanceIndex) -> None:
    before = filled.snapshot()
    assert filled.snapshot() is before
    filled.commit(toy_rows(["new"], unit_vectors(1, seed=9)), removed=["p1", "p1#0"])
    after = open_index(filled.location).snapshot()
    query = unit_vectors(1, seed=9)
    assert before.count() == 120 and after.count() == 119
    assert before.version != after.version
    assert "new" not in before.search("image", query, 60)[0].ids
    assert after.search("image", query, 60)[0].ids[0] == "new" and "p1" not in after.search("image", query, 60)[0].ids
    assert before.rows(["p1"], ["path"])["path"].to_pylist() == ["p1.png"]


def test_rows_come_in_the_order_that_was_asked_for(filled: LanceIndex) -> None:
    rows = filled.snapshot().rows(["p7", "nowhere", "p3#0", "p0"], ["id", "captions", "thumbnail"])
    assert rows.to_pylist() == [
        {"id": "p7", "captions": ["about p7"], "thumbnail": b"jpeg"},
        {"id": "p3#0", "captions": ["about p3"], "thumbnail": None},
        {"id": "p0", "captions": ["about p0"], "thumbnail": b"jpeg"},
    ]
    assert filled.snapshot().rows([], ["id"]).num_rows == 0


def test_scans_page_by_page(filled: LanceIndex) -> None:
    pages = [
        id
        for offset in range(0, 120, 50)
        for batch in filled.snapshot().scan(["id"], limit=50, offset=offset)
        for id in batch["id"].to_pylist()
    ]
    assert sorted(pages) == sorted(f"p{place}{end}" for place in range(60) for end in ("", "#0"))


@pytest.mark.parametrize("ahead", [False, True])
def test_approximate_search_agrees_with_exact_search(tmp_path: Path, ahead: bool) -> None:
    index = LanceIndex.create(tmp_path / "index", toy_head(dim=16), exact_up_to=200)
    vectors = unit_vectors(800, 16)
    colours = [("red", "green", "blue")[place % 3] for place in range(800)]
    index.commit(toy_rows([f"p{i}" for i in range(800)], vectors, metadata={"colour": ("text", colours)}))
    index.optimize()
    snapshot, queries = index.snapshot(), unit_vectors(8, 16, seed=3)
    if ahead:
        snapshot.read_ahead()
    looking_up = open_index(index.location).snapshot()
    assert snapshot._indexed("image") and not snapshot._indexed("text")
    for where in ([], [Condition("colour", "=", "red")], [Condition("colour", "in", ("red", "blue"))]):
        found, exact = (snapshot.search("image", queries, 10, where, exact) for exact in (False, True))
        kept = [place for place in range(800) if not where or colours[place] in where[0].values]
        for query, some, best in zip(queries, found, exact, strict=True):
            scores = vectors[kept] @ query
            assert best.ids == [f"p{kept[place]}" for place in scores.argsort(descending=True)[:10]]
            assert len(set(some.ids) & set(best.ids)) >= 9
            assert some.scores[0] == pytest.approx(best.scores[0], abs=1e-6)
            wanted = [*reversed(some.ids), "p0"]
            rows = snapshot.rows(wanted, ["sha256", "captions"]).to_pylist()
            for columns in (["sha256", "captions"], ["thumbnail", "image_vector"]):
                assert snapshot.rows(wanted, columns).equals(looking_up.rows(wanted, columns))
            assert [row["captions"] for row in rows] == [[f"about {id}"] for id in wanted]
    # What isn't in the graph yet is found all the same.
    index.commit(toy_rows(["new"], queries[:1]), removed=["p5"])
    assert index.snapshot().search("image", queries[:1], 1)[0].ids == ["new"]
    assert index.snapshot().search("text", queries[:1], 1)[0].ids == []


def test_what_was_read_ahead_is_read_once(filled: LanceIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot, made = open_index(filled.location).snapshot(), []
    expected = snapshot.rows(["p7", "p3#0"], ["captions", "width"])
    read = cached_rows.CachedRows.__init__

    def counted(self: cached_rows.CachedRows, rows: pa.Table) -> None:
        made.append(len(rows))
        read(self, rows)

    monkeypatch.setattr(cached_rows.CachedRows, "__init__", counted)
    threads = [threading.Thread(target=snapshot.read_ahead) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [120]
    # Whoever asks LanceDB now fails.
    monkeypatch.setattr(snapshot, "_table", None)
    assert snapshot.rows(["p7", "p3#0"], ["captions", "width"]).equals(expected)


@pytest.mark.parametrize("most_bytes", [120 * 500 - 1, 120 * 500 + 100])
def test_too_many_rows_are_not_held(filled: LanceIndex, monkeypatch: pytest.MonkeyPatch, most_bytes: int) -> None:
    monkeypatch.setattr(cached_rows, "MOST_BYTES", most_bytes)
    snapshot = open_index(filled.location).snapshot()
    snapshot.read_ahead()
    assert snapshot._rows_in_memory is None
    assert snapshot.rows(["p7"], ["captions"]).to_pylist() == [{"captions": ["about p7"]}]


def test_each_state_keeps_its_own_rows(tmp_path: Path) -> None:
    index, random = LanceIndex.create(tmp_path / "index", toy_head(), exact_up_to=20), np.random.default_rng(0)
    held: list[tuple[LanceSnapshot, dict[str, str]]] = []
    now: dict[str, str] = {}
    for step in range(16):
        names = [f"p{place}" for place in random.choice(60, 12, replace=False)]
        gone = [name for name in now if name not in names and random.random() < 0.2]
        rows = toy_rows(names, unit_vectors(12, seed=step), metadata={"step": ("text", [f"{step}"] * 12)})
        index.commit(rows, removed=gone)
        now = {name: said for name, said in now.items() if name not in gone} | dict.fromkeys(names, f"{step}")
        if step % 5 == 4:
            index.optimize()
        held.append((index.snapshot(), now))
        if step % 2:
            held[-1][0].read_ahead()
    for snapshot, said in held:
        found = snapshot.search("image", unit_vectors(1, seed=99), 60)[0].ids
        assert sorted(found) == sorted(said)
        for columns in (["id", "meta_step"], ["id", "meta_step", "thumbnail"]):
            rows = snapshot.rows(found, columns).to_pylist()
            assert {row["id"]: row["meta_step"] for row in rows} == said


def test_pictures_without_vectors_get_no_graph(tmp_path: Path) -> None:
    index = LanceIndex.create(tmp_path / "index", toy_head(), exact_up_to=3)
    rows = toy_rows([f"p{place}" for place in range(9)], unit_vectors(9), unit_vectors(9, seed=1))
    without = [row | {"image_vector": None} for row in rows.to_pylist()]
    index.commit(pa.Table.from_pylist(without, rows.schema))
    index.optimize()
    snapshot = index.snapshot()
    assert not snapshot._indexed("image") and snapshot.search("image", unit_vectors(1), 2)[0].ids == []
    assert len(snapshot.search("text", unit_vectors(1), 2)[0].ids) == 2
    assert snapshot.search("image", unit_vectors(1)[:0], 2) == snapshot.search("text", unit_vectors(1)[:0], 2) == []


def test_few_rows_that_satisfy_a_condition_are_all_found(tmp_path: Path) -> None:
    config = ApproximateConfig(ef=4, refine=1)
    index = LanceIndex.create(tmp_path / "index", toy_head(dim=16), exact_up_to=3, approximate=config)
    rare = [place % 40 == 0 for place in range(1000)]
    rows = toy_rows([f"p{i}" for i in range(1000)], unit_vectors(1000, 16), metadata={"rare": ("truth", rare)})
    index.commit(rows)
    index.optimize()
    found = index.snapshot().search("image", unit_vectors(1, 16, seed=3), 25, [Condition("rare", "=", True)])
    assert sorted(found[0].ids) == sorted(f"p{place}" for place in range(0, 1000, 40))


@pytest.mark.parametrize(
    ("where", "exact", "asked"),
    [
        ([], False, 1),
        ([], True, 0),
        ([Condition("rare", "=", True)], False, 0),
        ([Condition("rare", "=", False)], False, 1),
    ],
    ids=["all", "exactly", "few", "many"],
)
def test_the_graph_is_asked_for_many_rows_and_not_believed_when_it_finds_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: list[Condition], exact: bool, asked: int
) -> None:
    index = LanceIndex.create(tmp_path / "index", toy_head(), exact_up_to=20)
    vectors, rare = unit_vectors(100), [place % 5 == 0 for place in range(100)]
    index.commit(toy_rows([f"p{i}" for i in range(100)], vectors, metadata={"rare": ("truth", rare)}))
    index.optimize()
    calls = []
    monkeypatch.setattr(LanceSnapshot, "_search_index", lambda _, *given: calls.append(given) or Found([], []))
    query = unit_vectors(1, seed=3)
    (found,) = index.snapshot().search("image", query, 5, where, exact)
    kept = [place for place in range(100) if not where or rare[place] == where[0].value]
    best = (vectors[kept] @ query[0]).argsort(descending=True)[:5]
    assert found.ids == [f"p{kept[place]}" for place in best] and len(calls) == asked


def test_the_next_generation_is_built_beside_and_switched_to_at_once(filled: LanceIndex) -> None:
    beside = filled.begin(toy_head("1", dim=4))
    beside.commit(toy_rows(["p0"], unit_vectors(1, 4)))
    # An interrupted attempt goes on; another encoder's starts anew.
    again = open_index(filled.location).begin(toy_head("1", dim=4))
    assert again.snapshot().count() == 1 and filled.begin(toy_head("2", dim=4)).snapshot().count() == 0
    assert open_index(filled.location).snapshot().head.dim == DIM
    again.commit(toy_rows(["p1"], unit_vectors(1, 4, seed=1)))
    held = filled.snapshot()
    again.switch()
    now = open_index(filled.location).snapshot()
    assert (now.head.generation, now.head.dim, now.count()) == (1, 4, 2)
    assert held.search("image", unit_vectors(1, seed=2), 3)[0].ids
    with pytest.raises(ConfigError, match="counts already"):
        again.switch()


def test_optimizing_keeps_what_readers_hold(filled: LanceIndex) -> None:
    held = filled.snapshot()
    for place in range(5):
        filled.commit(toy_rows([f"q{place}"], unit_vectors(1, seed=place)), removed=[f"p{place}"])
    beside = filled.begin(toy_head("1"))
    beside.switch()
    beside.optimize()
    assert held.rows(["p0"], ["id"]).num_rows == 1
    assert len(held.search("image", unit_vectors(1), 100)[0].ids) == 60


def test_the_head_changes_with_a_commit(filled: LanceIndex) -> None:
    source = Source("", "/pictures", None, "/pictures")
    version = filled.snapshot().version
    filled.commit(head=filled.head.with_source(source))
    snapshot = open_index(filled.location).snapshot()
    assert snapshot.head.sources == (source,) and snapshot.version != version
    with pytest.raises(ConfigError, match="next generation"):
        filled.commit(head=toy_head("1"))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (lambda: toy_rows(["a", "a"], unit_vectors(2)), "'a' more than once"),
        (lambda: toy_rows(["a"], unit_vectors(1, 5)), "8 long"),
        (lambda: toy_rows(["a"], unit_vectors(1)).drop_columns(["path"]), "don't fit"),
        (lambda: toy_rows(["a"], unit_vectors(1), metadata={"year": ("text", ["x"])}), "don't fit"),
    ],
)
def test_rows_that_do_not_fit_are_refused(filled: LanceIndex, rows, message: str) -> None:
    with pytest.raises(DataError, match=message):
        filled.commit(rows())
    assert filled.snapshot().count() == 120


def test_a_missing_or_damaged_index_is_named(tmp_path: Path, filled: LanceIndex) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        open_index(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="holds no index"):
        open_index(tmp_path / "empty")
    with pytest.raises(ConfigError, match="is an index already"):
        create_index(filled.location, toy_head())
    for file in Path(filled.location).glob("items_*/_versions/*"):
        file.write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="may be damaged"):
        open_index(filled.location).snapshot()


def test_of_equal_scores_the_lower_id_comes_first(tmp_path: Path) -> None:
    index, same = create_index(tmp_path / "index", toy_head()), unit_vectors(1).expand(3, -1)
    index.commit(toy_rows(["b", "c", "a"], same))
    assert index.snapshot().search("image", same[:1], 2)[0].ids == ["a", "b"]


@pytest.mark.parametrize("ahead", [False, True])
def test_what_was_found_is_read_by_the_numbers_of_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: bool
) -> None:
    monkeypatch.setattr(cached_rows, "MOST_BYTES", 0)
    index = LanceIndex.create(tmp_path / "index", toy_head(), exact_up_to=20)
    index.commit(toy_rows([f"p{place}" for place in range(60)], unit_vectors(60)))
    index.optimize()
    snapshot = index.snapshot()
    if ahead:
        snapshot.read_ahead()
    ids = snapshot.search("image", unit_vectors(1, seed=3), 5)[0].ids
    # Whoever looks them up by their ids now fails.
    monkeypatch.setattr(lance_snapshot, "sql_of_ids", None)
    assert snapshot.rows(ids, ["captions"])["captions"].to_pylist() == [[f"about {id}"] for id in ids]


@pytest.mark.parametrize("most_bytes", [4 * 299 * DIM, 4 * 299 * DIM - 1], ids=["fit", "too many"])
@pytest.mark.parametrize("exact", [False, True])
def test_vectors_that_fit_are_held_once_they_are_read_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most_bytes: int, exact: bool
) -> None:
    monkeypatch.setattr(cached_vectors, "MOST_BYTES", most_bytes)
    index = LanceIndex.create(tmp_path / "index", toy_head(), exact_up_to=20)
    vectors, odd = unit_vectors(300), [place % 2 == 1 for place in range(300)]
    index.commit(toy_rows([f"p{i}" for i in range(300)], vectors, unit_vectors(300, seed=1), {"odd": ("truth", odd)}))
    index.commit(removed=["p7", "p7#0"])
    index.commit(toy_rows(["p8"], unit_vectors(1, seed=5), metadata={"odd": ("truth", [True])}))
    vectors[8] = unit_vectors(1, seed=5)[0]
    index.optimize()
    snapshot, calls = index.snapshot(), []
    asked = LanceSnapshot._search_index
    monkeypatch.setattr(LanceSnapshot, "_search_index", lambda self, *given: calls.append(given) or asked(self, *given))
    scores = vectors @ unit_vectors(1, seed=3)[0]
    scores[7] = -2

    def found(where: list[Condition]) -> list[str]:
        return snapshot.search("image", unit_vectors(1, seed=3), 6, where, exact)[0].ids

    def best(allowed: torch.Tensor) -> list[str]:
        return [f"p{place}" for place in scores.masked_fill(~allowed, -2).argsort(descending=True)[:6]]

    everything, kept = torch.ones(300, dtype=torch.bool), torch.tensor(odd)
    kept[8] = True
    assert found([]) == best(everything) and len(calls) == (not exact)
    snapshot.read_ahead()
    calls.clear()
    assert found([]) == best(everything) and found([Condition("odd", "=", True)]) == best(kept)
    assert found([Condition("odd", "=", True), Condition("odd", "=", False)]) == []
    assert bool(calls) == (most_bytes < 4 * 299 * DIM and not exact)
    rows = snapshot.rows(["p8", "p7", "p9#0"], ["id", "image_vector"]).to_pylist()
    assert [row["id"] for row in rows] == ["p8", "p9#0"]
    assert rows[0]["image_vector"] == pytest.approx(vectors[8].tolist())


def test_a_vector_that_is_not_finite_is_not_found_and_spoils_nothing(tmp_path: Path) -> None:
    index = LanceIndex.create(tmp_path / "index", toy_head(), exact_up_to=20)
    vectors = unit_vectors(60)
    vectors[3, 1], vectors[4, 0] = torch.nan, torch.inf
    for count in (10, 60):
        index.commit(toy_rows([f"p{place:02}" for place in range(count)], vectors[:count]))
        snapshot = index.snapshot()
        snapshot.read_ahead()
        for state in (snapshot, index.open(index.location, exact_up_to=20).snapshot()):
            found = state.search("image", vectors[:1], 100)[0]
            assert sorted(found.ids) == [f"p{place:02}" for place in range(count) if place not in (3, 4)]
            assert found.ids[0] == "p00"


def test_vectors_of_strange_rows_stop_no_search(tmp_path: Path) -> None:
    index = LanceIndex.create(tmp_path / "index", toy_head(), exact_up_to=20)
    rows = toy_rows([f"p{place}" for place in range(30)], unit_vectors(30), unit_vectors(30, seed=1))
    strange = rows.to_pylist()
    strange[0]["modality"] = "sound"
    strange[1]["image_vector"], strange[3]["image_vector"] = unit_vectors(2, seed=2).tolist()
    index.commit(pa.Table.from_pylist(strange, rows.schema))
    snapshot = index.snapshot()
    snapshot.read_ahead()
    found = snapshot.search("image", unit_vectors(1), 40)[0].ids
    assert len(found) == len(set(found)) >= 29 and len(snapshot.search("text", unit_vectors(1), 40)[0].ids) == 30
