from dataclasses import replace

import pytest
import torch

from modalloy.errors import CheckpointError, ConfigError
from modalloy.fusion import Alloy, InputShape, ScoreFusion, TowerConfig, TowerFuser
from modalloy.fusion.alloy import saved_fuser
from modalloy.fusion.pretrained import pretrained_digest, pretrained_fuser, start_from, take_similarity

CONFIG = TowerConfig(token_dim=4, heads=2, weighted_inputs=(0, 1))


def shapes(encoders) -> list[InputShape]:
    return [InputShape(e.dim("image"), e.width("image"), e.width("text")) for e in encoders]


def new_fuser(encoders, seed: int, **changes) -> TowerFuser:
    torch.manual_seed(seed)
    fuser = TowerFuser(replace(CONFIG, **changes), shapes(encoders))
    torch.nn.init.uniform_(fuser.similarity.alpha, 0.1, 0.4)
    return fuser


@pytest.fixture
def encoders(make_encoder, tmp_path):
    made = [make_encoder(0), make_encoder(1)]
    for number, encoder in enumerate(made):
        encoder.save(tmp_path / f"encoder-{number}")
    return made


@pytest.fixture
def folder(encoders, tmp_path):
    Alloy(encoders, new_fuser(encoders, 0)).save(tmp_path / "alloy")
    return tmp_path / "alloy"


def equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.equal(states[0][key], states[1][key]) for key in states[0]
    )


def test_all_weights_are_taken_over(encoders, folder):
    known, fuser = new_fuser(encoders, 0), new_fuser(encoders, 1)
    assert not equal(known, fuser)
    # What says nothing of the layers may differ.
    free = replace(CONFIG, start="random", dropout=0.1, weighted_inputs=(), output_dim=7)
    pretrained = pretrained_fuser(f"alloy:{folder}", encoders, free)
    start_from(fuser, pretrained)
    assert equal(fuser.towers, known.towers) and equal(fuser.matching, known.matching)
    take_similarity(fuser, pretrained)
    assert equal(fuser, known)


@pytest.mark.parametrize("inputs", [(1, 0), (0,), ()])
def test_weights_of_other_inputs_are_not(encoders, folder, inputs):
    fuser = new_fuser(encoders, 1, weighted_inputs=inputs)
    before = fuser.similarity.alpha.clone()
    take_similarity(fuser, pretrained_fuser(str(folder), encoders, CONFIG))
    assert torch.equal(fuser.similarity.alpha, before)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"token_dim": 8}, "fusion.towers.token_dim is 8, but 4 in the pretrained"),
        ({"heads": 1}, "fusion.towers.heads is 1, but 2"),
        ({"activation": "none"}, "fusion.towers.activation is 'none', but 'elu'"),
        ({"output_dim": 9}, "fusion.towers.output_dim is 9, but 7"),
        ({"method": "hada-original"}, "fusion.towers.method is 'hada-original', but 'hada'"),
    ],
)
def test_other_layers_are_refused_by_name(encoders, folder, changes, said):
    with pytest.raises(ConfigError, match=said):
        pretrained_fuser(str(folder), encoders, replace(CONFIG, **changes))


def test_other_encoders_are_refused_by_name(encoders, folder, make_encoder):
    with pytest.raises(ConfigError, match=r"encoder 0 of alloy:.* is colours 0 image .* here it is colours 1 image "):
        saved_fuser(folder, encoders[::-1])
    with pytest.raises(ConfigError, match=r"encoder 1 of .* is colours 1 image .* here it is colours 1 image "):
        saved_fuser(folder, [encoders[0], make_encoder(1, weights="f")])
    with pytest.raises(ConfigError, match="was fitted on 2 encoders, got 1"):
        saved_fuser(folder, encoders[:1])


def test_an_alloy_without_towers_is_refused(encoders, tmp_path):
    Alloy(encoders, ScoreFusion([1.0, 1.0], shapes(encoders))).save(tmp_path / "mean")
    with pytest.raises(ConfigError, match=r"no trained towers to start from \(ScoreFusion\)"):
        pretrained_fuser(str(tmp_path / "mean"), encoders, CONFIG)


def test_a_folder_without_an_alloy_is_refused(encoders, tmp_path):
    for read in (lambda: pretrained_fuser(str(tmp_path), encoders, CONFIG), lambda: pretrained_digest(str(tmp_path))):
        with pytest.raises(CheckpointError, match="can't be loaded"):
            read()


def test_the_digest_is_of_the_weights_wherever_they_lie(encoders, folder, tmp_path):
    Alloy(encoders, new_fuser(encoders, 0), name="another name").save(tmp_path / "elsewhere" / "alloy")
    assert pretrained_digest(str(folder)) == pretrained_digest(f"alloy:{tmp_path}/elsewhere/alloy")
    Alloy(encoders, new_fuser(encoders, 1)).save(folder)
    assert pretrained_digest(str(folder)) != pretrained_digest(f"alloy:{tmp_path}/elsewhere/alloy")
