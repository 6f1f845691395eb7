"""A file is opened and decoded, or refused by name: other formats, bombs, damage, things that are no files."""

import contextlib
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from datasets.errors import UserError, file_error

IMAGE_EXTENSIONS = frozenset(
    (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm", ".pnm")
)
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
PIXEL_LIMIT = 64_000_000


def quiet_pillow() -> None:
    """Leave out Pillow's remarks about odd metadata: what matters is checked and said here, by file name."""
    warnings.filterwarnings("ignore", module=r"PIL\.")


quiet_pillow()


@contextlib.contextmanager
def decoded(path: Path) -> Iterator[Image.Image]:
    """The decoded first frame; whatever goes wrong with the file, in here or in the body, is a UserError."""
    try:
        _refuse_non_file(path)
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            if width * height > PIXEL_LIMIT:
                raise _too_large(path, width * height / 1e6)
            image.load()
            yield image
    except (UserError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise _not_an_image(path) from error
    except Image.DecompressionBombError as error:
        raise _too_large(path) from error
    except OSError as error:
        if error.errno is None:
            raise _damaged(path, error) from error
        raise file_error(error, path, "read") from error
    except Exception as error:  # decoders meet hostile bytes with many kinds; each of them means a bad file
        raise _damaged(path, error) from error


def _refuse_non_file(path: Path) -> None:
    try:
        kind = path.stat().st_mode
    except FileNotFoundError as error:
        if path.is_symlink():
            raise UserError(
                path, f"is a link to {path.readlink()}, which does not exist", "remove it"
            ) from error
        raise UserError(path, "no such file") from error
    if stat.S_ISDIR(kind):
        raise UserError(path, "is a folder with the name of a picture", "rename or remove it")
    if not stat.S_ISREG(kind):
        raise UserError(path, "is not a regular file", "remove it")


def _too_large(path: Path, megapixels: float | None = None) -> UserError:
    claims = f"claims {megapixels:.0f} megapixels" if megapixels else "claims far too many pixels"
    return UserError(path, f"{claims}, at most {PIXEL_LIMIT // 1_000_000} are read", "scale it down")


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
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for sign, what in _SIGNS.items():
        if text.startswith(sign) or (sign == b"<svg" and sign in text):
            return f"is not {wanted} but looks like {what}"
    if text.isascii() and not any(c < 9 for c in text):
        return f"is not {wanted} but looks like text"
    return ""


_SIGNS = {
    b"<svg": "SVG, a vector drawing",
    b"<!doctype html": "an HTML page",
    b"<html": "an HTML page",
    b"<head": "an HTML page",
    b"version https://git-lfs": "a git-lfs pointer: run `git lfs pull`",
    b"%!ps": "PostScript (EPS)",
    b"\xc5\xd0\xd3\xc6": "PostScript (EPS)",
    b"%pdf": "PDF",
    b"8bps": "a Photoshop file (PSD)",
    b"pk\x03\x04": "a zip archive",
    b"\x00\x05\x16\x07": "an AppleDouble resource file",
}
