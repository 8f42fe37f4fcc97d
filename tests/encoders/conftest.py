from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageDraw


@pytest.fixture(scope="session")
def picture() -> Callable[..., Image.Image]:
    """Draws a picture with edges, colours and texture, another for each seed."""

    def draw(seed: int, width: int = 224, height: int = 224) -> Image.Image:
        random = np.random.default_rng(seed)
        image = Image.fromarray(random.integers(0, 80, (height, width, 3), dtype=np.uint8))
        canvas = ImageDraw.Draw(image)
        for _ in range(6):
            left, top = random.integers(0, width // 2), random.integers(0, height // 2)
            right = left + random.integers(width // 8, width // 2)
            bottom = top + random.integers(height // 8, height // 2)
            colour = tuple(int(channel) for channel in random.integers(0, 256, 3))
            canvas.ellipse((int(left), int(top), int(right), int(bottom)), fill=colour)
        return image

    return draw
