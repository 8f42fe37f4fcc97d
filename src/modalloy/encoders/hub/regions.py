"""Object detectors as encoders: a picture's tokens are the regions they find.

In the way of LightningDOT (Sun et al. 2021, https://arxiv.org/abs/2103.08784) and UNITER, whose regions came from a
Faster R-CNN; here they are the queries of a DETR (Carion et al. 2020, https://arxiv.org/abs/2005.12872) or RT-DETR
(Zhao et al. 2024, https://arxiv.org/abs/2304.08069) that found something.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from modalloy.encoders.base import Encoded, Modality
from modalloy.encoders.hub.base import HubEncoder, Output
from modalloy.encoders.hub.files import model_files
from modalloy.encoders.hub.model import load_model, require_model_type
from modalloy.encoders.hub.processing import PictureProcessor
from modalloy.errors import ConfigError

_MOST_REGIONS = 100


@dataclass(frozen=True)
class _Family:
    model_types: dict[str, str]
    """For each `model_type` in config.json the class of transformers."""
    threshold: float
    """Score above which a query is a region: DETR's softmax is surer of itself than RT-DETR's sigmoids."""


_FAMILIES = {
    "detr": _Family({"detr": "DetrForObjectDetection"}, threshold=0.5),
    "rt-detr": _Family(
        {"rt_detr": "RTDetrForObjectDetection", "rt_detr_v2": "RTDetrV2ForObjectDetection"}, threshold=0.3
    ),
}


class RegionEncoder(HubEncoder):
    """DETR or RT-DETR: each region's token is the last decoder state of its query, and seven numbers of its box.

    A region is a query whose best class scores above 0.5 (DETR) or 0.3 (RT-DETR); the best 100 are kept in order of
    their score, and the best one in any case. The summary token is the mean of the region tokens; the embedding is
    the mean of the decoder states alone, since boxes say where things are, not what.

    Args:
        kind: "detr" or "rt-detr".
        source: a folder, or a name on the hub, with a revision after "@" if wanted.

    Raises:
        ConfigError: the family is unknown, the model can't be had, or is of another family.
        CheckpointError: its files are damaged or not whole.
    """

    def __init__(self, kind: str, source: str) -> None:
        if kind not in _FAMILIES:
            raise ConfigError(f"A region encoder is one of {', '.join(_FAMILIES)}, got {kind!r}.")
        family, files = _FAMILIES[kind], model_files(source)
        architecture = family.model_types[require_model_type(files, kind, list(family.model_types))]
        super().__init__(
            kind,
            source,
            files,
            load_model(architecture, files),
            pictures=PictureProcessor(files),
            settings={"threshold": family.threshold, "most": _MOST_REGIONS, "geometry": "x1 y1 x2 y2 w h area"},
        )
        self._threshold = family.threshold

    def forward(self, modality: Modality, prepared: Sequence[Any]) -> Encoded:
        """Runs the detector on pictures of one shape at a time, since padding reaches a convolution's results."""
        self._require(modality)
        groups: dict[tuple[int, ...], list[int]] = {}
        for row, item in enumerate(prepared):
            pixels = item if isinstance(item, Tensor) else item[0]
            groups.setdefault(tuple(pixels.shape), []).append(row)
        encoded: dict[int, Encoded] = {}
        for rows in groups.values():
            group = super().forward(modality, [prepared[row] for row in rows])
            for row, embedding, tokens in zip(rows, group.embedding, group.tokens_of_each(), strict=True):
                encoded[row] = Encoded(embedding[None], tokens, torch.tensor([len(tokens)]))
        return Encoded.concatenate(encoded[row] for row in range(len(prepared)))

    def token_grid(self) -> None:
        """Regions have no grid."""
        return None

    def _images(self, inputs: Mapping[str, Tensor]) -> Output:
        given = self._network(**inputs)
        scores, order = self._scores(given.logits).sort(dim=1, descending=True, stable=True)
        scores, order = scores[:, :_MOST_REGIONS], order[:, :_MOST_REGIONS]
        states, boxes = _taken(given.last_hidden_state, order), _taken(given.pred_boxes, order)
        kept = scores > self._threshold
        kept[:, 0] = True
        tokens = torch.cat([states, geometry(boxes)], dim=-1)
        return Output(_mean(states, kept), tokens, _mean(tokens, kept), kept)

    def _scores(self, logits: Float[Tensor, "batch queries classes"]) -> Float[Tensor, "batch queries"]:
        if getattr(self._network.config, "use_focal_loss", False):
            return logits.sigmoid().amax(dim=-1)
        # The last class is "no object".
        return logits.softmax(dim=-1)[..., :-1].amax(dim=-1)


def geometry(boxes: Float[Tensor, "*regions 4"]) -> Float[Tensor, "*regions 7"]:
    """UNITER's seven numbers of a box (Chen et al. 2020, section 3.1), all relative to the picture.

    Args:
        boxes: centre, width and height, as DETR gives them.

    Returns:
        Left, top, right, bottom, width, height and area.

    >>> geometry(torch.tensor([0.5, 0.5, 0.5, 0.25])).tolist()
    [0.25, 0.375, 0.75, 0.625, 0.5, 0.25, 0.125]
    """
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2, size, size.prod(dim=-1, keepdim=True)], dim=-1)


def _taken(values: Float[Tensor, "batch queries _"], order: Tensor) -> Float[Tensor, "batch regions _"]:
    return values.gather(1, order[..., None].expand(-1, -1, values.shape[-1]))


def _mean(
    values: Float[Tensor, "batch regions width"], kept: Bool[Tensor, "batch regions"]
) -> Float[Tensor, "batch width"]:
    weight = kept[..., None].to(values.dtype)
    return (values * weight).sum(dim=1) / weight.sum(dim=1)
