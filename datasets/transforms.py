"""Resize, crop and flip of training pictures, drawn from an explicit generator; the resize of evaluation.

`--preprocess`:

| value                | what happens                                                            |
|----------------------|-------------------------------------------------------------------------|
| resize_and_crop      | stretched to load_size x load_size, then a random square of crop_size   |
| crop                 | a random square of crop_size                                            |
| scale_width          | width load_size, height in proportion but at least crop_size, then each |
|                      | side to the nearest multiple of 4                                       |
| scale_width_and_crop | as scale_width without the rounding, then a random square of crop_size  |
| none                 | each side to the nearest multiple of 4                                  |

Every resize is bicubic, and filters when it makes smaller. Multiples of 4 are what the ResNet
generator takes without padding. The flip is horizontal, with probability 1/2.
"""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, overload

import numpy as np
from PIL import Image

from datasets.bands import Bands, Picture, channels_first
from datasets.errors import UserError

Preprocess = Literal["resize_and_crop", "crop", "scale_width", "scale_width_and_crop", "none"]
Size = tuple[int, int]  # (width, height)


@dataclass(frozen=True)
class Augmentation:
    """How pictures become training samples; sizes in pixels. Raises UserError for options that leave no crop."""

    preprocess: Preprocess = "resize_and_crop"
    load_size: int = 286
    crop_size: int = 256
    flip: bool = True

    def __post_init__(self) -> None:
        if self.preprocess.endswith("_and_crop") and self.load_size < self.crop_size:
            reason = f"{self.load_size} is smaller than --crop_size {self.crop_size}"
            raise UserError("--load_size", reason, "raise the one or lower the other")

    def refuse_too_small(self, size: Size, subject: str | Path) -> None:
        """Raise UserError about `subject` if a picture of this size cannot become a sample."""
        width, height = size
        if min(size) < 2:
            raise UserError(subject, f"image is {width}x{height}, needs at least 2x2", "remove it")
        if self.preprocess == "crop" and min(size) < self.crop_size:
            reason = f"image is {width}x{height}, smaller than --crop_size {self.crop_size}"
            raise UserError(subject, reason, "lower that or use --preprocess resize_and_crop")

    def resized(self, size: Size) -> Size:
        """Size of a picture after the resize and before the crop."""
        if self.preprocess == "resize_and_crop":
            return self.load_size, self.load_size
        width, height = size
        if self.preprocess.startswith("scale_width"):
            width, height = self.load_size, max(round(self.load_size * height / width), self.crop_size)
        if self.preprocess.endswith("crop"):
            return width, height
        return _multiple_of_4(width), _multiple_of_4(height)

    def scale(self, size: tuple[float, float]) -> tuple[float, float]:
        """By how much a picture of this size is resized across and down; 1 where it is only cropped."""
        width, height = size
        if self.preprocess == "resize_and_crop":
            return self.load_size / width, self.load_size / height
        if self.preprocess.startswith("scale_width"):
            across = self.load_size / width
            return across, max(across, self.crop_size / height)
        return 1.0, 1.0

    def draw(self, size: Size, rng: random.Random, subject: str = "image") -> "ResizeCropFlip":
        """Draw the transform for one picture size, to be used for one picture or for both of a pair.

        subject: the file to name. Takes three numbers of rng whatever the options, so that no option shifts what is
        drawn after it. Raises UserError for a picture that is too small.
        """
        self.refuse_too_small(size, subject)
        width, height = self.resized(size)
        across, down, mirror = rng.random(), rng.random(), rng.random()
        box = None
        if self.preprocess.endswith("crop"):  # every corner equally likely, both ends included
            left, top = int(across * (width - self.crop_size + 1)), int(down * (height - self.crop_size + 1))
            box = (left, top, left + self.crop_size, top + self.crop_size)
        return ResizeCropFlip((width, height), box, self.flip and mirror < 0.5)


class Resized(NamedTuple):
    """What is kept of a picture whose resize is done."""

    pixels: np.ndarray  # (C, H, W) uint8
    size: Size  # before the resize


@dataclass(frozen=True)
class ResizeCropFlip:
    """A drawn transform: the size to resize to, what is cut out of it, and whether to mirror."""

    size: Size
    box: tuple[int, int, int, int] | None  # (left, top, right, bottom); None where nothing is cropped
    flip: bool

    def apply(self, picture: Picture | Resized) -> np.ndarray:
        """(C, H, W) uint8: the picture resized, unless that is done, cropped and mirrored."""
        pixels = picture.pixels if isinstance(picture, Resized) else resize(picture, self.size)
        if self.box:
            left, top, right, bottom = self.box
            pixels = pixels[:, top:bottom, left:right]
        return np.ascontiguousarray(pixels[..., ::-1] if self.flip else pixels)


def resize(picture: Picture, size: Size) -> np.ndarray:
    """The picture of 8 bits a value stretched to `size`, (C, H, W) uint8.

    A picture that shrinks is resized by torch, in a third of Pillow's time. That takes rows before columns; where
    Pillow does so too, the two are within two levels of each other.
    """
    shrinks = size != picture.size and size[0] <= picture.width and size[1] <= picture.height
    if isinstance(picture, Bands) or not shrinks:
        return channels_first(picture.resize(size, Image.Resampling.BICUBIC))
    import torch  # not at the top: the options that are checked here answer without it
    from torch.nn import functional as F

    values = np.array(picture)  # (H, W) or (H, W, 3)
    pixels = torch.from_numpy(values).view(1, *values.shape[:2], -1).permute(0, 3, 1, 2)
    (smaller,) = F.interpolate(pixels, size[::-1], mode="bicubic", antialias=True)
    return smaller.contiguous().numpy()


def _multiple_of_4(length: int) -> int:
    """The nearest one, the larger of two, at least 4."""
    return max(4, (length + 2) // 4 * 4)


def evaluation_resize(picture: Picture, crop_size: int) -> Picture:
    """The picture stretched to crop_size x crop_size, bicubic, no crop or flip (evaluation protocol)."""
    return picture.resize((crop_size, crop_size), Image.Resampling.BICUBIC)


def half_size(size: Size, path: Path) -> Size:
    """Size of each half of a side-by-side picture. Raises UserError where the width is odd."""
    width, height = size
    if width % 2:
        reason = f"side-by-side image of odd width, {width}x{height}"
        raise UserError(path, reason, "A and B need equal widths")
    return width // 2, height


@overload
def half(picture: Image.Image, path: Path, right: bool) -> Image.Image: ...


@overload
def half(picture: Picture, path: Path, right: bool) -> Picture: ...


def half(picture: Picture, path: Path, right: bool) -> Picture:
    """The left or right half of a side-by-side picture. Raises UserError where the width is odd."""
    width, height = half_size(picture.size, path)
    return picture.crop((width, 0, 2 * width, height) if right else (0, 0, width, height))


def side_by_side(left: Image.Image, right: Image.Image) -> Image.Image:
    """One picture of two of equal size and mode, the inverse of `half`."""
    width, height = left.size
    both = Image.new(left.mode, (2 * width, height))
    both.paste(left, (0, 0))
    both.paste(right, (width, 0))
    return both
