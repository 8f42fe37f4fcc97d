"""How a fusion is trained: the settings of HADA's losses and optimiser (arXiv 2301.04742, section 4.1)."""

import math
from dataclasses import dataclass
from typing import Literal

from modalloy.errors import ConfigError


@dataclass(frozen=True)
class FusionTraining:
    """How a fuser is trained: the paper's losses and optimiser, with batches and epochs for cached features.

    The paper trains with batches of 20 for at most 50 epochs; larger batches make fewer false steps on few pairs.
    """

    epochs: int = 20
    """Epochs at most."""
    batch_size: int = 64
    """Pairs in a batch."""
    all_captions: bool = False
    """Whether an epoch visits every caption once, as in HADA's code, instead of every image once with one of its
    captions."""
    captions_per_image: int = 1
    """Captions of each image that an epoch visits, side by side in one batch, for which the image is encoded once."""
    learning_rate: float = 1e-4
    """Highest learning rate of AdamW, at the start."""
    final_learning_rate: float = 5e-6
    """Learning rate at the end of the cosine."""
    similarity_learning_rate: float = 1e-2
    """Learning rate of the similarity's weights, which barely move at the layers' rate."""
    weight_decay: float = 0.02
    """AdamW's weight decay of the layers' weights; biases, temperature and similarity weights have none."""
    temperature: float = 0.07
    """Start of the learned temperature, which stays in [0.001, 0.5]; each stage has its own, since the weighted
    similarity of the second has another scale."""
    momentum: float | None = None
    """Momentum of the momentum encoders; by default it fits the number of steps, up to the paper's 0.995."""
    averaged: bool = False
    """Whether the momentum encoders, a running mean of the trained ones, are what is validated and kept."""
    queue_size: int = 64000
    """Pairs in the momentum queue, at most as many as an epoch has."""
    distillation: float = 0.4
    """Share of the momentum encoders' targets, reached after the first epoch; 0 for none."""
    image_to_text_share: float = 0.5
    """Share of the images' contrast with texts in the contrastive loss, beside the texts' with images; the authors'
    code has 0.3."""
    matching_weight: float = 1.0
    """Weight of the matching loss; 0 for none."""
    matching_negatives: Literal["hardest", "sampled"] = "hardest"
    """Negatives of the matching loss: each item's most similar unrelated one of the batch, or one drawn by the softmax
    of the similarities over the temperature, as in ALBEF and the authors' code."""
    chunk_size: int | None = None
    """Pairs that are encoded at a time, so that a large batch takes the memory of this many, and its gradient is
    still that of the whole batch (as by GradCache); costs a second forward pass. By default the whole batch."""
    patience: int = 5
    """Epochs without a better validation RSum after which training stops."""
    seed: int = 0
    """Seed of the start, the batches and the dropout."""
    augment_probability: float = 0.75
    """Chance of a training image to be replaced by one of its augmented copies, where there are any."""

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 2:
            raise ConfigError(
                f"epochs must be at least 1 and batch_size at least 2, got {self.epochs} and {self.batch_size}."
            )
        for name in ("momentum", "distillation", "augment_probability", "image_to_text_share"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"{name} must lie in [0, 1], got {value}.")
        if not 0.001 <= self.temperature <= 0.5:
            raise ConfigError(f"temperature must lie in [0.001, 0.5], got {self.temperature}.")
        if not 0 <= self.final_learning_rate <= self.learning_rate < math.inf or self.learning_rate == 0:
            raise ConfigError(
                "learning_rate must be above 0 and final_learning_rate between 0 and it, "
                f"got {self.learning_rate} and {self.final_learning_rate}."
            )
        for name in ("similarity_learning_rate", "weight_decay", "queue_size", "matching_weight", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be at least 0, got {getattr(self, name)}.")
        if self.matching_negatives not in ("hardest", "sampled"):
            raise ConfigError(f"matching_negatives must be 'hardest' or 'sampled', got {self.matching_negatives!r}.")
        if self.chunk_size is not None and self.chunk_size < 1:
            raise ConfigError(
                f"chunk_size must be at least 1 pair, got {self.chunk_size}; leave it out to encode whole batches."
            )
        if self.captions_per_image < 1:
            raise ConfigError(f"captions_per_image must be at least 1, got {self.captions_per_image}.")
        if self.patience < 1:
            raise ConfigError(f"patience must be at least 1 epoch, got {self.patience}.")

    def momentum_over(self, steps: int) -> float:
        """The momentum of a training of so many steps.

        The momentum encoders are a mean over 1 / (1 - momentum) steps: by default a quarter of the training, since
        with more they would stay at their start, but at most the paper's 200.

        >>> FusionTraining().momentum_over(80), FusionTraining().momentum_over(10**6)
        (0.95, 0.995)
        """
        return min(0.995, 1 - 1 / max(steps / 4, 2)) if self.momentum is None else self.momentum
