"""The town as a street map: flat colours, thin outlines, roads by importance."""

import numpy as np
from PIL import Image

from datasets.towns.canvas import Canvas, Colour, reduced
from datasets.towns.shapes import Disc, Town

COLOURS: dict[str, Colour] = {
    "yard": (240, 235, 224),
    "paved": (224, 220, 226),
    "parking": (204, 204, 222),
    "lawn": (188, 226, 160),
    "wood": (140, 196, 134),
    "water": (126, 190, 238),
    "casing": (186, 178, 168),
    "lane": (255, 255, 255),
    "street": (255, 255, 255),
    "rail": (96, 92, 104),
    "avenue": (250, 196, 92),
    "building": (206, 160, 134),
    "outline": (158, 112, 90),
}
ROAD_ORDER = ("lane", "street", "rail", "avenue")  # the last lies on top
BANK = 6.0  # metres of green beside the river


def draw_map(town: Town, size: int) -> Image.Image:
    """The street map of a town, RGB, `size` x `size`; trees, cars and the heights of things are not on it."""
    canvas = Canvas(town, size, COLOURS["yard"])
    for area in town.areas:
        canvas.box(area.box, COLOURS[area.kind])
    for disc in town.river:
        canvas.disc(Disc(disc.x, disc.y, disc.radius + BANK), COLOURS["lawn"])
    for disc in (*town.river, *town.ponds):
        canvas.disc(disc, COLOURS["water"])
    roads = sorted(town.roads, key=lambda road: ROAD_ORDER.index(road.kind))
    for road in roads:
        if road.kind != "rail":
            canvas.box(road.box.grown(1.0), COLOURS["casing"])
    for road in roads:
        canvas.box(road.box.grown(-2.0) if road.kind == "rail" else road.box, COLOURS[road.kind])
    for building in town.buildings:
        canvas.box(building.box.grown(0.6), COLOURS["outline"])
        canvas.box(building.box.grown(-0.6), COLOURS["building"])
    return Image.fromarray(reduced(canvas.colours()).astype(np.uint8))
