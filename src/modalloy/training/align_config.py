"""How two backbones are aligned."""

from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self

from modalloy.align import CrossAttention, HeadConfig
from modalloy.align.losses import LOSSES, LossName
from modalloy.encoders import Modality
from modalloy.errors import ConfigError


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
        for name in ("image_widths", "text_widths"):
            widths = getattr(self, name)
            if widths is not None and (not widths or widths[-1] != self.dim):
                raise ConfigError(f"{name} must end in dim = {self.dim}, got {widths}.")
        for modality in ("image", "text"):
            self.head(modality, 1)

    @classmethod
    def hacan(cls, **changes: Any) -> Self:
        """HACAN's published model and schedule, for backbones and collections as large as its own.

        >>> AlignConfig.hacan(seed=1).image_widths
        (1024, 896, 768)
        """
        published: dict[str, Any] = {
            "info_nce_warmup": 0.0,
            "local": LocalBranchConfig(dim=768),
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
