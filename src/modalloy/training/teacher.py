"""A frozen teacher of a fusion: its vectors of the training items, made once (Hinton et al., arXiv 1503.02531)."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from modalloy.encoders.checkpoint import packed_weights
from modalloy.errors import ConfigError
from modalloy.fusion.alloy import describe
from modalloy.fusion.base import Fuser
from modalloy.fusion.paired_features import SplitFeatures
from modalloy.training.batches import PairRows
from modalloy.training.fusion_training import FusionTraining


@dataclass(frozen=True)
class Teacher:
    """A frozen fuser whose similarities another one is taught."""

    fuser: Fuser
    """Of the same inputs."""
    decided_by: Mapping[str, Any]
    """What decides its similarities, beside the features, ready for JSON; for the fingerprint of the pupil's fit."""

    @classmethod
    def of(cls, fuser: Fuser) -> Self:
        """A teacher that its kind and its weights decide."""
        return cls(fuser, {"fuser": describe(fuser), "weights": hashlib.sha256(packed_weights(fuser)).hexdigest()})


@dataclass(frozen=True)
class TeacherVectors:
    """A fuser's retrieval vectors of the training items, whose similarities another fusion is taught.

    They are of the images themselves, also where a batch holds augmented copies of them.
    """

    image: Float[Tensor, "images dim"]
    """By the rows of the collection's images; NaN where one isn't among the training items."""
    text: Float[Tensor, "captions dim"]
    """By the rows of its captions, likewise."""

    @classmethod
    def of(cls, teacher: Fuser, train: SplitFeatures) -> Self:
        """Encodes all training items by the teacher.

        Raises:
            ConfigError: the teacher was made for other encoders.
        """
        image, text = train.vectors(teacher)
        images, captions = len(train.paired.image), len(train.paired.text)
        return cls(_by_row(image, train.image_rows, images), _by_row(text, train.caption_rows, captions))

    def similarities(self, rows: PairRows) -> Float[Tensor, "batch batch"]:
        """Of each image of a batch of pairs with each text of it.

        >>> taught = TeacherVectors(torch.eye(2), torch.tensor([[0.6, 0.8], [1.0, 0.0]]))
        >>> taught.similarities(PairRows(images=torch.tensor([1, 0]), captions=torch.tensor([0, 1])))
        tensor([[0.8000, 0.0000],
                [0.6000, 1.0000]])
        """
        return self.image[rows.images] @ self.text[rows.captions].T


def check_teacher(training: FusionTraining, taught: bool, name: str = "training") -> None:
    """Refuses a training that contradicts whether it has a teacher.

    Args:
        training: how something is trained.
        taught: whether it has a teacher.
        name: by which the message calls the training.

    Raises:
        ConfigError: the targets of a teacher have no share, or there is a temperature for none.
    """
    if taught and training.distillation == 0:
        raise ConfigError(
            f"a teacher teaches nothing where {name}.distillation is 0; give it a share, or have no teacher."
        )
    if not taught and training.teacher_temperature is not None:
        raise ConfigError(
            f"there is no teacher for {name}.teacher_temperature={training.teacher_temperature}; leave it out, or give "
            "an expert teachers."
        )


def _by_row(vectors: Float[Tensor, "items dim"], rows: Int[Tensor, " items"], count: int) -> Float[Tensor, "all dim"]:
    table = vectors.new_full((count, vectors.shape[1]), torch.nan)
    table[rows] = vectors
    return table
