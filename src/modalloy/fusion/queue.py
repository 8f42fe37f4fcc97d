"""The momentum queue: fused vectors of past batches, as further negatives and positives."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from modalloy.errors import ConfigError


class MomentumQueue(nn.Module):
    """The momentum encoders' latest vectors of pairs, oldest dropped first (MoCo, as HADA uses it).

    It starts empty, not with random vectors, which would act as false negatives; it takes batches of any size; and
    it is stored in bfloat16, since 64,000 vectors are read at every step.

    Args:
        capacity: how many pairs it holds; 0 for none.
        dim: width of the vectors.

    Raises:
        ConfigError: the capacity is negative.

    >>> import torch
    >>> queue = MomentumQueue(capacity=3, dim=2)
    >>> for row in range(4):
    ...     queue.push(torch.ones(1, 2), torch.ones(1, 2), torch.tensor([row]), torch.tensor([row]))
    >>> queue.images.tolist()
    [3, 1, 2]
    """

    _image_vectors: Tensor
    _text_vectors: Tensor
    _images: Tensor
    _families: Tensor
    _pushed: Tensor

    def __init__(self, capacity: int, dim: int) -> None:
        super().__init__()
        if capacity < 0:
            raise ConfigError(f"a queue's capacity must be at least 0 pairs, got {capacity}.")
        self.capacity = capacity
        self.register_buffer("_image_vectors", torch.zeros(capacity, dim, dtype=torch.bfloat16))
        self.register_buffer("_text_vectors", torch.zeros(capacity, dim, dtype=torch.bfloat16))
        self.register_buffer("_images", torch.zeros(capacity, dtype=torch.int64))
        self.register_buffer("_families", torch.zeros(capacity, dtype=torch.int64))
        self.register_buffer("_pushed", torch.zeros((), dtype=torch.int64))

    def __len__(self) -> int:
        return min(int(self._pushed), self.capacity)

    @property
    def image_vectors(self) -> Float[Tensor, "queue dim"]:
        """The image vectors, in bfloat16."""
        return self._image_vectors[: len(self)]

    @property
    def text_vectors(self) -> Float[Tensor, "queue dim"]:
        """The text vectors, in bfloat16."""
        return self._text_vectors[: len(self)]

    @property
    def images(self) -> Int[Tensor, " queue"]:
        """The row of the image of each pair."""
        return self._images[: len(self)]

    @property
    def families(self) -> Int[Tensor, " queue"]:
        """The family of the image of each pair."""
        return self._families[: len(self)]

    @torch.no_grad()
    def push(
        self,
        image_vectors: Float[Tensor, "batch dim"],
        text_vectors: Float[Tensor, "batch dim"],
        images: Int[Tensor, " batch"],
        families: Int[Tensor, " batch"],
    ) -> None:
        """Adds a batch of pairs in place of the oldest ones; of a batch larger than the queue, its last pairs."""
        newest = slice(-self.capacity, None) if self.capacity else slice(0, 0)
        count = len(images[newest])
        places = (self._pushed + torch.arange(count, device=images.device)) % max(self.capacity, 1)
        self._image_vectors[places] = image_vectors[newest].to(torch.bfloat16)
        self._text_vectors[places] = text_vectors[newest].to(torch.bfloat16)
        self._images[places] = images[newest]
        self._families[places] = families[newest]
        self._pushed += count
