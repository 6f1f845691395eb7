"""TIFF in the file's own number format: what Pillow's modes cannot say (sign, depth, planes, bands).

tifffile reads the first page. Read are 1 to 64 bits a sample, integers and floating point, any byte order, planes
together or apart, strips or tiles; grey (either polarity), RGB, palette and CMYK, with or without alpha, or any number
of bands as they are; uncompressed, PackBits, LZW, Deflate, LZMA, Zstandard, WebP, JPEG, JPEG 2000, LERC, fax. Pillow
reads what needs libtiff: fax in two dimensions (Group 3), old JPEG and YCbCr outside JPEG. The rest is refused by its
name.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL.TiffImagePlugin import COMPRESSION_INFO

from datasets.decoding import PIXEL_LIMIT, pixel_limit, readable, refuse_too_large
from datasets.errors import UserError

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the latter two: BigTIFF
_FAX_3, _OLD_JPEG, _JPEG, _WORD_FAX = 3, 6, 7, 32771  # values of the tag Compression
_FAX = (2, _FAX_3, 4)
# of PhotometricInterpretation
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _MASK, _CMYK, _YCBCR = range(7)
_COLOURS = {8: "CIELab", 9: "ICCLab", 10: "ITULab", 32803: "camera raw", 34892: "camera raw", 32844: "LogL"}
_COLOURS |= {32845: "LogLuv", _MASK: "transparency mask"}
_PREMULTIPLIED, _UNASSOCIATED = 1, 2  # of ExtraSamples
_SIGNED = 2  # of SampleFormat
_FIX = "save it as grey or RGB, 8 or 16 bits"

# its remarks about odd tags do not reach the terminal
logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)


class TiffContent(NamedTuple):
    """The first page, upright."""

    values: np.ndarray  # (H, W, C): grey, grey + alpha, RGB or RGBA for C 1 to 4, or any bands; black is 0
    full: float  # the value of white, and of an opaque alpha
    conversion: str  # for people: "signed 16-bit grey", "palette", "alpha", "" for 8 bits
    pages: int


def read_tiff(path: Path, as_bands: bool = False) -> TiffContent | None:
    """The values of a file's first page, or None for a kind of TIFF that Pillow reads.

    as_bands: any number of samples a pixel is read, and none of them is taken for alpha.
    Raises UserError for a file that is too large or of a kind that is not read; whatever else tifffile raises stands
    for a damaged file.
    """
    from tifffile import TIFF, TiffFile  # a fifth of a second, only for those who have TIFFs

    with TiffFile(readable(path), _multifile=False) as file:
        page: Any = file.pages.first
        compression = int(page.compression)
        is_two_dimensional = compression == _FAX_3 and page.tags.valueof("T4Options", 0) & 1
        # before tifffile 2026.3
        is_unknown_fax = compression in _FAX and compression not in TIFF.DECOMPRESSORS
        if is_two_dimensional or is_unknown_fax or compression in (_WORD_FAX, _OLD_JPEG):
            return None
        if page.photometric == _YCBCR and compression != _JPEG:
            if compression not in COMPRESSION_INFO:
                reason = f"is a YCbCr TIFF with compression {compression}, not read"
                raise UserError(path, reason, "save it as RGB")
            return None
        _refuse_what_is_not_read(page, path, as_bands)
        white, conversion = _number_format(page)
        values = page.asarray(maxworkers=1)
        if page.axes == "SYX":  # planes apart
            values = values.transpose(1, 2, 0)
        values = np.atleast_3d(values)
        if page.photometric == _PALETTE:
            values, white, conversion = _look_up(values, page.colormap), 255, "palette"
        elif page.photometric == _CMYK:
            values = _cmyk_to_rgb(values, white)
        elif page.photometric == _WHITE_IS_ZERO:
            # in the values' own type: float64 holds neither 64-bit integers nor a large picture
            grey = values[..., 0]
            values[..., 0] = ~grey if grey.dtype == bool else grey.dtype.type(white) - grey
        if values.shape[2] in (2, 4) and not as_bands:
            _refuse_false_alpha(values, white, page, path)
            conversion = "alpha"
        orientation, pages = page.tags.valueof("Orientation", 1), _count_pages(file)
    if values.dtype == np.float16:
        values = values.astype(np.float32)
    return TiffContent(_upright(values, orientation), float(white), conversion, pages)


class PlainTiff(NamedTuple):
    """A file whose values need no conversion but scaling; see `TiffContent`."""

    full: float
    conversion: str


def plain_tiff(path: Path, as_bands: bool) -> PlainTiff | None:
    """How the numbers of a file are meant, or None where they are not all: palette, inks, alpha, white is zero.

    Raises UserError for tiles that are too large; whatever else tifffile raises stands for a damaged file.
    """
    from tifffile import TiffFile

    with TiffFile(path, _multifile=False) as file:
        page: Any = file.pages.first
        _refuse_large_tiles(page, path)
        samples, colour = page.samplesperpixel, page.photometric
        is_plain = colour in (_BLACK_IS_ZERO, _RGB) and (as_bands or samples in (1, 3))
        is_plain |= colour == _YCBCR and page.compression == _JPEG  # becomes RGB when it is decoded
        if not is_plain or page.dtype is None or page.dtype.kind not in "uif":
            return None
        return PlainTiff(*_number_format(page))


def _number_format(page: Any) -> tuple[float, str]:
    """The value of white, and what is converted, in words: "signed 16-bit grey"; "" for 8 bits."""
    bits, is_signed, samples = page.bitspersample, page.sampleformat == _SIGNED, page.samplesperpixel
    white = 1 if page.dtype.kind == "f" else 2 ** (bits - is_signed) - 1
    numbers = "floating point" if page.dtype.kind == "f" else f"{'signed ' * is_signed}{bits}-bit"
    kind = {1: "grey", 3: "RGB"}.get(samples, f"{samples} bands")
    return white, "" if numbers == "8-bit" else f"{numbers} {kind}"


def _refuse_large_tiles(page: Any, path: Path) -> None:
    if page.tilelength * page.tilewidth > 2 * PIXEL_LIMIT:
        raise UserError(path, "claims tiles of far too many megapixels", "save it without tiles")


def _refuse_what_is_not_read(page: "TiffPage", path: Path, as_bands: bool) -> None:
    """Raise UserError for a page that is too large, or of a kind that is not read."""
    from tifffile import TIFF

    height, width, samples = page.imagelength, page.imagewidth, page.samplesperpixel
    refuse_too_large(path, width, height)
    _refuse_large_tiles(page, path)
    if page.imagedepth > 1:
        reason = f"is a volume TIFF of {page.imagedepth} slices in one page"
        raise UserError(path, reason, "save the slices apart")
    colour = int(page.photometric or 0)
    if colour in _COLOURS or colour not in range(_YCBCR + 1):
        raise UserError(path, f"is a {_COLOURS.get(colour, f'photometric {colour}')} TIFF, not read", _FIX)
    bands = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _PALETTE: 1, _CMYK: 4}.get(colour, 3)
    extra = tuple(map(int, page.extrasamples))
    is_alpha = extra in ((_PREMULTIPLIED,), (_UNASSOCIATED,)) and bands != 4 and colour != _PALETTE
    if samples == 3 and colour == _BLACK_IS_ZERO:
        bands = 3  # of a program that does not say that they are colours
    if samples != bands + is_alpha and not (as_bands and colour in (_BLACK_IS_ZERO, _RGB)):
        fix = f"save its bands as grey or RGB pictures, or train with --input_nc {samples}"
        raise UserError(path, f"is a {samples}-band TIFF, not read", fix)
    if page.dtype is None or page.dtype.kind not in "buif":
        bits = page.bitspersample
        name = "complex" if page.sampleformat in (5, 6) else f"bit depth {bits}"
        raise UserError(path, f"is a TIFF of {name} values, not read", _FIX)
    if page.compression not in TIFF.DECOMPRESSORS:
        reason = f"is a TIFF with compression {int(page.compression)}, not read"
        raise UserError(path, reason, "save it without")
    if (size := height * width * samples * page.dtype.itemsize) > 8 * pixel_limit():
        reason = f"claims {size // 1_000_000} MB of values, at most {8 * pixel_limit() // 1_000_000} are read"
        raise UserError(path, reason, "scale it down")
    if 0 in page.databytecounts:
        raise UserError(path, "lacks some of its strips or tiles", "replace or remove it")


def _count_pages(file: "TiffFile") -> int:
    """Pages of a file; an ImageJ stack may have one page for many pictures."""
    stack = file.imagej_metadata or {}
    images = stack.get("images", 1)
    return max(len(file.pages), images if isinstance(images, int) else 1)


def _look_up(indices: np.ndarray, colormap: np.ndarray) -> np.ndarray:
    """uint8 colours (H, W, 3). The map holds 16-bit values, in some files 8-bit ones, (3, 2^n)."""
    colours = colormap if colormap.max() < 256 else colormap >> 8
    return colours.astype(np.uint8).T[indices[..., 0]]


def _cmyk_to_rgb(ink: np.ndarray, full: float) -> np.ndarray:
    """Pillow's formula, in any depth: (1 - ink)(1 - black)."""
    paper = 1 - ink.astype(np.float32) / full
    return np.rint(paper[..., :3] * paper[..., 3:] * full).astype(ink.dtype)


def _refuse_false_alpha(values: np.ndarray, full: float, page: "TiffPage", path: Path) -> None:
    """Raise UserError where a fourth band is marked as alpha but is none: compositing it would change the colours.

    An opacity is 0 or 1 nearly everywhere, and colours that were multiplied by it do not exceed it. Premultiplied
    colours are divided by it, in place.
    """
    colours, alpha = values[..., :-1], values[..., -1:]
    is_premultiplied = page.extrasamples[0] == _PREMULTIPLIED
    hard = np.count_nonzero((alpha <= 0) | (alpha >= full))
    if 2 * hard < alpha.size or (is_premultiplied and (colours > alpha).any()):
        bands = values.shape[2]
        reason = f"is a {bands}-band TIFF whose last band is marked as transparency but holds other data"
        raise UserError(path, reason, "save it without this band")
    if is_premultiplied:
        ratio = np.divide(full, alpha, out=np.zeros(alpha.shape), where=alpha > 0)
        colours[...] = np.rint(colours * ratio) if values.dtype.kind != "f" else colours * ratio


def _upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """As the tag Orientation (1 to 8) says, like EXIF's."""
    if orientation >= 5:
        values = values.swapaxes(0, 1)
    down = -1 if orientation in (3, 4, 7, 8) else 1
    right = -1 if orientation in (2, 3, 6, 7) else 1
    return values[::down, ::right]
