from collections.abc import Callable

import pytest
import torch

from modalloy.encoders.base import Encoded, Modality
from modalloy.errors import ConfigError, FeatureError
from modalloy.features import FeatureStore, derive, extract, lock

SMALL = {"batch_size": 2, "shard_size": 4, "progress": False}


@pytest.fixture
def base(encoder, make_collection, tmp_path) -> FeatureStore:
    return extract(encoder, "image", make_collection(9, corrupt=[5]), tmp_path / "base", **SMALL)


@pytest.fixture
def aligned(make_encoder):
    """Another encoder on the same backbone, whose embeddings have two dimensions."""

    class Aligned(make_encoder):
        spec = "hacan:somewhere"

        def dim(self, modality: Modality) -> int:
            return 2

    return Aligned("1")


def halved(encoded: Encoded) -> Encoded:
    return Encoded(encoded.embedding[:, :2] / 2, encoded.tokens, encoded.lengths)


def test_embeddings_are_transformed_and_tokens_shared(base, aligned, tmp_path, files_in) -> None:
    derived = derive(base, aligned, tmp_path / "derived", halved, batch_size=3)
    torch.testing.assert_close(derived.embeddings(), base.embeddings()[:, :2] / 2, equal_nan=True)
    rows = torch.tensor([8, 5, 0])
    torch.testing.assert_close(derived.tokens(rows), base.tokens(rows))
    assert derived.ids == base.ids and derived.rejects() == base.rejects()
    assert derived.valid.tolist() == base.valid.tolist()
    assert (derived.dim, derived.width, derived.spec) == (2, 2, "hacan:somewhere")
    assert derived.fingerprint == aligned.fingerprint("image")
    assert derived.verify() == []
    sizes = {name: len(data) for name, data in files_in(derived.folder).items()}
    assert sizes["shard-00000.safetensors"] < (base.folder / "shard-00000.safetensors").stat().st_size


def test_transform_sees_only_valid_items_with_their_tokens(base, aligned, tmp_path) -> None:
    seen: list[Encoded] = []

    def watched(encoded: Encoded) -> Encoded:
        seen.append(encoded)
        return halved(encoded)

    derive(base, aligned, tmp_path / "derived", watched, batch_size=3)
    everything = Encoded.concatenate(seen)
    assert [len(encoded) for encoded in seen] == [3, 1, 3, 1]
    torch.testing.assert_close(everything.embedding, base.embeddings()[base.valid])
    torch.testing.assert_close(everything.tokens, base.tokens()[0].float())
    assert everything.tokens.dtype == torch.float32


def test_finished_store_is_only_opened(base, aligned, tmp_path) -> None:
    derive(base, aligned, tmp_path / "derived", halved)

    def unreachable(encoded: Encoded) -> Encoded:
        raise AssertionError("called")

    assert len(derive(base, aligned, tmp_path / "derived", unreachable)) == 9


def test_both_folders_can_move_together(base, aligned, tmp_path) -> None:
    derive(base, aligned, tmp_path / "derived", halved)
    (tmp_path / "elsewhere").mkdir()
    for name in ("base", "derived"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    moved = FeatureStore.open(tmp_path / "elsewhere" / "derived")
    assert moved.tokens()[0].shape[1] == 2


def test_missing_base_is_named(base, aligned, tmp_path) -> None:
    derive(base, aligned, tmp_path / "derived", halved)
    base.folder.rename(tmp_path / "gone")
    with pytest.raises(FeatureError, match=r"derived refer to tokens that can't be opened: .*base holds no finished"):
        FeatureStore.open(tmp_path / "derived")


@pytest.mark.parametrize("change", ["weights", "collection"])
def test_changed_base_is_refused(base, aligned, make_encoder, make_collection, tmp_path, change) -> None:
    derive(base, aligned, tmp_path / "derived", halved)
    for path in base.folder.iterdir():
        path.unlink()
    collection = make_collection(9, corrupt=[5] if change == "weights" else [])
    extract(make_encoder("7" if change == "weights" else "0"), "image", collection, base.folder, **SMALL)
    with pytest.raises(FeatureError, match=r"derived from others than .*base holds now.*derive them again"):
        FeatureStore.open(tmp_path / "derived")


def test_changed_base_is_derived_again(base, aligned, make_collection, encoder, tmp_path) -> None:
    derive(base, aligned, tmp_path / "derived", halved)
    grown = extract(encoder, "image", make_collection(10, corrupt=[5]), base.folder, **SMALL)
    calls = []

    def counted(encoded: Encoded) -> Encoded:
        calls.append(len(encoded))
        return halved(encoded)

    derived = derive(grown, aligned, tmp_path / "derived", counted)
    # Two whole shards stay, the last one has grown.
    assert calls == [2]
    torch.testing.assert_close(derived.embeddings(), grown.embeddings()[:, :2] / 2, equal_nan=True)


def test_derived_from_derived_shares_the_first_tokens(base, aligned, make_encoder, tmp_path) -> None:
    first = derive(base, aligned, tmp_path / "first", halved)
    second = derive(first, make_encoder("2"), tmp_path / "second", tripled)
    torch.testing.assert_close(second.tokens(), base.tokens())


def tripled(encoded: Encoded) -> Encoded:
    return Encoded(encoded.embedding.repeat(1, 2)[:, :3], encoded.tokens, encoded.lengths)


@pytest.mark.parametrize(
    ("transform", "complaint"),
    [
        (lambda e: Encoded(e.embedding, e.tokens, e.lengths), r"shape \(4, 2\) expected, got \(4, 3\)"),
        (lambda e: Encoded(e.embedding[:, :2], e.tokens + 1, e.lengths), "changed the tokens"),
        (
            lambda e: Encoded(e.embedding[:, :2] / 0, e.tokens, e.lengths),
            "aren't finite for 4 items, .* 'item0'",
        ),
    ],
    ids=["shape", "tokens", "non-finite"],
)
def test_refuses_a_wrong_transform(
    base, aligned, tmp_path, transform: Callable[[Encoded], Encoded], complaint: str
) -> None:
    with pytest.raises(FeatureError, match=complaint):
        derive(base, aligned, tmp_path / "derived", transform)


def test_refuses_an_encoder_of_another_width(base, make_encoder, tmp_path) -> None:
    class Wide(make_encoder):
        def width(self, modality: Modality) -> int:
            return 5

    with pytest.raises(ConfigError, match=r"tokens of width 5, but .*base.* has width 2"):
        derive(base, Wide("1"), tmp_path / "derived", halved)


def test_refuses_a_batch_size_of_zero(base, aligned, tmp_path) -> None:
    with pytest.raises(ConfigError, match="batch_size must be at least 1, got 0"):
        derive(base, aligned, tmp_path / "derived", halved, batch_size=0)


def test_damaged_base_is_found_by_verify(base, aligned, tmp_path) -> None:
    derived = derive(base, aligned, tmp_path / "derived", halved)
    (base.folder / "shard-00001.safetensors").unlink()
    (problem,) = derived.verify()
    assert "base/shard-00001.safetensors is missing" in problem


def test_two_at_once_into_one_folder_are_refused(base, aligned, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(lock, "_WAIT_SECONDS", 0.01)
    with lock.only_writer(tmp_path / "derived"), pytest.raises(FeatureError, match="Another process is writing to"):
        derive(base, aligned, tmp_path / "derived", halved)
    assert len(derive(base, aligned, tmp_path / "derived", halved)) == 9


def test_an_item_put_back_into_the_base_is_derived_too(encoder, aligned, make_collection, tmp_path) -> None:
    collection = make_collection(9)
    picture = collection.root / "5.png"
    whole = picture.read_bytes()
    picture.write_bytes(b"not a picture")
    before = extract(encoder, "image", collection, tmp_path / "base", **SMALL)
    assert not derive(before, aligned, tmp_path / "derived", halved).valid[5]
    picture.write_bytes(whole)
    after = extract(encoder, "image", collection, tmp_path / "base", **SMALL)
    assert after.valid.all() and after.shard_digests != before.shard_digests
    derived = derive(after, aligned, tmp_path / "derived", halved)
    assert derived.valid.all() and derived.embeddings().isfinite().all() and derived.verify() == []
