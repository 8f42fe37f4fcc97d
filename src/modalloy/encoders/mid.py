"""The second token level of a model, as an encoder of its own: its spec is "mid:" and the model's.

So its features lie in a store apart, with a fingerprint of their own, and everything that works for an encoder works
for it. The price is that the model runs once more.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from PIL import Image

from modalloy.encoders.base import Encoded, Encoder, Fingerprint, Modality, Prepared, sha256_of_settings
from modalloy.errors import ConfigError

MID = "mid"


class MidLevel(Encoder):
    """An earlier layer of a model: its tokens, and their summary as the embedding.

    Args:
        model: whose layer; it is shared, not copied.

    Raises:
        ConfigError: the model gives one token level only.

    >>> from modalloy.encoders import load_encoder
    >>> mid = MidLevel(load_encoder("minilm"))
    >>> mid.spec, mid.encode_texts(["a red telephone"]).tokens.shape
    ('mid:minilm', torch.Size([6, 384]))
    """

    def __init__(self, model: Encoder) -> None:
        self.modalities = tuple(modality for modality in model.modalities if model.mid_layer(modality) is not None)
        if not self.modalities:
            raise ConfigError(f"{model.spec} has no second token level; leave out {MID + ':'!r} for its only one.")
        self.model = model
        self.device = model.device
        self.spec = f"{MID}:{model.spec}"
        self.name = f"{model.name}, mid level"

    def _parts(self) -> list[Encoder]:
        return [self.model]

    def fingerprint(self, modality: Modality) -> Fingerprint:
        """That of the model, and which layer is read."""
        self._require(modality)
        model = self.model.fingerprint(modality)
        settings = {"model": model.preprocessing_sha256, "layer": self.model.mid_layer(modality)}
        return replace(model, name=f"{MID}:{model.name}", preprocessing_sha256=sha256_of_settings(settings))

    def dim(self, modality: Modality) -> int:
        """Length of the summary."""
        self._require(modality)
        return self._example[modality].embedding.shape[1]

    def width(self, modality: Modality) -> int:
        """Length of a token."""
        self._require(modality)
        return self._example[modality].tokens.shape[1]

    def preprocess(self, modality: Modality, item: Image.Image | str) -> Prepared:
        """Makes one item ready, as the model does."""
        self._require(modality)
        return self.model.preprocess(modality, item)

    def forward(self, modality: Modality, prepared: Sequence[Any]) -> Encoded:
        """Runs the model, for that layer's tokens."""
        self._require(modality)
        return self.model.forward_mid(modality, prepared)

    def token_texts(self, text: str) -> list[str] | None:
        """What each text token stands for, as for the model's last tokens."""
        return self.model.token_texts(text)

    @cached_property
    def _example(self) -> dict[Modality, Encoded]:
        """One item's features, by which the sizes are known."""
        items: dict[Modality, Image.Image | str] = {"image": Image.new("RGB", (64, 64), "grey"), "text": "a"}
        return {each: self.forward(each, [self.preprocess(each, items[each])]) for each in self.modalities}
