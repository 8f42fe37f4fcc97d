"""A toy fit as the work of another process, which tells of each step that it takes."""

from multiprocessing.connection import Connection
from pathlib import Path

import torch
from toy_pairs import new_fuser, opened

from modalloy.data import Manifest
from modalloy.training.fusion import fit_fuser
from modalloy.training.fusion_module import FusionModule
from modalloy.training.fusion_training import FusionTraining


def fit_and_tell(steps: Connection, root: Path, folder: Path, training: FusionTraining) -> None:
    """Fits a fuser on the collection and the features in `root`, and sends a message after each batch."""
    torch.set_num_threads(1)
    end = FusionModule.on_train_batch_end

    def told(self: FusionModule, *arguments: object) -> None:
        end(self, *arguments)
        steps.send(None)

    FusionModule.on_train_batch_end = told
    paired = opened(Manifest.load(root / "manifest.jsonl"), root / "features")
    fit_fuser(new_fuser(paired), training, paired.split("train"), paired.split("val"), folder, "test")
