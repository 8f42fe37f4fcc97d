import pytest
import torch

from modalloy.data import Manifest
from modalloy.errors import FeatureError
from modalloy.features import extract, pad
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
    full, bare = sets["image"].batch(rows), sets["image"].batch(rows, tokens=False)
    for with_tokens, without in zip(full, bare, strict=True):
        assert torch.equal(with_tokens.embedding, without.embedding)
        assert without.tokens.shape == (3, 0, with_tokens.tokens.shape[2])
        assert without.mask.shape == (3, 0)
    shapes = input_shapes(sets["image"], sets["text"])
    fuser = TowerFuser(TowerConfig(method=method, token_dim=4, heads=1), shapes).eval()
    assert fuser.reads_tokens == (method == "hada")
    if not fuser.reads_tokens:
        assert torch.equal(fuser.embed("image", full), fuser.embed("image", bare))
