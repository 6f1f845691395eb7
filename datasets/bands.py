"""A picture of any number of bands, each of which is resized on its own."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

Box = tuple[int, int, int, int]
"""left, top, right, bottom; in pixels, without the last two."""


class Bands:
    """One Pillow picture (mode L or F) for each band, and the methods of a Pillow picture that training needs.

    Pillow has no mode for five bands, and takes a second or fourth one for alpha, by which it weighs the others.
    """

    def __init__(self, bands: Sequence[Image.Image]) -> None:
        self.bands = tuple(bands)
        self.size = self.width, self.height = self.bands[0].size

    @classmethod
    def of(cls, values: np.ndarray) -> "Bands":
        """Of (H, W, C) uint8 or float32."""
        return cls([Image.fromarray(values[..., band]) for band in range(values.shape[2])])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.stack([np.asarray(band, dtype) for band in self.bands], 2)  # (H, W, C)

    def resize(self, size: tuple[int, int], resample: Image.Resampling) -> "Bands":
        return Bands([band.resize(size, resample) for band in self.bands])

    def crop(self, box: Box) -> "Bands":
        return Bands([band.crop(box) for band in self.bands])

    def transpose(self, method: Image.Transpose) -> "Bands":
        return Bands([band.transpose(method) for band in self.bands])

    def close(self) -> None:
        """Free the memory."""
        for band in self.bands:
            band.close()

    def shown(self, chosen: Sequence[int]) -> Image.Image:
        """One or three of the bands, counted from 1, as a picture in mode L or RGB."""
        bands = [self.bands[number - 1] for number in chosen]
        return bands[0] if len(bands) == 1 else Image.merge("RGB", bands)


Picture = Image.Image | Bands
"""In mode L or RGB, or bands."""


def channels_first(picture: Picture) -> np.ndarray:
    """(C, H, W) uint8 of its own from a picture in mode L, RGB or RGBA, or bands."""
    values = np.array(picture)  # (H, W) or (H, W, C)
    return values[None] if values.ndim == 2 else np.ascontiguousarray(values.transpose(2, 0, 1))
