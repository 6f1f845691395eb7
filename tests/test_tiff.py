"""TIFF in every number format that people meet, against rasterio's raw values (GDAL) and the rule in float64."""

import contextlib
import itertools
import logging
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
from PIL import Image

from datasets.errors import UserError
from datasets.images import inspect_image, load_image

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

ROOT = Path(__file__).resolve().parent.parent
HEIGHT, WIDTH = 32, 48

# name -> (dtype, bits stored, value of white)
NUMBERS: dict[str, tuple[str, int, float]] = {
    "uint8": ("uint8", 8, 255),
    "int8": ("int8", 8, 127),
    "uint16": ("uint16", 16, 65535),
    "int16": ("int16", 16, 32767),
    "uint32": ("uint32", 32, 2**32 - 1),
    "int32": ("int32", 32, 2**31 - 1),
    "float16": ("float16", 16, 1),
    "float32": ("float32", 32, 1),
    "float64": ("float64", 64, 1),
    "packed4": ("uint8", 4, 15),
}


def values(name: str, channels: int) -> np.ndarray:
    """(H, W, C) from 0 to white, every row and channel another one."""
    dtype, _, white = NUMBERS[name]
    rng = np.random.default_rng(channels)
    share = rng.random((HEIGHT, WIDTH, channels))
    share[0, 0], share[0, 1] = 0, 1
    return (share * white).astype(dtype) if white == 1 else np.floor(share * white).astype(dtype)


def write(path: Path, array: np.ndarray, name: str, planar: str, **more: Any) -> Path:
    data = (
        array[..., 0] if array.shape[2] == 1 else array.transpose(2, 0, 1) if planar == "separate" else array
    )
    bits = NUMBERS[name][1]
    if bits % 8:
        more["bitspersample"] = bits
    photometric = more.pop("photometric", "rgb" if array.shape[2] >= 3 else "minisblack")
    layout = {"planarconfig": planar} if array.shape[2] > 1 else {}
    tifffile.imwrite(path, data, photometric=photometric, metadata=None, **layout, **more)
    return path


def seen_by_gdal(path: Path) -> np.ndarray:
    """(H, W, C) as rasterio reads them."""
    with rasterio.open(path) as file:
        return file.read().transpose(1, 2, 0)


def expected(raw: np.ndarray, white: float) -> np.ndarray:
    eight = np.rint(raw.astype(np.float64) / white * 255).astype(np.uint8)
    return np.repeat(eight, 3, 2) if eight.shape[2] == 1 else eight


@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "packbits", "zstd"])
@pytest.mark.parametrize("name", [name for name in NUMBERS if not name.startswith("packed")])
def test_every_number_format(tmp_path: Path, name: str, compression: str | None) -> None:
    """Grey and RGB, planes together and apart, both byte orders, strips and tiles."""
    shapes: list[dict[str, Any]] = [{"rowsperstrip": 5}, {"tile": (16, 16)}]
    for channels, planar, order, shape in itertools.product((1, 3), ("contig", "separate"), "<>", shapes):
        case = (channels, planar, order, shape)
        array = values(name, channels)
        path = tmp_path / "x.tif"
        write(path, array, name, planar, byteorder=order, compression=compression, **shape)
        raw = seen_by_gdal(path)
        assert np.array_equal(raw.astype(np.float64), array.astype(np.float64)), case
        assert np.array_equal(np.asarray(load_image(path)), expected(raw, NUMBERS[name][2])), case


@pytest.mark.parametrize("compression", ["none", "lzw", "deflate", "packbits"])
@pytest.mark.parametrize("bits", [1, 2, 4, 10, 12, 14])
def test_packed_bits(tmp_path: Path, bits: int, compression: str) -> None:
    """Several samples in a byte or across bytes, as GDAL writes them."""
    white = 2**bits - 1
    for channels, order, interleave in itertools.product((1, 3), ("LITTLE", "BIG"), ("pixel", "band")):
        case = (channels, order, interleave)
        rng = np.random.default_rng(bits)
        array = rng.integers(0, white, (HEIGHT, WIDTH, channels), dtype=np.uint16, endpoint=True)
        array = array.astype(np.uint8) if bits <= 8 else array
        path = tmp_path / "x.tif"
        colour = {"photometric": "RGB" if channels == 3 else "MINISBLACK", "interleave": interleave}
        sizes = {
            "height": HEIGHT,
            "width": WIDTH,
            "count": channels,
            "dtype": array.dtype.name,
            "nbits": bits,
        }
        how = {"driver": "GTiff", "endianness": order, "compress": compression}
        with rasterio.open(path, "w", **sizes, **how, **colour) as file:
            file.write(array.transpose(2, 0, 1))
        assert np.array_equal(np.asarray(load_image(path)), expected(array, white)), case


@pytest.mark.parametrize(
    ("name", "compression"),
    [*itertools.product(("uint8", "uint16", "float32"), (None, "zlib")), ("packed4", None)],
)
def test_white_may_be_zero(tmp_path: Path, name: str, compression: str | None) -> None:
    array, path, (dtype, bits, white) = values(name, 1), tmp_path / "x.tif", NUMBERS[name]
    if bits % 8:
        sizes = {"height": HEIGHT, "width": WIDTH, "count": 1, "dtype": dtype, "nbits": bits}
        with rasterio.open(path, "w", driver="GTiff", photometric="MINISWHITE", **sizes) as file:
            file.write(array.transpose(2, 0, 1))
    else:
        write(path, array, name, "contig", photometric="miniswhite", compression=compression)
    assert np.array_equal(np.asarray(load_image(path)), expected(white - array.astype(np.float64), white))


@pytest.mark.parametrize("predictor", [2, 3])
def test_predictors(tmp_path: Path, predictor: int) -> None:
    name = "uint16" if predictor == 2 else "float32"
    array = values(name, 3)
    path = write(tmp_path / "x.tif", array, name, "contig", compression="zlib", predictor=predictor)
    assert np.array_equal(np.asarray(load_image(path)), expected(array, NUMBERS[name][2]))


@pytest.mark.parametrize("name", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_is_composited_in_every_depth(tmp_path: Path, name: str, channels: int) -> None:
    """Black is opaque on the left, transparent on the right: black and white."""
    white = NUMBERS[name][2]
    array = np.zeros((HEIGHT, WIDTH, channels), NUMBERS[name][0])
    array[:, :20, -1] = white
    for extra in ("unassalpha", "assocalpha"):
        path = write(tmp_path / "x.tif", array, name, "contig", extrasamples=[extra])
        picture = np.asarray(load_image(path))
        assert (picture[:, :20] == 0).all()
        assert (picture[:, 20:] == 255).all()
        assert np.array_equal(np.asarray(load_image(path, channels)), array / white * 255)


def test_premultiplied_colours_are_divided(tmp_path: Path) -> None:
    array = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    array[...] = (200, 100, 0, 255)
    array[:4] = (100, 50, 0, 128)
    path = write(tmp_path / "x.tif", array, "uint8", "contig", extrasamples=["assocalpha"])
    assert tuple(np.asarray(load_image(path, 4))[0, 0]) == (100, 50, 0, 128)  # as the file holds them
    divided = np.array([199, 100, 0]) * (128 / 255) + 127
    assert np.abs(np.asarray(load_image(path), float)[0, 0] - divided).max() <= 1


@pytest.mark.parametrize("extra", ["unassalpha", "assocalpha"])
def test_a_band_that_is_marked_as_alpha_but_holds_data_is_refused(tmp_path: Path, extra: str) -> None:
    array = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    array[..., 1], array[..., 3] = 255, 60
    path = write(tmp_path / "x.tif", array, "uint8", "contig", extrasamples=[extra])
    with pytest.raises(UserError, match="4-band TIFF whose last band is marked as transparency"):
        load_image(path)


@pytest.mark.parametrize("samples", [2, 4, 5, 8])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_further_bands_are_named(tmp_path: Path, samples: int, planar: str) -> None:
    array = np.zeros((HEIGHT, WIDTH, samples), np.uint8)
    path = write(tmp_path / "x.tif", array, "uint8", planar, photometric="minisblack")
    with pytest.raises(UserError, match=rf"is a {samples}-band TIFF, not read \(.* --input_nc {samples}\)"):
        load_image(path)


def test_palettes_of_8_and_16_bits(tmp_path: Path) -> None:
    indices = np.arange(256, dtype=np.uint8).reshape(16, 16)
    ramp = np.stack([np.arange(256), 255 - np.arange(256), np.full(256, 7)])
    for factor in (1, 256, 257):
        colormap = (ramp * factor).astype(np.uint16)
        path = tmp_path / f"{factor}.tif"
        tifffile.imwrite(path, indices, photometric="palette", colormap=colormap, metadata=None)
        assert np.array_equal(np.asarray(load_image(path)), ramp.T[indices])


def test_cmyk_of_8_and_16_bits(tmp_path: Path) -> None:
    array = values("uint8", 4)
    path = write(tmp_path / "8.tif", array, "uint8", "contig", photometric="separated")
    wide = write(
        tmp_path / "16.tif", array.astype(np.uint16) * 257, "uint16", "separate", photometric="separated"
    )
    wanted = np.asarray(Image.fromarray(array, "CMYK").convert("RGB")).astype(int)
    for file in (path, wide):
        assert np.abs(np.asarray(load_image(file)).astype(int) - wanted).max() <= 1


def test_every_orientation(tmp_path: Path) -> None:
    upright = values("uint16", 1)
    stored = {1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1]}
    across = upright.swapaxes(0, 1)
    stored |= {5: across, 6: across[::-1], 7: across[::-1, ::-1], 8: across[:, ::-1]}
    for orientation, array in stored.items():
        tag = (274, "H", 1, orientation, True)
        path = write(tmp_path / f"{orientation}.tif", array, "uint16", "contig", extratags=[tag])
        assert np.array_equal(np.asarray(load_image(path)), expected(upright, 65535)), orientation
        assert inspect_image(path).size == (WIDTH, HEIGHT)


def test_fax_and_jpeg_and_ycbcr(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    bits = Image.fromarray(rng.random((32, 32)) < 0.5)
    for compression in ("group3", "group4", "tiff_ccitt", "packbits", "tiff_lzw"):
        path = tmp_path / f"{compression}.tif"
        bits.save(path, compression=compression)
        assert np.array_equal(np.asarray(load_image(path, 1)), np.asarray(bits) * np.uint8(255)), compression
    smooth = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((32, 32))
    for mode, compression in (("RGB", "jpeg"), ("L", "jpeg"), ("YCbCr", "jpeg")):
        path = tmp_path / f"{mode}-{compression}.tif"
        smooth.convert(mode).save(path, compression=compression, quality=95)
        distance = np.asarray(load_image(path)).astype(int) - np.asarray(smooth.convert(mode).convert("RGB"))
        assert np.abs(distance).mean() < 6, (mode, compression)


def test_floating_point_outside_0_to_1_and_nan_are_refused(tmp_path: Path) -> None:
    for wrong in (np.nan, -0.1, 1.5, np.inf):
        array = values("float32", 1)
        array[3, 3] = wrong
        path = write(tmp_path / "x.tif", array, "float32", "contig")
        with pytest.raises(UserError, match=r"outside 0\.\.1" if np.isfinite(wrong) else "NaN or infinite"):
            load_image(path)


def test_pages_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "six.tif"
    tifffile.imwrite(path, np.zeros((6, 16, 16), np.uint8), photometric="minisblack", metadata=None)
    assert inspect_image(path).frames == 6
    tifffile.imwrite(path, np.zeros((5, 16, 16), np.uint16), imagej=True)
    assert inspect_image(path).frames == 5


def test_negative_values_name_the_option_and_a_range_takes_them(tmp_path: Path) -> None:
    array = np.linspace(-1000, 1000, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH, 1).astype(np.int16)
    path = write(tmp_path / "x.tif", array, "int16", "contig")
    with pytest.raises(UserError, match=r"negative values, which need --value_range"):
        load_image(path)
    got = np.asarray(load_image(path, 1, (-500, 500)))
    assert np.array_equal(got, np.rint((array[..., 0] + 500.0).clip(0, 1000) * 0.255))
    info = inspect_image(path, (-500, 500))
    assert (info.lowest, info.highest, info.full) == (-1000, 1000, 32767)
    assert info.clipped == np.count_nonzero(np.abs(array.astype(int)) > 500)


@pytest.mark.parametrize(
    ("array", "more", "expected"),
    [
        (np.zeros((16, 16, 3), np.uint8), {"photometric": "cielab"}, "CIELab TIFF"),
        (np.zeros((16, 16), np.uint8), {"photometric": "cfa"}, "camera raw TIFF"),
        (np.zeros((16, 16), np.complex64), {}, "complex values"),
        (np.zeros((16, 16, 16), np.uint8), {"volumetric": True, "tile": (16, 16, 16)}, "volume TIFF"),
        (np.zeros((16, 16, 3), np.uint8), {"photometric": "ycbcr", "compression": 33003},
         "is a YCbCr TIFF with compression 33003, not read"),
        (np.zeros((65_536, 2), np.uint8), {"compression": "zlib"}, "2x65536 pixels, at most .* 65535 a side"),
        # 25 megapixels of 24 bytes
        (np.broadcast_to(0.0, (5000, 5000, 3)), {"photometric": "rgb", "compression": "zlib", "tile": (256, 256)},
         "claims 600 MB of values, at most 512"),
    ],
    ids=["lab", "raw", "complex", "volume", "ycbcr", "sides", "bytes"],
)  # fmt: skip
def test_what_is_not_read_has_its_name(
    tmp_path: Path, array: np.ndarray, more: dict[str, Any], expected: str
) -> None:
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, array, metadata=None, **{"photometric": "minisblack", **more})
    with pytest.raises(UserError, match=expected):
        load_image(path)


def test_sparse_and_cut_files_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tif", values("uint16", 3), "uint16", "contig", compression="zlib")
    whole = path.read_bytes()
    with tifffile.TiffFile(path) as file:
        offset = file.pages.first.tags["StripByteCounts"].valueoffset
    for cut in range(8, len(whole) - 1, 97):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError):
            load_image(path)
    path.write_bytes(whole[:offset] + bytes(2) + whole[offset + 2 :])
    with pytest.raises(UserError, match="lacks some of its strips"):
        load_image(path)


def test_a_huge_tile_and_a_compressed_bomb_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tif", values("uint8", 1), "uint8", "contig", tile=(16, 16))
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages.first.tags["TileWidth"].overwrite(2**16 - 16)
        file.pages.first.tags["TileLength"].overwrite(2**16 - 16)
    with pytest.raises(UserError, match="megapixels"):
        load_image(path)
    bomb = zlib.compress(bytes(400_000_000))
    path = write(tmp_path / "y.tif", values("uint8", 1), "uint8", "contig", compression="zlib")
    with tifffile.TiffFile(path, mode="r+b") as file:
        end = file.filehandle.size
        file.pages.first.tags["StripOffsets"].overwrite(end)
        file.pages.first.tags["StripByteCounts"].overwrite(len(bomb))
    path.write_bytes(path.read_bytes() + bomb)
    code = (
        "import resource, sys; from pathlib import Path; from datasets.images import load_image\n"
        "import tifffile, imagecodecs\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: load_image(Path(sys.argv[1]))\nexcept Exception as error: print(type(error).__name__)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True)
    assert int(done.stdout.split()[-1]) < 100_000, done.stdout + done.stderr  # KiB


def test_the_library_writes_nothing_to_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "x.tif", values("uint8", 1), "uint8", "contig")
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        offset = file.pages.first.tags["XResolution"].offset
    data[offset + 2] = 99  # an unknown type of value
    path.write_bytes(data)
    logging.getLogger("tifffile").warning("nothing of this kind")
    load_image(path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(
    4 not in tifffile.TIFF.DECOMPRESSORS,
    reason="this tifffile leaves fax to Pillow, whose libtiff writes by itself",
)
def test_a_damaged_fax_writes_nothing_to_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.tif"
    Image.fromarray(np.random.default_rng(0).random((64, 64)) < 0.5).save(path, compression="group4")
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        start, length = file.pages.first.dataoffsets[0], file.pages.first.databytecounts[0]
    data[start + 20 : start + length] = bytes(length - 20)
    path.write_bytes(data)
    with contextlib.suppress(UserError):
        load_image(path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["uint64", "int64"])
def test_white_is_zero_in_64_bits(tmp_path: Path, name: str, recwarn: pytest.WarningsRecorder) -> None:
    white = np.iinfo(name).max
    grey = np.array([[0, white // 2, white]] * 3, name)
    tifffile.imwrite(tmp_path / "x.tif", grey, photometric="miniswhite")
    assert np.asarray(load_image(tmp_path / "x.tif", 1))[0].tolist() == [255, 128, 0]
    assert not recwarn.list


@pytest.mark.parametrize("shape", [(1, 5, 3), (5, 1, 3), (1, 5), (1, 1)])
def test_one_row_or_column_keeps_its_shape(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = (np.arange(np.prod(shape)).reshape(shape) * 4000).astype(np.uint16)
    photometric = "rgb" if len(shape) == 3 else "minisblack"
    tifffile.imwrite(tmp_path / "x.tif", array, photometric=photometric, metadata=None)
    picture = load_image(tmp_path / "x.tif", 3 if len(shape) == 3 else 1)
    assert np.array_equal(np.asarray(picture), np.rint(array / 65535 * 255))


def test_an_automatic_range_beside_transparency_is_in_the_files_numbers(tmp_path: Path) -> None:
    grey = np.linspace(100, 3000, 64).astype(np.uint16).reshape(8, 8)
    alpha = np.full((8, 8), 65535, np.uint16)
    alpha[0, 0] = grey[0, 0] = 0  # what is transparent does not count
    array = np.stack([grey, alpha], 2)
    more = {"photometric": "minisblack", "extrasamples": ["unassalpha"], "planarconfig": "contig"}
    tifffile.imwrite(tmp_path / "x.tif", array, **more)
    info = inspect_image(tmp_path / "x.tif", "auto")
    assert (info.lowest, info.highest, info.full) == (grey[0, 1], 3000, 65535)
    known = inspect_image(tmp_path / "x.tif", (0, 60_000))
    assert known.highest - known.lowest > 50_000  # with the white below what is transparent
