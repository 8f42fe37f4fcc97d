"""How a fusion is trained: the settings of HADA's losses and optimiser (arXiv 2301.04742, section 4.1)."""

import math
from dataclasses import dataclass, fields
from typing import Any, Literal

from modalloy.errors import ConfigError

# What fingerprints have always held. A setting that came later enters them only where it isn't at its default, so
# that what was fitted before it came is still recognised.
_ALWAYS_IN_FINGERPRINTS = frozenset(
    (
        *("epochs", "batch_size", "all_captions", "learning_rate", "final_learning_rate", "similarity_learning_rate"),
        *("weight_decay", "temperature", "momentum", "queue_size", "distillation", "patience", "seed"),
        "augment_probability",
    )
)


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
    """Share of the momentum encoders' targets, reached after the first epoch; 0 for none. Where there is a teacher, the
    share of its targets, from the start."""
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
    precision: Literal["fp32", "bf16"] = "fp32"
    """What the layers compute in; with bf16 weights, optimiser, momentum encoders, losses and validation stay fp32."""
    accumulate: int = 1
    """Batches whose mean gradient makes one step; each sees the queue with the batches before it."""
    gradient_clip: float | None = None
    """Largest norm of a step's gradient; by default unlimited."""
    schedule: Literal["cosine", "restarts", "constant"] = "cosine"
    """"cosine": one fall to the final learning rate; "restarts": one after another, each twice as long, as in HADA's
    code; "constant": none."""
    restart_epochs: int = 30
    """Epochs of the first fall, for "restarts"; the authors take 50 in the first stage and 30 in the second."""
    warmup: float = 0.0
    """Share of the steps over which the learning rate rises at the start."""
    min_delta: float = 0.0
    """By how much the validation RSum must be better to count."""
    prefixes: tuple[int, ...] = ()
    """Lengths to which the fused vector may later be cut: the contrastive loss is the mean of the whole vector's and
    those of its first so many numbers, brought to unit norm (Matryoshka representation learning)."""
    teacher_temperature: float | None = None
    """What a teacher's similarities are divided by before their softmax; by default the learned temperature."""
    devices: int = 1
    """Processes of this machine that train together, each on its part of every batch; on a GPU each, if there are."""

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
        if self.all_captions and self.captions_per_image > 1:
            raise ConfigError("all_captions already visits every caption; leave out captions_per_image, or it.")
        if self.batch_size < 2 * self.captions_per_image:
            raise ConfigError(
                f"batch_size must be at least twice captions_per_image, got {self.batch_size} and "
                f"{self.captions_per_image}."
            )
        self._check_engine()
        if len(set(self.prefixes)) < len(self.prefixes) or any(prefix < 1 for prefix in self.prefixes):
            raise ConfigError(f"prefixes must be different lengths of at least 1, got {list(self.prefixes)}.")
        if self.teacher_temperature is not None and not 0 < self.teacher_temperature < math.inf:
            raise ConfigError(f"teacher_temperature must be above 0, got {self.teacher_temperature}; leave it out.")
        if self.patience < 1:
            raise ConfigError(f"patience must be at least 1 epoch, got {self.patience}.")

    def _check_engine(self) -> None:
        for name, values in (("precision", ("fp32", "bf16")), ("schedule", ("cosine", "restarts", "constant"))):
            if getattr(self, name) not in values:
                raise ConfigError(f"{name} must be one of {', '.join(values)}, got {getattr(self, name)!r}.")
        for name in ("accumulate", "restart_epochs", "devices"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.gradient_clip is not None and not 0 < self.gradient_clip < math.inf:
            raise ConfigError(f"gradient_clip must be above 0, got {self.gradient_clip}; leave it out for none.")
        if self.batch_size < self.devices * self.captions_per_image:
            raise ConfigError(
                "batch_size must be at least devices times captions_per_image, got "
                f"{self.batch_size}, {self.devices} and {self.captions_per_image}."
            )
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"warmup must lie in [0, 1), got {self.warmup}.")
        if not 0 <= self.min_delta < math.inf:
            raise ConfigError(f"min_delta must be at least 0, got {self.min_delta}.")

    def check_prefixes(self, width: int, name: str = "training") -> None:
        """Refuses prefixes that a fused vector of some width doesn't have.

        Args:
            width: of the fused vector.
            name: by which the message calls the training.

        Raises:
            ConfigError: one is as long as the vector, or longer.
        """
        if long := [prefix for prefix in self.prefixes if prefix >= width]:
            raise ConfigError(
                f"{name}.prefixes must be shorter than the fused vector, which is {width} wide, got {long[0]}; "
                "leave it out."
            )

    def deciding(self) -> dict[str, Any]:
        """The settings that decide a result, for its fingerprint.

        >>> "precision" in FusionTraining().deciding(), "precision" in FusionTraining(precision="bf16").deciding()
        (False, True)
        """
        values = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        return {
            name: value
            for name, (value, default) in values.items()
            if name in _ALWAYS_IN_FINGERPRINTS or value != default
        }

    def steps_an_epoch(self, batches: int) -> int:
        """The optimiser's steps in an epoch of so many batches; its last step may hold fewer than the others.

        >>> FusionTraining(accumulate=4).steps_an_epoch(9)
        3
        """
        return math.ceil(batches / self.accumulate)

    def momentum_over(self, steps: int) -> float:
        """The momentum of a training of so many steps.

        The momentum encoders are a mean over 1 / (1 - momentum) steps: by default a quarter of the training, since
        with more they would stay at their start, but at most the paper's 200.

        >>> FusionTraining().momentum_over(80), FusionTraining().momentum_over(10**6)
        (0.95, 0.995)
        """
        return min(0.995, 1 - 1 / max(steps / 4, 2)) if self.momentum is None else self.momentum
