"""The embedded data: invented towns from the air in summer (A), and as a street map or in winter (B).

    python -m datasets.synthetic --output DIR --count N --size S [--task map|winter] [--layout aligned|unaligned]

aligned: train/ val/ test/ of side-by-side pictures, A left and B right, as in the Maps data set. N are for training;
val and test get N/5 each, at least 2. unaligned: trainA/ with N photos, trainB/ with the B of N other towns, testA/
and testB/ with both pictures of the same N/5 towns, so that results can be judged.

Town k of a split and seed is the same picture whatever the count, the layout and the machine.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

from PIL import Image
from tqdm import tqdm

from datasets.errors import UserError, run_command
from datasets.files import whole_folder
from datasets.towns import Noise, Town, draw_map, draw_photo
from datasets.transforms import side_by_side

Task = Literal["map", "winter"]
Layout = Literal["aligned", "unaligned"]

COUNTS = range(1, 100_001)
SIZES = range(16, 2049)
SEEDS = range(2**63)


def draw_pair(
    seed: int, split: str, index: int, size: int, task: Task = "map"
) -> tuple[Image.Image, Image.Image]:
    """A and B of one town, each RGB, `size` x `size` pixels."""
    town = Town(seed, split, index)
    photo = draw_photo(town, size, Noise(seed, split, index))
    if task == "map":
        return photo, draw_map(town, size)
    return photo, draw_photo(town, size, Noise(seed, split, index), winter=True)


def held_out(count: int) -> int:
    """How many pictures the val and test splits get beside `count` training pictures."""
    return max(2, count // 5)


def _pictures(
    count: int, size: int, layout: Layout, seed: int, task: Task
) -> Iterator[tuple[str, int, Image.Image]]:
    """(folder, number, picture) of a whole data set."""
    if layout == "aligned":
        for split, number in (("train", count), ("val", held_out(count)), ("test", held_out(count))):
            for k in range(number):
                yield split, k, side_by_side(*draw_pair(seed, split, k, size, task))
        return
    for k in range(count):
        yield "trainA", k, draw_pair(seed, "train", k, size, task)[0]
        yield "trainB", k, draw_pair(seed, "train other", k, size, task)[1]
    for k in range(held_out(count)):
        photo, other = draw_pair(seed, "test", k, size, task)
        yield "testA", k, photo
        yield "testB", k, other


def write_dataset(
    output: Path, count: int, size: int, layout: Layout = "aligned", seed: int = 0, task: Task = "map"
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
    pictures = tqdm(_pictures(count, size, layout, seed, task), unit="picture", disable=None)
    written: dict[str, int] = {}
    with whole_folder(output) as folder:
        for name, k, picture in pictures:
            (folder / name).mkdir(exist_ok=True)
            picture.save(folder / name / f"town_{k:05d}.png")
            written[name] = written.get(name, 0) + 1
    return written


def main() -> int:
    """Parse the command line, write the folders, print their counts."""
    parser = argparse.ArgumentParser(
        prog="python -m datasets.synthetic",
        description="Draw invented towns: aerial photos in summer (A), street maps or winter photos (B).",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--output", type=Path, required=True, help="new or empty folder")
    add("--count", type=int, required=True, help="training pictures; val and test get a fifth")
    add("--size", type=int, required=True, help="side of a picture in pixels, 16 to 2048")
    add(
        "--layout",
        choices=get_args(Layout),
        default="aligned",
        help="aligned: train/ val/ test/ of side-by-side pictures; unaligned: trainA trainB testA testB",
    )
    add("--task", choices=get_args(Task), default="map", help="what B is (default map)")
    add("--seed", type=int, default=0, help="another seed, other towns (default 0)")
    options = parser.parse_args()
    written = write_dataset(**vars(options))
    counts = ", ".join(f"{name} {number}" for name, number in written.items())
    size = f"{options.size}x{options.size}"
    print(f"{options.output}: {counts} pictures of {size} pixels, A photo, B {options.task}")
    return 0


if __name__ == "__main__":
    run_command(main)
