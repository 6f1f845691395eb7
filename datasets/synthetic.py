"""The embedded data: invented towns, each as an aerial photo (A) and as a street map (B).

    python -m datasets.synthetic --output DIR --count N --size S [--layout aligned|unaligned] [--seed K]

aligned: train/ val/ test/ of side-by-side pictures, photo left, map right, as in the Maps data set. N are for
training; val and test get N/5 each, at least 2. unaligned: trainA/ with N photos, trainB/ with the maps of N
other towns, testA/ and testB/ with the photos and maps of the same N/5 towns, so that results can be judged.

Town k of a split and seed is the same picture whatever the count, the layout and the machine.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from PIL import Image
from tqdm import tqdm

from datasets.errors import UserError, run_command
from datasets.files import whole_folder
from datasets.towns.canvas import Noise
from datasets.towns.layout import build_town
from datasets.towns.photo import draw_photo
from datasets.towns.street_map import draw_map
from datasets.transforms import side_by_side

COUNTS = range(1, 100_001)
SIZES = range(16, 2049)
SEEDS = range(2**63)


def draw_pair(seed: int, split: str, index: int, size: int) -> tuple[Image.Image, Image.Image]:
    """Aerial photo and street map of one town, each RGB, `size` x `size` pixels."""
    town = build_town(seed, split, index)
    return draw_photo(town, size, Noise(seed, split, index)), draw_map(town, size)


def held_out(count: int) -> int:
    """How many pictures the val and test splits get beside `count` training pictures."""
    return max(2, count // 5)


def _pictures(layout: str, count: int, size: int, seed: int) -> Iterator[tuple[str, int, Image.Image]]:
    """(folder, number, picture) of a whole data set."""
    if layout == "aligned":
        for split, number in (("train", count), ("val", held_out(count)), ("test", held_out(count))):
            for k in range(number):
                yield split, k, side_by_side(*draw_pair(seed, split, k, size))
        return
    for k in range(count):
        yield "trainA", k, draw_pair(seed, "train", k, size)[0]
        yield "trainB", k, draw_pair(seed, "train other", k, size)[1]
    for k in range(held_out(count)):
        photo, street_map = draw_pair(seed, "test", k, size)
        yield "testA", k, photo
        yield "testB", k, street_map


def write_dataset(
    output: Path, count: int, size: int, layout: Literal["aligned", "unaligned"] = "aligned", seed: int = 0
) -> dict[str, int]:
    """Write a data set into a new or empty folder; returns the number of files by sub-folder.

    Raises UserError for values out of range, and for a folder that is not empty or cannot be written.
    """
    for flag, value, allowed in (
        ("--count", count, COUNTS),
        ("--size", size, SIZES),
        ("--seed", seed, SEEDS),
    ):
        if value not in allowed:
            raise UserError(flag, f"{value} is out of range", f"use {allowed.start} to {allowed.stop - 1}")
    per_town = 1 if layout == "aligned" else 2
    total = (count + (2 if layout == "aligned" else 1) * held_out(count)) * per_town
    written: dict[str, int] = {}
    with whole_folder(output) as folder, tqdm(total=total, unit="picture", disable=None) as progress:
        for name, k, picture in _pictures(layout, count, size, seed):
            if name not in written:
                (folder / name).mkdir()
            picture.save(folder / name / f"town_{k:05d}.png")
            written[name] = written.get(name, 0) + 1
            progress.update()
    return written


def main() -> int:
    """Parse the command line, write the folders, print their counts."""
    parser = argparse.ArgumentParser(
        prog="python -m datasets.synthetic",
        description="Write a data set of invented towns: aerial photos (A) and street maps (B).",
        allow_abbrev=False,
    )
    parser.add_argument("--output", type=Path, required=True, help="new or empty folder")
    parser.add_argument(
        "--count", type=int, required=True, help="training pictures; val and test get a fifth"
    )
    parser.add_argument("--size", type=int, required=True, help="side of a picture in pixels, 16 to 2048")
    parser.add_argument(
        "--layout",
        choices=("aligned", "unaligned"),
        default="aligned",
        help="aligned: train/ val/ test/ of side-by-side pictures; unaligned: trainA trainB testA testB",
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed, other towns (default 0)")
    options = parser.parse_args()
    written = write_dataset(options.output, options.count, options.size, options.layout, options.seed)
    counts = ", ".join(f"{name} {number}" for name, number in written.items())
    print(f"{options.output}: {counts} pictures of {options.size}x{options.size} pixels, A photo, B map")
    return 0


if __name__ == "__main__":
    run_command(main)
