"""Invented towns: where everything stands, and three pictures of it: an aerial photo by day, by night, a street map.

A picture is a function of (seed, split, index), size and extent alone, to the byte, on every machine. Geometry uses
sums, products and square roots of Python floats and `random.Random` with a text seed. Pixels are whole numbers. Noise
is the raw output of PCG64. Sines, Pillow's drawing and NumPy's distributions may change with machine or version.

Colours are chosen so that no recolouring turns the photo into the map or into night: most roofs have the colours of
asphalt, dark green is a wood or water, shadows lie on all of them, and the windows that shine at night have the colour
of pavements by day. Shape, texture and neighbourhood differ: asphalt is grainy, roofs are smooth.
"""

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Colour = tuple[int, int, int]
Point = tuple[float, float]
Look = Literal["photo", "night", "map"]

EXTENT = 256  # metres; the side of a town
REACH = 190.0  # metres; roads cover |u|, |v| <= REACH, a little more than half the town's diagonal
SUN = (0.8, 0.6)  # shadows fall to the lower right
LAMPS: Colour = (230, 184, 92)  # what shines out of windows at night, before the exposure brightens it
OVERSAMPLING = 3  # fine pixels per pixel of the picture, each way
FINE = 16  # positions per fine pixel: corners are rounded to this grid, and all is exact from there


class Material(NamedTuple):
    """What a thing is made of; `map` is None where the map does not show it.

    `fine` and `coarse`: swing of the photo's texture at the size of one and of six pixels of a 64 pixel picture.
    """

    photo: Colour
    fine: int = 0
    coarse: int = 0
    map: Colour | None = None


MATERIALS = {  # from the ground up: what comes later is drawn on top
    "yard": Material((140, 146, 78), 28, 36, map=(240, 235, 224)),
    "paved": Material((134, 132, 126), 14, 16, map=(224, 220, 226)),
    "lawn": Material((112, 146, 62), 26, 24, map=(188, 226, 160)),
    "stripe": Material((126, 158, 72), 26, 24),
    "wood": Material((52, 78, 50), 56, 30, map=(140, 196, 134)),
    "parking": Material((78, 78, 82), 32, 12, map=(204, 204, 222)),
    "line": Material((214, 208, 190), 16, 0),
    "bank": Material((112, 138, 64), 26, 30, map=(188, 226, 160)),
    "water": Material((48, 74, 72), 5, 12, map=(126, 190, 238)),
    "pavement": Material((206, 201, 186), 14, 8, map=(186, 178, 168)),
    "street": Material((78, 78, 82), 32, 12, map=(255, 255, 255)),
    "rail": Material((118, 106, 94), 56, 12, map=(96, 92, 104)),
    "steel": Material((168, 164, 160), 20, 0),
    "avenue": Material((78, 78, 82), 32, 12, map=(250, 196, 92)),
    "paint": Material((214, 208, 190), 16, 0),
    "car": Material((170, 172, 176), 10, 10),
    "crown": Material((48, 76, 42), 48, 20),
    "lit crown": Material((80, 114, 60), 40, 20),
    "eave": Material((50, 46, 44), map=(158, 112, 90)),
    "roof": Material((78, 78, 82), 3, 10, map=(206, 160, 134)),
    "window": Material((206, 201, 186)),
}
RANK = {name: rank for rank, name in enumerate(MATERIALS)}
# One brown, and greys as asphalt is.
ROOFS = ((100, 82, 74), (78, 78, 82), (84, 82, 80), (72, 74, 80), (78, 78, 80), (88, 84, 82))
CARS = ((236, 236, 234), (40, 42, 46), (150, 36, 34), (52, 74, 120), (170, 172, 176))


class Box(NamedTuple):
    """A rectangle with its middle at (u, v), `width` along u, `height` along v: metres on the town's turned axes."""

    u: float
    v: float
    width: float
    height: float

    def grown(self, by: float) -> "Box":
        """The box with each side moved outwards (inwards if negative)."""
        return Box(self.u, self.v, self.width + 2 * by, self.height + 2 * by)

    def cells(self, width: float, height: float) -> Iterator["Box"]:
        """The box cut into equal cells of about that size."""
        across, down = max(1, round(self.width / width)), max(1, round(self.height / height))
        for i, j in itertools.product(range(across), range(down)):
            u, v = (i + 0.5) / across - 0.5, (j + 0.5) / down - 0.5
            cell = (self.width / across, self.height / down)
            yield Box(self.u + u * self.width, self.v + v * self.height, *cell)

    def part(self, along: float, beside: float, length: float, width: float) -> "Box":
        """A box whose middle and size are given along the longer side of this one and across it."""
        if self.width > self.height:
            return Box(self.u + along, self.v + beside, length, width)
        return Box(self.u + beside, self.v + along, width, length)


class Thing(NamedTuple):
    """A convex polygon, or a disc around its only point, in metres to the right of and below the town's middle.

    `colour` replaces the material's colour in the photo, `light` is a percentage of it, `shadow` a length in metres.
    """

    material: str
    points: Sequence[Point]
    radius: float = 0.0
    colour: Colour | None = None
    light: int = 100
    shadow: float = 0.0


class Town:
    """Town `index` of a split: perhaps a river, a turned irregular grid of roads, and what stands between them."""

    def __init__(self, seed: int, split: str, index: int) -> None:
        self.key = seed, split, index
        dice = random.Random(f"town {seed} {split} {index}")
        self.uniform, self.choice = dice.uniform, dice.choice
        slope = self.uniform(-1.0, 1.0)
        length = math.sqrt(1.0 + slope * slope)
        self.axis = 1.0 / length, slope / length  # the unit vector of u
        self.water: list[tuple[float, float, float]] = []  # discs: x, y, radius
        self.things: list[Thing] = []
        if self.uniform(0.0, 1.0) < 0.5:
            self._river()
        self._roads_and_blocks()
        self.things += [Thing("water", [(x, y)], radius) for x, y, radius in self.water]
        self.things.sort(key=lambda thing: RANK[thing.material])

    def place(self, u: float, v: float) -> Point:
        c, s = self.axis
        return u * c - v * s, u * s + v * c

    def sees(self, box: Box) -> bool:
        """False if a box and its shadow lie outside the town."""
        reach = EXTENT / 2 + 10.0 + (box.width + box.height) / 2
        return all(abs(at) <= reach for at in self.place(box.u, box.v))

    def put(self, material: str, box: Box, **details: Any) -> None:
        """Add a rectangle; `details` are a Thing's."""
        if self.sees(box):
            signs = ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5))
            corners = [self.place(box.u + i * box.width, box.v + j * box.height) for i, j in signs]
            self.things.append(Thing(material, corners, **details))

    def dry(self, u: float, v: float, margin: float) -> bool:
        """True if water is at least `margin` metres away from (u, v)."""
        x, y = self.place(u, v)
        offsets = ((x - water_x, y - water_y, radius + margin) for water_x, water_y, radius in self.water)
        return all(dx * dx + dy * dy >= reach * reach for dx, dy, reach in offsets)

    def _river(self) -> None:
        """A band of overlapping discs that wanders from one side of the town to the other."""
        radius, position, drift = self.uniform(11.0, 19.0), self.uniform(-0.35, 0.35) * EXTENT, 0.0
        upright = self.uniform(0.0, 1.0) < 0.5
        for step in range(-148, 149, 4):
            drift = 0.9 * drift + self.uniform(-0.7, 0.7)
            position += drift
            x, y = (position, step) if upright else (step, position)
            self.things.append(Thing("bank", [(x, y)], radius + 6.0))
            self.water.append((x, y, radius))

    def _crossings(self) -> list[tuple[float, str, float]]:
        """Where roads cross an axis, their kinds and half their widths."""
        places = [-REACH - self.uniform(0.0, 60.0)]
        while places[-1] < REACH:
            places.append(places[-1] + self.uniform(48.0, 88.0))
        return [(at, "street", self.choice((3.75, 6.0))) for at in places]

    def _roads_and_blocks(self) -> None:
        """Long roads from end to end, staggered cross streets, one avenue across all; then the blocks."""
        columns = self._crossings()
        main = self.choice([("avenue", 9.5), ("avenue", 9.5), ("rail", 3.5)])
        columns[len(columns) // 2] = (columns[len(columns) // 2][0], *main)
        avenue = self.uniform(-70.0, 70.0)
        for u, kind, half in columns:
            self._road(kind, Box(u, 0.0, 2 * half, 2 * REACH))
        for (left, _, left_half), (right, _, right_half) in itertools.pairwise(columns):
            rows = [row for row in self._crossings() if abs(row[0] - avenue) > 34.0]
            rows = sorted([*rows, (avenue, "avenue", 9.5)])
            for v, kind, half in rows:
                self._road(kind, Box((left + right) / 2, v, right - left, 2 * half))
            u0, u1 = left + left_half, right - right_half
            for (low, _, low_half), (high, _, high_half) in itertools.pairwise(rows):
                v0, v1 = low + low_half, high - high_half
                block = Box((u0 + u1) / 2, (v0 + v1) / 2, u1 - u0 - 4.0, v1 - v0 - 4.0)
                if self.sees(block):
                    self._block(block)

    def _road(self, kind: str, box: Box) -> None:
        """A road with pavements and cars, an avenue with dashes too, or a railway with two rails."""
        self.put(kind, box, light=self.choice((88, 100, 112)))
        length, width = max(box.width, box.height), min(box.width, box.height)
        if kind == "rail":
            for beside in (-1.6, 1.6):
                self.put("steel", box.part(0.0, beside, length, 1.0))
            return
        self.put("pavement", box.grown(3.0))
        if kind == "avenue":
            for along in steps(length, 10.0):
                self.put("paint", box.part(along, 0.0, 6.0, 1.4))
        for along in steps(length, 54.0) if width > 10.0 else ():
            car = box.part(along + self.uniform(0.0, 40.0), self.choice((-2.8, 2.8)), 5.0, 2.2)
            self.put("car", car, colour=self.choice(CARS))

    def _block(self, block: Box) -> None:
        """Half of the blocks are houses, the rest industry, parks, woods and car parks."""
        use = self.uniform(0.0, 1.0)
        if use < 0.66:
            self.put("yard", block)
            size = self.uniform(21.0, 33.0)
            for plot in block.cells(size, size):
                self._house(plot)
        elif use < 0.74:
            self.put("paved", block)
            size = self.uniform(40.0, 64.0)
            for plot in block.cells(size, size):
                self._hall(plot.grown(-self.uniform(4.0, 8.0)))
        elif use < 0.86:
            self.put("lawn", block)
            for cell in block.cells(block.width, 10.0):
                self.put("stripe", Box(cell.u, cell.v, cell.width, cell.height / 2))
            for _ in range(self.choice((0, 3))):  # a pond of three overlapping discs
                room = min(block.width, block.height)
                u, v = (at + self.uniform(-0.16, 0.16) * room for at in (block.u, block.v))
                self.water.append((*self.place(u, v), self.uniform(0.19, 0.26) * room))
            self._grove(block, every=30.0)
        elif use < 0.95:
            self.put("wood", block)
            self._grove(block, every=13.0)
        else:
            self.put("parking", block)
            for row in block.grown(-2.0).cells(block.width, 13.0):
                self._parked_cars(row)

    def _house(self, plot: Box) -> None:
        """A house with a bright and a dim half of its roof along the ridge, and a tree."""
        u, v = plot.u + self.uniform(-2.0, 2.0), plot.v + self.uniform(-2.0, 2.0)
        house = Box(u, v, plot.width * self.uniform(0.60, 0.80), plot.height * self.uniform(0.60, 0.80))
        short, long = sorted((house.width, house.height))
        if not self.dry(u, v, 4.0 + long / 2):
            return
        colour = self.choice(ROOFS)
        self.put("eave", house.grown(0.8))
        self.put("roof", house, colour=colour, light=108, shadow=self.uniform(3.7, 6.7))
        self.put("roof", house.part(0.0, short / 4, long, short / 2), colour=colour, light=92)
        for cell in house.grown(-1.5).cells(6.5, 6.5):
            self.put("window", Box(cell.u, cell.v, 3.4, 3.4))
        u, v = plot.u - plot.width / 2, plot.v - plot.height / 2
        self._tree(u + self.uniform(2.0, 5.0), v + self.uniform(2.0, 5.0), self.uniform(2.0, 3.6))

    def _hall(self, box: Box) -> None:
        """A large flat roof with a bright parapet and a row of boxes."""
        if min(box.width, box.height) >= 8.0 and self.dry(box.u, box.v, 22.0):
            colour = self.choice(ROOFS)
            self.put("eave", box.grown(0.8))
            self.put("roof", box, colour=colour, light=125, shadow=self.uniform(5.0, 10.0))
            self.put("roof", box.grown(-1.4), colour=colour)
            for cell in box.grown(-3.0).cells(8.0, 8.0):
                self.put("window", Box(cell.u, cell.v, 4.0, 4.0))

    def _tree(self, u: float, v: float, radius: float) -> None:
        """A crown with a lit side, unless it would stand in water."""
        if self.dry(u, v, 0.6 * radius):
            x, y = self.place(u, v)
            lit = x - 0.3 * SUN[0] * radius, y - 0.3 * SUN[1] * radius
            self.things.append(Thing("crown", [(x, y)], radius, shadow=0.6 * radius))
            self.things.append(Thing("lit crown", [lit], 0.55 * radius))

    def _grove(self, block: Box, every: float) -> None:
        """Trees about `every` metres, each somewhere in its own cell."""
        for cell in block.grown(-3.0).cells(every, every):
            u, v = self.uniform(-0.3, 0.3) * cell.width, self.uniform(-0.3, 0.3) * cell.height
            self._tree(cell.u + u, cell.v + v, self.uniform(3.5, 6.5))

    def _parked_cars(self, row: Box) -> None:
        """A row of cars, two thirds of the places taken, and a white line."""
        self.put("line", Box(row.u, row.v + 3.1, row.width, 0.8))
        for cell in Box(row.u, row.v, row.width, 5.4).cells(4.4, 5.4):
            if self.uniform(0.0, 1.0) < 0.66 and self.dry(cell.u, cell.v, 9.0):
                self.put("car", Box(cell.u, cell.v, 2.6, 5.4), colour=self.choice(CARS))


def steps(length: float, step: float) -> Iterator[float]:
    """Positions `step` apart from one end to the other of a line with its middle at 0."""
    return (i * step - length / 2 for i in range(math.ceil(length / step)))


def pixels_of(thing: Thing, side: int, extent: float, shift: float = 0.0) -> tuple[Any, NDArray[np.bool_]]:
    """Fine pixels with their centre in a thing that is moved `shift` metres away from the sun: a window, its mask.

    The canvas is `side` fine pixels and `extent` metres wide, with the town's middle in its own.
    """
    unit = side * FINE / extent  # positions per metre
    xs, ys = (
        [round((point[axis] + SUN[axis] * shift + extent / 2) * unit) for point in thing.points]
        for axis in (0, 1)
    )
    radius = round(thing.radius * unit)
    across, down = (
        slice(max((min(at) - radius) // FINE, 0), max((max(at) + radius) // FINE + 1, 0)) for at in (xs, ys)
    )
    centres = np.arange(side) * FINE + FINE // 2
    x, y = centres[across], centres[down, None]
    if radius:
        return (down, across), (x - xs[0]) ** 2 + (y - ys[0]) ** 2 <= radius**2
    mask = np.ones((len(y), len(x)), bool)
    for (ax, ay), (bx, by) in itertools.pairwise(zip([*xs, xs[0]], [*ys, ys[0]], strict=True)):
        mask &= (bx - ax) * (y - ay) >= (by - ay) * (x - ax)
    return (down, across), mask


def reduced(colours: NDArray[np.int16]) -> NDArray[np.int32]:
    """The picture (h, w, 3) of a canvas (H, W, 3): rounded means of OVERSAMPLING x OVERSAMPLING squares."""
    k, side = OVERSAMPLING, len(colours) // OVERSAMPLING
    sums = colours.reshape(side, k, side, k, 3).sum(axis=(1, 3), dtype=np.int32)
    return (sums + k * k // 2) // (k * k)


class Noise:
    """Noise as whole numbers: raw 64-bit words of PCG64, a stream that NumPy promises to keep."""

    def __init__(self, seed: int, split: str, index: int) -> None:
        self.bits = np.random.PCG64(np.random.SeedSequence([seed, index, *split.encode()]))

    def white(self, height: int, width: int) -> NDArray[np.int32]:
        """(height, width) bell-shaped noise in [-127, 127]: the mean of four bytes."""
        words = self.bits.random_raw((height * width + 1) // 2).astype("<u8")
        sums = words.view(np.uint8).reshape(-1, 4)[: height * width].sum(axis=1, dtype=np.int32)
        return (sums // 4 - 127).clip(-127, 127).reshape(height, width)

    def smooth(self, side: int, cell: int) -> NDArray[np.int32]:
        """(side, side) noise that varies over `cell` pixels: white noise on a grid, linear in between."""
        count = -(-side // cell) + 1
        grid = self.white(count, count)
        low, part = np.divmod(np.arange(side, dtype=np.int32), cell)
        rows = grid[low] * (cell - part)[:, None] + grid[low + 1] * part[:, None]
        return (rows[:, low] * (cell - part) + rows[:, low + 1] * part) // (cell * cell)


def draw(town: Town, look: Look, size: int, extent: float = EXTENT) -> Image.Image:
    """A picture of the middle `extent` metres of a town, RGB, `size` x `size` pixels.

    photo: textured ground, lit roofs, shadows, cars, a noisy sensor. night: the same, dark blue and without shadows,
    but with light in the windows. map: flat colours and thin outlines.
    """
    ground = Thing("yard", [])  # what is seen where nothing stands
    things = [ground, *(thing for thing in town.things if surface(thing, look))]
    side = size * OVERSAMPLING
    plane = np.zeros((side, side), np.int32)  # the topmost thing of every fine pixel
    shade = np.zeros((side, side), bool)
    for number, thing in enumerate(things[1:], 1):
        window, mask = pixels_of(thing, side, extent)
        plane[window][mask] = number
        for share in (1 / 3, 2 / 3, 1.0) if thing.shadow and look != "night" else ():
            window, mask = pixels_of(thing, side, extent, share * thing.shadow)
            shade[window] |= mask
    surfaces = np.array([surface(thing, look) for thing in things], np.int16)[plane]
    if look == "map":
        return Image.fromarray(reduced(surfaces[..., :3]).astype(np.uint8))
    noise = Noise(*town.key)
    cell = max(1, round(side * EXTENT / extent / 64))
    texture = noise.smooth(side, cell) * surfaces[..., 3] + noise.smooth(side, 6 * cell) * surfaces[..., 4]
    colours = (surfaces[..., :3] + (texture // 64).astype(np.int16)[..., None]).clip(0, 255)
    shade &= ~np.array([RANK[thing.material] >= RANK["crown"] for thing in things])[plane]
    colours[shade] = colours[shade] * (50, 54, 64) // 100  # what lights a shadow is the sky: a little blue
    exposure = 122 + noise.white(1, 1)[0, 0] // 12  # percent
    sensor = np.stack([noise.white(size, size) for _ in range(3)], axis=-1) // 20
    return Image.fromarray((reduced(colours) * exposure // 100 + sensor).clip(0, 255).astype(np.uint8))


def surface(thing: Thing, look: Look) -> tuple[int, ...] | None:
    """Red, green, blue, and the swing of the fine and the coarse texture; None if the map does not show it."""
    material = MATERIALS[thing.material]
    if look == "map":
        return material.map and (*material.map, 0, 0)
    light, red, green, blue = thing.light, *(thing.colour or material.photo)
    if look == "photo":
        return *(c * light // 100 for c in (red, green, blue)), material.fine, material.coarse
    if thing.material == "window":
        return *LAMPS, 0, 0
    moonlit = (red // 5 + 6, green // 5 + 8, blue // 4 + 18)
    return *(c * light // 100 for c in moonlit), material.fine // 5, material.coarse // 5
