"""The town from the air: textured ground, lit roofs, shadows, cars, a noisy sensor.

Colours are chosen so that no recolouring turns the photo into the map: roofs have nine colours here and one
there; asphalt is a street, a car park or a dark roof; dark green is a wood or water; shadows lie on all of
them. What tells these apart is texture, shape and neighbourhood.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from datasets.towns.canvas import Canvas, Colour, Mask, Noise, reduced
from datasets.towns.shapes import Box, Building, Disc, Road, Town, box_around
from datasets.towns.street_map import BANK

SUN = (0.8, 0.6)  # shadows fall to the lower right; the hour of the flight is always the same


class Material(NamedTuple):
    """Mean colour; swing of the texture at the size of one and of six pixels of a 64 pixel picture."""

    colour: Colour
    fine: int
    coarse: int


MATERIALS = {
    "yard": Material((122, 120, 84), 26, 44),
    "paved": Material((134, 132, 126), 14, 16),
    "lawn": Material((92, 118, 62), 18, 24),
    "wood": Material((52, 78, 50), 56, 30),
    "water": Material((48, 74, 72), 5, 12),
    "bank": Material((92, 112, 66), 34, 30),
    "pavement": Material((160, 156, 148), 14, 8),
    "asphalt": Material((98, 98, 100), 14, 12),
    "gravel": Material((118, 106, 94), 56, 12),
    "sleeper": Material((74, 66, 60), 20, 0),
    "steel": Material((168, 164, 160), 20, 0),
    "paint": Material((214, 208, 190), 16, 0),
    "stripe": Material((106, 134, 72), 18, 24),
    "crown": Material((48, 76, 42), 48, 20),
    "lit crown": Material((80, 114, 60), 40, 20),
    "roof": Material((0, 0, 0), 10, 10),
}

# Two reds, brown, dark grey, slate, light felt, metal, blue sheet, copper.
ROOFS: tuple[Colour, ...] = (
    (172, 88, 64),
    (146, 78, 58),
    (118, 92, 72),
    (98, 98, 102),
    (72, 76, 86),
    (200, 194, 182),
    (134, 138, 142),
    (92, 114, 136),
    (98, 128, 104),
)
CARS: tuple[Colour, ...] = ((236, 236, 234), (40, 42, 46), (150, 36, 34), (52, 74, 120), (170, 172, 176))


def draw_photo(town: Town, size: int, noise: Noise) -> Image.Image:
    """The aerial photo of a town, RGB, `size` x `size`."""
    canvas = Canvas(town, size, MATERIALS["yard"].colour, "yard")
    _paint_ground(canvas)
    _paint_roads(canvas)
    for car in town.cars:
        canvas.box(car.box, CARS[int(car.paint * len(CARS))], "roof")
    for tree in town.trees:
        _fill(canvas, tree, "crown")
        lit = Disc(
            tree.x - 0.3 * SUN[0] * tree.radius, tree.y - 0.3 * SUN[1] * tree.radius, 0.55 * tree.radius
        )
        _fill(canvas, lit, "lit crown")
    for building in town.buildings:
        _paint_roof(canvas, building)
    colours = _textured(canvas, noise)
    shade = _shade(canvas)
    colours[shade] = colours[shade] * (50, 54, 64) // 100  # what lights a shadow is the sky: a little blue
    light = 122 + noise.white(1, 1)[0, 0] // 12  # percent; each photo has its own exposure
    picture = reduced(colours) * light // 100
    sensor = np.stack([noise.white(size, size) for _ in range(3)], axis=-1) // 8
    return Image.fromarray((picture + sensor).clip(0, 255).astype(np.uint8))


def _fill(canvas: Canvas, shape: Box | Disc, material: str) -> None:
    """Paint a shape with the mean colour of a material."""
    if isinstance(shape, Box):
        canvas.box(shape, MATERIALS[material].colour, material)
    else:
        canvas.disc(shape, MATERIALS[material].colour, material)


def _steps(start: float, stop: float, step: float) -> Iterator[float]:
    """start, start + step, ... below stop."""
    while start < stop:
        yield start
        start += step


def _paint_ground(canvas: Canvas) -> None:
    """Block grounds, mown stripes on lawns, lines on car parks, the river with its green banks, ponds."""
    for area in canvas.town.areas:
        box = area.box
        _fill(canvas, box, "asphalt" if area.kind == "parking" else area.kind)
        if area.kind == "lawn":
            for v in _steps(box.v0, box.v1, 10.0):
                _fill(canvas, Box(box.u0, v, box.u1, min(v + 5.0, box.v1)), "stripe")
        elif area.kind == "parking":
            for v in _steps(box.v0 + 8.4, box.v1 - 4.0, 13.0):
                _fill(canvas, Box(box.u0 + 2.0, v, box.u1 - 2.0, v + 0.8), "paint")
    for disc in canvas.town.river:
        _fill(canvas, Disc(disc.x, disc.y, disc.radius + BANK), "bank")
    for disc in (*canvas.town.river, *canvas.town.ponds):
        _fill(canvas, disc, "water")


def _paint_roads(canvas: Canvas) -> None:
    """Pavements, then asphalt, then the railway, and avenues with their centre lines on top."""
    roads = [road for road in canvas.town.roads if road.kind != "rail"]
    for road in roads:
        _fill(canvas, road.box.grown(1.0), "pavement")
    for road in roads:
        _fill(canvas, road.box.grown(-1.0), "asphalt")
    for road in canvas.town.roads:
        if road.kind == "rail":
            _paint_railway(canvas, road)
    for road in roads:
        if road.kind == "avenue":
            _paint_avenue(canvas, road)


def _paint_railway(canvas: Canvas, road: Road) -> None:
    """Gravel, dark sleepers, two bright rails; a railway always runs along v."""
    box = road.box
    _fill(canvas, box, "gravel")
    u, v = box.middle
    for at in _steps(box.v0, box.v1, 4.0):
        _fill(canvas, box_around(u, at, 6.0, 1.6), "sleeper")
    for side in (-1.6, 1.6):
        _fill(canvas, box_around(u + side, v, 1.0, box.height), "steel")


def _paint_avenue(canvas: Canvas, road: Road) -> None:
    """Asphalt once more, so that the avenue crosses the railway, and white dashes along its middle."""
    box = road.box
    _fill(canvas, box.grown(-1.0), "asphalt")
    u, v = box.middle
    if road.along_u:
        for at in _steps(box.u0, box.u1, 10.0):
            _fill(canvas, box_around(at, v, 6.0, 1.4), "paint")
    else:
        for at in _steps(box.v0, box.v1, 10.0):
            _fill(canvas, box_around(u, at, 1.4, 6.0), "paint")


def _lit(colour: Colour, percent: int) -> Colour:
    red, green, blue = (min(255, value * percent // 100) for value in colour)
    return red, green, blue


def _paint_roof(canvas: Canvas, building: Building) -> None:
    """A gabled roof has a bright and a dim half along its ridge, a flat one a bright parapet and boxes."""
    box = building.box
    colour = ROOFS[int(building.roof * len(ROOFS))]
    u, v = box.middle
    if building.gabled:
        canvas.box(box, _lit(colour, 118), "roof")
        dim = Box(box.u0, v, box.u1, box.v1) if box.width > box.height else Box(u, box.v0, box.u1, box.v1)
        canvas.box(dim, _lit(colour, 82), "roof")
        return
    canvas.box(box, _lit(colour, 125), "roof")
    canvas.box(box.grown(-1.4), colour, "roof")
    for at in _steps(box.u0 + 6.0, box.u1 - 4.0, 12.0):
        canvas.box(Box(at, box.v0 + 6.0, at + 3.0, min(box.v0 + 9.0, box.v1)), _lit(colour, 140), "roof")


def _shade(canvas: Canvas) -> Mask:
    """Where the sun does not reach the ground (H, W): beside all that is high, never on it."""
    shade = np.zeros((canvas.side, canvas.side), bool)
    for building in canvas.town.buildings:
        corners = canvas.town.corners(building.box)
        for reach in (0.25 * building.height, 0.5 * building.height, 0.75 * building.height):
            window, mask = canvas.polygon([(x + SUN[0] * reach, y + SUN[1] * reach) for x, y in corners])
            shade[window] |= mask
    for tree in canvas.town.trees:
        reach = 0.6 * tree.radius
        window, mask = canvas.circle(Disc(tree.x + SUN[0] * reach, tree.y + SUN[1] * reach, tree.radius))
        shade[window] |= mask
    high = {name: int(name in ("roof", "crown", "lit crown")) for name in MATERIALS}
    return shade & (canvas.lookup(high) == 0)


def _textured(canvas: Canvas, noise: Noise) -> np.ndarray:
    """Canvas colours (H, W, 3) with each material's texture; water brightens towards the lower right."""
    pixel = max(1, canvas.side // 64)
    change = noise.smooth(canvas.side, pixel) * canvas.lookup({k: m.fine for k, m in MATERIALS.items()})
    change += noise.smooth(canvas.side, 6 * pixel) * canvas.lookup(
        {k: m.coarse for k, m in MATERIALS.items()}
    )
    ramp = np.arange(canvas.side, dtype=np.int32) * 24 // canvas.side - 12
    gradient = (ramp[:, None] + ramp) // 2 * canvas.lookup({name: int(name == "water") for name in MATERIALS})
    colours = canvas.colours() + (change // 64 + gradient)[..., None]
    return colours.clip(0, 255, out=colours)
