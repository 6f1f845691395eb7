"""Sample pictures of one moment of a training: one PNG a kind, and one labelled grid that shows all of them.

All kinds have the same arrangement, so two of them laid over each other match pixel by pixel.
"""

import math
from collections.abc import Mapping
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from datasets.images import save_png, to_picture
from gan.show_bands import shown_bands
from gan.viewers import GRID

CAPTIONS = {
    "input": "input",
    "fake": "translated",
    "target": "target",
    "input_A": "input A",
    "fake_B": "translated to B",
    "rec_A": "reconstructed A",
    "input_B": "input B",
    "fake_A": "translated to A",
    "rec_B": "reconstructed B",
}
"""What people call each kind of picture; a kind that is not here is captioned by its own name."""

GAP = 4
BACKGROUND = (250, 250, 250)
INK = (40, 40, 40)


def save_samples(folder: Path, images: Mapping[str, Tensor], show_bands: str = "") -> dict[str, Path]:
    """Write `KIND.png` for every kind and `grid.png`, and return kind -> file (with GRID last).

    images: kind -> (N, C, H, W) in [-1, 1], any size per kind, the same N. show_bands: which bands show more than three
    channels; the grid's captions then name them. Each file appears whole or not at all. Raises OSError if the folder
    cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    bands = {kind: shown_bands(batch.shape[1], show_bands) for kind, batch in images.items()}
    pictures = {
        kind: [to_picture(image[[band - 1 for band in bands[kind]]].detach().cpu()) for image in batch]
        for kind, batch in images.items()
    }
    files = {}
    for kind, column in pictures.items():
        files[kind] = folder / f"{kind}.png"
        save_png(_tile(column), files[kind])
    files[GRID] = folder / f"{GRID}.png"
    captioned = {
        CAPTIONS.get(kind, kind) + ("" if images[kind].shape[1] in (1, 3) else f" {bands[kind]}"): column
        for kind, column in pictures.items()
    }
    save_png(labelled_grid(captioned), files[GRID])
    return files


def columns_for(count: int) -> int:
    """Columns of the tile of `count` pictures: one row up to 4, then near a square with few empty places.

    >>> [columns_for(count) for count in (1, 4, 5, 6, 8, 9, 16)]
    [1, 4, 3, 3, 4, 3, 4]
    """
    if count <= 4:
        return count
    square = math.ceil(math.sqrt(count))
    return min((square, square + 1), key=lambda columns: -count % columns)


def _tile(pictures: list[Image.Image]) -> Image.Image:
    """Pictures of one size, left to right and top to bottom, without a gap."""
    width, height = pictures[0].size
    columns = columns_for(len(pictures))
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), BACKGROUND)
    for index, picture in enumerate(pictures):
        sheet.paste(picture.convert("RGB"), (index % columns * width, index // columns * height))
    return sheet


def labelled_grid(pictures: Mapping[str, list[Image.Image]]) -> Image.Image:
    """A row per input, a column per kind, the kind's caption above its column, all captions in one size."""
    cell_width = max(column[0].width for column in pictures.values())
    cell_height = max(column[0].height for column in pictures.values())
    captions = [CAPTIONS.get(kind, kind) for kind in pictures]
    font = _font_for(captions, cell_width)
    head = round(font.size) + 3 * GAP
    rows = max(len(column) for column in pictures.values())
    width, height = len(pictures) * (cell_width + GAP) + GAP, head + rows * (cell_height + GAP)
    sheet = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for position, (caption, column) in enumerate(zip(captions, pictures.values(), strict=True)):
        left = GAP + position * (cell_width + GAP)
        while font.getlength(caption) > cell_width:
            caption = caption[:-1]
        draw.text((left + cell_width / 2, head / 2), caption, fill=INK, font=font, anchor="mm")
        for row, picture in enumerate(column):
            sheet.paste(picture.convert("RGB"), (left, head + row * (cell_height + GAP)))
    return sheet


def _font_for(captions: list[str], width: int) -> ImageFont.FreeTypeFont:
    """The largest font, from 7 pixels up to a sixteenth of the width, in which every caption fits."""
    size = max(11, width // 16)
    while True:
        font = ImageFont.load_default(size)
        assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow >= 10.1 with FreeType, as every wheel has it
        if size == 7 or all(font.getlength(caption) <= width for caption in captions):
            return font
        size -= 1
