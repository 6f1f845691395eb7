"""A file is opened and decoded, or refused by name: other formats, bombs, damage, things that are no files."""

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from PIL import Image, UnidentifiedImageError

from datasets.errors import RunError, UserError, file_error
from datasets.files import require_file

IMAGE_EXTENSIONS = frozenset(
    ".png .jpg .jpeg .jpe .jfif .webp .avif .bmp .tif .tiff .gif .ppm .pgm .pbm .pnm".split()  # noqa: SIM905
)
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "BMP", "TIFF", "GIF", "PPM")
PIXEL_LIMIT = 64_000_000  # unless `pixels_allowed` sets another one
SIDE_LIMIT = 65_535  # pixels; decoders need memory for every row, however short


# Pillow's remarks about odd metadata: what matters is checked and said here, by file name
warnings.filterwarnings("ignore", module=r"PIL\.")


_pixel_limit = PIXEL_LIMIT


def pixel_limit() -> int:
    """Pixels of the largest picture that is read."""
    return _pixel_limit


@contextlib.contextmanager
def pixels_allowed(most: int) -> Iterator[None]:
    """Inside, pictures of up to `most` pixels are read, in all threads of this process."""
    global _pixel_limit
    before = _pixel_limit, Image.MAX_IMAGE_PIXELS
    # Pillow's own limit, which it doubles
    _pixel_limit, Image.MAX_IMAGE_PIXELS = most, max(most, Image.MAX_IMAGE_PIXELS or 0)
    try:
        yield
    finally:
        _pixel_limit, Image.MAX_IMAGE_PIXELS = before


class Received(NamedTuple):
    """A file that came over a connection and is never written, in the place of a path."""

    name: str
    content: bytes

    def open(self, mode: str = "rb") -> BinaryIO:
        return io.BytesIO(self.content)

    def __str__(self) -> str:
        return self.name


def readable(path: Path) -> Path | BinaryIO:
    """What other readers take: the path itself, or the content of a `Received`."""
    return path.open("rb") if isinstance(path, Received) else path


@contextlib.contextmanager
def naming_problems(path: Path) -> Iterator[None]:
    """Whatever goes wrong with a file in the block is a UserError that names it; too little memory is a RunError."""
    try:
        if not isinstance(path, Received):
            require_file(path)
        yield
    except UserError:
        raise
    except MemoryError as error:
        raise _no_memory(path) from error
    except UnidentifiedImageError as error:
        raise _not_an_image(path) from error
    except Image.DecompressionBombError as error:
        raise _too_large(path) from error
    except OSError as error:
        if "out of memory" in str(error):  # Pillow's decoders say it so
            raise _no_memory(path) from error
        if error.errno is None:
            raise _damaged(path, error) from error
        raise file_error(error, path, "read") from error
    except Exception as error:  # decoders meet hostile bytes with many kinds; each of them means a bad file
        raise _damaged(path, error) from error


@contextlib.contextmanager
def decoded(path: Path) -> Iterator[Image.Image]:
    """The first frame as Pillow decodes it. Raises UserError for a picture that is too large, else Pillow's errors."""
    with Image.open(readable(path), formats=FORMATS) as image:
        refuse_too_large(path, *image.size)
        _scale_transparent_colour(image)
        image.load()
        yield image


def _scale_transparent_colour(image: Image.Image) -> None:
    """Pillow scales a PNG of 2, 4 or 3 x 16 bits to 8 bits, but not the one colour that is transparent."""
    colour = image.info.get("transparency")
    tiles = getattr(image, "tile", [])
    packing = tiles[0].args if image.format == "PNG" and tiles else None
    if packing in ("L;2", "L;4") and isinstance(colour, int):
        image.info["transparency"] = colour * (85 if packing == "L;2" else 17)
    elif packing == "RGB;16B" and isinstance(colour, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in colour)


def refuse_too_large(path: Path, width: int, height: int) -> None:
    """Raise UserError for a picture of more pixels than are read."""
    if width * height > pixel_limit():
        raise _too_large(path, f"{width * height / 1e6:.0f} megapixels")
    if max(width, height) > SIDE_LIMIT:
        raise _too_large(path, f"{width}x{height} pixels")


def _too_large(path: Path, claim: str = "far too many pixels") -> UserError:
    limits = f"at most {pixel_limit() // 1_000_000} megapixels and {SIDE_LIMIT} a side are read"
    return UserError(path, f"claims {claim}, {limits}", "scale it down; test.py: --max_pixels N")


def _no_memory(path: Path) -> RunError:
    return RunError(path, "out of memory while it is decoded", "free some memory, or scale it down")


def _damaged(path: Path, error: Exception) -> UserError:
    reason = f"truncated or damaged: {error}" if str(error) else "truncated or damaged"
    return UserError(path, reason, "replace or remove it")


def _not_an_image(path: Path) -> UserError:
    with path.open("rb") as file:
        reason = foreign_content(file.read(1024), "an image")
    return UserError(path, reason or f"damaged, or not one of {', '.join(FORMATS)}", "replace or remove it")


def foreign_content(head: bytes, wanted: str) -> str:
    """Why the first bytes of a file are not those of what is wanted, "" if nothing is known about them.

    >>> foreign_content(b"<html>", "an image")
    'is not an image but looks like an HTML page'
    """
    if not head:
        return "is empty (zero bytes)"
    if head[4:12] in (b"ftypavif", b"ftypavis"):  # Pillow knows AVIF, so it is not one it could read
        return "is an AVIF file, truncated or damaged"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for sign, what in _TEXT_SIGNS.items():
        if text.startswith(sign) or (sign == b"<svg" and sign in text):
            return f"is not {wanted} but looks like {what}"
    for offset, sign, what in _BINARY_SIGNS:
        if head[offset : offset + len(sign)] == sign:
            return f"is not {wanted} but looks like {what}"
    if text.isascii() and not any(c < 9 for c in text):
        return f"is not {wanted} but looks like text"
    return ""


_TEXT_SIGNS = {
    b"<svg": "SVG, a vector drawing",
    b"<!doctype html": "an HTML page",
    b"<html": "an HTML page",
    b"<head": "an HTML page",
    b"version https://git-lfs": "a git-lfs pointer: run `git lfs pull`",
    b"%!ps": "PostScript (EPS)",
    b"%pdf": "PDF",
}
_BINARY_SIGNS = (
    (0, b"\xc5\xd0\xd3\xc6", "PostScript (EPS)"),
    (0, b"8BPS", "a Photoshop file (PSD)"),
    (0, b"PK\3\4", "a zip archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"\x00\x05\x16\x07", "an AppleDouble resource file"),
    (128, b"DICM", "DICOM"),
    *(
        (4, b"ftyp" + brand, "HEIC")
        for brand in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
    ),
    (4, b"ftypqt", "a video (QuickTime)"),
    (4, b"ftypcrx", "a camera's raw file (CR3)"),
    (4, b"ftyp", "a video (MP4)"),
    (0, b"\x1aE\xdf\xa3", "a video (Matroska or WebM)"),
    (8, b"AVI ", "a video (AVI)"),
    (0, b"\0\0\1\xba", "a video (MPEG)"),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (0, b"\xffO\xffQ", "JPEG 2000"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (0, b"\xff\n", "JPEG XL"),
    (0, b"v/1\1", "OpenEXR"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"\x89HDF", "HDF5"),
    (344, b"n+1\0", "NIfTI"),
    (0, b"SIMPLE  =", "FITS"),
    (0, b"\0\0\1\0", "an icon (ICO)"),
)
