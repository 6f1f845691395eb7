"""A file becomes a picture, a picture a tensor in [-1, 1], and back. The only place where that happens.

Read are PNG, JPEG, WebP, BMP, TIFF, GIF and PPM, told by their content; everything else is refused without
being handed to another decoder. At most 64 megapixels, told from the header before anything is decoded.
Damaged files are refused, never patched up. Of an animation or a multi-page file the first frame is used.
EXIF orientation is applied; colour profiles are ignored.

How a file becomes 8 bits a channel:

| in the file                      | rule                                                        |
|----------------------------------|-------------------------------------------------------------|
| grey, RGB                        | as they are                                                 |
| 1 bit                            | 0 and 255                                                   |
| palette                          | its colours                                                 |
| CMYK, YCbCr                      | RGB by Pillow's formula                                     |
| 16-bit grey                      | value / 65535 · 255, rounded                                |
| 16-bit RGB                       | the upper 8 bits (all that Pillow reads)                    |
| 32-bit integers (TIFF)           | value / (2³²-1) · 255; signed: value / (2³¹-1) · 255        |
| floating point                   | value · 255; NaN or a value outside 0..1 is refused         |
| alpha, or one transparent colour | composited on white for 1 or 3 channels, kept for 4         |
| grey wanted, colour there        | luma: 0.299 R + 0.587 G + 0.114 B                           |
| colour wanted, grey there        | the grey value three times                                  |
"""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from datasets.decoding import IMAGE_EXTENSIONS, decoded
from datasets.errors import RunError, UserError, file_error
from datasets.files import write_atomically


@dataclass(frozen=True)
class ImageInfo:
    """What a fully decoded file holds."""

    size: tuple[int, int]  # (width, height), upright
    mode: str  # Pillow's name of what is in the file
    conversion: str  # the rule of the table that applies, "" for plain grey and RGB
    frames: int


def find_images(folder: Path) -> list[Path]:
    """Pictures right in a folder, told by their extensions, sorted by name, without hidden files.

    Raises UserError where the folder cannot be listed.
    """
    try:
        paths = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_EXTENSIONS]
    except OSError as error:
        raise file_error(error, folder, "listed") from error
    return sorted(path for path in paths if not path.name.startswith("."))


def load_image(path: Path, channels: int = 3) -> Image.Image:
    """Picture of a file in mode L, RGB or RGBA for 1, 3 or 4 channels. Raises UserError naming the file."""
    if channels not in (1, 3, 4):
        raise ValueError(f"channels must be 1, 3 or 4, not {channels}")
    with decoded(path) as image:
        picture = _to_channels(_to_8_bit(image, path), channels)
        picture.info = {}  # a colour profile or comment must not follow into files written later
        return picture


def inspect_image(path: Path) -> ImageInfo:
    """What a file holds, decoded completely as load_image would. Raises UserError naming the file."""
    with decoded(path) as image:
        is_photo = image.format == "MPO"  # a photo and its previews
        frames = 1 if is_photo else getattr(image, "n_frames", 1)
        mode, conversion = image.mode, _conversion(image)
        return ImageInfo(_to_8_bit(image, path).size, mode, conversion, frames)


def _conversion(image: Image.Image) -> str:
    if image.mode.startswith("I;16"):
        return "16-bit grey"
    if image.has_transparency_data:
        return "palette with transparency" if image.mode in ("P", "PA") else "alpha"
    names = {"L": "", "RGB": "", "1": "1 bit", "P": "palette", "I": "32-bit integers", "F": "floating point"}
    return names.get(image.mode, image.mode)


def _to_8_bit(image: Image.Image, path: Path) -> Image.Image:
    """Upright picture in mode L, LA, RGB or RGBA; turns the image itself."""
    ImageOps.exif_transpose(image, in_place=True)
    mode = image.mode
    if mode in ("I", "F") or mode.startswith("I;16"):
        return Image.fromarray(_scale_to_8_bit(image, path))
    grey = mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        return _in_mode(image, "LA" if grey else "RGBA")
    if not grey and mode not in ("P", "RGB", "RGBX", "CMYK", "YCbCr"):
        raise UserError(path, f"holds {mode} colours, which are not read", "save it as RGB")
    return _in_mode(image, "L" if grey else "RGB")


def _scale_to_8_bit(image: Image.Image, path: Path) -> np.ndarray:
    """(H, W) uint8: the range that the file's number format can hold becomes 0..255."""
    values = np.asarray(image)
    if image.mode == "F":
        if not (values.min() >= 0 and values.max() <= 1):  # NaN fails both
            raise UserError(path, "holds floating point values outside 0..1 or NaN", "scale it to 0..1")
        full = 1.0
    elif image.mode != "I" or image.format != "TIFF":
        full = 65535.0  # Pillow scales 16-bit PGM files of any maximum to this, in mode I
    elif image.tag_v2.get(_SAMPLE_FORMAT, (1,))[0] == 2:  # type: ignore[attr-defined]
        full = 2.0**31 - 1
        if values.min() < 0:
            raise UserError(path, "holds negative values", "scale it to 0..255")
    else:
        full, values = 2.0**32 - 1, values.view(np.uint32)  # Pillow's mode I is signed whatever the file says
    scaled = np.empty(values.shape, np.uint8)
    for rows in range(0, len(values), 64):  # in strips, or float64 would be eight times the picture
        scaled[rows : rows + 64] = np.rint(values[rows : rows + 64] * (255.0 / full))
    return scaled


_SAMPLE_FORMAT = 339  # TIFF tag: 1 unsigned, 2 signed, 3 floating point


def _to_channels(image: Image.Image, channels: int) -> Image.Image:
    if channels == 4:
        return _in_mode(image, "RGBA")
    if image.mode in ("LA", "RGBA"):
        white = Image.new("RGB", image.size, "white")
        white.paste(image.convert("RGB"), mask=image.getchannel("A"))
        image = white
    return _in_mode(image, "L" if channels == 1 else "RGB")


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)  # convert would copy: 256 MB at the limit


def to_tensor(picture: Image.Image) -> Tensor:
    """(C, H, W) float32 in [-1, 1] from a picture in mode L, RGB or RGBA."""
    return to_unit_range(to_bytes(picture))


def to_bytes(picture: Image.Image) -> Tensor:
    """(C, H, W) uint8 from a picture in mode L, RGB or RGBA."""
    if picture.mode not in ("L", "RGB", "RGBA"):
        raise ValueError(f"mode must be L, RGB or RGBA, not {picture.mode}")
    values = torch.from_numpy(np.array(picture))  # (H, W) or (H, W, C)
    return values[None] if values.ndim == 2 else values.permute(2, 0, 1).contiguous()


def to_unit_range(values: Tensor) -> Tensor:
    """float32 in [-1, 1] from uint8 of any shape: value / 127.5 - 1."""
    return values.to(torch.float32) / 127.5 - 1


def to_picture(tensor: Tensor) -> Image.Image:
    """Picture in mode L, RGB or RGBA from (C, H, W) in [-1, 1], C 1, 3 or 4; clamped, then rounded to 8 bits.

    The inverse of to_tensor to the bit. Raises RunError for NaN, which no picture can show.
    """
    values = tensor.detach().to("cpu", torch.float32)
    if values.isnan().any():
        raise RunError("picture", "holds NaN instead of colours", "the network that made it has diverged")
    pixels = ((values.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def save_png(picture: Image.Image, path: Path) -> None:
    """Write a PNG, whole or not at all. Raises UserError naming the file where it cannot be written."""
    data = io.BytesIO()
    picture.save(data, "PNG")
    try:
        write_atomically(path, data.getbuffer(), durable=False)
    except OSError as error:
        raise file_error(error, path, "written") from error
