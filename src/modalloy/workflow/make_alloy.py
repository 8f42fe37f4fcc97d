"""From dual encoders to an alloy that can be searched: `modalloy fuse`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from modalloy.encoders import Encoder
from modalloy.encoders.base import sha256_of_settings
from modalloy.errors import ConfigError
from modalloy.files import write_json
from modalloy.fusion import Alloy
from modalloy.training.tracking import TrackingConfig, tracked
from modalloy.workflow.auto import choose
from modalloy.workflow.choice import Choice
from modalloy.workflow.features import Collection
from modalloy.workflow.fingerprints import fingerprints
from modalloy.workflow.fuse import FusionFit
from modalloy.workflow.fusion_config import METHODS, NEVER_PRETRAINED, FusionConfig
from modalloy.workflow.index import index
from modalloy.workflow.regime import Regime

AUTO: Literal["auto"] = "auto"


@dataclass(frozen=True)
class Fused:
    """An alloy, and what was found out when it was made."""

    alloy: Alloy
    """Saved, with an index to search."""
    regime: Regime | None
    """Whether the inputs know the training pairs, where that was asked for."""
    choice: Choice | None = None
    """How method "auto" decided."""


def fuse(
    encoders: Sequence[Encoder],
    collection: Collection,
    folder: str | Path,
    method: str = "HADA stage 2",
    config: FusionConfig | None = None,
    seed: int = 0,
    names: Sequence[str] | None = None,
    tracking: TrackingConfig | None = None,
) -> Alloy:
    """Fuses dual encoders into an alloy, saved in `folder` with an index to search; an interrupted training goes on.

    Args:
        encoders: two or more frozen dual encoders.
        collection: trained on its split "train", chosen on "tune" (or "val").
        folder: where the alloy goes.
        method: one of `METHODS`; "alloy", which mixes the configured experts with the inputs; or "auto", which fits
            the methods and returns what is surely best (see `choose`), and saves how it decided as `choice.json`.
        config: see `FusionConfig`.
        seed: of the start, the batches and the dropout.
        names: see `FusionFit`.
        tracking: see `TrackingConfig`; by default nothing is tracked.

    Raises:
        ConfigError: an unknown method, one that takes no pretrained alloy, a tracker that can't start, or see
            `FusionFit`.
        DataError: the collection lacks a training or a validation split.
    """
    return fuse_with_findings(encoders, collection, folder, method, config, seed, names, tracking).alloy


def fuse_with_findings(
    encoders: Sequence[Encoder],
    collection: Collection,
    folder: str | Path,
    method: str = "HADA stage 2",
    config: FusionConfig | None = None,
    seed: int = 0,
    names: Sequence[str] | None = None,
    tracking: TrackingConfig | None = None,
) -> Fused:
    """As `fuse`, and also returns the regime and how "auto" decided."""
    folder, config = Path(folder), config or FusionConfig()
    if config.pretrained is not None and method in NEVER_PRETRAINED:
        raise ConfigError(f"fusion.pretrained starts HADA, but the method is {method!r}; leave it out.")
    if config.methods != METHODS:
        raise ConfigError("fusion.methods says what a run compares, but a fusion has one method; leave it out.")
    if method != AUTO:
        config.check_method(method)
    if config.experts and method in METHODS:
        raise ConfigError(
            f"method {method!r} has no use for fusion.experts; say 'alloy', 'auto' or an expert's name, or leave them "
            "out."
        )
    if config.vector_dim is not None and method == AUTO:
        raise ConfigError(
            "fusion.vector_dim can't be had with method 'auto', which may choose an input as it is; leave it out, and "
            "fuse again with it by the method that was chosen."
        )
    config.check_inputs(names or [encoder.spec for encoder in encoders])
    parameters = {
        "method": method,
        "seed": seed,
        "fusion": asdict(config),
        "fingerprints": fingerprints(collection.manifest, {each.spec: each for each in encoders}),
        "splits": sha256_of_settings({item.id: item.split for item in collection.manifest}),
    }
    with tracked(tracking or TrackingConfig(), folder, folder.name, parameters) as tracker:
        fits = FusionFit(encoders, collection, config, folder / "fits", names, tracker)
        fused = _fused(fits, method, seed)
        fused.alloy.save(folder)
        if fused.choice is not None:
            write_json(folder / "choice.json", fused.choice.to_dict())
        else:
            # One of an earlier fusion doesn't describe this one.
            (folder / "choice.json").unlink(missing_ok=True)
        index(fused.alloy, collection, folder)
    return fused


def _fused(fits: FusionFit, method: str, seed: int) -> Fused:
    if method != AUTO:
        return Fused(Alloy(fits.encoders, fits.cut(fits.fit(method, seed)), method), fits.regime)
    chosen = choose(fits, seed)
    alloy = Alloy(chosen.encoders, chosen.fuser, f"auto: {chosen.choice.chosen}")
    return Fused(alloy, chosen.choice.regime, chosen.choice)
