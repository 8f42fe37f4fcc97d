import numpy as np
import pytest
from index.memory_index import MemoryIndex, MemorySnapshot
from index.picture_rows import DIM, KINDS, head, picture_rows, table_of

from modalloy.index.base import Found
from modalloy.index.findings import EXAMPLES, Findings
from modalloy.index.schema import rows_schema
from modalloy.index.verify import verify_index

COUNT = 6


class Holding(MemoryIndex):
    """An index with any rows, as no commit would make it."""

    def __init__(self, made_by, rows):
        super().__init__(made_by)
        self._now = MemorySnapshot(made_by, 1, rows, rows_schema(DIM, KINDS))


@pytest.fixture
def rows(tmp_path):
    return table_of(picture_rows(tmp_path, COUNT)).to_pylist()


def found(index, **options):
    return {finding.kind: finding.examples for finding in verify_index(index, **options).findings}


def test_a_sound_index(tmp_path, rows):
    index = MemoryIndex(head(tmp_path))
    index.commit(table_of(rows))
    result = verify_index(index, files=True, repair=True)
    assert result.findings == ()
    assert (result.rows, result.pictures, result.captions) == (18, 6, 12)
    assert (result.sampled, result.recall, result.unembedded, result.repaired) == (18, 1.0, 0, 0)
    assert result.version == index.snapshot().version
    empty = verify_index(MemoryIndex(head(tmp_path)), files=True)
    assert (empty.rows, empty.recall, empty.findings) == (0, None, ())


def changed(rows, number, **columns):
    return [{**row, **columns} if place == number else row for place, row in enumerate(rows)]


@pytest.mark.parametrize(
    ("number", "columns", "kinds"),
    [
        (0, {"image_vector": None}, ["no vector"]),
        (1, {"text_vector": None}, ["no vector"]),
        (0, {"text_vector": [1.0] + [0.0] * (DIM - 1)}, ["vector of the other kind"]),
        (0, {"image_vector": [2.0] + [0.0] * (DIM - 1)}, ["vector not of unit norm"]),
        (0, {"image_vector": [float("nan")] + [0.0] * (DIM - 1)}, ["vector not finite"]),
        (0, {"source": "gone"}, ["unknown source"]),
        (0, {"path": "../../etc/passwd"}, ["path out of its folder"]),
        (0, {"path": "/etc/passwd"}, ["path out of its folder"]),
        (0, {"path": None}, ["path out of its folder"]),
        (0, {"thumbnail": b"no picture"}, ["thumbnail broken"]),
        (0, {"thumbnail": None}, []),
        (1, {"captions": ["Another."]}, ["caption unlike its picture's"]),
        (1, {"id": "sub:0.png#7"}, ["caption without its picture"]),
        (1, {"picture_id": "gone.png"}, ["caption without its picture"]),
        (0, {"modality": "sound", "image_vector": None, "captions": []}, ["neither picture nor caption"]),
        (0, {"sha256": "0" * 64}, ["file changed"]),
        (0, {"sha256": None}, []),
        (0, {"path": "sub/gone.png"}, ["file missing or unreadable"]),
    ],
)
def test_each_problem_is_named(tmp_path, rows, number, columns, kinds):
    index = Holding(head(tmp_path), changed(rows, number, **columns))
    result = found(index, files=True)
    if columns.get("modality"):
        assert result.pop("caption without its picture") == ["sub:0.png#0", "sub:0.png#1"]
    assert list(result) == kinds
    assert all(examples == [columns.get("id", rows[number]["id"])] for examples in result.values())


def test_a_broken_file_is_named_only_where_files_are_read(tmp_path, rows):
    (tmp_path / "sub" / "0.png").write_bytes(b"no picture")
    sha256 = __import__("hashlib").sha256(b"no picture").hexdigest()
    index = Holding(head(tmp_path), changed(rows, 0, sha256=sha256))
    assert found(index) == {}
    assert found(index, files=True) == {"file broken": ["sub:0.png"]}


def test_captions_without_rows_are_counted_but_no_problem(tmp_path, rows):
    result = verify_index(Holding(head(tmp_path), [row for row in rows if row["id"] != "sub:2.png#1"]))
    assert (result.unembedded, result.findings) == (1, ())


def test_repairing_removes_what_belongs_to_nothing_and_what_is_there_twice(tmp_path, rows):
    orphans = [row for row in rows if row["picture_id"] != "sub:1.png" or row["modality"] == "text"]
    index = Holding(head(tmp_path), [*orphans, rows[0], rows[8]])
    assert found(index) == {
        "id twice": ["sub:0.png", "sub:2.png#1"],
        "caption without its picture": ["sub:1.png#0", "sub:1.png#1"],
    }
    assert verify_index(index, repair=True).repaired == 4
    assert found(index) == {}
    left = [row for row in rows if row["picture_id"] != "sub:1.png"]
    by_id = {row["id"]: row for row in index.snapshot()._rows}
    assert by_id == {row["id"]: row for row in left} and len(index.snapshot()._rows) == len(left)


class Wrong(MemorySnapshot):
    """Answers the approximate search, or both, with the worst rows."""

    both = False

    def search(self, modality, queries, k, where=(), exact=False):
        if exact and not self.both:
            return super().search(modality, queries, k)
        everything = super().search(modality, queries, self.count())
        return [Found(one.ids[-k:], one.scores[-k:]) for one in everything]


@pytest.mark.parametrize(("both", "kinds"), [(False, ["approximate search poor"]), (True, ["not found by itself"])])
def test_searches_that_miss_are_named(tmp_path, both, kinds):
    index = Holding(head(tmp_path), [])
    index._now = Wrong(head(tmp_path), 1, table_of(picture_rows(tmp_path, 30, 0)).to_pylist(), rows_schema(DIM, KINDS))
    index._now.both = both
    result = verify_index(index)
    assert [finding.kind for finding in result.findings] == kinds
    if not both:
        assert result.recall < 0.5


class WrongAhead(Wrong):
    """Answers so once it is read ahead."""

    ahead = False

    def read_ahead(self):
        self.ahead = True

    def search(self, modality, queries, k, where=(), exact=False):
        searched = super() if self.ahead else super(Wrong, self)
        return searched.search(modality, queries, k, where, exact)


def test_what_a_service_reads_ahead_is_searched_as_well(tmp_path):
    index, rows = Holding(head(tmp_path), []), table_of(picture_rows(tmp_path, 30, 0)).to_pylist()
    index._now = WrongAhead(head(tmp_path), 1, rows, rows_schema(DIM, KINDS))
    assert verify_index(index).recall < 0.5


def test_captions_ask_for_pictures_and_pictures_for_captions(tmp_path, monkeypatch):
    rows, asked = table_of(picture_rows(tmp_path, 30, 1)), []
    search = MemorySnapshot.search

    def noted(self, modality, queries, k, where=(), exact=False):
        if not exact:
            asked.append((modality, sorted(queries[:, 0].tolist())))
        return search(self, modality, queries, k, where, exact)

    monkeypatch.setattr(MemorySnapshot, "search", noted)
    index = MemoryIndex(head(tmp_path))
    index.commit(rows)
    result = verify_index(index)
    first = {side: sorted(row[f"{side}_vector"][0] for row in rows.to_pylist() if row[f"{side}_vector"])
             for side in ("image", "text")}  # fmt: skip
    assert asked == 2 * [("image", first["text"]), ("text", first["image"])]
    assert (result.sampled, result.recall) == (60, 1.0)


def test_equal_vectors_all_find_one_of_them(tmp_path):
    rows = table_of(picture_rows(tmp_path, 30, 0)).to_pylist()
    vector = np.eye(DIM)[0].tolist()
    result = verify_index(Holding(head(tmp_path), [{**row, "image_vector": vector} for row in rows]))
    assert (result.recall, result.findings) == (1.0, ())


def test_examples_are_few():
    findings = Findings()
    findings.add("no vector", *map(str, range(100)))
    (finding,) = findings.all
    assert (finding.count, len(finding.examples)) == (100, EXAMPLES)
    assert finding.to_dict()["mend"].startswith("modalloy index remove it")


def test_a_link_that_leads_out_of_its_folder_is_named_and_not_opened(tmp_path, rows):
    file = tmp_path / "sub" / "0.png"
    file.rename(outside := tmp_path.parent / "outside.png")
    file.symlink_to(outside)
    assert found(Holding(head(tmp_path), rows), files=True) == {"path out of its folder": ["sub:0.png"]}


def test_a_row_that_belongs_to_nothing_is_not_kept_because_it_is_there_twice(tmp_path, rows):
    orphans = [row for row in rows if row["picture_id"] != "sub:1.png" or row["id"] == "sub:1.png#0"]
    index = Holding(head(tmp_path), [*orphans, next(row for row in rows if row["id"] == "sub:1.png#0")])
    assert verify_index(index, repair=True).repaired == 2 and found(index) == {}


class Scaled(MemorySnapshot):
    """Finds the right rows by wrong scores, as of vectors that were stored otherwise."""

    def search(self, modality, queries, k, where=(), exact=False):
        return [Found(one.ids, [2 * score for score in one.scores]) for one in super().search(modality, queries, k)]


def test_scores_that_are_wrong_are_named(tmp_path):
    index = Holding(head(tmp_path), [])
    index._now = Scaled(head(tmp_path), 1, table_of(picture_rows(tmp_path, 5, 0)).to_pylist(), rows_schema(DIM, KINDS))
    assert [finding.kind for finding in verify_index(index).findings] == ["not found by itself"]
