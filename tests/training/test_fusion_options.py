"""Prefixes and a teacher: each loss against plain loops, and whole fits with them."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from toy_pairs import SPLITS, TRAINING, collection, features, new_fuser

from modalloy.errors import ConfigError
from modalloy.fusion import Mixture, PairedFeatures, Rotated, ScoreFusion, input_shapes, truncate
from modalloy.training.batches import PairRows
from modalloy.training.fusion import _fingerprint, fit_fuser
from modalloy.training.fusion_module import FusionModule
from modalloy.training.pair_features import PairBatch, PairFeatures
from modalloy.training.teacher import Teacher, TeacherVectors

# Images 0 and 1 are of one family; 9 stands there twice.
ROWS = PairRows(torch.tensor([0, 1, 5, 9, 9, 2]), torch.tensor([0, 3, 10, 18, 19, 4]))
QUEUED = [3, 0, 5, 9, 1]
SHARE = 0.4


@pytest.fixture(scope="module")
def paired(tmp_path_factory) -> PairedFeatures:
    root = tmp_path_factory.mktemp("collection")
    return features(collection(root / "pictures", SPLITS), root / "features")


@pytest.fixture(scope="module")
def teacher(paired) -> Mixture:
    """A mixture of an untrained expert and the inputs."""
    expert = new_fuser(paired, seed=5, method="concat-linear", start="random")
    return Mixture([expert], (0, 1), (1.0, 2.0, 1.0), input_shapes(paired.image, paired.text))


def training_of(**changes):
    return dataclasses.replace(TRAINING, matching_weight=0.0, **changes)


def module_of(paired, training, **layers) -> FusionModule:
    """A module after its first epoch, with a queue, and momentum encoders that differ from the trained ones."""
    module = FusionModule(new_fuser(paired, dropout=0.0, start="random", **layers), training, 100, paired.split("val"))
    module._trainer = SimpleNamespace(num_training_batches=4, global_step=4)
    module.logged = {}
    module.log_dict = lambda values, **_: module.logged.update(values)
    for parameter in module.momentum_towers.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    rows = torch.tensor(QUEUED)
    vectors = normalize(torch.randn(2, len(rows), module.fuser.dim), dim=-1)
    module.queue.push(*vectors, rows, paired.manifest.families[rows])
    module.queue.float()  # so that its products are exact; the values stay rounded
    return module


def batch_of(paired, teacher=None, grouped=False) -> PairBatch:
    vectors = None if teacher is None else TeacherVectors.of(teacher, paired.split("train"))
    return PairFeatures(paired.image, paired.text, paired.manifest.families, grouped=grouped, teacher=vectors)[ROWS]


def step(module: FusionModule, batch: PairBatch) -> tuple[Tensor, list[Tensor]]:
    """The loss and its gradient, at momentum encoders that stay as they are."""
    module._update_momentum = lambda: None
    loss = module.training_step(batch, 0)
    return loss, torch.autograd.grad(loss, list(module.fuser.towers.parameters()))


def same(found: tuple[Tensor, list[Tensor]], expected: Tensor, module: FusionModule) -> None:
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-5)
    wanted = torch.autograd.grad(expected, list(module.fuser.towers.parameters()))
    for got, want in zip(found[1], wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


def parts_of(module: FusionModule, towers, batch: PairBatch, modality: str) -> list[list[Tensor]]:
    """Each item's fused vector, and the embeddings of the weighted inputs."""
    inputs = getattr(batch, modality)
    fused = towers[modality](inputs)
    weighted = [inputs[position].embedding for position in module.fuser.config.weighted_inputs]
    return [[fused[row], *(each[row] for each in weighted)] for row in range(len(fused))]


def similarity_of(module: FusionModule, query: list[Tensor], key: list[Tensor], length: int | None) -> Tensor:
    if length is not None:
        one, other = query[0][:length], key[0][:length]
        return (one / one.norm()) @ (other / other.norm())
    return sum(w * (q @ k) for w, q, k in zip(module.fuser.similarity(), query, key, strict=True))


def naive_contrast(module: FusionModule, paired, batch: PairBatch, lengths: list[int | None], taught=None) -> Tensor:
    """The mean over lengths of the contrast, in loops over queries and keys; `taught` is a teacher's matrix."""
    fuser, size, temperature = module.fuser, len(batch.images), module.temperature
    images = batch.images.tolist() + QUEUED
    families = paired.manifest.families[torch.tensor(images)].tolist()
    widths = [fuser.fused_dim, *(fuser.shapes[each].dim for each in fuser.config.weighted_inputs)]
    losses = []
    for modality, other in (("image", "text"), ("text", "image")):
        queries = parts_of(module, fuser.towers, batch, modality)
        slow = parts_of(module, module.momentum_towers, batch, modality)
        keys = parts_of(module, module.momentum_towers, batch, other)
        keys += [list(row.split(widths)) for row in getattr(module.queue, f"{other}_vectors")]
        for row in range(size):
            kept = [k for k in range(len(keys)) if images[k] == images[row] or families[k] != families[row]]
            positive = torch.tensor([float(images[k] == images[row]) for k in kept])
            hard = positive / positive.sum()
            momentum = torch.stack([similarity_of(module, slow[row], keys[k], None) for k in kept]) / temperature
            for length in lengths:
                logits = torch.stack([similarity_of(module, queries[row], keys[k], length) for k in kept]) / temperature
                if taught is None:
                    soft = SHARE * momentum.softmax(0).detach() + (1 - SHARE) * hard
                    losses.append(-(soft * logits.log_softmax(0)).sum())
                    continue
                own = [k for k in kept if k < size]
                said = torch.stack([taught[row, k] if modality == "image" else taught[k, row] for k in own])
                soft = (said / (module.training_config.teacher_temperature or temperature)).softmax(0).detach()
                inside = logits[: len(own)].log_softmax(0)
                losses.append(-(1 - SHARE) * (hard * logits.log_softmax(0)).sum() - SHARE * (soft * inside).sum())
    return torch.stack(losses).mean()


# The losses ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [(), (1,)])
def test_prefixes_are_contrasted_as_whole_vectors_are(paired, weighted):
    module, batch = module_of(paired, training_of(prefixes=(2, 5)), weighted_inputs=weighted), batch_of(paired)
    same(step(module, batch), naive_contrast(module, paired, batch, [None, 2, 5]), module)


@pytest.mark.parametrize("changes", [{}, {"teacher_temperature": 0.2}, {"prefixes": (4,)}])
def test_a_teacher_gives_the_batchs_soft_targets(paired, teacher, changes):
    module, batch = module_of(paired, training_of(**changes)), batch_of(paired, teacher)
    with torch.no_grad():
        image, text = teacher.eval().embed("image", batch.image), teacher.embed("text", batch.text)
    torch.testing.assert_close(batch.taught, image @ text.T)
    expected = naive_contrast(module, paired, batch, [None, *changes.get("prefixes", ())], image @ text.T)
    same(step(module, batch), expected, module)


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_an_image_with_several_captions_is_fused_once_to_the_same_loss(paired, teacher, chunk_size):
    found = []
    for grouped in (True, False):
        training = training_of(prefixes=(3,), chunk_size=chunk_size if grouped else None)
        torch.manual_seed(3)
        found.append(step(module_of(paired, training), batch_of(paired, teacher, grouped)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_a_batch_with_a_teacher_moves_as_a_whole(paired, teacher):
    batch = batch_of(paired, teacher)
    assert batch.to(torch.device("meta")).taught.device.type == "meta"


def test_rows_outside_the_training_items_have_no_teacher(paired, teacher):
    vectors, train = TeacherVectors.of(teacher, paired.split("train")), SPLITS["train"]
    assert vectors.image[:train].isfinite().all() and vectors.image[train:].isnan().all()
    assert vectors.text[: 2 * train].isfinite().all() and vectors.text[2 * train :].isnan().all()


# Fits ----------------------------------------------------------------------------------------------------


def fit(paired, folder, training, teacher=None, **layers):
    fuser = new_fuser(paired, method="concat-linear", **layers)
    train, validation = paired.split("train"), paired.split("val")
    taught = None if teacher is None else Teacher.of(teacher)
    return fuser, fit_fuser(fuser, training, train, validation, folder, "test", teacher=taught)


def weights(fuser) -> list[float]:
    return torch.cat([tensor.flatten() for tensor in fuser.state_dict().values()]).tolist()


class Interrupted(Exception):
    pass


def test_an_interrupted_fit_with_both_ends_the_same(paired, teacher, tmp_path, monkeypatch):
    short = {"output_dim": 6, "start": "random"}
    training = dataclasses.replace(TRAINING, epochs=2, prefixes=(2, 4), captions_per_image=2, chunk_size=5)
    fuser, history = fit(paired, tmp_path / "whole", training, teacher, **short)
    original = FusionModule.training_step

    def interrupted(self, batch, batch_index):
        if self.current_epoch == 1 and batch_index == 2:
            raise Interrupted
        return original(self, batch, batch_index)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(FusionModule, "training_step", interrupted)
        fit(paired, tmp_path / "resumed", training, teacher, **short)
    again, found = fit(paired, tmp_path / "resumed", training, teacher, **short)
    assert (weights(again), found) == (weights(fuser), history)


def test_an_expert_learns_its_teachers_similarities(paired, tmp_path):
    """With the teacher's targets alone, an expert of a random start comes to rank as the teacher does."""
    teacher = ScoreFusion([1.0, 1.0], input_shapes(paired.image, paired.text))
    training = training_of(epochs=6, distillation=1.0, teacher_temperature=0.1, learning_rate=0.1)
    train = paired.split("train")
    taught = train.scores(teacher).score(slice(None), slice(None)).flatten()

    def agreement(fuser) -> float:
        own = train.scores(fuser).score(slice(None), slice(None)).flatten()
        return float(torch.corrcoef(torch.stack([own, taught]))[0, 1])

    fuser, _ = fit(paired, tmp_path, training, teacher, start="random", output_dim=8, dropout=0.0)
    start = new_fuser(paired, method="concat-linear", start="random", output_dim=8, dropout=0.0)
    assert agreement(fuser) > 0.5 > 0.3 > agreement(start)


def test_what_prefixes_train_is_cut_by_truncate_or_by_the_identity_rotation(paired, tmp_path):
    fuser, _ = fit(paired, tmp_path, training_of(epochs=1, prefixes=(4,)), start="random")
    cut = Rotated(fuser.eval(), torch.eye(fuser.dim), 4)
    validation = paired.split("val")
    for short, whole in zip(validation.vectors(cut), validation.vectors(fuser), strict=True):
        torch.testing.assert_close(short, truncate(whole, 4))


def test_the_teacher_is_part_of_the_fingerprint(paired, teacher):
    splits = paired.split("train"), paired.split("val")
    shapes = input_shapes(paired.image, paired.text)
    expert = new_fuser(paired, seed=6, method="concat-linear", start="random")
    others = [
        teacher,
        Mixture(teacher.fusers(), (0, 1), (1.0, 1.0, 1.0), shapes),
        Mixture([expert], (0, 1), (1.0, 2.0, 1.0), shapes),
        ScoreFusion([1.0, 2.0], shapes),
    ]
    digests = [_fingerprint(new_fuser(paired), TRAINING, *splits, Teacher.of(each)) for each in others]
    assert len({_fingerprint(new_fuser(paired), TRAINING, *splits), *digests}) == 1 + len(others)


@pytest.mark.parametrize(
    ("changes", "taught", "message"),
    [
        ({"prefixes": (2, 9)}, False, "shorter than the fused vector, which is 9 wide, got 9"),
        ({"teacher_temperature": 0.1}, False, "there is no teacher for training.teacher_temperature=0.1"),
        ({"distillation": 0.0}, True, "a teacher teaches nothing where training.distillation is 0"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_training(paired, teacher, tmp_path, changes, taught, message):
    with pytest.raises(ConfigError, match=message):
        fit(paired, tmp_path / "fit", training_of(**changes), teacher if taught else None)
    assert not (tmp_path / "fit").exists()


def test_a_teacher_of_other_encoders_is_refused(paired, tmp_path):
    other = ScoreFusion([1.0, 1.0], input_shapes(paired.image, paired.text)[::-1])
    with pytest.raises(ConfigError, match="pass the encoders in the order of the fit"):
        fit(paired, tmp_path, TRAINING, other)
