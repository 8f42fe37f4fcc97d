"""Training of HADA and of its trained baselines (arXiv 2301.04742, sections 3.3 and 4.1)."""

import copy
import hashlib
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from modalloy.encoders.base import sha256_of_settings
from modalloy.errors import CheckpointError, DataError
from modalloy.files import atomic_path, read_json, sha256_of, write_json
from modalloy.fusion.paired_features import SplitFeatures
from modalloy.fusion.towers import TowerFuser
from modalloy.training.batches import PairSampler, pair_loader
from modalloy.training.early_stopping import EarlyStopping, Metrics
from modalloy.training.fusion_module import VALIDATION_RSUM, FusionModule
from modalloy.training.fusion_training import FusionTraining
from modalloy.training.pair_features import PairFeatures
from modalloy.training.teacher import Teacher, TeacherVectors, check_teacher
from modalloy.training.tracking import Tracker
from modalloy.training.trainer import fit
from modalloy.training.whole_batches import check_whole_batches

_log = logging.getLogger(__name__)
# To be raised when a change of the code changes what a training gives, so that no older result passes for it.
_RECIPE = 2


def fit_fuser(
    fuser: TowerFuser,
    training: FusionTraining,
    train: SplitFeatures,
    validation: SplitFeatures,
    folder: Path,
    description: str,
    tracker: Tracker | None = None,
    curve: str = "",
    teacher: Teacher | None = None,
) -> list[Metrics]:
    """Trains `fuser` in place and leaves it at its best epoch by validation RSum, or at its start if none is better.

    A finished training is loaded from `folder`, an interrupted one goes on from its last epoch; either only if the
    configuration, the start and the features are the same.

    Where the image features have augmented copies, each image of a batch is one of them with the training's
    `augment_probability`, the same copy for all encoders that have it, and the momentum encoders see what the trained
    ones see, as in HADA's published code. A copy that an encoder lacks or rejected is replaced by its features of the
    image itself; their number is logged. Validation sees the images themselves.

    Args:
        fuser: the model, at its start.
        training: see `FusionTraining`.
        train: the items to train on.
        validation: the items that choose the epoch.
        folder: where `model.safetensors`, `fit.json`, `metrics.jsonl` and, meanwhile, checkpoints go.
        description: stands before the progress bar.
        tracker: also keeps each epoch's metrics, those of a finished training included.
        curve: the training's name there.
        teacher: its similarities within a batch are the soft targets in place of the momentum encoders'.

    Returns:
        The metrics of each epoch, the start as epoch 0.

    Raises:
        ConfigError: see `check_whole_batches`; a prefix that is too long; a teacher whose targets have no share, or a
            temperature for none.
        CheckpointError: the finished fit or the checkpoint in `folder` is damaged.
    """
    check_whole_batches(fuser.config, training)
    check_teacher(training, teacher is not None)
    fingerprint = _fingerprint(fuser, training, train, validation, teacher)
    history = _load_finished(fuser, folder, fingerprint)
    if history is not None:
        if tracker is not None:
            # The start isn't an epoch of its curve.
            tracker.curve(curve, history[1:])
        return history
    start = copy.deepcopy(fuser.state_dict())
    start_rsum = validation.rsum(fuser)
    paired = train.paired
    sampler = PairSampler(
        paired.manifest.caption_image,
        caption_rows=train.caption_rows,
        batch_size=training.batch_size,
        seed=training.seed,
        all_captions=training.all_captions,
        copies=paired.image.copies,
        augment_probability=training.augment_probability,
        captions_per_image=training.captions_per_image,
        smallest=max(2, training.devices),
    )
    if _augments(training, train):
        _log_lacking(train)
    # A longer queue would hold pairs twice, and its zeros would fill the checkpoints of a small collection.
    limited = replace(training, queue_size=min(training.queue_size, sampler.pairs))
    stopping = EarlyStopping(VALIDATION_RSUM, patience=training.patience, min_delta=training.min_delta)
    module = FusionModule(fuser, limited, training.steps_an_epoch(len(sampler)) * training.epochs, validation)
    grouped = training.captions_per_image > 1
    taught = None if teacher is None else TeacherVectors.of(teacher.fuser, train)
    pairs = PairFeatures(paired.image, paired.text, paired.manifest.families, fuser.tokens_read, grouped, taught)
    history = fit(
        module,
        pair_loader(pairs, sampler),
        folder,
        epochs=training.epochs,
        seed=training.seed,
        description=description,
        fingerprint=fingerprint,
        early_stopping=stopping,
        gradient_clip=training.gradient_clip,
        accumulate=training.accumulate,
        precision=training.precision,
        devices=training.devices,
        tracker=tracker,
        curve=curve,
    )
    if float(history[stopping.best(history)][VALIDATION_RSUM] or 0) <= start_rsum:
        fuser.load_state_dict(start)
    elif training.averaged:
        fuser.towers.load_state_dict(module.momentum_towers.state_dict())
    history = [{"epoch": 0, VALIDATION_RSUM: start_rsum}, *history]
    _save_finished(fuser, folder, fingerprint, history)
    return history


def _fingerprint(
    fuser: TowerFuser,
    training: FusionTraining,
    train: SplitFeatures,
    validation: SplitFeatures,
    teacher: Teacher | None = None,
) -> str:
    """SHA-256 of all that decides the result, so that another training's checkpoints aren't continued."""
    stores = (*train.paired.image.stores, *train.paired.text.stores)
    settings = training.deciding()
    # Where nothing is augmented it decides nothing.
    probability = settings.pop("augment_probability")
    if _augments(training, train):
        copies = [
            [
                [store.fingerprint.digest, store.collection, [reject["id"] for reject in store.rejects()]]
                for store in each.stores
            ]
            for each in train.paired.image.augmented
        ]
        settings |= {"augment_probability": probability, "augmented": copies}
    return sha256_of_settings(
        {
            "recipe": _RECIPE,
            "fuser": fuser.config.to_dict(),
            "training": settings,
            "start": hashlib.sha256(save(_contiguous(fuser))).hexdigest(),
            "features": [store.fingerprint.digest for store in stores],
            "collection": train.paired.manifest.fingerprint,
            "families": train.paired.manifest.families.tolist(),
            "captions": [split.caption_rows.tolist() for split in (train, validation)],
            **_uncaptioned(validation),
            **({} if teacher is None else {"teacher": dict(teacher.decided_by)}),
        }
    )


def _uncaptioned(validation: SplitFeatures) -> dict[str, list[int]]:
    """Images that captions alone don't tell of, though they are in the gallery by which an epoch is chosen."""
    bare = torch.ones(len(validation.image_rows), dtype=torch.bool)
    bare[validation.caption_image] = False
    return {"uncaptioned": validation.image_rows[bare].tolist()} if bool(bare.any()) else {}


def _augments(training: FusionTraining, train: SplitFeatures) -> bool:
    return training.augment_probability > 0 and train.paired.image.copies > 0


def _log_lacking(train: SplitFeatures) -> None:
    for position, copies in enumerate(train.paired.image.augmented):
        wanted = len(copies) * len(train.image_rows)
        if lacking := copies.lacking(train.image_rows):
            _log.warning(
                "encoder %d lacks %d of %d augmented copies of the training images; the images themselves stand in.",
                position,
                lacking,
                wanted,
            )


def _load_finished(fuser: TowerFuser, folder: Path, fingerprint: str) -> list[Metrics] | None:
    """Gives the fuser the weights of a finished training of this fingerprint, if `folder` holds one."""
    record = folder / "fit.json"
    if not record.exists():
        return None
    try:
        finished = read_json(record)
    except DataError as error:
        raise CheckpointError(str(error)) from None
    if not isinstance(finished, dict) or not {"fingerprint", "weights_sha256", "history"} <= set(finished):
        raise CheckpointError(f"{record} isn't the record of a fit; delete {folder} and fit again.")
    if finished["fingerprint"] != fingerprint:
        return None
    weights = folder / "model.safetensors"
    if not weights.exists() or sha256_of(weights) != finished["weights_sha256"]:
        raise CheckpointError(f"{weights} isn't the file that {record.name} describes; delete {folder} and fit again.")
    fuser.load_state_dict(load_file(weights))
    return finished["history"]


def _save_finished(fuser: TowerFuser, folder: Path, fingerprint: str, history: list[Metrics]) -> None:
    weights = folder / "model.safetensors"
    with atomic_path(weights) as temporary:
        temporary.write_bytes(save(_contiguous(fuser)))
    record = {"fingerprint": fingerprint, "weights_sha256": sha256_of(weights), "history": history}
    write_json(folder / "fit.json", record)
    # With optimiser, momentum encoders and queue they are many times the model's size, and no longer needed.
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def _contiguous(fuser: TowerFuser) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in fuser.state_dict().items()}
