"""The ladder of `modalloy fuse --method auto`: from the inputs to a mixture of experts, no step up without proof.

The validation items are split into two halves. The choosing half decides the regime, every epoch and every weight, the
simple system (the best input or the tuned weighted cosine) and one trained candidate. The judging half, untouched until
then, compares these two. Unless the interval of their difference lies above 0, the simple system is returned.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from modalloy.encoders import Encoder
from modalloy.evaluation import bootstrap_difference, metrics, rank_queries
from modalloy.fusion import Fuser, Mixture, ScoreFusion, SplitFeatures, TowerFuser
from modalloy.fusion.subset import halves
from modalloy.workflow.choice import SMALLEST_HALF, Choice, Rung
from modalloy.workflow.fuse import FusionFit
from modalloy.workflow.fusion_config import MEAN, METHODS, TUNED, FusionConfig

B2, STAGES = METHODS[2], METHODS[4:]
MIXTURE = "mixture of experts and inputs"
_FOLDER = "auto"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chosen:
    """What is returned: some of the encoders, and their fuser."""

    encoders: list[Encoder]
    """The encoders that the fuser reads."""
    fuser: Fuser
    """Fitted on their features."""
    choice: Choice
    """How it was chosen."""


@dataclass(frozen=True)
class _System:
    """A rung's fuser; where its weights are sought, the trained experts that they weigh with the inputs."""

    name: str
    fuser: Fuser
    trained: bool = False
    experts: dict[str, TowerFuser] | None = None


def settings_of(config: FusionConfig, width: int) -> dict[str, FusionConfig]:
    """The settings that HADA is fitted by: the configured ones, and the other start of the last layer.

    Args:
        config: the configured ones.
        width: of the inputs' embeddings together, which the start from score averaging takes.
    """
    towers = config.towers
    settings = {f"{towers.start} start": config}
    other: Literal["identity", "random"] = "random" if towers.start == "identity" else "identity"
    # The authors' code knows only its random start, and a pretrained one replaces either.
    wide_enough = other == "random" or (towers.read_embeddings and (towers.output_dim or width) >= width)
    if towers.method == "hada" and config.pretrained is None and wide_enough:
        settings[f"{other} start"] = replace(config, towers=replace(towers, start=other))
    return settings


def choose(fits: FusionFit, seed: int = 0) -> Chosen:
    """Fits the ladder and returns its best trained system if that is surely better than the simple one, else that.

    The weights of the returned system, if they were sought, are sought anew on all validation items.

    Args:
        fits: the encoders, their features and the settings; finished fits are loaded.
        seed: of the halves, the starts, the batches and the dropout.
    """
    parts = halves(fits.validation, seed)
    images = (len(parts[0].image_rows), len(parts[1].image_rows))
    enough = min(images) >= SMALLEST_HALF
    choosing, judging = parts if enough else (fits.validation, None)
    chooser = fits.variant(_FOLDER, fits.config, choosing)
    regime = chooser.regime or chooser.detected_regime
    simple = list(_simple_systems(chooser))
    trained = list(_trained_systems(chooser, seed)) if enough else []
    systems = [*simple, *trained]
    rsums = {system.name: choosing.rsum(system.fuser) for system in systems}
    # The mean's weights are among those that were tried; of equals the first, an input, is the simplest.
    baseline = max((each for each in simple if each.name != MEAN), key=lambda each: rsums[each.name])
    candidate = max(trained, key=lambda each: rsums[each.name], default=None)
    rungs = tuple(_judged(systems, rsums, baseline, judging))
    difference = next((each.difference for each in rungs if candidate and each.name == candidate.name), None)
    chosen = candidate if candidate and difference and difference.low > 0 else baseline
    used, fuser, weights = _final(fits, chosen)
    choice = Choice(
        chosen=chosen.name,
        simple=baseline.name,
        candidate=candidate.name if candidate else None,
        rungs=rungs,
        images=images,
        captions=(len(parts[0].caption_rows), len(parts[1].caption_rows)),
        regime=regime,
        weights=weights,
    )
    _log.info(choice.sentence())
    return Chosen([fits.encoders[position] for position in used], fuser, choice)


def _simple_systems(fits: FusionFit) -> Iterator[_System]:
    for position, name in enumerate(fits.names):
        weights = [float(position == each) for each in range(len(fits.names))]
        yield _System(f"input {name}", ScoreFusion(weights, fits.shapes))
    yield _System(MEAN, fits.fit(MEAN))
    yield _System(TUNED, fits.fit(TUNED), experts={})


def _trained_systems(fits: FusionFit, seed: int) -> Iterator[_System]:
    yield _System(B2, fits.fit(B2, seed), trained=True)
    experts: dict[str, TowerFuser] = {B2: fits.expert("concat-linear", seed)}
    settings = settings_of(fits.config, sum(shape.dim for shape in fits.shapes))
    for label, config in settings.items():
        setting = fits.variant(label.replace(" ", "-"), config, fits.validation)
        for method in STAGES:
            yield _System(f"{method}, {label}", setting.fit(method, seed), trained=True)
        experts[f"HADA, {label}"] = setting.expert("hada", seed)
    experts |= {each.name: fits.fit_expert(each, seed) for each in fits.config.experts if each.in_alloy}
    yield _System(MIXTURE, fits.mixture(list(experts.values())), trained=True, experts=experts)


def _judged(
    systems: Sequence[_System], rsums: dict[str, float], baseline: _System, judging: SplitFeatures | None
) -> Iterator[Rung]:
    if judging is None:
        yield from (Rung(each.name, each.trained, rsums[each.name]) for each in systems)
        return
    ranks = {each.name: rank_queries(judging.scores(each.fuser), judging.caption_image) for each in systems}
    for each in systems:
        difference = bootstrap_difference(ranks[each.name], ranks[baseline.name], judging.caption_image)
        yield Rung(each.name, each.trained, rsums[each.name], metrics(ranks[each.name]).rsum, difference)


def _final(fits: FusionFit, chosen: _System) -> tuple[list[int], Fuser, dict[str, float]]:
    """The chosen system with its weights sought on all validation items: the inputs it reads, the fuser, the weights.

    What is made of inputs alone leaves out the encoders that have no weight, so that they needn't run.
    """
    everything = list(range(len(fits.names)))
    if chosen.experts is None:
        if chosen.trained or not isinstance(chosen.fuser, ScoreFusion):
            return everything, chosen.fuser, {}
        weights, named = chosen.fuser.weights.tolist(), {}
    else:
        weights = list(fits.sought_weights(list(chosen.experts.values())))
        named = dict(zip([*chosen.experts, *fits.names], weights, strict=True))
    if chosen.experts:
        return everything, Mixture(list(chosen.experts.values()), everything, weights, fits.shapes), named
    used = [position for position in everything if weights[position] > 0]
    shapes = [fits.shapes[position] for position in used]
    return used, ScoreFusion([weights[position] for position in used], shapes), named
