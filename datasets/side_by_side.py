"""Two pictures in one file, A left and B right; `layouts.half` takes them apart again."""

from PIL import Image


def side_by_side(left: Image.Image, right: Image.Image) -> Image.Image:
    """One picture of two of equal size and mode."""
    width, height = left.size
    both = Image.new(left.mode, (2 * width, height))
    both.paste(left, (0, 0))
    both.paste(right, (width, 0))
    return both
