import io
import os
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index.memory_index import MemoryIndex
from index.small_source import CountingEncoder, age, bring, make_unreadable, rows_in, write_picture
from PIL import Image

from modalloy.data.images import open_image
from modalloy.errors import ConfigError, DataError, FeatureError
from modalloy.index.encoder_spec import head_of, made_by
from modalloy.index.sync import SyncConfig
from modalloy.index.thumbnails import LONGEST_SIDE, thumbnail_of


@pytest.fixture
def encoder():
    return CountingEncoder()


@pytest.fixture
def index(encoder):
    return MemoryIndex(head_of(encoder))


@pytest.fixture
def folder(tmp_path):
    """Six pictures, of which the first has two captions."""
    for number in range(6):
        write_picture(tmp_path / "pictures" / f"{number}.png", number, ["one", "two"] if number == 0 else None)
    return tmp_path / "pictures"


def test_rows_are_what_the_encoder_makes_of_each_picture_and_caption(index, encoder, folder):
    done = bring(index, encoder, folder, batch_size=2, commit_size=3)
    assert (done.new, done.pictures, done.rejects) == (6, 6, ()) and encoder.calls() == (6, 2)
    rows = rows_in(index)
    assert set(rows) == {*(f"{number}.png" for number in range(6)), "0.png#0", "0.png#1"}
    for number in range(6):
        row, path = rows[f"{number}.png"], folder / f"{number}.png"
        expected = encoder.encode_images([path]).embedding[0].numpy()
        assert row["image_vector"] == pytest.approx(expected, abs=1e-6) and row["text_vector"] is None
        assert (row["bytes"], row["modified_ns"]) == (path.stat().st_size, path.stat().st_mtime_ns)
        assert (row["width"], row["height"], row["path"]) == (8, 6, path.name)
        assert row["thumbnail"] == thumbnail_of(open_image(path))
    assert rows["0.png"]["captions"] == ["one", "two"] and rows["0.png#1"]["captions"] == ["two"]
    expected = encoder.encode_texts(["two"]).embedding[0].numpy()
    assert rows["0.png#1"]["text_vector"] == pytest.approx(expected, abs=1e-6)
    assert rows["0.png#1"]["picture_id"] == "0.png" and rows["0.png#1"]["modality"] == "text"


def test_a_second_time_nothing_is_read_embedded_or_written(index, encoder, folder, monkeypatch):
    bring(index, encoder, folder)
    encoder.calls()
    version = index.snapshot().version
    monkeypatch.setattr("modalloy.data.known_files.sha256_of_image", lambda path: pytest.fail(f"{path} was read"))
    done = bring(index, encoder, folder)
    assert done.changes == 0 and done.pictures == 6
    assert encoder.calls() == (0, 0) and index.snapshot().version == version


def test_a_renamed_folder_costs_nothing(index, encoder, folder):
    bring(index, encoder, folder)
    before, _ = rows_in(index), encoder.calls()
    (folder / "sub").mkdir()
    for path in list(folder.glob("*.*")):
        path.rename(folder / "sub" / path.name)
    version = index.snapshot().version
    done = bring(index, encoder, folder)
    assert (done.moved, done.removed) == (6, 0)
    # In one commit, so that nobody finds a picture twice or not at all.
    assert encoder.calls() == (0, 0) and index.snapshot().version == version + 1
    after = rows_in(index)
    assert set(after) == {f"sub:{id}" for id in before}
    for id, row in before.items():
        for name in ("image_vector", "text_vector", "thumbnail", "width", "sha256", "captions"):
            assert after[f"sub:{id}"][name] == row[name]


def test_a_picture_is_embedded_anew_while_its_old_content_moves(index, encoder, folder):
    bring(index, encoder, folder)
    encoder.calls()
    shutil.move(folder / "1.png", folder / "moved.png")
    write_picture(folder / "1.png", 99, ["new"])
    write_picture(folder / "moved.png", 1, ["a text"])
    done = bring(index, encoder, folder)
    assert (done.changed, done.moved) == (1, 1) and encoder.calls() == (1, 2)
    rows = rows_in(index)
    for name in ("1.png", "moved.png"):
        assert rows[name]["image_vector"] == pytest.approx(encoder.encode_images([folder / name]).embedding[0].numpy())


def test_of_other_captions_only_the_new_ones_are_embedded(index, encoder, folder):
    bring(index, encoder, folder)
    encoder.calls()
    (folder / "0.txt").write_text("three\none")
    done = bring(index, encoder, folder)
    assert done.recaptioned == 1 and encoder.calls() == (0, 1)
    (folder / "0.txt").write_text("one")
    assert bring(index, encoder, folder).recaptioned == 1 and encoder.calls() == (0, 0)
    assert "0.png#0" in (rows := rows_in(index)) and "0.png#1" not in rows
    (folder / "0.txt").unlink()
    bring(index, encoder, folder)
    assert "0.png#0" not in (rows := rows_in(index)) and rows["0.png"]["captions"] == []


def test_a_touched_file_is_read_but_not_embedded(index, encoder, folder):
    bring(index, encoder, folder)
    encoder.calls()
    age(folder / "2.png")
    assert bring(index, encoder, folder).touched == 1 and encoder.calls() == (0, 0)
    assert rows_in(index)["2.png"]["modified_ns"] == (folder / "2.png").stat().st_mtime_ns


def test_another_content_of_the_same_size_and_time_is_found_by_rehashing(index, encoder, folder):
    path = folder / "3.png"
    Image.new("L", (8, 8), 10).save(path.with_suffix(".bmp"))
    path.unlink()
    path = path.with_suffix(".bmp")
    bring(index, encoder, folder)
    encoder.calls()
    status = path.stat()
    Image.new("L", (8, 8), 200).save(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    assert bring(index, encoder, folder).changes == 0
    assert bring(index, encoder, folder, rehash=True).changed == 1 and encoder.calls() == (1, 0)


def test_removed_files_disappear_with_their_captions(index, encoder, folder):
    bring(index, encoder, folder)
    (folder / "0.png").unlink()
    (folder / "4.png").unlink()
    assert bring(index, encoder, folder).removed == 2
    assert set(rows_in(index)) == {"1.png", "2.png", "3.png", "5.png"}


def test_most_of_a_source_is_only_removed_when_that_is_allowed(index, encoder, folder):
    bring(index, encoder, folder)
    for number in range(4):
        (folder / f"{number}.png").unlink()
    before = rows_in(index)
    with pytest.raises(DataError, match=r"4 of the 6 pictures .* are gone: is a disk not mounted.*--allow-removals"):
        bring(index, encoder, folder)
    assert rows_in(index) == before
    assert bring(index, encoder, folder, allow_removals=True).removed == 4
    assert set(rows_in(index)) == {"4.png", "5.png"}


def test_a_source_that_vanished_or_is_empty_takes_nothing_away(index, encoder, folder):
    bring(index, encoder, folder)
    before = rows_in(index)
    shutil.rmtree(folder)
    with pytest.raises(DataError, match="isn't there"):
        bring(index, encoder, folder)
    folder.mkdir()
    with pytest.raises(DataError, match="holds no images"):
        bring(index, encoder, folder)
    assert rows_in(index) == before


def test_what_cannot_be_decoded_is_listed_and_nothing_else_is_lost(index, encoder, folder):
    make_unreadable(folder / "0.png")
    (folder / "1.png").write_bytes(b"no picture")
    done = bring(index, encoder, folder)
    assert done.new == done.pictures == 4 and set(rows_in(index)) == {f"{number}.png" for number in range(2, 6)}
    assert {each.id for each in done.rejects} == {"0.png", "1.png"}
    # Not even its captions are embedded: without their picture they are of no use.
    assert encoder.calls() == (4, 0)
    again = bring(index, encoder, folder)
    assert again.rejects == done.rejects and again.changes == 0 and encoder.calls() == (0, 0)


def test_a_picture_that_was_fine_and_is_broken_now_is_removed_and_listed(index, encoder, folder):
    bring(index, encoder, folder)
    make_unreadable(folder / "0.png")
    (folder / "1.png").write_bytes(b"no picture")
    done = bring(index, encoder, folder)
    assert done.removed == 2 and done.pictures == 4 and {each.id for each in done.rejects} == {"0.png", "1.png"}
    assert set(rows_in(index)) == {f"{number}.png" for number in range(2, 6)}


class Refusing(CountingEncoder):
    """Refuses a text, as an encoder may refuse what it can't tell from nothing."""

    def preprocess(self, modality, item):
        if item == "refused":
            raise DataError("this caption is refused")
        return super().preprocess(modality, item)


def test_a_caption_that_the_encoder_refuses_is_left_out_alone(folder):
    encoder = Refusing()
    index = MemoryIndex(head_of(encoder))
    (folder / "0.txt").write_text("one\ntwo")
    bring(index, encoder, folder)
    (folder / "0.txt").write_text("one\nrefused")
    (reject,) = bring(index, encoder, folder).rejects
    assert reject.id == "0.png#1" and "refused" in reject.reason
    # The text that it had before mustn't be found any more.
    assert "0.png#1" not in (rows := rows_in(index)) and "0.png#0" in rows
    encoder.calls()
    assert bring(index, encoder, folder).changes == 0 and encoder.calls() == (0, 0)


def test_captions_that_were_lost_are_embedded_again_by_rehashing(index, encoder, folder):
    bring(index, encoder, folder)
    before, _ = rows_in(index), encoder.calls()
    index.commit(removed=["0.png#0"])
    assert bring(index, encoder, folder).changes == 0
    done = bring(index, encoder, folder, rehash=True)
    assert (done.recaptioned, done.changes) == (1, 1) and encoder.calls() == (0, 1)
    assert rows_in(index) == before
    assert bring(index, encoder, folder, rehash=True).changes == 0


class Failing(CountingEncoder):
    """Fails once it has embedded some pictures."""

    after = 4

    def forward(self, modality, prepared):
        if self.embedded.count("image") >= self.after:
            raise RuntimeError("out of memory")
        return super().forward(modality, prepared)


def test_an_interrupted_build_goes_on_where_it_stopped(index, encoder, folder):
    with pytest.raises(RuntimeError, match="out of memory"):
        bring(index, Failing(), folder, batch_size=2, commit_size=2)
    assert {id for id in rows_in(index) if "#" not in id} == {f"{number}.png" for number in range(4)}
    done = bring(index, encoder, folder, batch_size=2, commit_size=2)
    assert done.new == 2 and encoder.calls() == (2, 0)
    fresh = MemoryIndex(head_of(encoder))
    bring(fresh, encoder, folder)
    assert rows_in(index) == rows_in(fresh)


def test_a_moved_picture_with_a_new_caption_keeps_its_source_until_it_is_committed(index, encoder, folder):
    bring(index, encoder, folder)
    (folder / "0.png").rename(folder / "9.png")
    (folder / "0.txt").unlink()
    (folder / "9.txt").write_text("one\nnew")
    failing = Failing()
    failing.after = 0
    with pytest.raises(RuntimeError):
        bring(index, failing, folder)
    assert "0.png" in rows_in(index)
    encoder.calls()
    done = bring(index, encoder, folder)
    assert done.moved == 1 and encoder.calls() == (0, 1)
    assert "0.png" not in (rows := rows_in(index)) and rows["9.png#1"]["captions"] == ["new"]


def test_an_encoder_that_fails_on_everything_is_said_to_be_at_fault(index, folder):
    encoder = CountingEncoder()
    encoder.preprocess = lambda modality, item: 1 / 0
    with pytest.raises(FeatureError, match="preprocess failed on all 6 items"):
        bring(index, encoder, folder)


def test_links_out_of_the_folder_are_not_followed(index, encoder, folder, tmp_path):
    write_picture(tmp_path / "elsewhere" / "secret.png", 7)
    (folder / "file.png").symlink_to(tmp_path / "elsewhere" / "secret.png")
    (folder / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (folder / "inside.png").symlink_to(folder / "1.png")
    (folder / "through.png").symlink_to("linked/secret.png")
    done = bring(index, encoder, folder)
    assert {each.id for each in done.rejects} == {"file.png", "through.png"}
    assert "leads out of" in done.rejects[0].reason
    assert "inside.png" in rows_in(index) and done.pictures == 7


def test_a_folder_that_is_reached_by_a_link_is_a_source_like_any_other(index, encoder, folder, tmp_path):
    (tmp_path / "link").symlink_to(folder, target_is_directory=True)
    assert bring(index, encoder, tmp_path / "link").pictures == 6
    assert index.snapshot().head.sources[0].root == str(folder)


def test_sources_are_kept_apart(index, encoder, folder, tmp_path):
    write_picture(tmp_path / "more" / "0.png", 50, ["more"])
    bring(index, encoder, folder)
    bring(index, encoder, tmp_path / "more", "more")
    rows = rows_in(index)
    assert {"more:0.png", "more:0.png#0", "0.png"} < set(rows) and rows["more:0.png#0"]["source"] == "more"
    assert [each.name for each in index.snapshot().head.sources] == ["", "more"]
    (folder / "0.png").unlink()
    bring(index, encoder, folder)
    assert "more:0.png" in rows_in(index)


def test_ids_that_two_sources_share_are_refused(index, encoder, folder, tmp_path):
    write_picture(tmp_path / "more" / "0.png", 50)
    write_picture(folder / "more" / "0.png", 51)
    bring(index, encoder, folder)
    before = rows_in(index)
    with pytest.raises(DataError, match=r"has a picture 'more:0\.png', and so has the source"):
        bring(index, encoder, tmp_path / "more", "more")
    # The source that was refused isn't left behind, where it would be refused again by each update.
    assert rows_in(index) == before and [each.name for each in index.snapshot().head.sources] == [""]


def test_another_encoders_vectors_are_not_mixed_in(index, folder):
    with pytest.raises(ConfigError, match="the vectors of memory aren't those of counting-c"):
        bring(index, CountingEncoder("c"), folder)
    assert made_by(index.snapshot().head, CountingEncoder()) and not made_by(
        index.snapshot().head, CountingEncoder("c")
    )


def test_encoders_that_cannot_fill_an_index():
    encoder = CountingEncoder()
    encoder.modalities = ("image",)
    with pytest.raises(ConfigError, match="encodes no texts"):
        head_of(encoder)
    encoder.modalities = ("image", "text")
    encoder.dim = lambda modality: 3 if modality == "image" else 4
    with pytest.raises(ConfigError, match="spaces of their own"):
        head_of(encoder)


@pytest.mark.parametrize("name", ["batch_size", "commit_size", "workers"])
def test_numbers_below_one_are_refused(name):
    with pytest.raises(ConfigError, match=f"{name} must be at least 1, got 0"):
        SyncConfig(**{name: 0})


@pytest.mark.parametrize("size", [(1, 1), (320, 320), (641, 7), (3, 1000)])
def test_thumbnails_keep_the_shape_and_are_small(size):
    picture = Image.new("RGB", size, (200, 10, 10))
    small = Image.open(io.BytesIO(thumbnail_of(picture)))
    assert small.format == "JPEG" and max(small.size) == min(LONGEST_SIDE, max(size)) and min(small.size) >= 1
    assert picture.size == size
    assert np.asarray(small)[0, 0] == pytest.approx([200, 10, 10], abs=4)


names = st.sampled_from(["a.png", "b.png", "c.png", "d/a.png", "d/b.png"])
captions = st.lists(st.sampled_from(["one", "two", "three"]), max_size=3)
edit = st.one_of(
    st.tuples(st.just("write"), names, st.integers(0, 3), captions),
    st.tuples(st.just("break"), names),
    st.tuples(st.just("remove"), names),
    st.tuples(st.just("move"), names, names),
)


def carry_out(folder, step):
    kind, path = step[0], folder / step[1]
    if kind == "write":
        path.with_suffix(".txt").unlink(missing_ok=True)
        write_picture(path, step[2], step[3] or None)
    elif not path.exists():
        return
    elif kind == "break":
        make_unreadable(path)
    elif kind == "remove":
        path.unlink()
    elif step[1] != step[2]:
        (folder / step[2]).parent.mkdir(exist_ok=True)
        path.rename(folder / step[2])


@settings(max_examples=8)
@given(st.lists(st.lists(edit, min_size=1, max_size=6), min_size=1, max_size=4))
def test_after_any_edits_an_update_is_as_good_as_a_new_build(tmp_path_factory, rounds):
    folder = tmp_path_factory.mktemp("edited")
    # One that stays, as a source without pictures is an error.
    write_picture(folder / "z.png", 200)
    encoder = CountingEncoder()
    index = MemoryIndex(head_of(encoder))
    for steps in rounds:
        for step in steps:
            carry_out(folder, step)
        bring(index, encoder, folder, batch_size=2, commit_size=2, workers=1, allow_removals=True)
        fresh = MemoryIndex(head_of(encoder))
        bring(fresh, encoder, folder, workers=1)
        assert rows_in(index) == rows_in(fresh)
    encoder.calls()
    assert bring(index, encoder, folder).changes == 0 and encoder.calls() == (0, 0)
