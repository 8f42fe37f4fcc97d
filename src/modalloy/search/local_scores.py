"""HACAN's local score of texts and pictures that come as they are, as a second stage ("local")."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Self

import torch
from jaxtyping import Float
from torch import Tensor

from modalloy.align import AlignedEncoder
from modalloy.align.cross_layer import LocalConfig, compared_packed
from modalloy.align.local_level import LocalLevel
from modalloy.encoders import Encoder, Level
from modalloy.encoders.base import Prepared
from modalloy.errors import ConfigError, DataError
from modalloy.fusion import Alloy
from modalloy.search.held_tensors import HELD_BYTES, HeldTensors
from modalloy.search.hierarchical import Compared, Stage, refine
from modalloy.search.hierarchy_config import HierarchyConfig
from modalloy.search.rerank import Picture
from modalloy.search.token_source import HeldTokens

_BATCH = 8


def local_encoders(encoder: Encoder) -> Iterator[AlignedEncoder]:
    """The aligned encoders with a local branch that an encoder is, or is made of."""
    if isinstance(encoder, AlignedEncoder) and encoder.local is not None:
        yield encoder
    for each in encoder.encoders if isinstance(encoder, Alloy) else ():
        yield from local_encoders(each)


class LocalScores:
    """The mean of the local scores of all local branches in an encoder (see `Reranker`).

    A picture's tokens are made when they are first asked for, and kept as long as there is room.

    Args:
        encoder: an aligned encoder with a local branch, or an alloy that has such inputs.
        config: the weights; all pictures get all stages.
        held_bytes: how much of pictures' tokens is kept.

    Raises:
        ConfigError: there is no local branch.
    """

    def __init__(self, encoder: Encoder, config: HierarchyConfig | None = None, held_bytes: int = HELD_BYTES) -> None:
        members = list(local_encoders(encoder))
        if not members:
            raise ConfigError(
                f"{encoder.spec} has no local branch to re-rank by; align with one (--align.local.dim 256), or re-rank "
                "by a cross-encoder."
            )
        self._config = config or HierarchyConfig()
        self.global_weight = self._config.global_weight
        # A cross-layer stage needs the mid levels of all of them.
        self._crosses = all(each.branch().config.crosses for each in members)
        self._members = [_Member.of(each, self._crosses) for each in members]
        self._held = HeldTensors(held_bytes)

    @torch.no_grad()
    def __call__(self, texts: Sequence[str], pictures: Sequence[Picture]) -> Float[Tensor, "texts pictures"]:
        """See `Reranker`."""
        scores = torch.full((len(texts), len(pictures)), torch.nan)
        tokens = self._tokens(pictures)
        if not texts or not tokens:
            return scores
        compared = [each.compared(texts, list(tokens.values())) for each in self._members]
        places, shape = torch.tensor(list(tokens)), (len(texts), len(tokens))
        first = Stage("global", torch.arange(len(tokens)).expand(shape), torch.zeros(shape), 0.0)
        weights = {name: getattr(self._config, name) for name in ("focal_weight", "cross_weight")}
        stages = HierarchyConfig(None, len(tokens) if self._crosses else None, global_weight=0.0, **weights)
        *_, last = refine(compared, first, "text_to_image", stages)
        for row, found in enumerate(last.candidates):
            usable = found >= 0
            scores[row, places[found[usable]]] = last.scores[row, usable].float()
        return scores

    def _tokens(self, pictures: Sequence[Picture]) -> dict[int, dict[str, Float[Tensor, "tokens dim"]]]:
        """The tokens of each picture that can be opened, by its place and by the level's fingerprint."""
        levels = {digest: level for each in self._members for digest, level in each.levels.items()}
        tokens = dict[int, dict[str, Tensor]]()
        prepared: dict[str, list[tuple[int, Prepared]]] = {digest: [] for digest in levels}
        for place, picture in enumerate(pictures):
            kept = {digest: held for digest in levels if (held := self._held.get((picture.sha256, digest))) is not None}
            lacking = [digest for digest in levels if digest not in kept]
            try:
                # Made ready at once, since an opened picture can be large.
                opened = picture.open() if lacking else None
                ready = [(digest, levels[digest].preprocess("image", opened)) for digest in lacking if opened]
            except DataError:
                continue
            tokens[place] = kept
            for digest, each in ready:
                prepared[digest].append((place, each))
        for digest, waiting in prepared.items():
            for start in range(0, len(waiting), _BATCH):
                batch = waiting[start : start + _BATCH]
                encoded = levels[digest].forward("image", [each for _, each in batch])
                for (place, _), made in zip(batch, encoded.tokens_of_each(), strict=True):
                    # As precise as features are stored; a copy, which doesn't keep the batch.
                    tokens[place][digest] = made.half().clone()
                    if pictures[place].sha256 is not None:
                        self._held[pictures[place].sha256, digest] = tokens[place][digest]
        return tokens


class _Member(NamedTuple):
    """One local branch."""

    local: LocalConfig
    images: dict[Level, tuple[str, LocalLevel]]
    """What makes each level of a picture's tokens, and its fingerprint."""
    texts: dict[Level, LocalLevel]

    @classmethod
    def of(cls, encoder: AlignedEncoder, crosses: bool) -> Self:
        local = encoder.branch().config
        terms = [term for term in local.terms if term.focal or crosses]
        both: set[Level] = {level for term in terms for level in (term.image, term.text)}
        made = {level: LocalLevel(encoder, level) for level in both}
        images = {term.image: (made[term.image].fingerprint("image").digest, made[term.image]) for term in terms}
        return cls(local, images, {term.text: made[term.text] for term in terms})

    @property
    def levels(self) -> dict[str, LocalLevel]:
        """What makes a picture's tokens, by fingerprint."""
        return dict(self.images.values())

    def compared(self, texts: Sequence[str], pictures: Sequence[Mapping[str, Tensor]]) -> Compared:
        """The tokens of texts, and those of pictures."""
        words = {level: each.encode_texts(texts) for level, each in self.texts.items()}
        packed = {level: (each.tokens, each.lengths) for level, each in words.items()}
        regions = {level: [each[digest] for each in pictures] for level, (digest, _) in self.images.items()}
        joined = {level: (torch.cat(each), torch.tensor([len(one) for one in each])) for level, each in regions.items()}
        return Compared(compared_packed("text", packed), HeldTokens(compared_packed("image", joined)), self.local)
