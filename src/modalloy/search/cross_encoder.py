"""A cross-encoder as a second stage ("itm"): BLIP's image-text matching head (Li et al. 2022, ICML).

It reads a text with the picture before its eyes, so that each pair costs a pass of the text encoder. transformers has
the head for BLIP; for ALBEF, whose head is alike, it has no class.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from modalloy.encoders.hub.captions import BLIP_CAPTIONS
from modalloy.encoders.hub.files import model_files
from modalloy.encoders.hub.model import load_model, require_model_type
from modalloy.encoders.hub.processing import PictureProcessor, TextProcessor
from modalloy.errors import DataError
from modalloy.search.held_tensors import HELD_BYTES, HeldTensors
from modalloy.search.rerank import Picture

_MAX_LENGTH = 35
"""Tokens of a text in the authors' retrieval."""


class CrossEncoder:
    """The logit that a text and a picture match, by a BLIP for retrieval (see `Reranker`).

    As in the authors' retrieval it is added to the first stage's cosine. What the model sees in a picture is kept as
    long as there is room.

    Args:
        source: a folder, or a name on the hub ("Salesforce/blip-itm-base-coco"), with a revision after "@" if wanted;
            HF_HUB_OFFLINE is respected.
        device: where it runs, such as "cuda:0".
        batch_size: pairs of a forward pass.
        held_bytes: how much of what it saw is kept.

    Raises:
        ConfigError: the model can't be had, or isn't a BLIP.
        CheckpointError: its files are damaged or not whole, or those of a BLIP without this head.
    """

    global_weight = 1.0

    def __init__(self, source: str, *, device: str = "cpu", batch_size: int = 16, held_bytes: int = HELD_BYTES) -> None:
        files = model_files(source)
        require_model_type(files, "itm", ["blip"])
        self._network: Any = load_model("BlipForImageTextRetrieval", files).to(device)
        self._pictures, self._texts = PictureProcessor(files), TextProcessor(files, _MAX_LENGTH, rule=BLIP_CAPTIONS)
        self._device, self._batch_size = torch.device(device), batch_size
        self._held = HeldTensors(held_bytes)

    @torch.no_grad()
    def __call__(self, texts: Sequence[str], pictures: Sequence[Picture]) -> Float[Tensor, "texts pictures"]:
        """See `Reranker`. A text of which nothing is left when it is rewritten as the authors did has no score."""
        scores = torch.full((len(texts), len(pictures)), torch.nan)
        ids = dict[int, Tensor]()
        for row, text in enumerate(texts):
            with suppress(DataError):
                ids[row] = self._texts(text)
        for places, seen in self._seen(pictures):
            for row, written in ids.items():
                scores[row, places] = self._matches(written, seen)
        return scores

    def _matches(self, written: Tensor, seen: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch"]:
        """The logit of one text with each picture."""
        ids = written.to(self._device).expand(len(seen), -1)
        read = self._network.text_encoder(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=self._device),
        ).last_hidden_state
        # The head's first number says that they don't match.
        return self._network.itm_head(read[:, 0])[:, 1].float().cpu()

    def _seen(self, pictures: Sequence[Picture]) -> Iterator[tuple[list[int], Float[Tensor, "batch tokens width"]]]:
        """What the model sees in those pictures that can be opened, by their places, some at a time."""
        for start in range(0, len(pictures), self._batch_size):
            seen = dict[int, Tensor]()
            for place in range(start, min(start + self._batch_size, len(pictures))):
                kept = self._held.get(pictures[place].sha256)
                if kept is None:
                    try:
                        pixels = self._pictures.collate([self._pictures(pictures[place].open())])
                    except DataError:
                        continue
                    on_device = {name: value.to(self._device) for name, value in pixels.items()}
                    kept = self._network.vision_model(**on_device).last_hidden_state[0]
                    if pictures[place].sha256 is not None:
                        self._held[pictures[place].sha256] = kept
                seen[place] = kept
            if seen:
                yield list(seen), torch.stack(list(seen.values()))
