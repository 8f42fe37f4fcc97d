"""A Qdrant cluster as an index, by the client's imitation of one; what every store must do is in `index_contract`."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import qdrant_client
from qdrant_client import QdrantClient
from toy_index import toy_head, toy_rows, unit_vectors

from modalloy.errors import CheckpointError, ConfigError, DataError
from modalloy.index import Condition, open_index, qdrant
from modalloy.index.qdrant import QdrantIndex
from modalloy.index.qdrant_config import API_KEY, QdrantConfig, QdrantLocation, is_qdrant

PLACE = "qdrant://localhost/pictures"
ROWS = "pictures_0_"

pytestmark = pytest.mark.filterwarnings(
    "ignore:Local mode performs exact:UserWarning", "ignore:Payload indexes have no effect:UserWarning"
)


@pytest.fixture
def client() -> QdrantClient:
    return QdrantClient(":memory:")


@pytest.fixture
def index(client: QdrantClient) -> QdrantIndex:
    index = QdrantIndex.create(PLACE, toy_head(), client)
    index.commit(toy_rows(["a", "b"], unit_vectors(2)))
    return index


def points(client: QdrantClient) -> int:
    """How many rows are kept in all."""
    names = [each.name for each in client.get_collections().collections]
    return sum(client.count(name).count for name in names if not name.endswith("_states"))


def ids(index: QdrantIndex) -> list[str]:
    return sorted(id for batch in index.snapshot().scan(["id"]) for id in batch["id"].to_pylist())


def interrupted(index: QdrantIndex, monkeypatch: pytest.MonkeyPatch, rows: Any, **options: Any) -> None:
    """A commit that dies before the end."""
    with monkeypatch.context() as patch:
        patch.setattr(QdrantIndex, "_publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            index.commit(rows, **options)


def test_what_an_interrupted_commit_left_never_counts(
    index: QdrantIndex, client: QdrantClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(index, monkeypatch, toy_rows(["a", "lost"], unit_vectors(2, seed=1)), removed=["b"])
    assert ids(index) == ["a", "b"] and points(client) == 4
    index.commit(toy_rows(["c"], unit_vectors(1)))
    interrupted(index, monkeypatch, toy_rows(["lost"], unit_vectors(1)), removed=["a"])
    index.commit(removed=["b"])
    assert ids(index) == ["a", "c"]
    # The a that counts is the one of before.
    assert index.snapshot().search("image", unit_vectors(2)[:1], 1)[0].scores == [pytest.approx(1.0)]
    monkeypatch.setattr(qdrant, "_KEPT_FOR_READERS", -1.0)
    index.optimize()
    assert ids(index) == ["a", "c"] and points(client) == 2
    index.commit(removed=["a"])
    assert ids(index) == ["c"]


def test_of_two_writers_the_later_one_wins(
    index: QdrantIndex, client: QdrantClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = QdrantIndex.open(PLACE, client)
    publish = QdrantIndex._publish

    def overtaken(self: QdrantIndex, state: Any) -> None:
        monkeypatch.setattr(QdrantIndex, "_publish", publish)
        later.commit(toy_rows(["late"], unit_vectors(1)))
        publish(self, state)

    monkeypatch.setattr(QdrantIndex, "_publish", overtaken)
    with pytest.raises(DataError, match="another writer took over"):
        index.commit(toy_rows(["early"], unit_vectors(1)), removed=["a"])
    assert ids(index) == ["a", "b", "late"]
    index.commit(toy_rows(["early"], unit_vectors(1)), removed=["a"])
    assert ids(later) == ["b", "early", "late"]


def test_a_writer_that_comes_between_is_noticed(index: QdrantIndex, client: QdrantClient) -> None:
    stale = index._state(index._rows.name)
    QdrantIndex.open(PLACE, client).commit(removed=["a"])
    with pytest.raises(DataError, match="just now"):
        index._claim(stale)
    assert ids(index) == ["b"]


def test_optimizing_drops_what_nobody_reads(
    index: QdrantIndex, client: QdrantClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(3):
        index.commit(toy_rows(["a"], unit_vectors(1, seed=seed)))
    index.optimize()
    assert points(client) == 5
    monkeypatch.setattr(qdrant, "_KEPT_FOR_READERS", -1.0)
    index.optimize()
    assert points(client) == 2 and ids(index) == ["a", "b"]
    other = QdrantIndex.create("qdrant://localhost/pictures_0", toy_head(), client)
    beside = index.begin(toy_head("1"))
    beside.switch()
    with pytest.raises(ConfigError, match="newer generation"):
        index.commit(removed=["a"])
    beside.optimize()
    # Of the other index, whose name begins alike, nothing is dropped.
    assert ids(beside) == ids(other) == []
    assert len(client.get_collections().collections) == 4


def test_inner_products_of_vectors_of_any_length(client: QdrantClient) -> None:
    index = QdrantIndex.create(PLACE, toy_head(), client)
    vectors = 3 * unit_vectors(2)
    index.commit(toy_rows(["a", "b"], vectors))
    (found,) = index.snapshot().search("image", 2 * vectors[:1], 2)
    assert found.ids[0] == "a" and found.scores[0] == pytest.approx(18.0)


def test_numbers_that_json_cannot_hold_are_refused(index: QdrantIndex) -> None:
    rows = toy_rows(["c"], unit_vectors(1), metadata={"year": ("number", [float("nan")])})
    with pytest.raises(DataError, match=r"c: meta_year is nan"):
        index.commit(rows)
    assert ids(index) == ["a", "b"] and index.snapshot().metadata == {}


def test_places_are_read() -> None:
    place = QdrantLocation.parse("qdrant://[::1]:7000/my-pets?shards=6&oversampling=2.5")
    assert place == QdrantLocation("http://[::1]:7000", "my-pets", QdrantConfig(shards=6, oversampling=2.5))
    assert place.is_private and not QdrantLocation.parse("qdrant://example.org/pets").is_private
    assert is_qdrant(PLACE) and not is_qdrant("/a/folder") and not is_qdrant("s3://qdrant/x")


@pytest.mark.parametrize(
    "location",
    [
        "qdrant://localhost", "qdrant:///pets", "qdrant://localhost/a/b", "qdrant://localhost/a%2Fb", "s3://bucket/pets",
        "qdrant://user:secret@localhost/pets", "qdrant://localhost:port/pets", "qdrant://localhost/pets?shards=0",
        "qdrant://localhost/pets?shards=x", "qdrant://localhost/pets?api_key=1", "qdrant://localhost/pets?shards",
    ],
)  # fmt: skip
def test_other_places_are_refused(location: str) -> None:
    with pytest.raises(ConfigError):
        QdrantLocation.parse(location)


def test_an_index_that_is_not_there(client: QdrantClient) -> None:
    with pytest.raises(CheckpointError, match="holds no index"):
        QdrantIndex.open(PLACE, client)


def test_a_cluster_that_does_not_answer() -> None:
    with pytest.raises(DataError, match="doesn't answer"):
        open_index("qdrant://127.0.0.1:1/pictures")


def answering(version: str) -> Callable[..., Any]:
    return lambda **options: SimpleNamespace(info=lambda: SimpleNamespace(version=version), options=options)


def test_clusters_that_are_too_old_and_keys_for_all_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qdrant_client, "QdrantClient", answering("1.19.3"))
    with pytest.raises(ConfigError, match=r"is Qdrant 1\.19\.3; an index needs 1\.20"):
        open_index(PLACE)
    monkeypatch.setattr(qdrant_client, "QdrantClient", answering("1.21.0-dev"))
    monkeypatch.setenv(API_KEY, "secret")
    with pytest.raises(ConfigError, match="unencrypted"):
        open_index("qdrant://example.org/pictures")
    client: Any = qdrant.connect(QdrantLocation.parse("qdrant+https://example.org/pictures"))
    assert client.options["url"] == "https://example.org:443" and client.options["api_key"] == "secret"


def test_conditions_are_values_not_code(index: QdrantIndex) -> None:
    index.commit(toy_rows(["it's [a].b"], unit_vectors(1)))
    assert index.snapshot().count([Condition("path", "contains", "[A].B")]) == 1
