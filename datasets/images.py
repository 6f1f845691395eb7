"""A file becomes a picture, a picture a tensor in [-1, 1], and back. The only place where that happens.

Read are PNG, JPEG, WebP, AVIF, BMP, TIFF, GIF and PPM, told by their content; everything else is refused without
being handed to another decoder. At most 64 megapixels (`decoding.pixels_allowed` sets another limit) and 65,535 pixels
a side, told from the header before anything is decoded. Damaged files are refused, never patched up, and so is NaN. Of
an animation or a multi-page file the first frame is used. EXIF orientation is applied; colour profiles are ignored.

How a file becomes 8 bits a channel: the values that its number format can hold, from 0 to white, become 0..255:

| in the file                      | rule                                                                      |
|----------------------------------|---------------------------------------------------------------------------|
| grey, RGB of 8 bits              | as they are                                                               |
| n bits, unsigned                 | value / (2^n - 1) * 255, rounded                                          |
| n bits, signed (TIFF)            | value / (2^(n-1) - 1) * 255; a negative value is refused                  |
| floating point                   | value * 255; a value outside 0..1 is refused                              |
| 16-bit RGB                       | TIFF: as above; elsewhere the upper 8 bits (all that Pillow reads)        |
| palette                          | its colours                                                               |
| CMYK, YCbCr                      | RGB by Pillow's formula                                                   |
| alpha, or one transparent colour | composited on white for 1 or 3 channels, else a band                      |
| grey wanted, colour there        | luma: 0.299 R + 0.587 G + 0.114 B                                         |
| colour wanted, grey there        | the grey value three times                                                |
| 2, 4 or more channels wanted     | the bands as they are; a file with another number of them is refused      |

A value range (low, high) of the file's own numbers replaces 0..white: low becomes 0, high 255, and what is outside is
clipped. It applies to all colours of a picture, not to its alpha.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, cast, overload

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from datasets.bands import Bands, Picture, channels_first
from datasets.decoding import IMAGE_EXTENSIONS, Received, decoded, naming_problems
from datasets.errors import RunError, UserError, file_error
from datasets.files import write_atomically
from datasets.tiff import MAGIC, read_tiff

ValueRange = tuple[float, float]
"""(low, high) in a file's own numbers; what becomes 0 and 255."""

WantedRange = ValueRange | Literal["auto"] | None
"""auto: the least and largest value of the training pictures; None: what the number format can hold."""

TIFF_EXTENSIONS = (".tif", ".tiff")

Part = Literal["whole", "left", "right"]
"""Of a side-by-side picture."""


@dataclass(frozen=True)
class ImageInfo:
    """What a fully decoded file, or one half of it, holds."""

    size: tuple[int, int]  # (width, height) of the whole file, upright
    mode: str  # Pillow's name of what is in the file
    conversion: str  # the rule of the table that applies, "" for plain grey and RGB
    frames: int
    lowest: float  # of all colour values, in the file's own numbers; where there is alpha, as composited on 8 bits
    highest: float
    full: float  # white in these numbers
    clipped: int  # colour values outside the value range


class _Content(NamedTuple):
    """What a file holds, upright."""

    pixels: Image.Image | np.ndarray
    """A picture in mode L, LA, RGB or RGBA, or the file's own numbers, (H, W, C), with the same channels."""
    full: float  # the value of white, and of an opaque alpha
    mode: str
    conversion: str
    frames: int
    has_alpha: bool


PLAIN = (1, 3)
"""Numbers of channels of grey and colour. What a file holds is converted to these, but not to any other number."""


def find_images(folder: Path) -> list[Path]:
    """Pictures right in a folder, told by their extensions, sorted by name, without hidden files.

    Raises UserError where the folder cannot be listed.
    """
    try:
        paths = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_EXTENSIONS]
    except OSError as error:
        raise file_error(error, folder, "listed") from error
    return sorted(path for path in paths if not path.name.startswith("."))


@overload
def load_image(path: Path, channels: Literal[1, 3] = ..., value_range: WantedRange = ...) -> Image.Image: ...


@overload
def load_image(path: Path, channels: int, value_range: WantedRange = ...) -> Picture: ...


def load_image(path: Path, channels: int = 3, value_range: WantedRange = None) -> Picture:
    """Picture of a file in mode L or RGB for 1 or 3 channels, else its bands. Raises UserError naming the file.

    value_range: not "auto", which only a scan of all pictures can resolve.
    """
    if value_range == "auto":
        raise ValueError("the automatic value range has not been looked for: see datasets.check.scan")
    with naming_problems(path):
        content = _read(path, channels)
        if channels not in PLAIN:
            return Bands.of(_to_8_bit(_values(content), content, value_range, path))
        if isinstance(content.pixels, Image.Image) and value_range is None:
            picture = content.pixels
        else:
            picture = as_picture(_to_8_bit(_values(content), content, value_range, path))
        picture = _to_channels(picture, channels)
    picture.info = {}  # a colour profile or comment must not follow into files written later
    return picture


def converted(picture: Image.Image | np.ndarray, channels: int) -> Picture:
    """A Pillow picture or (H, W, C) uint8 from elsewhere, as `load_image` gives it from a file with these pixels.

    Raises UserError for other number formats, and for another number of bands than wanted, where that matters.
    """
    if isinstance(picture, np.ndarray):
        values = picture
    else:
        if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
            fix = "give the path of its file, which says what is white"
            raise UserError("picture", f"has the mode {picture.mode}, not 8 bits a channel", fix)
        picture = ImageOps.exif_transpose(picture)
        mode = "L" if picture.mode in ("1", "L", "LA", "La") else "RGB"
        values = np.atleast_3d(np.asarray(_in_mode(picture, mode + "A" * picture.has_transparency_data)))
    if channels in PLAIN and values.shape[2] <= 4:
        return _to_channels(as_picture(values), channels)
    if values.shape[2] != channels:
        raise UserError("picture", f"holds {values.shape[2]} bands, not {channels}", "give as many")
    return Bands.of(values)


def load_received(name: str, content: bytes, channels: int, value_range: WantedRange = None) -> Picture:
    """As load_image, of the content of a file that is not on this machine. Raises UserError with the name."""
    # it has all that is used of a path
    return load_image(cast(Path, Received(name, content)), channels, value_range)


def inspect_image(path: Path, wanted: WantedRange = None, channels: int | None = 3) -> ImageInfo:
    """What a file holds, decoded completely as load_image would. Raises UserError naming the file.

    With wanted "auto", negative values and floating point outside 0..1 are not refused: their range is looked for.
    channels: None for its bands, however many.
    """
    with naming_problems(path):
        return _info(_read(path, channels), wanted, "whole", path)


def inspect_halves(
    path: Path, left: WantedRange, right: WantedRange, channels: int = 3
) -> tuple[ImageInfo, ImageInfo]:
    """As inspect_image, of the two halves of a side-by-side picture, which is decoded once."""
    with naming_problems(path):
        content = _read(path, channels)
        return _info(content, left, "left", path), _info(content, right, "right", path)


def _info(content: _Content, wanted: WantedRange, part: Part, path: Path) -> ImageInfo:
    pixels, full, clipped = content.pixels, content.full, 0
    width, height = size = pixels.size if isinstance(pixels, Image.Image) else pixels.shape[1::-1]
    first, end = {"whole": (0, width), "left": (0, max(width // 2, 1)), "right": (width // 2, width)}[part]
    if isinstance(pixels, Image.Image) and pixels.mode in ("L", "RGB") and wanted in (None, "auto"):
        # an array of all takes 7 times as long
        extremes = np.array(pixels.crop((first, 0, end, height)).getextrema())
        lowest, highest = float(extremes.min()), float(extremes.max())
        return ImageInfo(
            size, content.mode, content.conversion, content.frames, lowest, highest, full, clipped
        )
    values, has_alpha = _values(content)[:, first:end], content.has_alpha
    colours = _colours(values, has_alpha)
    if wanted == "auto":
        if has_alpha and (seen := values[..., -1] > 0).any():  # what is quite transparent does not count
            colours = colours[seen]
        lowest, highest = value_extremes(colours, path)
    else:
        pixels = _to_8_bit(values, content, wanted, path)
        lowest, highest = value_extremes(colours, path)
        if has_alpha:
            lowest, highest = value_extremes(np.asarray(_to_channels(as_picture(pixels), 3)), path)
            full = 255.0
        if wanted:
            low, high = wanted
            clipped = int(np.count_nonzero((colours < low) | (colours > high)))
            if has_alpha:  # back to the file's own numbers
                lowest, highest = (low + value / 255 * (high - low) for value in (lowest, highest))
    return ImageInfo(size, content.mode, content.conversion, content.frames, lowest, highest, full, clipped)


def _read(path: Path, channels: int | None) -> _Content:
    """As load_image's rules say. Raises UserError for another number of bands than wanted, where that matters."""
    as_bands = channels not in PLAIN
    content = _decode(path, as_bands)
    if not as_bands:
        return content
    pixels = content.pixels
    count = len(pixels.getbands()) if isinstance(pixels, Image.Image) else pixels.shape[2]
    if channels not in (None, count):
        reason = f"holds {count} band{'s' * (count > 1)}, not {channels}"
        raise UserError(path, reason, "see --input_nc and --output_nc")
    return content._replace(conversion="") if content.conversion == "alpha" else content


def _decode(path: Path, as_bands: bool) -> _Content:
    with path.open("rb") as file:
        is_tiff = file.read(4) in MAGIC
    if is_tiff and (found := read_tiff(path, as_bands)):
        count = found.values.shape[2]
        mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}.get(count, f"{count} bands")
        has_alpha = count in (2, 4) and not as_bands
        return _Content(found.values, found.full, mode, found.conversion, found.pages, has_alpha)
    with decoded(path) as image:
        is_photo = image.format == "MPO"  # a photo and its previews
        frames = 1 if is_photo else getattr(image, "n_frames", 1)
        mode, conversion = image.mode, _conversion(image)
        ImageOps.exif_transpose(image, in_place=True)
        if mode in ("I", "F") or mode.startswith("I;16"):
            full = 1.0 if mode == "F" else 65535.0  # Pillow scales 16-bit PGM files to that, in mode I
            values = _with_transparent_colour(np.asarray(image), image, full)
            return _Content(values, full, mode, conversion, frames, values.shape[2] == 2)
        grey = mode in ("1", "L", "LA", "La")
        if image.has_transparency_data:
            return _Content(_in_mode(image, "LA" if grey else "RGBA"), 255.0, mode, conversion, frames, True)
        if not grey and mode not in ("P", "RGB", "RGBX", "CMYK", "YCbCr"):
            raise UserError(path, f"holds {mode} colours, which are not read", "save it as RGB")
        return _Content(_in_mode(image, "L" if grey else "RGB"), 255.0, mode, conversion, frames, False)


def _conversion(image: Image.Image) -> str:
    if image.mode.startswith("I;16"):
        return "16-bit grey"
    if image.has_transparency_data:
        return "palette with transparency" if image.mode in ("P", "PA") else "alpha"
    names = {"L": "", "RGB": "", "1": "1 bit", "P": "palette", "I": "16-bit grey", "F": "floating point"}
    return names.get(image.mode, image.mode)


def _with_transparent_colour(values: np.ndarray, image: Image.Image, full: float) -> np.ndarray:
    """(H, W) -> (H, W, 1), or (H, W, 2) with alpha where a 16-bit PNG names one transparent value."""
    transparent = image.info.get("transparency")
    if not isinstance(transparent, int):
        return values[:, :, None]
    return np.stack([values, np.where(values == transparent, 0, full).astype(values.dtype)], 2)


def _values(content: _Content) -> np.ndarray:
    """(H, W, C) in the file's own numbers."""
    return np.atleast_3d(np.asarray(content.pixels))


def _colours(values: np.ndarray, has_alpha: bool) -> np.ndarray:
    """(H, W, C) without the last channel, if that is alpha."""
    return values[..., :-1] if has_alpha else values


def _to_8_bit(
    values: np.ndarray, content: _Content, value_range: ValueRange | None, path: Path
) -> np.ndarray:
    """(H, W, C) uint8. content: what the values come from."""
    full = content.full
    if values.dtype == np.uint8 and full == 255 and value_range is None:
        return values
    colours = _colours(values, content.has_alpha)
    lowest, highest = value_extremes(colours, path)
    if value_range is None and (lowest < 0 or highest > full):
        what = "negative values" if values.dtype.kind == "i" else "floating point values outside 0..1"
        fix = "LOW,HIGH: what is black and white"
        raise UserError(path, f"holds {what}, which need --value_range", fix)
    low, high = value_range or (0.0, full)
    scaled = np.empty(values.shape, np.uint8)
    for rows in range(0, len(values), 64):  # in strips, or float64 would be eight times the picture
        strip = slice(rows, rows + 64)
        part = (values[strip].astype(np.float64) - low) / (high - low) * 255
        if colours is not values:
            part[..., -1] = values[strip, :, -1] / full * 255
        scaled[strip] = np.rint(part.clip(0, 255))
    return scaled


def value_extremes(colours: np.ndarray, path: Path) -> ValueRange:
    """The least and the largest value. Raises UserError for NaN and infinity."""
    lowest, highest = float(colours.min()), float(colours.max())
    if not np.isfinite([lowest, highest]).all():
        raise UserError(path, "holds NaN or infinite values", "replace or remove it")
    return lowest, highest


def picture_of(
    values: np.ndarray, full: float, channels: int, value_range: ValueRange | None, path: Path
) -> Picture:
    """What `load_image` makes of (H, W, C) values without alpha, of which `full` is white. Raises UserError."""
    content = _Content(values, full, "", "", 1, has_alpha=False)
    pixels = _to_8_bit(values, content, value_range, path)
    return _to_channels(as_picture(pixels), channels) if channels in PLAIN else Bands.of(pixels)


def _to_channels(image: Image.Image, channels: int) -> Image.Image:
    if image.mode in ("LA", "RGBA"):
        white = Image.new("RGB", image.size, "white")
        white.paste(image.convert("RGB"), mask=image.getchannel("A"))
        image = white
    return _in_mode(image, "L" if channels == 1 else "RGB")


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)  # convert would copy: 256 MB at the limit


def to_tensor(picture: Picture) -> Tensor:
    """(C, H, W) float32 in [-1, 1] from a picture in mode L, RGB or RGBA, or bands."""
    return to_unit_range(torch.from_numpy(channels_first(picture)))


def to_unit_range(values: Tensor) -> Tensor:
    """float32 in [-1, 1] from uint8 of any shape: value / 127.5 - 1."""
    return values.to(torch.float32) / 127.5 - 1


def to_picture(tensor: Tensor) -> Image.Image:
    """Picture in mode L, RGB or RGBA from (C, H, W) in [-1, 1], C 1, 3 or 4; see `to_pixels`."""
    return as_picture(to_pixels(tensor))


def to_pixels(tensor: Tensor, depth: int = 8) -> np.ndarray:
    """(H, W, C) uint8, or uint16 for a depth of 16 bits, from (C, H, W) in [-1, 1]; clamped, then rounded.

    The inverse of to_tensor to the bit. Raises RunError for NaN, which no picture can show.
    """
    values = tensor.detach().to("cpu", torch.float32)
    if values.isnan().any():
        raise RunError("picture", "holds NaN instead of colours", "the network that made it has diverged")
    half, dtype = (127.5, torch.uint8) if depth == 8 else (32767.5, torch.uint16)
    return ((values.clamp(-1, 1) + 1) * half).round().to(dtype).permute(1, 2, 0).contiguous().numpy()


def as_picture(pixels: np.ndarray) -> Image.Image:
    """Picture in mode L, LA, RGB or RGBA of (H, W, C) uint8, C 1 to 4."""
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def resized(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, C) uint8 or uint16 at another (width, height), bicubic; each band on its own."""
    if pixels.shape[1::-1] == size:
        return pixels
    wide = pixels if pixels.dtype == np.uint8 else pixels.astype(np.float32)
    result = np.asarray(Bands.of(wide).resize(size, Image.Resampling.BICUBIC))
    return result if wide is pixels else np.rint(result.clip(0, 65535)).astype(pixels.dtype)


def save_pixels(pixels: np.ndarray, path: Path) -> None:
    """Write (H, W, C) uint8 or uint16 as TIFF or PNG (C 1 to 4), by the file's extension, whole or not at all.

    Raises UserError naming the file where it cannot be written.
    """
    count = pixels.shape[2]
    if path.suffix.lower() in TIFF_EXTENSIONS:
        from tifffile import imwrite  # a fifth of a second, only for those who want it

        data, colour = io.BytesIO(), "rgb" if count == 3 else "minisblack"
        layout = "contig" if count > 1 else None
        imwrite(
            data,
            pixels if count > 1 else pixels[..., 0],
            photometric=colour,
            planarconfig=layout,
            metadata=None,
        )
        _write(data.getbuffer(), path)
    elif pixels.dtype == np.uint8:
        save_png(as_picture(pixels), path)
    else:  # Pillow has no colour of 16 bits
        from imagecodecs import png_encode

        _write(memoryview(png_encode(pixels if count > 1 else pixels[..., 0])), path)


def save_png(picture: Image.Image, path: Path) -> None:
    """Write a PNG, whole or not at all. Raises UserError naming the file where it cannot be written."""
    data = io.BytesIO()
    picture.save(data, "PNG")
    _write(data.getbuffer(), path)


def _write(data: bytes | memoryview, path: Path) -> None:
    try:
        write_atomically(path, data, durable=False)
    except OSError as error:
        raise file_error(error, path, "written") from error
