"""Sizes and pixels of every `--preprocess`, against NumPy slices and plain Pillow calls."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datasets.bands import Bands
from datasets.errors import UserError
from datasets.transforms import Augmentation, Size, evaluation_resize, resize

VALUES = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
PICTURE = Image.fromarray(VALUES)


def sample(augmentation: Augmentation, seed: int) -> tuple[np.ndarray, tuple[int, int], bool]:
    drawn = augmentation.draw(PICTURE.size, random.Random(seed))
    assert drawn.box is not None
    return drawn.apply(PICTURE).transpose(1, 2, 0), drawn.box[:2], drawn.flip


@pytest.mark.parametrize(
    ("preprocess", "load", "crop", "size", "before_crop", "result"),
    [
        ("resize_and_crop", 286, 256, (600, 400), (286, 286), (256, 256)),
        ("crop", 286, 256, (600, 400), (600, 400), (256, 256)),
        # 256 * 400 / 600 = 170.7, nearest: 4 * 43
        ("scale_width", 256, 128, (600, 400), (256, 172), (256, 172)),
        ("scale_width", 256, 200, (600, 400), (256, 200), (256, 200)),  # not lower than the crop
        ("scale_width_and_crop", 256, 128, (600, 400), (256, 171), (128, 128)),
        ("scale_width_and_crop", 256, 200, (600, 400), (256, 200), (200, 200)),
        ("none", 286, 16, (257, 131), (256, 132), (256, 132)),
        ("none", 286, 2, (3, 2), (4, 4), (4, 4)),
        ("none", 286, 2, (6, 1001), (8, 1000), (8, 1000)),
    ],
)
def test_sizes(preprocess: Any, load: int, crop: int, size: Size, before_crop: Size, result: Size) -> None:
    augmentation = Augmentation(preprocess, load, crop)
    assert augmentation.resized(size) == before_crop
    assert augmentation.draw(size, random.Random(0)).apply(Image.new("RGB", size)).shape == (3, *result[::-1])


def test_a_crop_is_a_window_of_the_picture_mirrored_or_not() -> None:
    augmentation = Augmentation("crop", crop_size=24)
    for seed in range(50):
        got, (left, top), flip = sample(augmentation, seed)
        window = VALUES[top : top + 24, left : left + 24]
        assert np.array_equal(got, window[:, ::-1] if flip else window)


def test_every_corner_is_as_likely_as_any_other_and_half_are_mirrored() -> None:
    augmentation = Augmentation("crop", crop_size=28)  # 13 x 3 corners
    drawn = [sample(augmentation, seed)[1:] for seed in range(7800)]
    corners = Counter(corner for corner, _ in drawn)
    assert set(corners) == {(x, y) for x in range(13) for y in range(3)}
    chi2 = sum((count - 200) ** 2 / 200 for count in corners.values())
    assert chi2 < 73  # 99.9 % of chi-squared with 38 degrees of freedom is below 70.7
    mirrored = sum(flip for _, flip in drawn)
    assert abs(mirrored - 3900) < 4 * (7800 / 4) ** 0.5


def test_resizing_is_bicubic_before_the_crop() -> None:
    augmentation = Augmentation("resize_and_crop", load_size=20, crop_size=16, flip=False)
    got, (left, top), flip = sample(augmentation, 3)
    whole = np.asarray(PICTURE.resize((20, 20), Image.Resampling.BICUBIC))
    assert not flip
    assert np.abs(got.astype(int) - whole[top : top + 16, left : left + 16]).max() <= 1


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(600, 600), (600, 300), (301, 287), (286, 286)])
def test_shrinking_is_within_two_levels_of_pillow(size: Size, mode: str) -> None:
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    picture = Image.fromarray(values).convert(mode)
    expected = np.asarray(picture.resize((286, 286), Image.Resampling.BICUBIC)).reshape(286, 286, -1)
    got = resize(picture, (286, 286))
    assert got.dtype == np.uint8 and got.flags.c_contiguous
    differences = np.abs(got.transpose(1, 2, 0).astype(int) - expected)
    assert differences.max() <= 2 and (differences > 0).mean() < 0.02


def test_growing_and_bands_are_pillows() -> None:
    grown = np.asarray(PICTURE.resize((41, 20), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert np.array_equal(resize(PICTURE, (41, 20)), grown)
    bands = Bands([PICTURE.getchannel(band) for band in "RGBRG"])
    got = resize(bands, (20, 20))
    one = PICTURE.getchannel("G").resize((20, 20), Image.Resampling.BICUBIC)
    assert got.shape == (5, 20, 20) and np.array_equal(got[4], np.asarray(one))


def test_one_draw_serves_both_pictures_of_a_pair() -> None:
    augmentation = Augmentation("crop", crop_size=16)
    other = Image.fromarray(255 - VALUES)
    for seed in range(20):
        drawn = augmentation.draw(PICTURE.size, random.Random(seed))
        a, b = (drawn.apply(p) for p in (PICTURE, other))
        assert np.array_equal(a, 255 - b)


def test_no_option_shifts_the_numbers_drawn_afterwards() -> None:
    following = set()
    small = Augmentation("crop", crop_size=4, flip=False)
    for augmentation in (Augmentation(), Augmentation("none", crop_size=2), small):
        rng = random.Random(5)
        augmentation.draw((40, 30), rng)
        following.add(rng.random())
    assert len(following) == 1


def test_pictures_that_are_too_small_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        Augmentation().draw((1, 1), random.Random(0), "a/x.png")
    assert str(caught.value) == "a/x.png: image is 1x1, needs at least 2x2 (remove it)"
    with pytest.raises(UserError, match="500x1"):
        Augmentation().refuse_too_small((500, 1), "x.png")
    Augmentation().refuse_too_small((2, 2), "x.png")
    augmentation = Augmentation("crop", crop_size=32)
    with pytest.raises(UserError, match="40x30, smaller than --crop_size 32") as caught:
        augmentation.draw((40, 30), random.Random(0), "b.png")
    assert "--preprocess resize_and_crop" in caught.value.fix
    augmentation.refuse_too_small((32, 32), "b.png")
    Augmentation("none", crop_size=32).refuse_too_small((4, 4), "b.png")  # nothing is cropped


def test_options_that_leave_no_crop_are_refused() -> None:
    for preprocess in ("resize_and_crop", "scale_width_and_crop"):
        with pytest.raises(UserError, match="--load_size"):
            Augmentation(preprocess, load_size=128, crop_size=256)
    Augmentation("crop", load_size=128, crop_size=256)


def test_evaluation_sees_the_whole_picture() -> None:
    got = evaluation_resize(PICTURE, 16)
    assert np.array_equal(np.asarray(got), np.asarray(PICTURE.resize((16, 16), Image.Resampling.BICUBIC)))
    square = Image.fromarray(VALUES[:, :30])
    assert np.array_equal(np.asarray(evaluation_resize(square, 30)), VALUES[:, :30])
