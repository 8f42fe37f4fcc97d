"""Parts of a split: some of its images, or its two halves."""

import torch
from jaxtyping import Bool
from torch import Tensor

from modalloy.fusion.paired_features import SplitFeatures


def subset(
    split: SplitFeatures, images: Bool[Tensor, " images"], captions: Bool[Tensor, " captions"] | None = None
) -> SplitFeatures:
    """Some images of a split with their captions, or with those of them that `captions` marks."""
    kept = images[split.caption_image]
    if captions is not None:
        kept = kept & captions
    position = images.cumsum(0) - 1
    return SplitFeatures(
        split.paired, split.image_rows[images], split.caption_rows[kept], position[split.caption_image[kept]]
    )


def halves(split: SplitFeatures, seed: int = 0) -> tuple[SplitFeatures, SplitFeatures]:
    """Two halves by images, drawn at random; images of one family stay together, so one half may be the larger."""
    families = split.paired.manifest.families[split.image_rows]
    _, family = families.unique(return_inverse=True)
    sizes = family.bincount()
    order = torch.randperm(len(sizes), generator=torch.Generator().manual_seed(seed))
    # A family goes to the half in which its middle lies, where the families stand one after the other.
    middle = 2 * sizes[order].cumsum(0) - sizes[order]
    in_first = torch.empty(len(sizes), dtype=torch.bool)
    in_first[order] = middle <= len(families)
    return subset(split, in_first[family]), subset(split, ~in_first[family])
