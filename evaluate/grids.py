"""Picture grids with captions: rows of methods, columns of test pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from datasets.images import save_png

GAP = 6  # pixels between pictures
TEXT = 16  # pixels; height of captions
BACKGROUND, INK = (255, 255, 255), (40, 40, 40)


def picture_grid(blocks: Sequence[tuple[str, Mapping[str, Sequence[Image.Image]]]]) -> Image.Image:
    """One picture of captioned blocks below each other.

    blocks: (title, row caption -> pictures of equal size). Rows of a block are of one length.
    """
    parts = [_block(title, rows) for title, rows in blocks]
    width = max(part.width for part in parts)
    grid = Image.new("RGB", (width, sum(part.height for part in parts) + GAP * (len(parts) - 1)), BACKGROUND)
    top = 0
    for part in parts:
        grid.paste(part, (0, top))
        top += part.height + GAP
    return grid


def save_grid(blocks: Sequence[tuple[str, Mapping[str, Sequence[Image.Image]]]], path: Path) -> None:
    """Write the grid as PNG. UserError where it cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(picture_grid(blocks), path)


def _block(title: str, rows: Mapping[str, Sequence[Image.Image]]) -> Image.Image:
    font = ImageFont.load_default(TEXT - 3)
    margin = GAP + max(round(font.getlength(caption)) for caption in rows)
    side = next(iter(rows.values()))[0].size
    count = max(len(pictures) for pictures in rows.values())
    width = max(margin + count * (side[0] + GAP), round(font.getlength(title)) + GAP)
    block = Image.new("RGB", (width, TEXT + GAP + len(rows) * (side[1] + GAP)), BACKGROUND)
    draw = ImageDraw.Draw(block)
    draw.text((0, 0), title, fill=INK, font=font)
    for row, (caption, pictures) in enumerate(rows.items()):
        top = TEXT + GAP + row * (side[1] + GAP)
        draw.text((0, top + side[1] // 2 - TEXT // 2), caption, fill=INK, font=font)
        for column, picture in enumerate(pictures):
            block.paste(picture.convert("RGB").resize(side), (margin + column * (side[0] + GAP), top))
    return block
