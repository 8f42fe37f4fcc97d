"""Tokens made of stored ones, against each item's made on its own."""

from collections.abc import Callable

import pytest
import torch

from modalloy.encoders.base import Encoded, Modality
from modalloy.errors import ConfigError, FeatureError
from modalloy.features import FeatureStore, derive_tokens, extract, lock

SMALL = {"batch_size": 2, "shard_size": 4, "progress": False}
ROWS = torch.tensor([8, 0, 3, 7, 2, 6])


@pytest.fixture
def base(encoder, make_collection, tmp_path) -> FeatureStore:
    return extract(encoder, "image", make_collection(9, corrupt=[5]), tmp_path / "base", **SMALL)


@pytest.fixture
def mapped(make_encoder):
    """Another encoder on the same backbone, whose tokens have three numbers, and embeddings two."""

    class Mapped(make_encoder):
        spec = "local:somewhere"

        def dim(self, modality: Modality) -> int:
            return 2

        def width(self, modality: Modality) -> int:
            return 3

    return Mapped


def made(encoded: Encoded) -> Encoded:
    tokens = torch.cat([encoded.tokens / 3, encoded.tokens[:, :1]], 1)
    return Encoded(encoded.embedding[:, :2], tokens, encoded.lengths)


class Counted:
    """Remembers how many items each call had."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, encoded: Encoded) -> Encoded:
        self.calls.append(len(encoded))
        return made(encoded)


def test_each_item_s_are_made_of_its_own(base, mapped, tmp_path) -> None:
    store = derive_tokens(base, ROWS, mapped(), tmp_path / "mapped", made, batch_size=3)
    assert store.ids == tuple(base.ids[row] for row in ROWS) and store.verify() == []
    assert (store.dim, store.width, store.spec, store.rejects()) == (2, 3, "local:somewhere", [])
    for place, row in enumerate(ROWS.tolist()):
        tokens, lengths = base.tokens(torch.tensor([row]))
        expected = made(Encoded(base.embeddings(torch.tensor([row])), tokens.float(), lengths))
        found, count = store.tokens(torch.tensor([place]))
        assert torch.equal(found, expected.tokens.half()) and torch.equal(count, lengths)
        assert torch.equal(store.embeddings(torch.tensor([place])), expected.embedding)


def test_it_stands_without_its_base(base, mapped, tmp_path) -> None:
    kept = derive_tokens(base, ROWS, mapped(), tmp_path / "mapped", made).tokens()[0].clone()
    base.folder.rename(tmp_path / "gone")
    assert torch.equal(FeatureStore.open(tmp_path / "mapped").tokens()[0], kept)


def test_a_finished_one_is_opened_and_an_interrupted_one_goes_on(base, mapped, tmp_path, files_in) -> None:
    whole = Counted()
    derive_tokens(base, ROWS, mapped(), tmp_path / "mapped", whole)
    assert whole.calls == [4, 2]
    known = files_in(tmp_path / "mapped")
    again = Counted()
    derive_tokens(base, ROWS, mapped(), tmp_path / "mapped", again)
    assert again.calls == []
    for name in ("manifest.json", "shard-00001.safetensors"):
        (tmp_path / "mapped" / name).unlink()
    (tmp_path / "mapped" / ".partial-ab-shard-00001.safetensors").write_bytes(b"cut off")
    derive_tokens(base, ROWS, mapped(), tmp_path / "mapped", again)
    assert again.calls == [2] and files_in(tmp_path / "mapped") == known


def test_one_of_other_weights_is_never_taken_for_it(base, mapped, tmp_path) -> None:
    derive_tokens(base, ROWS, mapped("1"), tmp_path / "mapped", made)
    with pytest.raises(FeatureError, match="made by another encoder"):
        derive_tokens(base, ROWS, mapped("2"), tmp_path / "mapped", made)


def test_what_has_changed_is_made_again(encoder, base, mapped, make_collection, tmp_path) -> None:
    derive_tokens(base, ROWS, mapped(), tmp_path / "mapped", made)
    # Rows 4 to 7, and so shard 1 of the base, are others: both shards of ROWS hold one of them.
    changed = extract(encoder, "image", make_collection(9), base.folder, **SMALL)
    again = Counted()
    derive_tokens(changed, ROWS, mapped(), tmp_path / "mapped", again)
    assert again.calls == [4, 2]
    # Another sixth item is another second shard.
    store = derive_tokens(changed, torch.cat([ROWS[:5], torch.tensor([5])]), mapped(), tmp_path / "mapped", again)
    assert again.calls == [4, 2, 2] and store.ids[5] == "item5"


def test_an_item_without_features_is_named(base, mapped, tmp_path) -> None:
    with pytest.raises(FeatureError, match="has no features of 'item5'; leave it out"):
        derive_tokens(base, torch.tensor([1, 5]), mapped(), tmp_path / "mapped", made)


@pytest.mark.parametrize(
    ("transform", "complaint"),
    [
        (lambda e: spoilt(e, torch.inf), r"non-finite token \(NaN, or beyond float16\) of 'item2', where finite"),
        (lambda e: spoilt(e, 65520.0), r"non-finite token \(NaN, or beyond float16\) of 'item2'"),
        (lambda e: Encoded(made(e).embedding * torch.nan, made(e).tokens, e.lengths), "embedding of 'item1'"),
        (lambda e: Encoded(made(e).embedding, e.tokens, e.lengths), "local:somewhere broke its contract"),
        (lambda e: Encoded(e.embedding, made(e).tokens, e.lengths), "local:somewhere broke its contract"),
    ],
    ids=["infinite", "beyond float16", "embedding", "width", "dim"],
)
def test_what_cannot_be_kept_is_refused(
    base, mapped, tmp_path, transform: Callable[[Encoded], Encoded], complaint: str
) -> None:
    with pytest.raises(FeatureError, match=complaint):
        derive_tokens(base, torch.tensor([1, 2]), mapped(), tmp_path / "mapped", transform)
    with pytest.raises(FeatureError, match="no finished features"):
        FeatureStore.open(tmp_path / "mapped")


def spoilt(encoded: Encoded, value: float) -> Encoded:
    """With such a number in the last token."""
    whole = made(encoded)
    tokens = whole.tokens.clone()
    tokens[-1, 0] = value
    return Encoded(whole.embedding, tokens, whole.lengths)


def test_the_largest_float16_is_kept(base, mapped, tmp_path) -> None:
    store = derive_tokens(base, ROWS[:2], mapped(), tmp_path / "mapped", lambda each: spoilt(each, 65504.0))
    assert store.tokens()[0].max() == 65504


def test_bad_options_and_a_second_writer_are_refused(base, mapped, tmp_path, monkeypatch) -> None:
    with pytest.raises(ConfigError, match="batch_size must be at least 1, got 0"):
        derive_tokens(base, ROWS, mapped(), tmp_path / "mapped", made, batch_size=0)
    monkeypatch.setattr(lock, "_WAIT_SECONDS", 0.01)
    with lock.only_writer(tmp_path / "mapped"), pytest.raises(FeatureError, match="Another process is writing to"):
        derive_tokens(base, ROWS, mapped(), tmp_path / "mapped", made)
