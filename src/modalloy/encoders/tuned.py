"""A backbone that was trained further: another encoder's network with weights of its own."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from PIL import Image
from torch import nn

from modalloy.encoders.base import (
    Encoded,
    Encoder,
    Fingerprint,
    Level,
    Modality,
    Prepared,
    require_network,
)
from modalloy.encoders.checkpoint import (
    CONFIG,
    packed_weights,
    read_config,
    read_weights,
    require_unchanged,
    save_checkpoint,
)
from modalloy.encoders.mid import MID
from modalloy.encoders.registry import TUNED, absolute_spec, load_encoder, relative_spec
from modalloy.errors import CheckpointError, ConfigError, ModalloyError, one_line

FORMAT = "modalloy-tuned-backbone-1"
MAKER = "modalloy align"


class TunedEncoder(Encoder):
    """Another encoder in all but its network's weights; made by `save` and `from_pretrained`.

    Args:
        base: the encoder, whose network already has the weights; it is shared, not copied.
        modality: of the network.
        folder: where the weights are saved.
        weights_sha256: of that file.

    >>> from tempfile import TemporaryDirectory
    >>> backbone = load_encoder("minilm@16")
    >>> with TemporaryDirectory() as folder:
    ...     TunedEncoder.save(backbone, folder)
    ...     tuned = load_encoder(f"tuned:{folder}")
    >>> tuned.name, tuned.mid_layer("text")
    ('MiniLM-L6, tuned', 'layer 5 of 6')
    """

    def __init__(self, base: Encoder, modality: Modality, folder: Path, weights_sha256: str) -> None:
        self.base = base
        self.modalities = (modality,)
        self.device = base.device
        self.name = f"{base.name}, {TUNED}"
        # Absolute, so that the spec still names the folder after the working directory has changed.
        self.spec = f"{TUNED}:{folder.resolve()}"
        self._weights_sha256 = weights_sha256

    @staticmethod
    def save(encoder: Encoder, folder: str | Path) -> None:
        """Writes the weights that an encoder's network has now, and which encoder it is, into `folder`.

        A tuned encoder that was trained again is saved as its base with the newer weights.

        Args:
            encoder: of one modality, whose network was trained.
            folder: for `model.safetensors` and, written last, `config.json`.

        Raises:
            ConfigError: the encoder can't be trained further, or encodes two modalities.
        """
        folder = Path(folder)
        base = encoder.base if isinstance(encoder, TunedEncoder) else encoder
        if len(encoder.modalities) != 1:
            raise ConfigError(f"Only an encoder of one modality is saved as a tuned one, {encoder.spec} has two.")
        (modality,) = encoder.modalities
        weights = packed_weights(require_network(encoder, modality))
        config = {
            "modality": modality,
            "base": {"spec": relative_spec(base.spec, folder), "fingerprint": base.fingerprint(modality).to_dict()},
        }
        save_checkpoint(folder, FORMAT, weights, config)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Loads what `save` wrote, and the base, whose network is this encoder's alone.

        Raises:
            CheckpointError: the folder isn't a tuned backbone's, or is damaged; or its base has changed.
            ConfigError: the base can't be had.
        """
        folder = Path(folder)
        config = read_config(folder, FORMAT, MAKER)
        try:
            modality, spec = config["modality"], absolute_spec(config["base"]["spec"], folder)
            expected = Fingerprint.from_dict(config["base"]["fingerprint"])
        except (KeyError, TypeError, AttributeError, ModalloyError) as error:
            raise CheckpointError(
                f"{folder / CONFIG} isn't whole ({type(error).__name__}: {error}); copy the whole folder."
            ) from error
        if spec.partition(":")[0] in (TUNED, MID):
            # `save` names none, and it may be this folder itself, without end.
            raise CheckpointError(f"{folder / CONFIG} names {spec} as the base, which can't be one; align again.")
        base = load_encoder(spec)
        require_unchanged(expected, base.fingerprint(modality), spec, f"{TUNED}:{folder}")
        try:
            require_network(base, modality).load_state_dict(read_weights(folder, config))
        except RuntimeError as error:
            raise CheckpointError(
                f"{folder} doesn't hold the weights of {spec} ({one_line(error)}); copy the whole folder."
            ) from None
        return cls(base, modality, folder, config["weights_sha256"])

    def _parts(self) -> list[Encoder]:
        return [self.base]

    def fingerprint(self, modality: Modality) -> Fingerprint:
        """That of the base, with the weights that are saved."""
        self._require(modality)
        base = self.base.fingerprint(modality)
        return replace(base, name=f"{TUNED}:{base.name}", weights_sha256=self._weights_sha256)

    def dim(self, modality: Modality) -> int:
        """Length of the base's embedding."""
        return self.base.dim(modality)

    def width(self, modality: Modality) -> int:
        """Length of the base's tokens."""
        return self.base.width(modality)

    def preprocess(self, modality: Modality, item: Image.Image | str) -> Prepared:
        """Makes one item ready, as the base does."""
        return self.base.preprocess(modality, item)

    def forward(self, modality: Modality, prepared: Sequence[Any]) -> Encoded:
        """Runs the network on a batch, without gradients."""
        return self.base.forward(modality, prepared)

    def mid_layer(self, modality: Modality) -> str | None:
        """The base's."""
        return self.base.mid_layer(modality)

    def forward_mid(self, modality: Modality, prepared: Sequence[Any]) -> Encoded:
        """Runs the network on a batch for the tokens of `mid_layer`, without gradients."""
        return self.base.forward_mid(modality, prepared)

    def network(self, modality: Modality) -> nn.Module | None:
        """The network, to be trained on."""
        return self.base.network(modality)

    def forward_levels(
        self, modality: Modality, prepared: Sequence[Any], levels: Collection[Level]
    ) -> dict[Level, Encoded]:
        """Runs the network once, for the levels asked for, with gradients where they are enabled."""
        return self.base.forward_levels(modality, prepared, levels)

    def recompute_activations(self, modality: Modality) -> None:
        """The backward pass computes activations again, in the base's way."""
        self.base.recompute_activations(modality)

    def token_grid(self) -> tuple[int, int] | None:
        """The base's."""
        return self.base.token_grid()

    def token_texts(self, text: str) -> list[str] | None:
        """What each text token stands for, as for the base's."""
        return self.base.token_texts(text)
