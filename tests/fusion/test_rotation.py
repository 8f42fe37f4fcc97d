from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from modalloy.errors import ConfigError
from modalloy.fusion import (
    InputShape,
    Rotated,
    ScoreFusion,
    TowerConfig,
    TowerFuser,
    input_shapes,
    principal_rotation,
    truncate,
)


def random_vectors(items: int, dim: int, seed: int) -> torch.Tensor:
    """Unit vectors of a few strong directions that no coordinate is alone of."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(items, dim, generator=generator) * torch.linspace(2, 0.1, dim)
    return F.normalize(mixed @ torch.randn(dim, dim, generator=generator), dim=1)


def test_cut_vectors_have_unit_norm():
    vectors = random_vectors(6, 5, 0)
    for dim in range(1, 6):
        expected = [row[:dim] / np.linalg.norm(row[:dim]) for row in vectors.numpy()]
        torch.testing.assert_close(truncate(vectors, dim), torch.from_numpy(np.stack(expected)))
    for dim in (0, 6, -1):
        with pytest.raises(ConfigError, match=f"can be cut to 1..5, got {dim}"):
            truncate(vectors, dim)


@given(st.integers(1, 12), st.integers(1, 7), st.integers(0, 99))
def test_a_rotation_keeps_inner_products_and_puts_the_most_first(items, dim, seed):
    vectors = random_vectors(items, dim, seed)
    rotation = principal_rotation(vectors)
    torch.testing.assert_close(rotation.T @ rotation, torch.eye(dim), rtol=0, atol=1e-5)
    turned = vectors @ rotation
    products = vectors @ vectors.T
    torch.testing.assert_close(turned @ turned.T, products, rtol=0, atol=1e-5)
    values = np.linalg.svd(vectors.double().numpy(), compute_uv=False)
    for k in range(1, dim + 1):
        # Eckart and Young: what is lost are the least singular values, of the vectors and of their inner products.
        lost = float((products - turned[:, :k] @ turned[:, :k].T).norm())
        assert lost == pytest.approx(float(np.sqrt((values[k:] ** 4).sum())), abs=1e-5)
        assert lost <= float((products - vectors[:, :k] @ vectors[:, :k].T).norm()) + 1e-5
        assert float(turned[:, k:].norm()) <= float(vectors[:, k:].norm()) + 1e-5


@pytest.mark.parametrize("vectors", [torch.empty(0, 3), torch.tensor([[1.0, torch.nan]]), torch.tensor([[torch.inf]])])
def test_no_rotation_is_fitted_on_nothing_or_on_broken_vectors(vectors):
    with pytest.raises(ConfigError, match="fitted on finite vectors"):
        principal_rotation(vectors)


@pytest.fixture
def paired(make_collection, make_encoder, make_paired, tmp_path):
    manifest = make_collection(tmp_path / "pictures", {"train": 30, "val": 10})
    return make_paired(manifest, tmp_path / "features", [make_encoder(0), make_encoder(1)])


@pytest.mark.parametrize("kind", ["towers", "scores"])
def test_a_rotated_fuser_scores_as_the_fuser_itself_at_full_width(paired, kind):
    shapes = input_shapes(paired.image, paired.text)
    torch.manual_seed(0)
    towers = TowerFuser(TowerConfig(token_dim=4, heads=2, start="random", weighted_inputs=(0,)), shapes)
    fuser = towers if kind == "towers" else ScoreFusion([1.0, 2.0], shapes)
    train, val = paired.split("train"), paired.split("val")
    rotated = Rotated.fit(fuser, train)
    assert (rotated.dim, rotated.tokens_read, rotated.shapes) == (fuser.dim, fuser.tokens_read, fuser.shapes)
    whole = slice(None)
    expected = val.scores(fuser).score(whole, whole)
    torch.testing.assert_close(val.scores(rotated).score(whole, whole), expected, rtol=0, atol=1e-5)


def test_it_is_fitted_on_training_images_and_captions_and_cut(paired):
    fuser = ScoreFusion([1.0, 1.0], input_shapes(paired.image, paired.text))
    train = paired.split("train")
    vectors = torch.cat(
        [fuser.embed_rows(paired.image, train.image_rows), fuser.embed_rows(paired.text, train.caption_rows)]
    )
    short = Rotated.fit(fuser, train, dim=3)
    assert short.dim == 3
    rows = torch.arange(5)
    expected = truncate(fuser.embed_rows(paired.text, rows) @ principal_rotation(vectors), 3)
    torch.testing.assert_close(short.embed_rows(paired.text, rows), expected, rtol=0, atol=1e-6)
    # A cut rotation is nearer to the whole than the first numbers of the vectors as they are.
    val = paired.split("val")
    whole = slice(None)
    products = val.scores(fuser).score(whole, whole)
    raw = Rotated(fuser, torch.eye(fuser.dim), dim=3)
    errors = [float((val.scores(each).score(whole, whole) - products).norm()) for each in (short, raw)]
    assert errors[0] < errors[1]


def test_what_does_not_fit_is_refused(paired):
    fuser = ScoreFusion([1.0, 1.0], input_shapes(paired.image, paired.text))
    with pytest.raises(ConfigError, match=r"expected a rotation of 7 x 7 .*got \(3, 3\)"):
        Rotated(fuser, torch.eye(3))
    for dim in (0, 8):
        with pytest.raises(ConfigError, match=f"can be cut to 1..7, got {dim}"):
            Rotated(fuser, torch.eye(7), dim)


def test_a_vector_keeps_its_norm_where_an_item_lacks_a_weighted_input(make_features):
    shapes = [InputShape(3, 5, 5), InputShape(2, 6, 6)]
    fuser = ScoreFusion([1.0, 1.0], shapes)
    inputs = [make_features(2, shape.dim, shape.image_width, seed=k) for k, shape in enumerate(shapes)]
    inputs[1] = replace(inputs[1], present=torch.tensor([True, False]))
    whole = fuser.embed("image", inputs)
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(0)))[0]
    turned = Rotated(fuser, rotation).embed("image", inputs)
    torch.testing.assert_close(turned @ turned.T, whole @ whole.T)
    torch.testing.assert_close(Rotated(fuser, rotation, 3).embed("image", inputs).norm(dim=-1), whole.norm(dim=-1))
