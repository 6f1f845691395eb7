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

Every resize is bicubic (Pillow's, which filters when it makes smaller). Multiples of 4 are what the ResNet
generator takes without padding. The flip is horizontal, with probability 1/2.
"""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from PIL import Image

from datasets.errors import UserError

Preprocess = Literal["resize_and_crop", "crop", "scale_width", "scale_width_and_crop", "none"]
Size = tuple[int, int]  # (width, height)


@dataclass(frozen=True)
class Geometry:
    """How pictures become training samples; sizes in pixels."""

    preprocess: Preprocess = "resize_and_crop"
    load_size: int = 286
    crop_size: int = 256
    flip: bool = True

    def __post_init__(self) -> None:
        if self.preprocess not in get_args(Preprocess):
            known = ", ".join(get_args(Preprocess))
            raise UserError("--preprocess", f"unknown value {self.preprocess}", f"one of {known}")
        if self.preprocess.endswith("_and_crop") and self.load_size < self.crop_size:
            reason = f"{self.load_size} is smaller than --crop_size {self.crop_size}"
            raise UserError("--load_size", reason, "raise the one or lower the other")

    @property
    def crops(self) -> bool:
        return self.preprocess.endswith("crop")


@dataclass(frozen=True)
class Placement:
    """One draw: the size to resize to, the corner of the crop in it, and whether to mirror."""

    size: Size
    corner: tuple[int, int]  # (left, top) of the crop; (0, 0) where nothing is cropped
    flip: bool


def resized(geometry: Geometry, size: Size) -> Size:
    """Size of a picture after the resize and before the crop."""
    if geometry.preprocess == "resize_and_crop":
        return geometry.load_size, geometry.load_size
    width, height = size
    if geometry.preprocess.startswith("scale_width"):
        height_in_proportion = geometry.load_size * height / width
        width, height = geometry.load_size, max(round(height_in_proportion), geometry.crop_size)
    if geometry.crops:
        return width, height
    return _multiple_of_4(width), _multiple_of_4(height)


def _multiple_of_4(length: int) -> int:
    """The nearest one, the larger of two, at least 4."""
    return max(4, (length + 2) // 4 * 4)


def problem(geometry: Geometry, size: Size) -> tuple[str, str] | None:
    """(reason, fix) why a picture of this size cannot become a sample, or None where it can."""
    width, height = size
    if min(size) < 2:
        return f"image is {width}x{height}, needs at least 2x2", "remove it"
    if geometry.preprocess in ("crop", "none") and min(size) < geometry.crop_size:
        reason = f"image is {width}x{height}, smaller than --crop_size {geometry.crop_size}"
        return reason, "lower that or use --preprocess resize_and_crop"
    return None


def draw(geometry: Geometry, size: Size, rng: random.Random, subject: str = "image") -> Placement:
    """Draw the placement for one picture size, to be used for one picture or for both of a pair.

    subject: the file to name. Takes three numbers of rng whatever the geometry, so that no option shifts what
    is drawn after it. Raises UserError for a picture that is too small.
    """
    trouble = problem(geometry, size)
    if trouble:
        raise UserError(subject, *trouble)
    target = resized(geometry, size)
    across, down, mirror = rng.random(), rng.random(), rng.random()
    corner = (0, 0)
    if geometry.crops:  # every corner equally likely, both ends included
        corner = (
            int(across * (target[0] - geometry.crop_size + 1)),
            int(down * (target[1] - geometry.crop_size + 1)),
        )
    return Placement(target, corner, geometry.flip and mirror < 0.5)


def apply(picture: Image.Image, geometry: Geometry, placement: Placement) -> Image.Image:
    """The picture resized, cropped and mirrored as drawn."""
    if picture.size != placement.size:
        picture = picture.resize(placement.size, Image.Resampling.BICUBIC)
    if geometry.crops:
        left, top = placement.corner
        picture = picture.crop((left, top, left + geometry.crop_size, top + geometry.crop_size))
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if placement.flip else picture


def evaluation_resize(picture: Image.Image, crop_size: int) -> Image.Image:
    """The picture stretched to crop_size x crop_size, bicubic, no crop or flip (evaluation protocol)."""
    if picture.size == (crop_size, crop_size):
        return picture
    return picture.resize((crop_size, crop_size), Image.Resampling.BICUBIC)


def half(picture: Image.Image, path: Path, right: bool) -> Image.Image:
    """The left or right half of a side-by-side picture. Raises UserError where the width is odd."""
    width, height = picture.size
    if width % 2:
        reason = f"side-by-side image of odd width, {width}x{height}"
        raise UserError(path, reason, "A and B need equal widths")
    return picture.crop((width // 2, 0, width, height) if right else (0, 0, width // 2, height))


def side_by_side(left: Image.Image, right: Image.Image) -> Image.Image:
    """One picture of two of equal size and mode, the inverse of `half`."""
    width, height = left.size
    both = Image.new(left.mode, (2 * width, height))
    both.paste(left, (0, 0))
    both.paste(right, (width, 0))
    return both
