"""The embedded data: invented towns from the air by day (A), and as a street map or by night (B).

    python -m datasets.synthetic --output DIR --count N --size S [--task map|night] [--layout aligned|unaligned]

aligned: train/ val/ test/ of side-by-side pictures, A left and B right, as in the Maps data set. N are for training;
val and test get N/5 each, at least 2. unaligned: trainA/ with the A of N towns, trainB/ with the B of N other towns,
testA/ and testB/ with both of the same N/5 towns, so that results can be judged.

Town k of a split and seed is the same picture whatever the count, the layout and the machine.
"""

from pathlib import Path
from typing import Literal

import tyro
from tqdm import tqdm

from datasets.errors import UserError, run_command
from datasets.files import whole_folder
from datasets.towns import EXTENT, Town, draw
from datasets.transforms import side_by_side

Layout = Literal["aligned", "unaligned"]
Task = Literal["map", "night"]

ALLOWED = {
    "count": range(1, 100_001),
    "size": range(16, 2049),
    "extent": range(32, EXTENT + 1),
    "seed": range(2**63),
}


def folders(layout: Layout, count: int) -> dict[str, tuple[str, int, str]]:
    """Name of each folder -> its split of towns, how many, and the sides that a picture shows."""
    held_out = max(2, count // 5)
    if layout == "aligned":
        return {"train": ("train", count, "AB"), **{name: (name, held_out, "AB") for name in ("val", "test")}}
    train = {"trainA": ("train", count, "A"), "trainB": ("train other", count, "B")}
    return train | {f"test{side}": ("test", held_out, side) for side in "AB"}


def write_dataset(
    output: Path,
    count: int,
    size: int,
    layout: Layout = "aligned",
    task: Task = "map",
    extent: int = EXTENT,
    seed: int = 0,
) -> dict[str, int]:
    """Draw invented towns: aerial photos (A), and street maps or the same by night (B).

    Args:
        output: new or empty folder
        count: training pictures; val and test get a fifth
        size: side of a picture in pixels, 16 to 2048
        layout: aligned writes train/ val/ test/ of side-by-side pictures, unaligned trainA trainB testA testB
        task: what B shows
        extent: metres that a picture shows, 32 to 256
        seed: another seed, other towns
    """
    # Returns the number of files by sub-folder. Raises UserError for values out of range, and for a folder that is not
    # empty or cannot be written.
    for flag, value in (("count", count), ("size", size), ("extent", extent), ("seed", seed)):
        if value not in (allowed := ALLOWED[flag]):
            fix = f"use {allowed.start} to {allowed.stop - 1}"
            raise UserError(f"--{flag}", f"{value} is out of range", fix)
    plan = folders(layout, count)
    total = sum(number for _, number, _ in plan.values())
    with whole_folder(output) as folder, tqdm(total=total, unit="picture", disable=None) as progress:
        for name, (split, number, sides) in plan.items():
            (folder / name).mkdir()
            for k in range(number):
                town = Town(seed, split, k)
                drawn = [draw(town, task if side == "B" else "photo", size, extent) for side in sides]
                picture = side_by_side(*drawn) if len(drawn) == 2 else drawn[0]
                picture.save(folder / name / f"town_{k:05d}.png")
                progress.update()
    return {name: number for name, (_, number, _) in plan.items()}


def main() -> None:
    """Parse the command line, write the folders, print their counts."""
    counts = tyro.cli(
        write_dataset,
        prog="python -m datasets.synthetic",
        use_underscores=True,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    print("pictures written: " + ", ".join(f"{name} {number}" for name, number in counts.items()))


if __name__ == "__main__":
    run_command(main)
