import pytest
import torch
from PIL import Image

from modalloy.data import Manifest
from modalloy.data.rand_augment import RandAugment
from modalloy.errors import FeatureError
from modalloy.features import extract, pad
from modalloy.features.sources import AugmentedImages
from modalloy.fusion import FeatureSet, InputShape, TowerConfig, TowerFuser, input_shapes


@pytest.fixture(scope="module")
def encoders(make_encoder):
    return [make_encoder(0), make_encoder(1)]


@pytest.fixture(scope="module")
def manifest(make_collection, tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    return make_collection(root, {"train": 6, "val": 3}, corrupt=[2], refused=[4])


@pytest.fixture(scope="module")
def sets(manifest, encoders, make_feature_set, tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    return {m: make_feature_set(manifest, folder, encoders, m) for m in ("image", "text")}


@pytest.mark.parametrize("modality", ["image", "text"])
def test_a_batch_holds_every_encoders_features_of_the_rows(sets, modality):
    features, rows = sets[modality], torch.tensor([5, 0, 3])
    batch = features.batch(rows)
    for encoder, (store, each) in enumerate(zip(features.stores, batch, strict=True)):
        assert torch.equal(each.embedding, store.embeddings(rows))
        assert torch.equal(features.embeddings(encoder, rows), store.embeddings(rows))
        tokens, mask = pad(*store.tokens(rows))
        assert torch.equal(each.tokens, tokens.float())
        assert each.tokens.dtype == torch.float32
        assert torch.equal(each.mask, mask)


def test_rows_that_an_encoder_rejected_are_not_valid(sets):
    assert len(sets["image"]) == 9
    assert (~sets["image"].valid).nonzero().flatten().tolist() == [2]
    assert (~sets["text"].valid).nonzero().flatten().tolist() == [9]


def test_a_row_is_valid_if_every_encoder_accepted_it(manifest, encoders, make_collection, make_encoder, tmp_path):
    class Picky(make_encoder):
        def preprocess(self, modality, item):
            item = "refused" if isinstance(item, str) and "words 1" in item else item
            return super().preprocess(modality, item)

    stores = [
        extract(encoder, "text", manifest, tmp_path / str(k), workers=1, progress=False)
        for k, encoder in enumerate([encoders[0], Picky(1)])
    ]
    features = FeatureSet(stores)
    assert torch.equal(features.valid, stores[0].valid & stores[1].valid)
    assert features.valid.tolist() == [True, False] * 9


def test_batches_cover_the_rows_in_order(sets):
    rows = torch.tensor([8, 1, 0, 7, 3])
    batches = list(sets["image"].batches(rows, 2))
    assert [len(batch[0].embedding) for batch in batches] == [2, 2, 1]
    together = torch.cat([batch[1].embedding for batch in batches])
    assert torch.equal(together, sets["image"].embeddings(1, rows))


def test_no_rows_make_no_batch(sets):
    assert list(sets["image"].batches(torch.tensor([], dtype=torch.long), 2)) == []


def test_the_shapes_are_the_encoders(sets):
    assert input_shapes(sets["image"], sets["text"]) == [InputShape(3, 2, 4), InputShape(4, 3, 5)]


def test_stores_of_other_items_or_modalities_are_refused(sets, manifest, encoders, make_feature_set, tmp_path):
    with pytest.raises(FeatureError, match="none"):
        FeatureSet([])
    with pytest.raises(FeatureError, match="encoder 1's features are of modality 'text', encoder 0's"):
        FeatureSet([sets["image"].stores[0], sets["text"].stores[1]])
    fewer = Manifest(manifest.root, manifest.items[:-1])
    shuffled = Manifest(manifest.root, manifest.items[::-1])
    for name, other in (("fewer", fewer), ("shuffled", shuffled)):
        store = make_feature_set(other, tmp_path / name, encoders[1:], "image").stores[0]
        with pytest.raises(FeatureError, match="encoders 0 and 1 don't hold the same image items"):
            FeatureSet([sets["image"].stores[0], store])


def test_encoders_that_are_not_dual_are_refused(sets, manifest, encoders, make_feature_set, tmp_path):
    swapped = make_feature_set(manifest, tmp_path, encoders[::-1], "text")
    with pytest.raises(FeatureError, match=r"encoder 0's image embeddings are 3 wide .* text embeddings 4"):
        input_shapes(sets["image"], swapped)
    with pytest.raises(FeatureError, match="image features of 2 encoders and text features of 1"):
        input_shapes(sets["image"], FeatureSet(sets["text"].stores[:1]))


@pytest.mark.parametrize("method", ["hada", "concat-linear"])
def test_only_what_reads_tokens_needs_them(sets, method):
    rows = torch.tensor([5, 0, 3])
    full, bare = sets["image"].batch(rows), sets["image"].batch(rows, tokens=0)
    for with_tokens, without in zip(full, bare, strict=True):
        assert torch.equal(with_tokens.embedding, without.embedding)
        assert without.tokens.shape == (3, 0, with_tokens.tokens.shape[2])
        assert without.mask.shape == (3, 0)
    shapes = input_shapes(sets["image"], sets["text"])
    fuser = TowerFuser(TowerConfig(method=method, token_dim=4, heads=1), shapes).eval()
    assert fuser.tokens_read == (None if method == "hada" else 0)
    if fuser.tokens_read == 0:
        assert torch.equal(fuser.embed("image", full), fuser.embed("image", bare))


def test_summaries_are_all_that_some_fusers_read(sets):
    rows = torch.tensor([5, 0, 3])
    full, first = sets["image"].batch(rows), sets["image"].batch(rows, tokens=1)
    for every, summary in zip(full, first, strict=True):
        assert torch.equal(summary.tokens, every.tokens[:, :1]) and summary.mask.all()
    shapes = input_shapes(sets["image"], sets["text"])
    fuser = TowerFuser(TowerConfig(method="concat-linear", read_summaries=True), shapes).eval()
    assert fuser.tokens_read == 1
    assert torch.equal(fuser.embed("image", full), fuser.embed("image", first))
    assert torch.equal(fuser.embed("image", first), fuser.embed_rows(sets["image"], rows))


# Augmented copies -----------------------------------------------------------------------------------------


class Repainted(AugmentedImages):
    """Copies that can be told apart by their colour."""

    def load(self, row):
        super().load(row)
        return Image.new("RGB", (2, 2), (10 + 20 * row, 200 - 90 * self._copy, 33))


@pytest.fixture(scope="module")
def augmented(manifest, encoders, tmp_path_factory):
    """Encoder 0 has two copies of the training images, encoder 1 the first of them only; image 2 is damaged."""
    folder = tmp_path_factory.mktemp("augmented")
    stores = [
        [
            extract(
                encoder,
                "image",
                manifest,
                folder / f"{position}-{copy}",
                workers=1,
                progress=False,
                source=Repainted(manifest, RandAugment(), copy),
            )
            for copy in range(2 - position)
        ]
        for position, encoder in enumerate(encoders)
    ]
    return stores


def test_a_batch_mixes_the_chosen_copies(sets, augmented):
    features = FeatureSet(sets["image"].stores, augmented)
    assert features.copies == 2
    rows, copies = torch.tensor([5, 0, 3, 1, 4, 0]), torch.tensor([1, -1, 0, 0, 1, 1])
    batch = features.batch(rows, copies=copies)
    for position, each in enumerate(batch):
        for place, (row, copy) in enumerate(zip(rows.tolist(), copies.tolist(), strict=True)):
            # Encoder 1 has no second copy.
            plain = copy < 0 or copy >= 2 - position
            store = features.stores[position] if plain else augmented[position][copy]
            row_there = store.rows_of([str(row)])
            assert torch.equal(each.embedding[place], store.embeddings(row_there)[0])
            tokens = store.tokens(row_there)[0].float()
            assert torch.equal(each.tokens[place][each.mask[place]], tokens)
            assert not each.tokens[place][~each.mask[place]].any()
    assert not torch.equal(batch[0].embedding, features.batch(rows)[0].embedding)


def test_copies_chosen_for_nobody_change_nothing(sets, augmented):
    features, rows = FeatureSet(sets["image"].stores, augmented), torch.tensor([5, 0, 3])
    for plain, mixed in zip(features.batch(rows), features.batch(rows, copies=torch.full((3,), -1)), strict=True):
        assert torch.equal(plain.embedding, mixed.embedding) and torch.equal(plain.tokens, mixed.tokens)
    none = torch.tensor([], dtype=torch.long)
    assert len(features.batch(none, copies=none)[0].embedding) == 0
    without = features.batch(rows, tokens=0, copies=torch.tensor([0, 1, -1]))
    assert without[0].tokens.shape == (3, 0, 2)


def test_a_rejected_or_missing_copy_is_replaced_by_the_item_itself(sets, augmented, manifest, encoders, tmp_path):
    features = FeatureSet(sets["image"].stores, augmented)
    # Image 2's copies were rejected as it was itself, and image 7 is no training image.
    rows = torch.tensor([2, 7, 5])
    batch = features.batch(rows, copies=torch.zeros(3, dtype=torch.long))
    assert torch.equal(batch[0].embedding[1], features.embeddings(0, rows)[1])
    assert not torch.equal(batch[0].embedding[2], features.embeddings(0, rows)[2])
    assert batch[0].embedding[0].isnan().all()
    assert [copies.lacking(rows) for copies in features.augmented] == [4, 2]
    assert features.augmented[0].lacking(torch.tensor([0, 1, 3, 4, 5])) == 0


def test_without_copies_there_are_none(sets):
    assert sets["image"].copies == 0
    rows = torch.tensor([5, 0])
    batch = sets["image"].batch(rows, copies=torch.tensor([0, 3]))
    assert torch.equal(batch[0].tokens, sets["image"].batch(rows)[0].tokens)


def test_copies_of_other_encoders_or_items_are_refused(sets, augmented, manifest, encoders, tmp_path):
    stores = sets["image"].stores
    with pytest.raises(FeatureError, match="augmented copies for 1 of 2 encoders"):
        FeatureSet(stores, augmented[:1])
    with pytest.raises(FeatureError, match="weren't made by the encoder of"):
        FeatureSet(stores, augmented[::-1])
    with pytest.raises(FeatureError, match="weren't made by the encoder of"):
        FeatureSet(stores, [[sets["text"].stores[0]], []])
    few = FeatureSet([extract(encoders[0], "image", manifest.split("val"), tmp_path, workers=1, progress=False)]).stores
    with pytest.raises(FeatureError, match="6 of 6 ids aren't in"):
        FeatureSet(few, [augmented[0]])
