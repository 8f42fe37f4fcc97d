"""The trainable fusers: two towers, one per modality, and the weighted similarity that folds into one vector."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from modalloy.encoders import Modality
from modalloy.errors import ConfigError
from modalloy.fusion.base import Fuser
from modalloy.fusion.concat import ConcatTower
from modalloy.fusion.hada import HadaTower
from modalloy.fusion.input_dropout import drop_encoders, drop_tokens
from modalloy.fusion.inputs import EncoderFeatures, InputShape, check_inputs
from modalloy.fusion.losses import MatchingHead
from modalloy.fusion.original_hada import FirstStageMatchingHead, OriginalHadaConfig, OriginalHadaTower
from modalloy.fusion.similarity import SimilarityWeights, fold, folded_slices

# Fields that are newer are only recorded where they aren't at their default: what was saved and fingerprinted before
# they existed stays what it was.
_ALWAYS_RECORDED = frozenset(
    ("method", "token_dim", "heads", "activation", "hidden", "output_dim", "dropout", "start", "weighted_inputs")
)


@dataclass(frozen=True)
class TowerConfig:
    """What a fuser is made of: HADA's graph, with a start and a dropout that also suit few training pairs.

    The paper's own dropout is 0.7, its fused vector 512 wide.
    """

    method: Literal["hada", "hada-original", "concat-linear"] = "hada"
    """"hada": star graph over the tokens; "hada-original": the same as its authors coded it, from a random start;
    "concat-linear": the baseline B2, from the embeddings alone."""
    token_dim: int = 512
    """Common width of the tokens in the graph (hada)."""
    heads: int = 4
    """Attention heads, each `token_dim` wide (hada)."""
    activation: Literal["elu", "none"] = "elu"
    """After the graph: the paper's sigma (which it doesn't name; here ELU), or none, as in the authors' code (hada)."""
    hidden: int = 0
    """Width of B2's perceptron beside its linear layer; 0 for none (concat-linear)."""
    output_dim: int | None = None
    """Width of the fused vector; by default as wide as the inputs' embeddings together."""
    dropout: float = 0.5
    """Dropout in the linear and graph layers."""
    start: Literal["identity", "random"] = "identity"
    """Start of the last layer: from score averaging, or random."""
    weighted_inputs: tuple[int, ...] = ()
    """Positions of the inputs that enter the weighted similarity; none in the first stage."""
    original: OriginalHadaConfig = field(default_factory=OriginalHadaConfig)
    """What the authors' code fixes (hada-original)."""
    graph: Literal["gatv2", "transformer", "gcn"] = "gatv2"
    """The layer on the star graph: the paper's GATv2, the graph transformer, or the graph convolution, in which all
    tokens of a kind weigh the same (hada)."""
    layers: int = 1
    """Graph layers, one after the other, with residuals if there are several (hada)."""
    edges: Literal["none", "learned", "original"] = "none"
    """A number on each edge of the graph: none; learned for each pair of source and target encoder, and another between
    summary tokens; or the constants of the authors' code (hada, not with graph="gcn")."""
    read_embeddings: bool = True
    """Whether the last layer reads the inputs' embeddings; without, the fused vector is more diverse from the inputs,
    and needs start="random" (hada, and concat-linear where it reads summaries)."""
    read_summaries: bool = False
    """Whether the last layer also reads the inputs' own summary tokens, past the graph (hada and concat-linear)."""
    token_dropout: float = 0.0
    """Share of each encoder's tokens, its summary token aside, that training leaves out of each item at random; that
    regularises, and saves their computation (hada and hada-original)."""
    encoder_dropout: float = 0.0
    """Probability that an item loses one of its encoders in training, so that the fusion also learns to do without
    (hada and concat-linear)."""

    def __post_init__(self) -> None:
        if self.method not in ("hada", "hada-original", "concat-linear"):
            raise ConfigError(f"method must be 'hada', 'hada-original' or 'concat-linear', got {self.method!r}.")
        if self.activation not in ("elu", "none"):
            raise ConfigError(f"activation must be 'elu' or 'none', got {self.activation!r}.")
        if self.token_dim < 1 or self.heads < 1 or self.hidden < 0:
            raise ConfigError(
                "token_dim and heads must be at least 1 and hidden at least 0, "
                f"got {self.token_dim}, {self.heads} and {self.hidden}."
            )
        for name in ("dropout", "token_dropout", "encoder_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} must lie in [0, 1), got {getattr(self, name)}.")
        if self.start not in ("identity", "random"):
            raise ConfigError(f"start must be 'identity' or 'random', got {self.start!r}.")
        if self.output_dim is not None and self.output_dim < 1:
            raise ConfigError(f"output_dim must be at least 1, got {self.output_dim}; leave it out for the default.")
        if len(set(self.weighted_inputs)) < len(self.weighted_inputs):
            raise ConfigError(f"weighted_inputs must name each input once, got {self.weighted_inputs}.")
        self._check_graph()
        if self.method == "hada-original":
            defaults = {each.name: each.default for each in fields(self)}
            for name in ("graph", "layers", "edges", "read_embeddings", "read_summaries", "encoder_dropout"):
                if getattr(self, name) != defaults[name]:
                    raise ConfigError(f"{name} can't be had with method 'hada-original'; use method 'hada'.")

    def _check_graph(self) -> None:
        if self.graph not in ("gatv2", "transformer", "gcn"):
            raise ConfigError(f"graph must be 'gatv2', 'transformer' or 'gcn', got {self.graph!r}.")
        if self.layers < 1:
            raise ConfigError(f"layers must be at least 1, got {self.layers}.")
        if self.edges not in ("none", "learned", "original"):
            raise ConfigError(f"edges must be 'none', 'learned' or 'original', got {self.edges!r}.")
        if self.graph == "gcn" and self.edges != "none":
            raise ConfigError(
                f"a graph convolution has no use for numbers on its edges, got graph='gcn' and edges={self.edges!r}; "
                "say edges='none', or graph='gatv2' or 'transformer'."
            )
        if not self.read_embeddings and self.method == "concat-linear" and not (self.read_summaries or self.hidden):
            raise ConfigError(
                "read_embeddings=False leaves method 'concat-linear' nothing to read; say read_summaries=True."
            )
        if not self.read_embeddings and self.start == "identity":
            raise ConfigError(
                "start='identity' passes the inputs' embeddings through, which read_embeddings=False leaves out; "
                "say start='random'."
            )

    @property
    def batch_norm(self) -> bool:
        """Whether the layers have BatchNorm, by which an item's vector depends on its batch in training."""
        return self.method == "hada-original" and self.original.norm == "batch"

    def to_dict(self) -> dict[str, Any]:
        """The fields that decide something, ready for JSON."""
        recorded = asdict(self)
        for each in fields(self):
            if each.name not in {*_ALWAYS_RECORDED, "original"} and recorded[each.name] == each.default:
                del recorded[each.name]
        if self.method != "hada-original":
            del recorded["original"]
        return recorded

    @classmethod
    def from_dict(cls, recorded: Mapping[str, Any]) -> Self:
        """Builds a configuration from what `to_dict` gave, or from what JSON made of it.

        Raises:
            ConfigError: a value can't work.
            KeyError, TypeError: a field is missing or unknown.
        """
        values = dict(recorded)
        original = OriginalHadaConfig(**values.pop("original", {}))
        # JSON has no tuples.
        return cls(**{**values, "weighted_inputs": tuple(values["weighted_inputs"]), "original": original})


class TowerFuser(Fuser):
    """Fuses the features of N encoders into one retrieval vector per item.

    The vector folds the fused vector and the weighted inputs' embeddings (`fold`), so that an inner product of an
    image's and a text's vector is HADA's weighted similarity.

    Args:
        config: see `TowerConfig`.
        shapes: the input encoders' widths, in the order in which their features will come.

    Raises:
        ConfigError: fewer than two encoders, or weighted inputs that aren't among them.
    """

    def __init__(self, config: TowerConfig, shapes: Sequence[InputShape]) -> None:
        super().__init__()
        if len(shapes) < 2:
            raise ConfigError(f"a fusion takes at least 2 encoders, got {len(shapes)}.")
        if not set(config.weighted_inputs) <= set(range(len(shapes))):
            raise ConfigError(f"weighted_inputs must lie in 0..{len(shapes) - 1}, got {config.weighted_inputs}.")
        self.config = config
        self.shapes = tuple(shapes)
        self.fused_dim = config.output_dim or sum(shape.dim for shape in shapes)
        self.towers = nn.ModuleDict({"image": self._tower("image"), "text": self._tower("text")})
        self.similarity = SimilarityWeights(len(config.weighted_inputs))
        self.matching = (FirstStageMatchingHead if config.batch_norm else MatchingHead)(self.fused_dim, config.dropout)

    def _tower(self, modality: Modality) -> nn.Module:
        config, dims = self.config, [shape.dim for shape in self.shapes]
        widths = [shape.width(modality) for shape in self.shapes]
        if config.method == "concat-linear":
            summaries = widths if config.read_summaries else ()
            return ConcatTower(
                dims,
                self.fused_dim,
                config.dropout,
                config.start,
                config.hidden,
                summaries,
                config.read_embeddings,
            )
        if config.method == "hada-original":
            return OriginalHadaTower(
                dims, widths, config.token_dim, config.heads, self.fused_dim, config.dropout, config.original
            )
        return HadaTower(
            dims,
            widths,
            config.token_dim,
            config.heads,
            self.fused_dim,
            config.dropout,
            config.start,
            config.activation,
            config.graph,
            config.layers,
            config.edges,
            config.read_embeddings,
            config.read_summaries,
        )

    @property
    def tokens_read(self) -> int | None:
        return int(self.config.read_summaries) if self.config.method == "concat-linear" else None

    @property
    def dim(self) -> int:
        return self.fused_dim + sum(self.shapes[position].dim for position in self.config.weighted_inputs)

    def parts(self) -> dict[str, tuple[slice, ...]] | None:
        weighted = self.config.weighted_inputs
        if not weighted:
            return None
        fused, *inputs = folded_slices([self.fused_dim, *(self.shapes[position].dim for position in weighted)])
        return {"fused": (fused,)} | {f"input {at}": (where,) for at, where in zip(weighted, inputs, strict=True)}

    def forward(self, modality: Modality, inputs: Sequence[EncoderFeatures]) -> Float[Tensor, "batch fused"]:
        """The fused unit-norm vectors h_p (of images) or h_s (of texts).

        Raises:
            ConfigError: the inputs don't fit the encoders that the fuser was made for.
            DataError: an item lacks every encoder (or one, with method "hada-original").
        """
        check_inputs(inputs, self.shapes, modality)
        return self.towers[modality](self._thinned(inputs) if self.training else inputs)

    def _thinned(self, inputs: Sequence[EncoderFeatures]) -> Sequence[EncoderFeatures]:
        """What training leaves of the inputs."""
        config = self.config
        if config.encoder_dropout:
            inputs = drop_encoders(inputs, config.encoder_dropout)
        if config.token_dropout and self.tokens_read is None:
            inputs = [drop_tokens(features, config.token_dropout) for features in inputs]
        return inputs

    def retrieval_vectors(
        self, fused: Float[Tensor, "batch fused"], inputs: Sequence[EncoderFeatures]
    ) -> Float[Tensor, "batch dim"]:
        """Folds fused vectors and the weighted inputs' embeddings into retrieval vectors of unit norm.

        The part of an input that an item lacks is zero, and its vector shorter.
        """
        embeddings = [inputs[position].known_embedding for position in self.config.weighted_inputs]
        return fold([fused, *embeddings], self.similarity())

    def embed(self, modality: Modality, inputs: Sequence[EncoderFeatures]) -> Float[Tensor, "batch dim"]:
        return self.retrieval_vectors(self(modality, inputs), inputs)

    def second_stage(self, weighted_inputs: Sequence[int]) -> "TowerFuser":
        """A copy of this fuser whose similarity also weighs the given inputs, from a share of 0.5 on."""
        fuser = TowerFuser(replace(self.config, weighted_inputs=tuple(weighted_inputs)), self.shapes)
        fuser.towers.load_state_dict(self.towers.state_dict())
        fuser.matching.load_state_dict(self.matching.state_dict())
        return fuser


def count_parameters(module: nn.Module) -> int:
    """How many trainable numbers a module holds."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def hidden_of_equal_size(config: TowerConfig, shapes: Sequence[InputShape], parameters: int) -> int:
    """The perceptron width that makes a B2 about as large as `parameters` (within one unit of width).

    The parameter count grows quadratically with the width, so the width is found by bisection.
    """
    low, high = 0, 1
    with torch.device("meta"):  # counts without allocating

        def size(hidden: int) -> int:
            wide = replace(config, method="concat-linear", hidden=hidden)
            return count_parameters(TowerFuser(wide, shapes).towers)

        while size(high) < parameters:
            low, high = high, high * 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if size(middle) < parameters else (low, middle)
        return min((low, high), key=lambda hidden: abs(size(hidden) - parameters))
