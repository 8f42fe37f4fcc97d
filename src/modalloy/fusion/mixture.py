"""A mixture of fusers and inputs: the weighted sum of their similarities, folded into one vector."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from modalloy.encoders import Modality
from modalloy.errors import ConfigError
from modalloy.fusion.base import Fuser
from modalloy.fusion.inputs import EncoderFeatures, InputShape, check_inputs
from modalloy.fusion.similarity import check_weights, fold, folded_slices


class Mixture(Fuser):
    """Sums the similarities of several fusers of the same inputs, and of some of these inputs, with fixed weights.

    Its retrieval vector folds the members' and the inputs' vectors, so that it stays one inner product. A part of
    weight 0 is left out: it takes no place in the vector and isn't computed. Without members it is a `ScoreFusion`
    over some of the inputs.

    Args:
        members: fusers of the same inputs.
        inputs: positions of the inputs whose own similarity enters.
        weights: one for each member, then one for each of `inputs`, not negative; they are divided by their sum.
        shapes: the input encoders' widths.

    Raises:
        ConfigError: a weight is negative, not finite or missing, or all are zero; a member was made for other
            inputs; or `inputs` aren't different positions among the encoders.
    """

    weights: Float[Tensor, " parts"]

    def __init__(
        self, members: Sequence[Fuser], inputs: Sequence[int], weights: Sequence[float], shapes: Sequence[InputShape]
    ) -> None:
        super().__init__()
        self.shapes = tuple(shapes)
        for position, member in enumerate(members):
            if member.shapes != self.shapes:
                raise ConfigError(
                    f"member {position} fuses inputs of the widths {member.shapes}, the mixture's are {self.shapes}; "
                    "mix fusers of the same encoders in the same order."
                )
        if len(set(inputs)) < len(inputs) or not set(inputs) <= set(range(len(shapes))):
            raise ConfigError(f"inputs must be different positions in 0..{len(shapes) - 1}, got {tuple(inputs)}.")
        parts = len(members) + len(inputs)
        if len(weights) != parts:
            raise ConfigError(
                f"expected one weight for each of {len(members)} members and {len(inputs)} inputs, got {len(weights)}."
            )
        check_weights(weights)
        kept = [weight > 0 for weight in weights]
        self.members = nn.ModuleList(member for member, keep in zip(members, kept, strict=False) if keep)
        self.inputs = tuple(each for each, keep in zip(inputs, kept[len(members) :], strict=True) if keep)
        positive = torch.tensor([weight for weight in weights if weight > 0], dtype=torch.float32)
        self.register_buffer("weights", positive / sum(weights))

    def fusers(self) -> list[Fuser]:
        """The members that have a weight."""
        return [member for member in self.members if isinstance(member, Fuser)]

    @property
    def tokens_read(self) -> int | None:
        counts = [member.tokens_read for member in self.fusers()]
        return max((count for count in counts if count is not None), default=0) if None not in counts else None

    @property
    def dim(self) -> int:
        return sum(member.dim for member in self.fusers()) + sum(self.shapes[each].dim for each in self.inputs)

    def parts(self) -> dict[str, tuple[slice, ...]] | None:
        members = self.fusers()
        if len(members) + len(self.inputs) == 1:
            return members[0].parts() if members else None
        slices = folded_slices([*(member.dim for member in members), *(self.shapes[each].dim for each in self.inputs)])
        found = dict[str, tuple[slice, ...]]()
        for position, (member, where) in enumerate(zip(members, slices, strict=False)):
            whole = {"fused": (slice(0, member.dim),)}
            for name, inside in (member.parts() or whole).items():
                known = name.startswith("input") or len(members) == 1
                name = name if known else name.replace("fused", f"fused {position}", 1)
                moved = tuple(slice(where.start + each.start, where.start + each.stop) for each in inside)
                found[name] = found.get(name, ()) + moved
        for each, where in zip(self.inputs, slices[len(members) :], strict=True):
            found[f"input {each}"] = (*found.get(f"input {each}", ()), where)
        return found

    def embed(self, modality: Modality, inputs: Sequence[EncoderFeatures]) -> Float[Tensor, "batch dim"]:
        check_inputs(inputs, self.shapes, modality)
        vectors = [member.embed(modality, inputs) for member in self.fusers()]
        return fold([*vectors, *(inputs[each].known_embedding for each in self.inputs)], self.weights)
