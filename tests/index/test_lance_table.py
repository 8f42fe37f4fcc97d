import resource
from datetime import datetime, timedelta

import pytest
from toy_index import toy_head, toy_rows, unit_vectors

from modalloy.errors import CheckpointError
from modalloy.index import create_index, open_index
from modalloy.index.lance_table import age_kept

HOUR = timedelta(hours=1)


@pytest.mark.parametrize(
    ("ages", "kept"),
    [
        ([], HOUR),
        ([0.2, 0.5], HOUR),
        # An hour ago the newest version was the one of two hours ago, which somebody may still be reading.
        ([0.2, 2, 5], 2 * HOUR),
        ([7], 7 * HOUR),
    ],
)
def test_the_newest_version_of_an_hour_ago_is_kept(ages, kept):
    class Table:
        def list_versions(self):
            return [{"timestamp": datetime.now() - age * HOUR} for age in ages]

    assert kept < age_kept(Table(), HOUR) < kept + timedelta(minutes=5)


def test_what_was_killed_while_it_was_made_is_made_again(tmp_path):
    # LanceDB makes a table's folder, and what is in it, before its first version.
    for table in ("head", "items_0_0123456789ab"):
        (tmp_path / "index" / f"{table}.lance" / "data").mkdir(parents=True)
        (tmp_path / "index" / f"{table}.lance" / "data" / "x.lance").write_bytes(b"half")
    with pytest.raises(CheckpointError, match="holds no index"):
        open_index(tmp_path / "index")
    index = create_index(tmp_path / "index", toy_head())
    index.commit(toy_rows(["a"], unit_vectors(1)))
    assert open_index(tmp_path / "index").snapshot().count() == 1


@pytest.mark.parametrize("length", range(11_000, 16_000, 1000))
def test_a_commit_whose_file_was_cut_off_is_taken_back(tmp_path, length):
    """LanceDB doesn't see an error in writing a file's last kilobytes."""
    index = create_index(tmp_path / "index", toy_head())
    index.commit(toy_rows(["a"], unit_vectors(1)))
    rows = toy_rows([f"p{place}" for place in range(50)], unit_vectors(50), unit_vectors(50))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (length, before[1]))
    try:
        with pytest.raises(CheckpointError, match="make room"):
            index.commit(rows)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    for each in (index, open_index(index.location)):
        assert [batch["id"].to_pylist() for batch in each.snapshot().scan(["id"])] == [["a"]]
    index.commit(rows)
    assert open_index(index.location).snapshot().count() == 101
