"""GeoTIFF window by window, through rasterio (GDAL): memory holds a window, and the place on the map is kept.

Pixels without data, by a nodata value or a mask, are black for the network and have no data in its translation: by the
same value where the translation can hold it, else by a mask. A pixel with data that has this value gets its neighbour.
"""

import importlib.util
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datasets.bands import Box, Picture
from datasets.decoding import naming_problems, pixel_limit
from datasets.errors import UserError, file_error, warn
from datasets.files import replacing_file
from datasets.images import (
    PLAIN,
    ImageInfo,
    ValueRange,
    WantedRange,
    inspect_image,
    load_image,
    picture_of,
    value_extremes,
)
from datasets.tiff import MAGIC, PlainTiff, plain_tiff

PACKAGE = "rasterio"
STRIP = 2**20  # pixels that are looked at together
_SCALE, _ORIGIN = "ModelPixelScaleTag", "ModelTiepointTag"  # one means nothing without the other
_LOSSLESS = ("deflate", "lzw", "zstd", "packbits")

warnings.filterwarnings("ignore", module=PACKAGE)
logging.getLogger(PACKAGE).setLevel(logging.CRITICAL + 1)  # what matters is raised


def has_package() -> bool:
    """Whether rasterio is installed."""
    return importlib.util.find_spec(PACKAGE) is not None


def is_geotiff(path: Path) -> bool:
    """Whether a file is an upright TIFF with a place on the map. False for what cannot be read."""
    return bool(_place(path))


def _place(path: Path) -> set[str]:
    """Names of the tags that say where a file lies; none for what is_geotiff denies."""
    try:
        with path.open("rb") as file:
            if file.read(4) not in MAGIC:
                return set()
        from tifffile import TiffFile

        with TiffFile(path, _multifile=False) as tiff:
            tags = tiff.pages.first.tags
            names = {tag.name for tag in tags if tags.valueof("Orientation", 1) == 1}
            return names & {"GeoKeyDirectoryTag", _SCALE, _ORIGIN, "ModelTransformationTag"}
    except Exception:  # whoever reads it says what is wrong
        return set()


class GeoTiff:
    """A GeoTIFF with the size and the methods of a picture that translating needs; what they give is decoded then.

    channels and value_range: as of `load_image`. A kind that needs conversion, such as a palette, is read whole.
    Raises UserError naming the file.
    """

    def __init__(self, path: Path, channels: int, value_range: ValueRange | None) -> None:
        os.environ.setdefault("GDAL_CACHEMAX", "128")  # MB; by default GDAL takes a twentieth of the memory
        import rasterio

        self.path, self.channels, self.value_range = path, channels, value_range
        with naming_problems(path), rasterio.Env():  # which keeps GDAL's remarks from the terminal
            self.kind: PlainTiff | None = plain_tiff(path, as_bands=channels not in PLAIN)
            self._file = rasterio.open(path, driver="GTiff")
        if (place := _place(path)) and _SCALE in place and _ORIGIN not in place:
            raise UserError(path, "is damaged: it does not say where it lies", "replace or remove it")
        self.size = self.width, self.height = self._file.width, self._file.height
        if self.kind and self.width * self.height > pixel_limit():
            reason = f"holds {self.width * self.height:,} pixels, at most {pixel_limit():,} are read"
            raise UserError(path, reason, "scale it down; test.py: --max_pixels N")
        if self.kind and channels not in (*PLAIN, self._file.count):
            self.kind = None
        self._whole = None if self.kind else load_image(path, channels, value_range)
        self._has_gaps = any(
            "all_valid" not in {flag.name for flag in flags} for flags in self._file.mask_flag_enums
        )

    def crop(self, box: Box) -> Picture:
        """The picture of a window."""
        if self._whole is not None:
            return self._whole.crop(box)
        values, _ = self._read(box)
        assert self.kind
        return picture_of(values, self.kind.full, self.channels, self.value_range, self.path)

    def whole(self) -> Picture:
        return self.crop((0, 0, self.width, self.height))

    def resize(self, size: tuple[int, int], resample: Image.Resampling) -> Picture:
        return self.whole().resize(size, resample)

    def close(self) -> None:
        self._file.close()

    def _read(self, box: Box) -> tuple[np.ndarray, np.ndarray]:
        """(H, W, C) in the file's own numbers, black where there are no data; and where there are any."""
        import rasterio

        window = _window(box)
        with naming_problems(self.path), rasterio.Env():
            values = self._file.read(window=window).transpose(1, 2, 0)
            if not self._has_gaps:
                return values, np.ones(values.shape, bool)
            there = self._file.read_masks(window=window).transpose(1, 2, 0) > 0
        black = math.floor(self.value_range[0]) if self.value_range else 0
        if values.dtype.kind in "iu":
            limits = np.iinfo(values.dtype)
            if black < limits.min:  # no number of the file is as dark
                values = values.astype(np.float64)
            black = min(black, limits.max)  # all that is not above LOW is black
        values[~there] = black
        return values, there

    def inspect(self) -> ImageInfo:
        """What the whole file holds, looked at strip by strip. Raises UserError as `load_image` does."""
        assert self.kind
        lowest, highest, clipped = np.inf, -np.inf, 0
        rows = max(1, STRIP // self.width)
        for top in range(0, self.height, rows):
            values, there = self._read((0, top, self.width, min(top + rows, self.height)))
            picture_of(values, self.kind.full, self.channels, self.value_range, self.path)
            if there.any():
                low, high = value_extremes(values[there], self.path)
                lowest, highest = min(lowest, low), max(highest, high)
            if self.value_range:
                low, high = self.value_range
                clipped += int(np.count_nonzero((values < low) | (values > high)))
        lowest, highest = (lowest, highest) if lowest <= highest else (0.0, 0.0)
        mode = {1: "L", 3: "RGB"}.get(self._file.count, f"{self._file.count} bands")
        return ImageInfo(self.size, mode, self.kind.conversion, 1, lowest, highest, self.kind.full, clipped)

    @contextmanager
    def writing(
        self, path: Path, size: tuple[int, int], count: int, depth: int
    ) -> Iterator[Callable[[Box, np.ndarray], None]]:
        """Write a GeoTIFF of (width, height) pixels over the same ground, whole or not at all.

        Gives the function that writes (H, W, count) uint8 or uint16 pixels to a box. Raises UserError naming the file.
        """
        import rasterio
        from rasterio.control import GroundControlPoint as Point
        from rasterio.errors import RasterioError

        source, (width, height) = self._file, size
        dtype, white = ("uint8", 255) if depth == 8 else ("uint16", 65535)
        nodata = source.nodata if source.nodata in range(white + 1) else None
        ground, x, y = source.transform, self.width / width, self.height / height
        transform = type(ground)(ground.a * x, ground.b * y, ground.c, ground.d * x, ground.e * y, ground.f)
        profile: dict[str, Any] = {
            "driver": "GTiff", "width": width, "height": height, "count": count, "dtype": dtype, "nodata": nodata,
            "crs": source.crs, "transform": transform, "tiled": True, "BIGTIFF": "IF_SAFER",
            "photometric": "RGB" if count == 3 else "MINISBLACK",
        }  # fmt: skip
        if (compression := str(source.profile.get("compress")).lower()) in _LOSSLESS:
            profile["compress"] = compression

        def write(box: Box, pixels: np.ndarray) -> None:
            window, target = _window(box), pixels.transpose(2, 0, 1)
            if self._has_gaps:
                if size == self.size:
                    there = source.dataset_mask(window=window)
                else:
                    there = source.dataset_mask(out_shape=pixels.shape[:2])
                if nodata is None:
                    file.write_mask(there, window=window)
                else:
                    neighbour = nodata + 1 if nodata < white else nodata - 1
                    target = np.where(target == nodata, neighbour, target).astype(dtype)
                    target[:, there == 0] = nodata
            file.write(target, window=window)

        try:
            with (
                rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
                replacing_file(path) as temporary,
                rasterio.open(temporary, "w", **profile) as file,
            ):
                points, crs = source.gcps
                if points:
                    file.gcps = [Point(p.row / y, p.col / x, p.x, p.y, p.z) for p in points], crs
                elif "AREA_OR_POINT" in source.tags():  # beside control points, GDAL would move these
                    file.update_tags(AREA_OR_POINT=source.tags()["AREA_OR_POINT"])
                if source.rpcs and size == self.size:
                    file.rpcs = source.rpcs
                elif source.rpcs:
                    warn(path, "is written without the RPC of its input, which do not fit another size")
                yield write
        except RasterioError as error:
            raise UserError(path, f"cannot be written: {error}", "check the space on the device") from error
        except OSError as error:
            raise file_error(error, path, "written") from error


def _window(box: Box) -> Any:
    from rasterio.windows import Window

    left, top, right, bottom = box
    return Window(left, top, right - left, bottom - top)


def inspect_placed(path: Path, wanted: WantedRange, channels: int) -> ImageInfo:
    """As `inspect_image`, of a GeoTIFF without holding all of it, and without what its pixels without data hold."""
    if wanted != "auto" and is_geotiff(path):
        file = GeoTiff(path, channels, wanted)
        try:
            if file.kind:
                return file.inspect()
        finally:
            file.close()
    return inspect_image(path, wanted, channels)
