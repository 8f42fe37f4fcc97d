"""How two backbones are aligned."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Self

from modalloy.align import CrossAttention, HeadConfig
from modalloy.align.losses import LOSSES, LossName
from modalloy.data.rand_augment import RandAugment
from modalloy.encoders import Modality
from modalloy.errors import ConfigError

_UNFREEZE_DECIDES_NOTHING = ("workers", "recompute")
"""Settings of `UnfreezeConfig` by which no result differs beyond rounding."""


@dataclass(frozen=True)
class LocalBranchConfig:
    """How a local branch is trained beside the heads; the global losses then take the hardest negatives that it finds.

    The attention and the weight are HACAN's on Flickr30k.
    """

    dim: int | None = None
    """Width that the tokens of both levels and modalities are mapped to; by default there is no local branch."""
    direction: Literal["t2i", "i2t"] = "t2i"
    """Which tokens attend to which: a caption's words to the regions ("t2i"), or the other way round ("i2t", COCO)."""
    focal: Literal["prob", "equal"] = "prob"
    """Which weights focal attention keeps: above a mean that favours large ones, or above their mean."""
    global_weight: float = 10 / 64
    """What the global loss is multiplied by: 10 in HACAN, whose local hinges are summed over a batch of 64."""

    def __post_init__(self) -> None:
        if self.dim is not None and self.dim < 1:
            raise ConfigError(f"local.dim must be at least 1, got {self.dim}.")
        if not self.global_weight > 0:
            raise ConfigError(f"local.global_weight must be above 0, got {self.global_weight}.")
        self.attention()
        if self.dim is None and any(getattr(self, each.name) != each.default for each in fields(self)):
            raise ConfigError("the settings of a local branch need its width too: give local.dim, such as 256.")

    def attention(self) -> CrossAttention:
        """How tokens attend to each other."""
        return CrossAttention(self.direction, self.focal)


@dataclass(frozen=True)
class UnfreezeConfig:
    """How the backbones are trained, too, from the images, after the heads and the local branch on stored features.

    Adam starts anew when they join.
    """

    epoch: int | None = None
    """The first epoch, from 1, that trains them (HACAN's code: 12); by default they stay frozen."""
    learning_rate: float = 1e-4
    """Their highest learning rate; it takes the same course as the heads', whose first epochs it misses."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """What the backbones and the heads compute in; weights, losses and validation stay in fp32."""
    recompute: bool = False
    """Whether activations are computed again for the gradient, which takes less memory and more time."""
    crop: float = 0.5
    """Least part of a picture's area that a random crop keeps; 1 for whole pictures. HACAN's is 0.08."""
    flip: bool = True
    """Whether half of the pictures are mirrored; better not where captions tell left from right."""
    workers: int = 4
    """Processes that read and prepare pictures; 0 for none besides the training's own."""

    def __post_init__(self) -> None:
        for name, least in (("epoch", 1), ("workers", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"unfreeze.{name} must be at least {least}, got {value}.")
        if not self.learning_rate > 0:
            raise ConfigError(f"unfreeze.learning_rate must be above 0, got {self.learning_rate}.")
        if self.precision not in ("fp32", "bf16"):
            raise ConfigError(f"unfreeze.precision must be one of fp32, bf16, got {self.precision!r}.")
        if not 0 < self.crop <= 1:
            raise ConfigError(f"unfreeze.crop must lie in (0, 1], got {self.crop}.")
        if self.epoch is None and any(getattr(self, each.name) != each.default for each in fields(self)):
            raise ConfigError("settings of the backbones' training need its first epoch: give unfreeze.epoch.")

    def views(self, seed: int) -> RandAugment:
        """How a picture is cropped and flipped, each time in another way."""
        return RandAugment(operations=0, crop=(self.crop, 1.0), flip=self.flip, seed=seed)

    def deciding(self) -> dict[str, Any]:
        """What changes the result: not who reads the pictures, nor whether the same activations are computed twice."""
        return {name: value for name, value in asdict(self).items() if name not in _UNFREEZE_DECIDES_NOTHING}


@dataclass(frozen=True)
class AlignConfig:
    """How a pair of global heads is trained, and perhaps a local branch beside them.

    The defaults suit collections of a few thousand images, where HACAN's own heads collapse or overfit;
    `AlignConfig.hacan()` has the published values.
    """

    loss: LossName | Literal["info_nce"] = "gcd"
    """HACAN's "gcd", "f_hn" or "m_hn"; or "info_nce", to compare with."""
    margin: float = 0.2
    """Margin of HACAN's losses."""
    temperature: float = 0.07
    """Temperature of InfoNCE, as the loss and in the warm-up."""
    info_nce_warmup: float = 0.5
    """Share of the epochs, from the first, with InfoNCE: hardest negatives collapse heads at a cold start."""
    local: LocalBranchConfig = field(default_factory=LocalBranchConfig)
    """HACAN's local branch, which compares regions with words."""
    unfreeze: UnfreezeConfig = field(default_factory=UnfreezeConfig)
    """The training of the backbones themselves."""
    dim: int = 256
    """Length of the shared embedding."""
    image_widths: tuple[int, ...] | None = None
    """Output widths of the image head's layers, ending in `dim`; by default that one layer."""
    text_widths: tuple[int, ...] | None = None
    """Output widths of the text head's layers, ending in `dim`; by default that one layer."""
    dropout: float = 0.5
    """Dropout after each head's first layer."""
    last_activation: bool = False
    """Whether a LeakyReLU follows the heads' last layers, as in HACAN; it crowds embeddings to one side."""
    center: bool = True
    """Whether the heads take off the mean training embedding, which all items of some backbones share."""
    epochs: int = 30
    """How many epochs; there is no early stopping, so the validation split isn't used up by the inputs."""
    batch_size: int = 64
    """Pairs in a batch."""
    all_captions: bool = False
    """Whether an epoch visits every caption once, instead of every image once with one of its captions."""
    split: Literal["train", "inputs"] = "train"
    """The split trained on: the fusion's own, or inputs, whose pairs are foreign to it."""
    learning_rate: float = 1e-3
    """Adam's highest learning rate."""
    weight_decay: float = 0.0
    """AdamW's decay of the weight matrices."""
    schedule: Literal["cosine", "step"] = "cosine"
    """The learning rate's course: half a cosine to 0, or HACAN's tenth every 10 epochs."""
    seed: int = 0
    """Decides the start, the batches and the dropout."""

    def __post_init__(self) -> None:
        choices = {"loss": (*LOSSES, "info_nce"), "schedule": ("cosine", "step"), "split": ("train", "inputs")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}.")
        for name, least in (
            ("dim", 1),
            ("epochs", 1),
            ("batch_size", 2),
            ("seed", 0),
        ):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        for name in ("margin", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} must be at least 0, got {getattr(self, name)}.")
        if not 0 <= self.info_nce_warmup <= 1:
            raise ConfigError(f"info_nce_warmup must lie in [0, 1], got {self.info_nce_warmup}.")
        for name in ("learning_rate", "temperature"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0, got {getattr(self, name)}.")
        if self.unfreeze.epoch is not None and self.unfreeze.epoch > self.epochs:
            raise ConfigError(f"unfreeze.epoch must be at most epochs = {self.epochs}, got {self.unfreeze.epoch}.")
        for name in ("image_widths", "text_widths"):
            widths = getattr(self, name)
            if widths is not None and (not widths or widths[-1] != self.dim):
                raise ConfigError(f"{name} must end in dim = {self.dim}, got {widths}.")
        for modality in ("image", "text"):
            self.head(modality, 1)

    @classmethod
    def hacan(cls, **changes: Any) -> Self:
        """HACAN's published model and schedule, for backbones and collections as large as its own.

        In bfloat16 where HACAN takes float16, which needs losses scaled. For fewer epochs, or frozen backbones, give
        another `unfreeze`.

        >>> AlignConfig.hacan(seed=1).image_widths
        (1024, 896, 768)
        """
        published: dict[str, Any] = {
            "info_nce_warmup": 0.0,
            "all_captions": True,
            "local": LocalBranchConfig(dim=768),
            "unfreeze": UnfreezeConfig(epoch=12, precision="bf16", crop=0.08),
            "dim": 768,
            "image_widths": (1024, 896, 768),
            "text_widths": (768, 768, 768),
            "dropout": 0.2,
            "last_activation": True,
            "center": False,
            "learning_rate": 1e-4,
            "schedule": "step",
        }
        return cls(**(published | changes))

    def head(self, modality: Modality, input_width: int) -> HeadConfig:
        """The head of `modality` on a backbone whose embeddings are `input_width` long."""
        widths = self.image_widths if modality == "image" else self.text_widths
        return HeadConfig(input_width, widths or (self.dim,), self.dropout, last_activation=self.last_activation)
