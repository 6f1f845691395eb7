"""The image pool: discriminators also see older translations (Shrivastava et al. 2017, section 2.3)."""

import random
from typing import Any

import torch
from torch import Tensor


class ImagePool:
    """Keeps up to `size` images. Once full, half of the queries hand back a stored image and keep the new one.

    The pool draws from a random generator of its own, so its history is part of its state and of nothing else's.
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        self._size = size
        self._images: list[Tensor] = []
        self._random = random.Random(seed)

    def query(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in, as many out: new ones or, half of the time, stored ones."""
        if self._size == 0:
            return images
        new = images.detach()
        chosen = [self._exchange(image) for image in new]
        if len(chosen) > 1:  # a crop size changed on resume: old and new do not go into one batch
            chosen = [c if c.shape == image.shape else image for c, image in zip(chosen, new, strict=True)]
        return torch.stack(chosen)

    def _exchange(self, image: Tensor) -> Tensor:
        if len(self._images) < self._size:
            self._images.append(image.clone())
            return image
        if self._random.random() < 0.5:
            return image
        place = self._random.randrange(self._size)
        stored, self._images[place] = self._images[place], image.clone()
        return stored

    def state_dict(self) -> dict[str, Any]:
        version, words, gauss = self._random.getstate()
        return {"images": [image.cpu() for image in self._images], "random": [version, list(words), gauss]}

    def load_state_dict(self, state: dict[str, Any], device: torch.device | str = "cpu") -> None:
        version, words, gauss = state["random"]
        self._images = [image.to(device) for image in state["images"]]
        self._random.setstate((version, tuple(words), gauss))
