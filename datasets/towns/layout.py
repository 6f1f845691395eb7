"""A town from a seed: perhaps a river, a turned irregular grid of roads, and blocks between them."""

import itertools
import math
import random
from collections.abc import Iterator

from datasets.towns.blocks import fill_block
from datasets.towns.shapes import EXTENT, Box, Car, Disc, Road, Town, box_around

REACH = 190.0  # roads cover |u|, |v| <= REACH, a little more than half the picture's diagonal
WIDTHS = {"avenue": 19.0, "street": 12.0, "lane": 7.5, "rail": 9.0}  # metres

Cut = tuple[float, str]  # where a road crosses an axis, and its kind


def build_town(seed: int, split: str, index: int) -> Town:
    """Town `index` of a split: a function of these three values, whatever the number of towns."""
    rng = random.Random(f"town {seed} {split} {index}")
    slope = rng.uniform(-1.0, 1.0)
    length = math.sqrt(1.0 + slope * slope)
    town = Town(axis=(1.0 / length, slope / length))
    if rng.random() < 0.5:
        town.river = list(_river(rng))
    _lay_streets(town, rng)
    for road in town.roads:
        if road.kind in ("avenue", "street"):
            _drive(town, road, rng)
    return town


def _river(rng: random.Random) -> Iterator[Disc]:
    """A band of overlapping discs that wanders from one side of the picture to the other."""
    radius = rng.uniform(11.0, 19.0)
    position, drift = rng.uniform(0.15, 0.85) * EXTENT, 0.0
    upright = rng.random() < 0.5
    for step in range(-20, int(EXTENT) + 20, 4):
        drift = 0.9 * drift + rng.uniform(-0.7, 0.7)
        position += drift
        yield Disc(position, step, radius) if upright else Disc(step, position, radius)


def _cuts(rng: random.Random, main: str) -> list[Cut]:
    """Roads across an axis from beyond -REACH to beyond REACH; one near the middle is of the kind `main`."""
    cuts: list[Cut] = []
    position = -REACH - rng.uniform(0.0, 60.0)
    while position < REACH + 60.0:
        cuts.append((position, "street" if rng.random() < 0.55 else "lane"))
        position += rng.uniform(48.0, 88.0)
    chosen = rng.choice([i for i, (at, _) in enumerate(cuts) if abs(at) < 80.0])
    cuts[chosen] = (cuts[chosen][0], main)
    return cuts


def _lay_streets(town: Town, rng: random.Random) -> None:
    """Long roads from end to end, staggered cross streets, one avenue across all; then the blocks."""
    columns = _cuts(rng, "rail" if rng.random() < 0.35 else "avenue")
    avenue = rng.uniform(-70.0, 70.0)
    for at, kind in columns:
        town.roads.append(Road(kind, box_around(at, 0.0, WIDTHS[kind], 2 * REACH), along_u=False))
    for (left, left_kind), (right, right_kind) in itertools.pairwise(columns):
        u0, u1 = left + WIDTHS[left_kind] / 2, right - WIDTHS[right_kind] / 2
        rows = [cut for cut in _cuts(rng, "street") if abs(cut[0] - avenue) > 34.0]
        rows = sorted([*rows, (avenue, "avenue")])
        for at, kind in rows:
            half = WIDTHS[kind] / 2
            # A road runs to the middle of the one it meets, but only an avenue has a level crossing.
            start = u0 if left_kind == "rail" and kind != "avenue" else left
            end = u1 if right_kind == "rail" and kind != "avenue" else right
            town.roads.append(Road(kind, Box(start, at - half, end, at + half), along_u=True))
        for (low, low_kind), (high, high_kind) in itertools.pairwise(rows):
            block = Box(u0, low + WIDTHS[low_kind] / 2, u1, high - WIDTHS[high_kind] / 2)
            if not town.outside(block, margin=10.0):
                fill_block(town, block.grown(-2.0), rng)


def _drive(town: Town, road: Road, rng: random.Random) -> None:
    """Cars on both lanes of a road."""
    u, v = road.box.middle
    start, end = (road.box.u0, road.box.u1) if road.along_u else (road.box.v0, road.box.v1)
    at = start + rng.uniform(5.0, 60.0)
    while at < end:
        lane = 2.8 if rng.random() < 0.5 else -2.8
        box = box_around(at, v + lane, 5.0, 2.2) if road.along_u else box_around(u + lane, at, 2.2, 5.0)
        town.cars.append(Car(box, rng.random()))
        at += rng.uniform(18.0, 90.0)
