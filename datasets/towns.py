"""Invented towns: their geometry, and three pictures of each: an aerial photo, the same in winter, a street map.

Every picture is a function of (seed, split, index, size) alone, to the byte, on every machine. Geometry uses sums,
products and square roots of Python floats and `random.Random` with a text seed. Pixels are whole numbers. Noise is the
raw output of PCG64. Sines, Pillow's drawing and NumPy's distributions differ between machines or versions: not used.

Colours are chosen so that no recolouring turns the photo into the map or into winter: asphalt is a road, a car park or
a dark roof, dark green is a wood or water, and shadows lie on all of them. Texture, shape and neighbourhood differ.
"""

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Colour = tuple[int, int, int]
Point = tuple[float, float]

EXTENT = 256.0  # side of a town in metres
REACH = 190.0  # roads cover |u|, |v| <= REACH metres, a little more than half the picture's diagonal
SUN = (0.8, 0.6)  # shadows fall to the lower right
SNOW: Colour = (202, 208, 216)  # before the exposure brightens it
OVERSAMPLING = 4  # canvas pixels per picture pixel, each way
FINE = 16  # positions per canvas pixel: corners are rounded to this grid, and all is exact from there


class Material(NamedTuple):
    """What a thing is made of; `photo` or `map` is None where that picture does not show it.

    `fine` and `coarse`: swing of the photo's texture at the size of one and of six pixels of a 64 pixel picture.
    `snow`: percent of the surface that snow hides in winter.
    """

    photo: Colour | None
    fine: int = 0
    coarse: int = 0
    map: Colour | None = None
    snow: int = 0


MATERIALS = {  # from the ground up: what comes later is drawn on top
    "yard": Material((122, 120, 84), 26, 44, map=(240, 235, 224), snow=80),
    "paved": Material((134, 132, 126), 14, 16, map=(224, 220, 226), snow=60),
    "lawn": Material((92, 118, 62), 18, 24, map=(188, 226, 160), snow=85),
    "stripe": Material((106, 134, 72), 18, 24, snow=85),
    "wood": Material((52, 78, 50), 56, 30, map=(140, 196, 134), snow=70),
    "parking": Material((98, 98, 100), 14, 12, map=(204, 204, 222)),
    "line": Material((214, 208, 190), 16, 0),
    "bank": Material((92, 112, 66), 34, 30, map=(188, 226, 160), snow=80),
    "water": Material((48, 74, 72), 5, 12, map=(126, 190, 238), snow=50),
    "pavement": Material((160, 156, 148), 14, 8, map=(186, 178, 168), snow=60),
    "lane": Material((98, 98, 100), 14, 12, map=(255, 255, 255)),
    "street": Material((98, 98, 100), 14, 12, map=(255, 255, 255)),
    "rail": Material((118, 106, 94), 56, 12, map=(96, 92, 104), snow=50),
    "sleeper": Material((74, 66, 60), 20, 0, snow=30),
    "steel": Material((168, 164, 160), 20, 0),
    "avenue": Material((98, 98, 100), 14, 12, map=(250, 196, 92)),
    "dash": Material((214, 208, 190), 16, 0),
    "car": Material((170, 172, 176), 10, 10, snow=40),
    "crown": Material((48, 76, 42), 48, 20, snow=20),
    "lit crown": Material((80, 114, 60), 40, 20, snow=45),
    "eave": Material(None, map=(158, 112, 90)),
    "roof": Material((98, 98, 102), 10, 10, map=(206, 160, 134), snow=85),
}
RANK = {name: rank for rank, name in enumerate(MATERIALS)}
WIDTHS = {"avenue": 19.0, "street": 12.0, "lane": 7.5, "rail": 7.0}  # metres
ROOFS: tuple[Colour, ...] = (
    (172, 88, 64), (146, 78, 58), (118, 92, 72),  # two reds, brown
    (98, 98, 102), (72, 76, 86), (200, 194, 182),  # dark grey, slate, light felt
    (134, 138, 142), (92, 114, 136), (98, 128, 104),  # metal, blue sheet, copper
)  # fmt: skip
CARS: tuple[Colour, ...] = ((236, 236, 234), (40, 42, 46), (150, 36, 34), (52, 74, 120), (170, 172, 176))


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
        du, dv = self.width / across, self.height / down
        for i, j in itertools.product(range(across), range(down)):
            yield Box(
                self.u - self.width / 2 + (i + 0.5) * du, self.v - self.height / 2 + (j + 0.5) * dv, du, dv
            )

    def part(self, along: float, beside: float, length: float, width: float) -> "Box":
        """A box whose middle and size are given along the longer side of this one and across it."""
        if self.width > self.height:
            return Box(self.u + along, self.v + beside, length, width)
        return Box(self.u + beside, self.v + along, width, length)


class Thing(NamedTuple):
    """A polygon of `points`, or a disc around its only point, in metres from the picture's top left corner.

    `colour` replaces the material's colour in the photo, `light` is a percentage of it, `shadow` a length in metres.
    """

    material: str
    points: Sequence[Point]
    radius: float = 0.0
    colour: Colour | None = None
    light: int = 100
    shadow: float = 0.0


GROUND = Thing("yard", ())  # what is seen where nothing stands


class Town:
    """Town `index` of a split: perhaps a river, a turned irregular grid of roads, and what stands between them."""

    def __init__(self, seed: int, split: str, index: int) -> None:
        self.random = random.Random(f"town {seed} {split} {index}")
        slope = self.random.uniform(-1.0, 1.0)
        length = math.sqrt(1.0 + slope * slope)
        self.axis = (
            1.0 / length,
            slope / length,
        )  # the unit vector of u; (u, v) = (0, 0) is the picture's middle
        self.things: list[Thing] = []
        self.water: list[Thing] = []
        if self.random.random() < 0.5:
            self._river()
        self._roads_and_blocks()
        self.things += self.water
        self.things.sort(key=lambda thing: RANK[thing.material])

    def place(self, u: float, v: float) -> Point:
        """Metres to the right of and below the picture's top left corner."""
        c, s = self.axis
        return EXTENT / 2 + u * c - v * s, EXTENT / 2 + u * s + v * c

    def sees(self, box: Box) -> bool:
        """False if a box lies wholly beside the picture, shadows included."""
        reach = EXTENT / 2 + 10.0 + (box.width + box.height) / 2
        return all(abs(at - EXTENT / 2) <= reach for at in self.place(box.u, box.v))

    def put(
        self, material: str, box: Box, colour: Colour | None = None, light: int = 100, shadow: float = 0.0
    ) -> None:
        if self.sees(box):
            corners = [
                self.place(box.u + i * box.width / 2, box.v + j * box.height / 2)
                for i, j in ((-1, -1), (1, -1), (1, 1), (-1, 1))
            ]
            self.things.append(Thing(material, corners, 0.0, colour, light, shadow))

    def dry(self, u: float, v: float, margin: float) -> bool:
        """True if water is at least `margin` metres away from (u, v)."""
        x, y = self.place(u, v)
        return all(
            (x - disc.points[0][0]) ** 2 + (y - disc.points[0][1]) ** 2 >= (disc.radius + margin) ** 2
            for disc in self.water
        )

    def _river(self) -> None:
        """A band of overlapping discs that wanders from one side of the picture to the other."""
        radius = self.random.uniform(11.0, 19.0)
        position, drift = self.random.uniform(0.15, 0.85) * EXTENT, 0.0
        upright = self.random.random() < 0.5
        for step in range(-20, int(EXTENT) + 20, 4):
            drift = 0.9 * drift + self.random.uniform(-0.7, 0.7)
            position += drift
            centre = (position, step) if upright else (step, position)
            self.things.append(Thing("bank", [centre], radius + 6.0))
            self.water.append(Thing("water", [centre], radius))

    def _cuts(self, main: str) -> list[tuple[float, str]]:
        """Where roads cross an axis, and their kinds; one near the middle is of the kind `main`."""
        cuts = []
        position = -REACH - self.random.uniform(0.0, 60.0)
        while position < REACH + 60.0:
            cuts.append((position, "street" if self.random.random() < 0.55 else "lane"))
            position += self.random.uniform(48.0, 88.0)
        chosen = self.random.choice([i for i, (at, _) in enumerate(cuts) if abs(at) < 80.0])
        cuts[chosen] = (cuts[chosen][0], main)
        return cuts

    def _roads_and_blocks(self) -> None:
        """Long roads from end to end, staggered cross streets, one avenue across all; then the blocks."""
        columns = self._cuts("rail" if self.random.random() < 0.35 else "avenue")
        avenue = self.random.uniform(-70.0, 70.0)
        for u, kind in columns:
            self._road(kind, Box(u, 0.0, WIDTHS[kind], 2 * REACH))
        for (left, left_kind), (right, right_kind) in itertools.pairwise(columns):
            u0, u1 = left + WIDTHS[left_kind] / 2, right - WIDTHS[right_kind] / 2
            rows = [cut for cut in self._cuts("street") if abs(cut[0] - avenue) > 34.0]
            rows = sorted([*rows, (avenue, "avenue")])
            for v, kind in rows:
                # A road runs to the middle of the one it meets, but only an avenue has a level crossing.
                start = u0 if left_kind == "rail" and kind != "avenue" else left
                end = u1 if right_kind == "rail" and kind != "avenue" else right
                self._road(kind, Box((start + end) / 2, v, end - start, WIDTHS[kind]))
            for (low, low_kind), (high, high_kind) in itertools.pairwise(rows):
                v0, v1 = low + WIDTHS[low_kind] / 2, high - WIDTHS[high_kind] / 2
                block = Box((u0 + u1) / 2, (v0 + v1) / 2, u1 - u0 - 4.0, v1 - v0 - 4.0)
                if self.sees(block):
                    self._block(block)

    def _road(self, kind: str, box: Box) -> None:
        """A road with pavements, dashes (avenues only) and cars, or a railway with sleepers and two rails."""
        self.put(kind, box)
        length = max(box.width, box.height)
        if kind == "rail":
            for along in _steps(length, 4.0):
                self.put("sleeper", box.part(along, 0.0, 1.6, 6.0))
            for beside in (-1.6, 1.6):
                self.put("steel", box.part(0.0, beside, length, 1.0))
            return
        self.put("pavement", box.grown(2.0))
        if kind == "avenue":
            for along in _steps(length, 10.0):
                self.put("dash", box.part(along, 0.0, 6.0, 1.4))
        if kind != "lane":
            along = self.random.uniform(5.0, 60.0) - length / 2
            while along < length / 2:
                car = box.part(along, self.random.choice((-2.8, 2.8)), 5.0, 2.2)
                self.put("car", car, self.random.choice(CARS))
                along += self.random.uniform(18.0, 90.0)

    def _block(self, block: Box) -> None:
        """Half of the blocks are houses, the rest industry, parks, woods and car parks."""
        use = self.random.random()
        if use < 0.50:
            self.put("yard", block)
            size = self.random.uniform(21.0, 33.0)
            for cell in block.cells(size, size):
                self._plot(cell)
        elif use < 0.62:
            self.put("paved", block)
            size = self.random.uniform(40.0, 64.0)
            for cell in block.cells(size, size):
                self._hall(cell.grown(-self.random.uniform(4.0, 8.0)))
        elif use < 0.78:
            self.put("lawn", block)
            for cell in block.cells(block.width, 10.0):
                self.put("stripe", Box(cell.u, cell.v, cell.width, cell.height / 2))
            if self.random.random() < 0.5:
                self._pond(block)
            self._grove(block, every=30.0)
        elif use < 0.90:
            self.put("wood", block)
            self._grove(block, every=13.0)
        else:
            self.put("parking", block)
            for row in block.grown(-2.0).cells(block.width, 13.0):
                self._parked_cars(row)

    def _plot(self, cell: Box) -> None:
        """A gabled house with a bright and a dim half along its ridge and a tree, or a large tree alone."""
        u, v = cell.u + self.random.uniform(-2.0, 2.0), cell.v + self.random.uniform(-2.0, 2.0)
        width, height = (side * self.random.uniform(0.54, 0.80) for side in (cell.width, cell.height))
        if not self.dry(u, v, 4.0 + max(width, height) / 2):
            return
        if self.random.random() < 0.12:
            self._tree(u, v, self.random.uniform(4.0, 6.5))
            return
        house = Box(u, v, width, height)
        short, long = sorted((width, height))
        colour = self.random.choice(ROOFS)
        self.put("eave", house.grown(0.6))
        self.put("roof", house, colour, light=118, shadow=self.random.uniform(3.7, 6.7))
        self.put("roof", house.part(0.0, short / 4, long, short / 2), colour, light=82)
        u, v = (
            cell.u - cell.width / 2 + self.random.uniform(2.0, 5.0),
            cell.v - cell.height / 2 + self.random.uniform(2.0, 5.0),
        )
        self._tree(u, v, self.random.uniform(2.0, 3.6))

    def _hall(self, box: Box) -> None:
        """A large flat roof with a bright parapet and a row of boxes."""
        if min(box.width, box.height) < 8.0 or not self.dry(box.u, box.v, 22.0):
            return
        colour = self.random.choice(ROOFS)
        self.put("eave", box.grown(0.6))
        self.put("roof", box, colour, light=125, shadow=self.random.uniform(5.0, 10.0))
        self.put("roof", box.grown(-1.4), colour)
        for along in _steps(box.width - 8.0, 12.0):
            self.put(
                "roof", Box(box.u + along + 2.0, box.v - box.height / 2 + 7.0, 3.0, 3.0), colour, light=140
            )

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
            u = cell.u + self.random.uniform(-0.3, 0.3) * cell.width
            v = cell.v + self.random.uniform(-0.3, 0.3) * cell.height
            self._tree(u, v, self.random.uniform(3.5, 6.5))

    def _pond(self, block: Box) -> None:
        """Three overlapping discs of water."""
        room = min(block.width, block.height) / 2
        for _ in range(3):
            radius = room * self.random.uniform(0.38, 0.55)
            slack = 0.85 * room - radius
            u, v = (at + self.random.uniform(-slack, slack) for at in (block.u, block.v))
            self.water.append(Thing("water", [self.place(u, v)], radius))

    def _parked_cars(self, row: Box) -> None:
        """A row of cars, two thirds of the places taken, above a white line."""
        self.put("line", Box(row.u, row.v + 3.1, row.width, 0.8))
        for cell in Box(row.u, row.v, row.width, 5.4).cells(4.4, 5.4):
            if self.random.random() < 0.66 and self.dry(cell.u, cell.v, 9.0):
                self.put("car", Box(cell.u, cell.v, 2.6, 5.4), self.random.choice(CARS))


def _steps(length: float, step: float) -> Iterator[float]:
    """Positions `step` apart from one end to the other of a line with its middle at 0."""
    return (i * step - length / 2 for i in range(math.ceil(length / step)))


class Canvas:
    """A grid of fine pixels that finds the place of things in metres; `size` is the picture's side in pixels."""

    def __init__(self, size: int) -> None:
        self.side = size * OVERSAMPLING
        self.unit = self.side * FINE / EXTENT  # positions per metre
        self.centres = np.arange(self.side, dtype=np.int64) * FINE + FINE // 2

    def mask(self, thing: Thing, shift: float = 0.0) -> tuple[tuple[slice, slice], NDArray[np.bool_]]:
        """Pixels with their centre in a thing that is moved `shift` metres away from the sun: a window, its mask."""
        xs = [round((x + SUN[0] * shift) * self.unit) for x, _ in thing.points]
        ys = [round((y + SUN[1] * shift) * self.unit) for _, y in thing.points]
        radius = round(thing.radius * self.unit)
        across, down = (
            slice(max((min(at) - radius) // FINE, 0), max((max(at) + radius) // FINE + 1, 0))
            for at in (xs, ys)
        )
        u, v = self.centres[across], self.centres[down, None]
        if radius:
            return (down, across), (u - xs[0]) ** 2 + (v - ys[0]) ** 2 <= radius**2
        mask = np.ones((len(v), u.size), bool)
        for (ax, ay), (bx, by) in itertools.pairwise(zip([*xs, xs[0]], [*ys, ys[0]], strict=True)):
            mask &= (bx - ax) * (v - ay) >= (by - ay) * (u - ax)
        return (down, across), mask

    def topmost(self, things: Sequence[Thing]) -> NDArray[np.int32]:
        """The topmost thing of every fine pixel (H, W), as its place in the list; the first thing covers all."""
        plane = np.zeros((self.side, self.side), np.int32)
        for number, thing in enumerate(things[1:], 1):
            window, mask = self.mask(thing)
            plane[window][mask] = number
        return plane

    def shade(self, things: Sequence[Thing]) -> NDArray[np.bool_]:
        """Where the sun does not reach the ground (H, W)."""
        shade = np.zeros((self.side, self.side), bool)
        for thing in things:
            for share in (1 / 3, 2 / 3, 1.0) if thing.shadow else ():
                window, mask = self.mask(thing, share * thing.shadow)
                shade[window] |= mask
        return shade


def reduced(colours: NDArray[np.int32]) -> NDArray[np.int32]:
    """The picture (h, w, 3) of a canvas (H, W, 3): rounded means of OVERSAMPLING x OVERSAMPLING squares."""
    n, k = len(colours) // OVERSAMPLING, OVERSAMPLING
    return (colours.reshape(n, k, n, k, 3).sum(axis=(1, 3)) + k * k // 2) // (k * k)


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


def draw_map(town: Town, size: int) -> Image.Image:
    """The street map of a town, RGB, `size` x `size`: flat colours, thin outlines, roads by importance."""
    things = [GROUND, *(thing for thing in town.things if MATERIALS[thing.material].map)]
    colours = np.array([MATERIALS[thing.material].map for thing in things], np.int32)
    return Image.fromarray(reduced(colours[Canvas(size).topmost(things)]).astype(np.uint8))


def draw_photo(town: Town, size: int, noise: Noise, winter: bool = False) -> Image.Image:
    """The aerial photo of a town, RGB, `size` x `size`: textured ground, lit roofs, shadows, cars, a noisy sensor.

    In winter snow hides a part of each surface's colour; with the same noise all else is the same.
    """
    things = [GROUND, *(thing for thing in town.things if MATERIALS[thing.material].photo)]
    materials = [MATERIALS[thing.material] for thing in things]
    colours, lights, fine, coarse, snow, high = (
        np.array(values, np.int32)
        for values in (
            [thing.colour or material.photo for thing, material in zip(things, materials, strict=True)],
            [(thing.light,) for thing in things],
            [material.fine for material in materials],
            [material.coarse for material in materials],
            [(material.snow if winter else 0,) for material in materials],
            [RANK[thing.material] >= RANK["crown"] for thing in things],
        )
    )
    canvas = Canvas(size)
    top = canvas.topmost(things)
    pixel = max(1, canvas.side // 64)
    texture = (
        noise.smooth(canvas.side, pixel) * fine[top] + noise.smooth(canvas.side, 6 * pixel) * coarse[top]
    )
    surface = (colours[top] + (texture // 64)[..., None]).clip(0, 255)
    surface += (np.array(SNOW, np.int32) - surface) * snow[top] // 100
    surface = (surface * lights[top] // 100).clip(0, 255)
    shade = canvas.shade(things) & (high[top] == 0)
    surface[shade] = surface[shade] * (50, 54, 64) // 100  # what lights a shadow is the sky: a little blue
    exposure = 122 + noise.white(1, 1)[0, 0] // 12  # percent
    sensor = np.stack([noise.white(size, size) for _ in range(3)], axis=-1) // 8
    picture = reduced(surface) * exposure // 100 + sensor
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))
