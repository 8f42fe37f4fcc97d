"""Toy fits as the work of other processes."""

from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor
from toy_pairs import new_fuser, opened

from modalloy.data import Manifest
from modalloy.training.fusion import fit_fuser
from modalloy.training.fusion_module import FusionModule
from modalloy.training.fusion_training import FusionTraining


class SameDraws(FusionModule):
    """Draws sampled negatives alike in every process, where each has random numbers of its own."""

    def _matching(self, image: Tensor, *rest: object) -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(len(image) + self.global_step)
            return super()._matching(image, *rest)


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
