import pytest
import torch

from modalloy.data import Manifest
from modalloy.errors import DataError, FeatureError
from modalloy.fusion import PairedFeatures, ScoreFusion, TowerConfig, TowerFuser, input_shapes

SPLITS = {"train": 6, "val": 4, "test": 3}


@pytest.fixture(scope="module")
def encoders(make_encoder):
    return [make_encoder(0), make_encoder(1)]


@pytest.fixture(scope="module")
def paired(make_collection, encoders, make_paired, tmp_path_factory):
    """Images 2 and 8 are corrupt, of images 4 and 9 the last caption is refused."""
    folder = tmp_path_factory.mktemp("collection")
    manifest = make_collection(folder / "pictures", SPLITS, corrupt=[2, 8], refused=[4, 9])
    return make_paired(manifest, folder / "features", encoders)


@pytest.mark.parametrize(
    ("splits", "images", "captions"),
    [
        (["train"], [0, 1, 3, 4, 5], [0, 1, 2, 3, 6, 7, 8, 10, 11]),
        (["val"], [6, 7, 9], [12, 13, 14, 15, 18]),
        (["val", "test"], [6, 7, 9, 10, 11, 12], [12, 13, 14, 15, 18, 20, 21, 22, 23, 24, 25]),
    ],
)
def test_a_split_holds_what_every_encoder_could_encode(paired, splits, images, captions):
    split = paired.split(*splits)
    assert split.image_rows.tolist() == images
    assert split.caption_rows.tolist() == captions
    owners = paired.manifest.caption_image[split.caption_rows]
    assert split.image_rows[split.caption_image].tolist() == owners.tolist()
    for modality, rows in (("image", split.image_rows), ("text", split.caption_rows)):
        for features in getattr(paired, modality).batch(rows):
            assert features.embedding.isfinite().all()
            assert features.mask[:, 0].all()


@pytest.mark.parametrize("names", [["tune"], ["trian"], []])
def test_a_split_without_items_is_refused(paired, names):
    with pytest.raises(DataError, match=r"no usable captioned image in .*counts are .*'train'"):
        paired.split(*names)


def test_a_split_whose_items_were_all_rejected_is_refused(make_collection, encoders, make_paired, tmp_path):
    manifest = make_collection(tmp_path / "pictures", {"train": 2, "val": 1}, corrupt=[2])
    paired = make_paired(manifest, tmp_path / "features", encoders)
    with pytest.raises(DataError, match="no usable captioned image in val"):
        paired.split("val")


def test_features_of_other_items_than_the_manifests_are_refused(paired):
    manifest = paired.manifest
    shuffled = Manifest(manifest.root, manifest.items[::-1])
    fewer = Manifest(manifest.root, manifest.items[:-1])
    for other in (shuffled, fewer):
        with pytest.raises(FeatureError, match="image features aren't of the manifest's items"):
            PairedFeatures(other, paired.image, paired.text)
    with pytest.raises(FeatureError, match="expected image features, got text"):
        PairedFeatures(manifest, paired.text, paired.image)


def naive_rsum(similarity: torch.Tensor, caption_image: torch.Tensor) -> float:
    """Expected ranks by counting, for similarities without ties."""
    total = 0.0
    for matrix, own in (
        (similarity, lambda image, caption: caption_image[caption] == image),
        (similarity.T, lambda caption, image: caption_image[caption] == image),
    ):
        ranks = []
        for query, row in enumerate(matrix):
            best = max(float(score) for key, score in enumerate(row) if own(query, key))
            ranks.append(1 + sum(float(s) > best for key, s in enumerate(row) if not own(query, key)))
        total += sum(100 * sum(rank <= k for rank in ranks) / len(ranks) for k in (1, 5, 10))
    return total


def test_scores_and_rsum_are_of_the_splits_vectors(paired):
    torch.manual_seed(0)
    shapes = input_shapes(paired.image, paired.text)
    fuser = TowerFuser(TowerConfig(token_dim=4, heads=2, dropout=0.5, start="random"), shapes)
    split = paired.split("train")
    fuser.eval()
    with torch.no_grad():
        image = fuser.embed("image", paired.image.batch(split.image_rows))
        text = fuser.embed("text", paired.text.batch(split.caption_rows))
    fuser.train()
    scores = split.scores(fuser).score(slice(None), slice(None))
    torch.testing.assert_close(scores, image @ text.T)
    assert split.rsum(fuser) == pytest.approx(naive_rsum(scores, split.caption_image))
    assert fuser.training and fuser.towers.training


def test_input_scores_are_each_encoders_own(paired):
    split = paired.split("val")
    for encoder, scores in enumerate(split.input_scores()):
        image = paired.image.embeddings(encoder, split.image_rows)
        text = paired.text.embeddings(encoder, split.caption_rows)
        torch.testing.assert_close(scores.score(slice(None), slice(None)), image @ text.T)


def test_rows_are_embedded_in_batches_or_not_at_all(paired):
    torch.manual_seed(0)
    shapes = input_shapes(paired.image, paired.text)
    fuser = TowerFuser(TowerConfig(token_dim=4, heads=2), shapes)
    rows = torch.tensor([12, 0, 5, 3, 1])
    whole = fuser.embed_rows(paired.image, rows)
    torch.testing.assert_close(fuser.embed_rows(paired.image, rows, batch_size=2), whole)
    assert not whole.requires_grad
    nothing = torch.tensor([], dtype=torch.long)
    for each in (fuser, ScoreFusion([1.0, 2.0], shapes)):
        assert each.embed_rows(paired.image, nothing).shape == (0, each.dim)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_rows_are_embedded_where_the_fuser_is(paired):
    torch.manual_seed(0)
    fuser = TowerFuser(TowerConfig(token_dim=4, heads=2), input_shapes(paired.image, paired.text))
    rows = torch.tensor([12, 0, 5])
    expected = fuser.embed_rows(paired.image, rows)
    torch.testing.assert_close(fuser.cuda().embed_rows(paired.image, rows), expected, rtol=1e-4, atol=1e-5)


def test_the_mode_is_given_back_after_an_error(paired):
    shapes = input_shapes(paired.image, paired.text)
    fuser = TowerFuser(TowerConfig(token_dim=4, heads=2), shapes)
    with pytest.raises(FeatureError):
        fuser.embed_rows(paired.image, torch.tensor([99]))
    assert fuser.training
