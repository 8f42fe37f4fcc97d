"""Two processes train as one does: with the same negatives, queue and gradients."""

import dataclasses
import os

import pytest
import torch
from fit_process import SameDraws
from torch import distributed
from toy_pairs import SPLITS, TRAINING, collection, features, new_fuser

from modalloy.errors import ConfigError, ModalloyError
from modalloy.fusion import ScoreFusion, input_shapes
from modalloy.training import pair_features, processes
from modalloy.training.batches import PairSampler, pair_loader, seed_epoch
from modalloy.training.pair_features import PairFeatures
from modalloy.training.teacher import TeacherVectors
from modalloy.training.trainer import fit


@pytest.fixture(scope="module")
def paired(tmp_path_factory):
    root = tmp_path_factory.mktemp("collection")
    return features(collection(root / "pictures", SPLITS), root / "features")


def trained(paired, folder, devices: int, epochs: int, teacher=None, **changes):
    """A second-stage module after some epochs with batches of 11, of which one process takes 6 and the other 5.

    With two captions an image a batch has 10, and the third image's are parted.
    """
    training = dataclasses.replace(TRAINING, batch_size=11, **changes)
    split = paired.split("train")
    each = training.captions_per_image
    every = dict(captions_per_image=each) if each > 1 else dict(all_captions=True)
    sampler = PairSampler(
        paired.manifest.caption_image, caption_rows=split.caption_rows, batch_size=11, seed=0, **every
    )
    fuser = new_fuser(paired, dropout=0.0, weighted_inputs=(1,))
    module = SameDraws(fuser, training, training.steps_an_epoch(len(sampler)) * 2, paired.split("val"))
    families = paired.manifest.families
    pairs = PairFeatures(paired.image, paired.text, families, grouped=each > 1, teacher=teacher)
    loader = pair_loader(pairs, sampler)
    options = dict(seed=0, description="", fingerprint="a" * 64, accelerator="cpu", devices=devices)
    changed = dict(accumulate=training.accumulate, gradient_clip=training.gradient_clip)
    history = fit(module, loader, folder, epochs=epochs, **changed, **options)
    return module, history


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "teach", "whole", "part"),
    [
        ({}, False, 11, 6),
        ({"accumulate": 2, "gradient_clip": 1.0}, False, 11, 6),
        ({"captions_per_image": 2, "averaged": True, "chunk_size": 2, "matching_negatives": "sampled"}, False, 10, 5),
        ({"prefixes": (3,)}, True, 11, 6),
    ],
)
def test_two_processes_end_with_the_weights_of_one(paired, tmp_path, monkeypatch, changes, teach, whole, part):
    if teach:
        teacher = ScoreFusion([0.3, 0.7], input_shapes(paired.image, paired.text))
        changes = {**changes, "teacher": TeacherVectors.of(teacher, paired.split("train"))}
    parts, part_of = [], pair_features.part_of

    def watched(count):
        parts.append(part_of(count))
        return parts[-1]

    monkeypatch.setattr(pair_features, "part_of", watched)
    alone, history = trained(paired, tmp_path / "alone", 1, 2, **changes)
    assert slice(0, whole) in parts and slice(0, part) not in parts
    # Interrupted after an epoch, so that both processes go on from the checkpoint.
    trained(paired, tmp_path / "together", 2, 1, **changes)
    together, shared = trained(paired, tmp_path / "together", 2, 2, **changes)
    assert slice(0, part) in parts
    assert not distributed.is_initialized()
    expected = alone.state_dict()
    for name, value in together.state_dict().items():
        # The queue is in bfloat16, which rounds differences of the last bit up to its own.
        tolerance = 1e-2 if value.dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(value, expected[name], rtol=tolerance, atol=tolerance, msg=name)
    assert [row["epoch"] for row in shared] == [1, 2]
    for one, two in zip(history, shared, strict=True):
        assert two == pytest.approx(one, rel=1e-4)
    start = new_fuser(paired, dropout=0.0, weighted_inputs=(1,)).state_dict()
    moved = max(float((start[name] - value).abs().max()) for name, value in alone.fuser.state_dict().items())
    assert moved > 1e-2
    assert len((tmp_path / "together/metrics.jsonl").read_text().splitlines()) == 2


class Unreadable:
    def __reduce__(self):
        return int, ("no number",)


@pytest.mark.slow
def test_a_process_that_fails_ends_the_training(capfd):
    threads, environ = torch.get_num_threads(), dict(os.environ)
    with pytest.raises(ModalloyError, match="ended before it began"), processes.followers(2, print, Unreadable()):
        pytest.fail("began")
    assert "invalid literal" in capfd.readouterr().err
    with pytest.raises(ModalloyError, match="ended with status 1"), processes.followers(2, setattr):
        pass
    assert "TypeError" in capfd.readouterr().err
    assert (torch.get_num_threads(), dict(os.environ)) == (threads, environ)


@pytest.mark.parametrize("count", [2, 3, 7])
@pytest.mark.parametrize("world", [1, 2])
def test_parts_cover_a_batch_in_order(monkeypatch, count, world):
    monkeypatch.setattr(processes, "_several", lambda: world > 1)
    monkeypatch.setattr(distributed, "get_world_size", lambda: world)
    rows = []
    for process in range(world):
        monkeypatch.setattr(distributed, "get_rank", lambda process=process: process)
        part = list(range(count))[processes.part_of(count)]
        assert count // world <= len(part) <= -(-count // world)
        rows += part
    assert rows == list(range(count))


def test_each_process_draws_its_own_dropout():
    drawn = []
    with torch.random.fork_rng():
        for arguments in ((3, 1), (3, 1, 0), (3, 1, 1), (3, 2)):
            seed_epoch(*arguments)
            drawn.append(float(torch.rand(())))
    assert drawn[0] == drawn[1] and len(set(drawn)) == 3


def test_a_batch_holds_a_pair_for_each_process():
    with pytest.raises(ConfigError, match="at least devices times captions_per_image, got 12, 13 and 1"):
        dataclasses.replace(TRAINING, devices=13)
    sampler = PairSampler(torch.arange(10), batch_size=4, seed=0, smallest=3)
    assert [len(rows.images) for rows in sampler] == [4, 4]
    with pytest.raises(ConfigError, match="at least 5, an image with its captions for each process, got 4"):
        PairSampler(torch.arange(10), batch_size=4, seed=0, smallest=5)
