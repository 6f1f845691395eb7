"""What stands in a town: plain shapes in metres, without a thought of pixels."""

from dataclasses import dataclass, field

EXTENT = 256.0  # side of a town in metres

Point = tuple[float, float]


@dataclass(frozen=True)
class Box:
    """A rectangle `u0 <= u <= u1, v0 <= v <= v1` in the town's own turned axes."""

    u0: float
    v0: float
    u1: float
    v1: float

    @property
    def middle(self) -> Point:
        return (self.u0 + self.u1) / 2, (self.v0 + self.v1) / 2

    @property
    def width(self) -> float:
        return self.u1 - self.u0

    @property
    def height(self) -> float:
        return self.v1 - self.v0

    def grown(self, by: float) -> "Box":
        """The box with each side moved outwards (inwards if negative)."""
        return Box(self.u0 - by, self.v0 - by, self.u1 + by, self.v1 + by)


def box_around(u: float, v: float, width: float, height: float) -> Box:
    """The box of that size with its middle at (u, v)."""
    return Box(u - width / 2, v - height / 2, u + width / 2, v + height / 2)


@dataclass(frozen=True)
class Disc:
    """A round thing in picture coordinates: a bend of the river, a piece of a pond, the crown of a tree."""

    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Road:
    """A straight piece of `kind` avenue (wide, with a centre line), street, lane (narrow) or rail."""

    kind: str
    box: Box
    along_u: bool


@dataclass(frozen=True)
class Area:
    """The ground of a block: `kind` yard (houses), paved (industry), lawn, wood or parking."""

    kind: str
    box: Box


@dataclass(frozen=True)
class Building:
    """A house with a gabled roof (two lit halves) or a hall with a flat one.

    `height` in metres becomes the length of the shadow; `roof` in [0, 1) picks one of the roof colours.
    """

    box: Box
    gabled: bool
    height: float
    roof: float


@dataclass(frozen=True)
class Car:
    """A parked or driving car, seen in the photo only; `paint` in [0, 1) picks its colour."""

    box: Box
    paint: float


@dataclass
class Town:
    """Everything that stands in a town; `axis` is the unit vector of u, (u, v) = (0, 0) the middle."""

    axis: Point
    roads: list[Road] = field(default_factory=list)
    areas: list[Area] = field(default_factory=list)
    buildings: list[Building] = field(default_factory=list)
    trees: list[Disc] = field(default_factory=list)
    ponds: list[Disc] = field(default_factory=list)
    river: list[Disc] = field(default_factory=list)
    cars: list[Car] = field(default_factory=list)

    def place(self, u: float, v: float) -> Point:
        """Picture coordinates of (u, v): metres from the top left corner, x to the right, y down."""
        c, s = self.axis
        return EXTENT / 2 + u * c - v * s, EXTENT / 2 + u * s + v * c

    def corners(self, box: Box) -> list[Point]:
        """The four corners of a box in picture coordinates, in order around it."""
        sides = ((box.u0, box.v0), (box.u1, box.v0), (box.u1, box.v1), (box.u0, box.v1))
        return [self.place(u, v) for u, v in sides]

    def outside(self, box: Box, margin: float) -> bool:
        """Whether a box lies more than `margin` metres beside the picture."""
        x, y = self.place(*box.middle)
        reach = EXTENT / 2 + margin + (box.width + box.height) / 2
        return abs(x - EXTENT / 2) > reach or abs(y - EXTENT / 2) > reach
