"""What a local branch makes of a backbone's tokens, as an encoder of its own, whose features can be stored."""

from collections.abc import Iterable, Sequence
from hashlib import sha256

import torch
from PIL import Image
from torch import nn
from torch.nn.functional import normalize

from modalloy.align.encoder import AlignedEncoder, summary_tokens
from modalloy.encoders import Encoded, Encoder, Fingerprint, Level, Modality
from modalloy.encoders.base import Prepared, sha256_of_settings
from modalloy.encoders.checkpoint import packed_weights
from modalloy.errors import ConfigError

REVISION = "modalloy-local-level-1"


class LocalLevel(Encoder):
    """The tokens of one level in the space of an aligned encoder's local branch, and their summary as the embedding.

    `project` makes them of the backbone's stored tokens, so that each item is mapped once, however often it is scored.
    Its fingerprint has the backbone's and the weights of the map: other heads, or another place of the encoder, change
    nothing. The backbone isn't loaded but for new items.

    Args:
        encoder: whose local branch; it is shared, not copied.
        level: "high", or "mid" for what the branch reads beside them.

    Raises:
        ConfigError: there is no local branch, or it reads no such level.

    >>> from modalloy.align import Backbone, GlobalHead, HeadConfig, LocalBranch, LocalConfig
    >>> print_of = lambda name: Fingerprint(name, "1", "a" * 64, "b" * 64)
    >>> backbones = {each: Backbone(f"my-{each}s", print_of(each), 3) for each in ("image", "text")}
    >>> heads = {each: GlobalHead(HeadConfig(3, (2,))) for each in backbones}
    >>> encoder = AlignedEncoder(backbones, heads, local=LocalBranch(LocalConfig(3, None, 3, None, dim=4)))
    >>> stored = Encoded(torch.eye(1), torch.randn(5, 3), torch.tensor([5]))
    >>> LocalLevel(encoder, "high").project("image", stored).tokens.shape
    torch.Size([5, 4])
    """

    def __init__(self, encoder: AlignedEncoder, level: Level) -> None:
        self._local = encoder.branch()
        self.modalities = tuple(each for each in encoder.modalities if level == "high" or each in encoder.mid)
        if not self.modalities:
            raise ConfigError(f"{encoder.spec} reads no mid level, only the last tokens; leave it out.")
        self.encoder, self.level = encoder, level
        self.spec = f"local-{level}:{encoder.spec}"
        self.name = f"{encoder.name}, local branch's {level} level"
        self.device = encoder.device

    def _parts(self) -> Iterable[nn.Module | Encoder]:
        return [self.encoder]

    def fingerprint(self, modality: Modality) -> Fingerprint:
        """The weights of the map, chained with the fingerprint of what it maps."""
        self._require(modality)
        mapped = self.encoder.recorded(modality, self.level).fingerprint
        return Fingerprint(
            name=f"local-{self.level}:{mapped.name}",
            revision=REVISION,
            weights_sha256=sha256(packed_weights(self._map(modality))).hexdigest(),
            preprocessing_sha256=sha256_of_settings({"backbone": mapped.digest}),
        )

    def dim(self, modality: Modality) -> int:
        """Length of the summary."""
        return self.width(modality)

    def width(self, modality: Modality) -> int:
        """Length of a token."""
        self._require(modality)
        return self._local.config.dim

    def preprocess(self, modality: Modality, item: Image.Image | str) -> Prepared:
        """Makes one item ready, as the backbone does."""
        self._require(modality)
        return self.encoder.backbone(modality, self.level).preprocess(modality, item)

    def forward(self, modality: Modality, prepared: Sequence[Prepared]) -> Encoded:
        """Runs the backbone, and maps its tokens."""
        self._require(modality)
        return self.project(modality, self.encoder.backbone(modality, self.level).forward(modality, prepared))

    @torch.no_grad()
    def project(self, modality: Modality, encoded: Encoded) -> Encoded:
        """What this encoder makes of the backbone's output, or of its stored features.

        As a transform for `modalloy.features.derive_tokens`: `functools.partial(level.project, "image")`.
        """
        self._require(modality)
        mapped = Encoded(encoded.embedding, self._map(modality)(encoded.tokens.to(self.device)), encoded.lengths)
        return Encoded(normalize(summary_tokens(mapped), dim=1), mapped.tokens, mapped.lengths)

    def _map(self, modality: Modality) -> nn.Linear:
        return self._local.map_of(modality, self.level)
