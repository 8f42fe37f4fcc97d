"""Against a real index in a folder, and with an encoder that counts."""

import json
import logging
import shutil
import threading
from pathlib import Path

import pytest
from index.small_source import CountingEncoder, rows_in, write_picture

from modalloy.data import demo_manifest
from modalloy.errors import CheckpointError, ConfigError, DataError
from modalloy.index import open_index, watch, writer_lock
from modalloy.index.embedding import Embedding
from modalloy.index.sync import SyncConfig
from modalloy.workflow import indexing
from modalloy.workflow.indexing import Keeper, Updated, source_of


@pytest.fixture(autouse=True)
def encoders(monkeypatch):
    """Encoders by their specs; loading one twice gives the same."""
    made = {spec: CountingEncoder(spec[-1]) for spec in ("counting-a", "counting-c")}
    monkeypatch.setattr(indexing, "load_encoder", made.__getitem__)
    return made


@pytest.fixture
def folder(tmp_path):
    for number in range(4):
        write_picture(tmp_path / "pictures" / f"{number}.png", number, ["one"] if number == 0 else None)
    return tmp_path / "pictures"


@pytest.fixture
def location(tmp_path):
    return str(tmp_path / "index")


@pytest.fixture
def keeper(location):
    return Keeper(location, SyncConfig(batch_size=2, commit_size=2))


def build(location, folder, spec="counting-a", **options):
    return Keeper(location, SyncConfig(**options)).build(str(folder), spec=spec)


def rows(location):
    return rows_in(open_index(location))


def test_building_twice_changes_nothing(keeper, folder, location, encoders):
    first = keeper.build(str(folder), spec="counting-a")
    assert first.sources[0].new == 4 and encoders["counting-a"].calls() == (4, 1)
    again = Keeper(location).build(str(folder))
    assert again.sources[0].changes == 0 and encoders["counting-a"].calls() == (0, 0)
    assert again.version == first.version and again.encoder == "counting-a"
    assert set(rows(location)) == {"0.png", "0.png#0", "1.png", "2.png", "3.png"}
    json.dumps(again.to_dict(), allow_nan=False)


def test_a_real_index_ends_as_a_new_one_would(keeper, folder, location, tmp_path, encoders):
    keeper.build(str(folder), spec="counting-a")
    (folder / "1.png").rename(folder / "9.png")
    (folder / "2.png").unlink()
    (folder / "0.txt").write_text("two\none")
    write_picture(folder / "3.png", 33)
    encoders["counting-a"].calls()
    (done,) = keeper.update().sources
    assert (done.moved, done.removed, done.recaptioned, done.changed) == (1, 1, 1, 1)
    assert encoders["counting-a"].calls() == (1, 1)
    build(str(tmp_path / "fresh"), folder)
    assert rows(location) == rows(str(tmp_path / "fresh"))


def test_further_sources_and_their_updates(keeper, folder, location, tmp_path):
    keeper.build(str(folder), spec="counting-a")
    write_picture(tmp_path / "my holidays" / "0.png", 40)
    assert keeper.add(str(tmp_path / "my holidays")).sources[0].source == "my-holidays"
    assert "my-holidays:0.png" in rows(location)
    # By its path it is known, whatever it is called.
    write_picture(tmp_path / "my holidays" / "1.png", 41)
    assert keeper.add(str(tmp_path / "my holidays")).sources[0].new == 1
    assert keeper.add(str(folder)).sources[0].source == ""
    write_picture(folder / "8.png", 8)
    write_picture(tmp_path / "my holidays" / "2.png", 42)
    assert [each.new for each in keeper.update().sources] == [1, 1]
    assert len([id for id in rows(location) if "#" not in id]) == 8


def test_one_source_out_of_reach_does_not_hold_up_the_others(keeper, folder, location, tmp_path):
    keeper.build(str(folder), spec="counting-a")
    write_picture(tmp_path / "more" / "0.png", 40)
    keeper.add(str(tmp_path / "more"))
    shutil.rmtree(folder)
    write_picture(tmp_path / "more" / "1.png", 41)
    updated = keeper.update()
    assert [each.source for each in updated.sources] == ["more"] and updated.sources[0].new == 1
    (problem,) = updated.problems
    assert "source '' wasn't looked through" in problem and "isn't there" in problem
    assert "0.png" in rows(location)


def test_another_collection_is_not_built_over_an_index(keeper, folder, location, tmp_path):
    keeper.build(str(folder), spec="counting-a")
    write_picture(tmp_path / "more" / "0.png", 40)
    before = rows(location)
    with pytest.raises(ConfigError, match=f"holds {folder} as its source '', not {tmp_path / 'more'}"):
        keeper.build(str(tmp_path / "more"))
    keeper.add(str(tmp_path / "more"), name="x")
    with pytest.raises(ConfigError, match="as its source 'x'"):
        keeper.add(str(folder), name="x")
    assert set(rows(location)) == {*before, "x:0.png"}


def test_a_collection_is_not_held_twice(keeper, folder, location):
    keeper.build(str(folder), spec="counting-a")
    with pytest.raises(ConfigError, match="already, as its source ''; a picture would be found twice"):
        keeper.add(f"{folder}/", name="again")
    assert keeper.add(str(folder), name="").sources[0].changes == 0


@pytest.mark.parametrize("uri", ["s3://bucket/pictures", "https://example.org/cat.png"])
def test_a_collection_behind_a_uri_is_refused(keeper, uri):
    with pytest.raises(ConfigError, match="of this machine"):
        keeper.build(uri, spec="counting-a")


@pytest.mark.parametrize("name", ["a/b", "a:b", "..", "#", "a b"])
def test_names_that_no_source_can_have(name, tmp_path):
    with pytest.raises(ConfigError, match="a source is named with letters"):
        source_of(str(tmp_path), name=name)


def test_the_demo_is_a_source(keeper, monkeypatch, location):
    manifest = demo_manifest()[:3]
    monkeypatch.setattr(indexing, "open_with_rejects", lambda *_: (manifest, []))
    assert keeper.build("demo", spec="counting-a").sources[0].pictures == 3
    assert open_index(location).head.sources[0].collection == "demo"


def test_mistakes_leave_no_folder_behind(location, tmp_path, folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="nowhere isn't there"):
        build(location, tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"there is no alloy in runs/"):
        Keeper(location).build(str(folder))
    keeper = Keeper(location)
    for step in (keeper.update, lambda: keeper.add(str(folder)), lambda: keeper.watch(Updated(location, "", 0, 0, ()))):
        with pytest.raises(CheckpointError, match="holds no index"):
            step()
    assert not (tmp_path / "index").exists()


def test_a_build_that_fails_leaves_no_empty_index_behind(keeper, folder, location, tmp_path, monkeypatch):
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="none"):
        keeper.build(str(tmp_path / "none"), spec="counting-a")
    assert not (tmp_path / "index").exists()
    # Only an index that this build has made: a folder that was there stays, and so do pictures that are in.
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "notes.txt").touch()
    with pytest.raises(DataError, match="none"):
        keeper.build(str(tmp_path / "none"), spec="counting-a")
    assert (tmp_path / "index" / "notes.txt").exists()
    shutil.rmtree(location)
    embedded = Embedding.rows

    def full(self, *arguments):
        if open_index(location).snapshot().count():
            raise OSError("the disk is full")
        return embedded(self, *arguments)

    monkeypatch.setattr(Embedding, "rows", full)
    with pytest.raises(OSError, match="is full"):
        keeper.build(str(folder), spec="counting-a")
    assert rows(location)


def test_another_encoder_embeds_all_anew_beside_and_switches(keeper, folder, location, tmp_path, encoders, monkeypatch):
    keeper.build(str(folder), spec="counting-a")
    write_picture(tmp_path / "more" / "0.png", 40)
    keeper.add(str(tmp_path / "more"))
    before, during, synced = rows(location), [], indexing.sync

    def sync(index, *arguments):
        done = synced(index, *arguments)
        during.append(rows(location))
        if len(during) == 2:
            # Too late for the first look.
            write_picture(folder / "late.png", 77)
        return done

    monkeypatch.setattr(indexing, "sync", sync)
    updated = keeper.build(str(folder), spec="counting-c")
    # Until the end readers see the old one, whole.
    assert during == [before] * 4
    assert updated.generation == 1 and updated.encoder == "counting-c"
    after = rows(location)
    assert set(after) == {*before, "late.png"}
    for id, row in before.items():
        assert (row["image_vector"], row["text_vector"]) != (after[id]["image_vector"], after[id]["text_vector"]) or (
            row["modality"] == "text"
        )
    encoders["counting-c"].calls()
    assert keeper.update().sources[0].changes == 0 and encoders["counting-c"].calls() == (0, 0)


def test_a_killed_upgrade_goes_on_where_it_stopped(keeper, folder, location, encoders, monkeypatch):
    keeper.build(str(folder), spec="counting-a")
    before, encoder = rows(location), encoders["counting-c"]
    forward = encoder.forward

    def failing(modality, prepared):
        if modality == "image" and encoder.embedded.count("image") == 2:
            raise RuntimeError("killed")
        return forward(modality, prepared)

    monkeypatch.setattr(encoder, "forward", failing)
    with pytest.raises(RuntimeError, match="killed"):
        keeper.build(str(folder), spec="counting-c")
    assert rows(location) == before and open_index(location).head.spec == "counting-a"
    monkeypatch.setattr(encoder, "forward", forward)
    encoder.calls()
    assert keeper.build(str(folder), spec="counting-c").generation == 1
    assert encoder.calls() == (2, 0)


def test_an_upgrade_does_not_lose_a_disk_that_is_not_mounted(keeper, folder, location):
    keeper.build(str(folder), spec="counting-a")
    before = rows(location)
    for number in range(3):
        (folder / f"{number}.png").unlink()
    with pytest.raises(DataError, match=r"3 of the 4 pictures .* are gone"):
        keeper.build(str(folder), spec="counting-c")
    assert rows(location) == before
    assert build(location, folder, "counting-c", allow_removals=True).sources[0].pictures == 1
    assert set(rows(location)) == {"3.png"}


def test_an_encoder_that_changed_where_it_is(keeper, folder, location, encoders):
    keeper.build(str(folder), spec="counting-a")
    encoders["counting-a"] = CountingEncoder("d")
    encoders["counting-a"].spec = "counting-a"
    with pytest.raises(ConfigError, match="counting-a isn't any more what made the vectors"):
        Keeper(location).update()
    assert Keeper(location).build(str(folder)).generation == 1


def test_an_encoder_that_moved(keeper, folder, location, encoders):
    keeper.build(str(folder), spec="counting-a")
    moved = CountingEncoder()
    moved.name = moved.spec = "moved"
    moved.fingerprint = encoders["counting-a"].fingerprint
    encoders["moved"] = moved
    updated = keeper.build(str(folder), spec="moved")
    assert (updated.generation, updated.encoder, updated.sources[0].changes) == (0, "moved", 0)


def test_an_index_and_its_encoder_move_together(folder, tmp_path, encoders):
    (tmp_path / "run" / "alloy").mkdir(parents=True)
    for place in ("run", "moved"):
        encoders[f"counting:{tmp_path / place / 'alloy'}"] = encoder = CountingEncoder()
        encoder.spec = f"counting:{tmp_path / place / 'alloy'}"
        encoder.fingerprint = CountingEncoder().fingerprint
    made = build(str(tmp_path / "run" / "index"), folder, f"counting:{tmp_path / 'run' / 'alloy'}")
    assert made.encoder == f"counting:{tmp_path / 'run' / 'alloy'}"
    (tmp_path / "run").rename(tmp_path / "moved")
    updated = Keeper(str(tmp_path / "moved" / "index")).update()
    assert updated.encoder == f"counting:{tmp_path / 'moved' / 'alloy'}" and updated.sources[0].changes == 0


def test_a_damaged_index_is_not_taken_for_a_missing_one(keeper, folder, location, tmp_path):
    keeper.build(str(folder), spec="counting-a")
    for file in (tmp_path / "index" / "head.lance").rglob("*.lance"):
        file.write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="can't be read as an index"):
        keeper.build(str(folder), spec="counting-a")


def test_writers_wait_for_each_other(keeper, folder, location):
    keeper.build(str(folder), spec="counting-a")
    write_picture(folder / "5.png", 5)
    done = []
    with writer_lock(location):
        other = threading.Thread(target=lambda: done.append(Keeper(location).update()))
        other.start()
        other.join(0.3)
        assert other.is_alive() and not done
    other.join(20)
    assert done[0].sources[0].new == 1


def test_a_writer_goes_on_where_the_one_it_waited_for_has_failed(location):
    def write():
        with writer_lock(location):
            done.append((Path(location) / ".writer.lock").exists())

    done = []
    with writer_lock(location):
        other = threading.Thread(target=write)
        other.start()
        other.join(0.3)
        assert other.is_alive()
        shutil.rmtree(location)
    other.join(20)
    assert done == [True]


def test_a_watched_folder_is_followed(keeper, folder, location, monkeypatch, caplog):
    monkeypatch.setattr(watch, "_DEBOUNCE_MS", 50)
    monkeypatch.setattr(watch, "_FIRST_LOOK_MS", 50)
    built = keeper.build(str(folder), spec="counting-a")
    updates, update = [], keeper.update

    def counted():
        updates.append(update())
        if len(updates) == 1:
            (folder / "bad.png").write_bytes(b"no picture")
            write_picture(folder / "sub" / "5.png", 5)
        if "sub:7.png" in rows(location):
            raise KeyboardInterrupt
        for number in (5, 6):
            if f"sub:{number}.png" in rows(location):
                write_picture(folder / "sub" / f"{number + 1}.png", number + 1)
        return updates[-1]

    monkeypatch.setattr(keeper, "update", counted)
    with caplog.at_level(logging.WARNING, "modalloy"):
        total = keeper.watch(built)
    # The four of the build, and two that were found at two looks; the last one was interrupted.
    assert (total.sources[0].new, total.sources[0].pictures, total.version) == (6, 6, updates[-2].version)
    assert {each.id for each in total.sources[0].rejects} == {"bad.png"}
    assert caplog.text.count("left out: bad.png") == 1


def test_what_is_done_at_two_times_adds_up_by_source(keeper, folder, tmp_path):
    write_picture(tmp_path / "more" / "9.png", 9)
    first = keeper.build(str(folder), spec="counting-a")
    (folder / "0.png").unlink()
    added = keeper.add(str(tmp_path / "more"))
    both = first.then(added).then(keeper.update())
    assert [(each.source, each.pictures, each.new, each.removed) for each in both.sources] == [
        ("", 3, 4, 1),
        ("more", 1, 1, 0),
    ]


def test_what_is_broken_is_told_once_until_it_is_mended(keeper, folder, location, monkeypatch, caplog):
    def broken():
        (folder / "3.png").write_bytes(b"no picture")

    def mended():
        write_picture(folder / "3.png", 3)

    def told(change):
        change()
        caplog.clear()
        monkeypatch.setattr(indexing, "watch", lambda _, update, __: update())
        keeper.watch(built)
        return caplog.text.count("left out: 3.png")

    (folder / "0.txt").write_text(" ")
    (folder / "a.heic").touch()
    broken()
    built = keeper.build(str(folder), spec="counting-a")
    # Who builds and goes on to watch sees what the build returned only at the end.
    assert told(broken) == 1 and caplog.text.count("left out: 0.png: caption 1 of 1 is blank") == 1
    assert caplog.text.count("1 .heic (not read") == 1
    assert told(broken) == 0 and "0.png" not in caplog.text and ".heic" not in caplog.text
    assert told(mended) == 0
    assert told(broken) == 1 and "0.png" not in caplog.text
