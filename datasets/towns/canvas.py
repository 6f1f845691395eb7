"""Polygons and discs on a fine grid of paint numbers, averaged down to a picture; noise in whole numbers."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from datasets.towns.shapes import EXTENT, Box, Disc, Point, Town

OVERSAMPLING = 4  # canvas pixels per picture pixel, each way
FINE = 16  # positions per canvas pixel: corners are rounded to this grid, and from there all is exact

Colour = tuple[int, int, int]
Window = tuple[slice, slice]
Mask = NDArray[np.bool_]


class Canvas:
    """A plane (H, W) of paint numbers to draw town shapes on; a paint is a colour and a material name.

    `size` is the side of the finished picture in pixels.
    """

    def __init__(self, town: Town, size: int, ground: Colour, material: str = "") -> None:
        self.town = town
        self.side = size * OVERSAMPLING
        self.unit = self.side * FINE / EXTENT  # positions per metre
        self.centres = np.arange(self.side, dtype=np.int64) * FINE + FINE // 2
        self.paints: dict[tuple[Colour, str], int] = {(ground, material): 0}
        self.plane = np.zeros((self.side, self.side), np.uint16)

    def box(self, box: Box, colour: Colour, material: str = "") -> None:
        """Paint a rectangle of the town."""
        if not self.town.outside(box, margin=0.0):
            self._put(*self.polygon(self.town.corners(box)), colour, material)

    def disc(self, disc: Disc, colour: Colour, material: str = "") -> None:
        """Paint a disc."""
        self._put(*self.circle(disc), colour, material)

    def _put(self, window: Window, mask: Mask, colour: Colour, material: str) -> None:
        self.plane[window][mask] = self.paints.setdefault((colour, material), len(self.paints))

    def colours(self) -> NDArray[np.int32]:
        """The colour of every canvas pixel, (H, W, 3)."""
        return np.array([colour for colour, _ in self.paints], np.int32)[self.plane]

    def lookup(self, values: dict[str, int]) -> NDArray[np.int32]:
        """A number per canvas pixel, (H, W), from a table of numbers by material."""
        return np.array([values[material] for _, material in self.paints], np.int32)[self.plane]

    def polygon(self, points: Sequence[Point]) -> tuple[Window, Mask]:
        """Pixels with their centre in a convex polygon: the window they lie in and a mask of that window."""
        corners = [(round(x * self.unit), round(y * self.unit)) for x, y in points]
        across, down = self._span([x for x, _ in corners]), self._span([y for _, y in corners])
        xs, ys = self.centres[across], self.centres[down, None]
        mask = np.ones((len(ys), len(xs)), bool)
        if mask.size:
            for (ax, ay), (bx, by) in zip(corners, [*corners[1:], corners[0]], strict=True):
                mask &= (bx - ax) * (ys - ay) >= (by - ay) * (xs - ax)
        return (down, across), mask

    def circle(self, disc: Disc) -> tuple[Window, Mask]:
        """Pixels with their centre in a disc: the window they lie in and a mask of that window."""
        x, y, radius = (round(value * self.unit) for value in (disc.x, disc.y, disc.radius))
        across, down = self._span([x - radius, x + radius]), self._span([y - radius, y + radius])
        dx, dy = self.centres[across] - x, self.centres[down, None] - y
        return (down, across), dx * dx + dy * dy <= radius * radius

    def _span(self, positions: list[int]) -> slice:
        """The canvas pixels between the smallest and the largest of `positions` (in FINE units)."""
        start = max(min(positions) // FINE, 0)
        return slice(start, max(max(positions) // FINE + 1, start))


def reduced(colours: NDArray[np.int32]) -> NDArray[np.int32]:
    """The picture (h, w, 3) of a canvas (H, W, 3): rounded means of OVERSAMPLING x OVERSAMPLING squares."""
    n, k = len(colours) // OVERSAMPLING, OVERSAMPLING
    sums = sum(colours[i::k, j::k] for i in range(k) for j in range(k))
    return (np.asarray(sums).reshape(n, n, 3) + k * k // 2) // (k * k)


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
