"""Each store of an index against what all must do."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from index.index_contract import IndexContract
from index.memory_index import MemoryIndex
from index.s3_server import s3_server
from index.snapshot_contract import SnapshotContract
from qdrant_client import QdrantClient

from modalloy.index import Head, Index, create_index, open_index
from modalloy.index.lance import LanceIndex
from modalloy.index.lance_snapshot import LanceSnapshot
from modalloy.index.qdrant import QdrantIndex


class Places:
    """Indexes behind one beginning of their locations, by the functions that users call."""

    orders_texts = True

    def __init__(self, beginning: str, kind: type[LanceIndex] | None = None) -> None:
        self._beginning, self._count, self._kind = beginning, 0, kind

    def create(self, head: Head) -> Index:
        self._count += 1
        return self.create_again(head)

    def create_again(self, head: Head) -> Index:
        return (self._kind.create if self._kind else create_index)(f"{self._beginning}{self._count}", head)

    def open(self) -> Index:
        return (self._kind.open if self._kind else open_index)(f"{self._beginning}{self._count}")


class OneByOne:
    """A client's calls one after the other, which its imitation of a cluster needs."""

    def __init__(self, client: QdrantClient) -> None:
        self._client, self._lock = client, threading.Lock()

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            with self._lock:
                return getattr(self._client, name)(*args, **options)

        return call


class QdrantPlaces(Places):
    """In the client's own small imitation of a cluster."""

    orders_texts = False

    def __init__(self) -> None:
        super().__init__("qdrant://localhost/pictures")
        self._client = OneByOne(QdrantClient(":memory:"))

    def create_again(self, head: Head) -> Index:
        return QdrantIndex.create(f"{self._beginning}{self._count}", head, self._client)

    def open(self) -> Index:
        return QdrantIndex.open(f"{self._beginning}{self._count}", self._client)


class MemoryPlaces:
    orders_texts = True

    def create(self, head: Head) -> MemoryIndex:
        return MemoryIndex(head)


class TestMemory(SnapshotContract):
    @pytest.fixture(scope="class")
    @classmethod
    def store(cls) -> MemoryPlaces:
        return MemoryPlaces()


class TestLance(IndexContract):
    @pytest.fixture(scope="class")
    @classmethod
    def store(cls, tmp_path_factory: pytest.TempPathFactory) -> Places:
        folder: Path = tmp_path_factory.mktemp("indexes")
        return Places(f"{folder}/index")


class ReadAhead(LanceIndex):
    """Answers as for many questions."""

    def snapshot(self) -> LanceSnapshot:
        snapshot = super().snapshot()
        snapshot.read_ahead()
        assert snapshot._rows_in_memory is not None
        return snapshot


class TestLanceReadAhead(IndexContract):
    @pytest.fixture(scope="class")
    @classmethod
    def store(cls, tmp_path_factory: pytest.TempPathFactory) -> Places:
        return Places(f"{tmp_path_factory.mktemp('indexes')}/index", ReadAhead)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")
class TestLanceOnS3(IndexContract):
    @pytest.fixture(scope="class")
    @classmethod
    def store(cls) -> Iterator[Places]:
        with pytest.MonkeyPatch.context() as monkeypatch, s3_server(monkeypatch) as bucket:
            yield Places(f"{bucket}/folder/index")


@pytest.mark.filterwarnings("ignore:Local mode performs exact:UserWarning", "ignore:Payload indexes have no effect")
class TestQdrant(IndexContract):
    @pytest.fixture(scope="class")
    @classmethod
    def store(cls) -> QdrantPlaces:
        return QdrantPlaces()
