"""What is built on the ground between the roads."""

import random
from collections.abc import Iterator

from datasets.towns.shapes import Area, Box, Building, Car, Disc, Town, box_around


def fill_block(town: Town, block: Box, rng: random.Random) -> None:
    """Give a block a use: half are houses, the rest industry, parks, woods and car parks."""
    use = rng.random()
    if use < 0.50:
        town.areas.append(Area("yard", block))
        _houses(town, block, rng)
    elif use < 0.62:
        town.areas.append(Area("paved", block))
        _halls(town, block, rng)
    elif use < 0.78:
        town.areas.append(Area("lawn", block))
        if rng.random() < 0.5:
            _pond(town, block, rng)
        _grove(town, block, rng, every=30.0)
    elif use < 0.90:
        town.areas.append(Area("wood", block))
        _grove(town, block, rng, every=13.0)
    else:
        town.areas.append(Area("parking", block))
        _parked_cars(town, block, rng)


def _cells(block: Box, size: float) -> Iterator[Box]:
    """The block cut into equal cells of about that size."""
    across, down = max(1, round(block.width / size)), max(1, round(block.height / size))
    du, dv = block.width / across, block.height / down
    for i in range(across):
        for j in range(down):
            u, v = block.u0 + i * du, block.v0 + j * dv
            yield Box(u, v, u + du, v + dv)


def _in_water(town: Town, u: float, v: float, margin: float) -> bool:
    """Whether water is nearer than `margin` metres to (u, v)."""
    x, y = town.place(u, v)
    for water in (*town.river, *town.ponds):
        dx, dy, reach = x - water.x, y - water.y, water.radius + margin
        if dx * dx + dy * dy < reach * reach:
            return True
    return False


def _houses(town: Town, block: Box, rng: random.Random) -> None:
    """Gabled houses in gardens, one to a plot, here and there a large tree instead."""
    for cell in _cells(block, rng.uniform(21.0, 33.0)):
        u, v = cell.middle
        u, v = u + rng.uniform(-2.0, 2.0), v + rng.uniform(-2.0, 2.0)
        house = box_around(u, v, cell.width * rng.uniform(0.54, 0.80), cell.height * rng.uniform(0.54, 0.80))
        if _in_water(town, u, v, 4.0 + max(house.width, house.height) / 2):
            continue
        if rng.random() < 0.12:
            _tree(town, u, v, rng.uniform(4.0, 6.5))
            continue
        town.buildings.append(Building(house, gabled=True, height=rng.uniform(5.0, 9.0), roof=rng.random()))
        corner_u, corner_v = cell.u0 + rng.uniform(2.0, 5.0), cell.v0 + rng.uniform(2.0, 5.0)
        _tree(town, corner_u, corner_v, rng.uniform(2.0, 3.6))


def _halls(town: Town, block: Box, rng: random.Random) -> None:
    """One or a few large flat roofs on paved ground."""
    for cell in _cells(block, rng.uniform(40.0, 64.0)):
        hall = cell.grown(-rng.uniform(4.0, 8.0))
        if min(hall.width, hall.height) >= 8.0 and not _in_water(town, *hall.middle, 22.0):
            town.buildings.append(
                Building(hall, gabled=False, height=rng.uniform(7.0, 14.0), roof=rng.random())
            )


def _tree(town: Town, u: float, v: float, radius: float) -> None:
    """A tree, unless it would stand in water."""
    if not _in_water(town, u, v, 0.6 * radius):
        town.trees.append(Disc(*town.place(u, v), radius))


def _grove(town: Town, block: Box, rng: random.Random, every: float) -> None:
    """Trees about `every` metres, each somewhere in its own cell."""
    for cell in _cells(block.grown(-3.0), every):
        u = cell.u0 + rng.uniform(0.2, 0.8) * cell.width
        v = cell.v0 + rng.uniform(0.2, 0.8) * cell.height
        _tree(town, u, v, rng.uniform(3.5, 6.5))


def _pond(town: Town, block: Box, rng: random.Random) -> None:
    """Three overlapping discs of water inside the block."""
    room = min(block.width, block.height) / 2
    u, v = block.middle
    for _ in range(3):
        radius = room * rng.uniform(0.38, 0.55)
        slack = 0.85 * room - radius
        x, y = town.place(u + rng.uniform(-slack, slack), v + rng.uniform(-slack, slack))
        town.ponds.append(Disc(x, y, radius))


def _parked_cars(town: Town, block: Box, rng: random.Random) -> None:
    """Rows of cars, two thirds of the places taken."""
    v = block.v0 + 3.0
    while v + 6.0 < block.v1:
        u = block.u0 + 3.0
        while u + 3.0 < block.u1:
            if rng.random() < 0.66 and not _in_water(town, u, v, 9.0):
                town.cars.append(Car(Box(u, v, u + 2.6, v + 5.4), rng.random()))
            u += 4.4
        v += 13.0
