"""LanceDB in object storage, beyond what every store must do."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
from index.s3_server import BUCKET, s3_server
from toy_index import toy_head, toy_rows, unit_vectors

from modalloy.errors import CheckpointError
from modalloy.index import create_index, lance, lance_table, open_index, writer_lock

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning"),
]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with s3_server(monkeypatch) as uri:
        yield uri


def test_two_writers_one_after_the_other(bucket: str) -> None:
    first = create_index(f"{bucket}/index", toy_head())
    second = open_index(f"{bucket}/index")
    for place in range(3):
        for name, writer in (("f", first), ("s", second)):
            with writer_lock(writer.location):
                writer.commit(toy_rows([f"{name}{place}"], unit_vectors(1, seed=place)))
    assert first.snapshot().count() == second.snapshot().count() == 6


def test_optimizing_empties_the_bucket_of_what_nobody_reads(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3

    def objects() -> int:
        return len(boto3.client("s3", region_name="us-east-1").list_objects_v2(Bucket=BUCKET)["Contents"])

    index = create_index(f"{bucket}/index", toy_head())
    for seed in range(6):
        index.commit(toy_rows(["a"], unit_vectors(1, seed=seed)))
    before = objects()
    monkeypatch.setattr(lance, "_KEPT_FOR_READERS", timedelta(milliseconds=1))  # LanceDB warns of 0
    monkeypatch.setattr(lance_table, "_MARGIN", timedelta(0))
    index.optimize()
    assert objects() < before
    assert open_index(f"{bucket}/index").snapshot().rows(["a"], ["id"]).num_rows == 1


def test_a_missing_bucket_is_named(bucket: str) -> None:
    with pytest.raises(CheckpointError, match="s3://nowhere/index"):
        open_index("s3://nowhere/index")
