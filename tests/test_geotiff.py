"""GeoTIFF in gives GeoTIFF out: place on the map, missing data, windows, memory, kills. Read back by rasterio."""

import os
import pty
import signal
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.transform import from_origin
from training_support import ROOT, Outcome, command, environment, picture, translate, untrained_run

from datasets.decoding import pixels_allowed
from datasets.errors import UserError
from datasets.geotiff import GeoTiff, inspect_placed, is_geotiff
from datasets.images import inspect_image, load_image

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

PLACE: dict[str, Any] = {
    "crs": CRS.from_epsg(32632),
    "transform": from_origin(500_000.5, 5_200_000.25, 0.2, 0.2),
}


def write(path: Path, values: np.ndarray, **more: Any) -> Path:
    """A GeoTIFF of (H, W, C) values."""
    height, width, count = values.shape
    sizes = {"width": width, "height": height, "count": count, "dtype": values.dtype.name}
    with rasterio.open(path, "w", driver="GTiff", **sizes, **{**PLACE, **more}) as file:
        file.write(values.transpose(2, 0, 1))
        file.update_tags(AREA_OR_POINT="Point")
    return path


def colours(width: int = 70, height: int = 50, count: int = 3) -> np.ndarray:
    """(H, W, C) uint8."""
    return np.stack([np.asarray(picture(width, height, band, "L")) for band in range(count)], 2)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    flags = ("--norm", "nc_ms", "--base_norm", "none", "--init_type", "kaiming")
    untrained_run(folder, *flags)
    untrained_run(folder / "5", *flags, "--input_nc", 5, "--output_nc", 5)
    untrained_run(folder / "range", *flags, "--value_range", "0,100")
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def run_on(runs: Path, source: Path, output: Path, *more: object) -> Outcome:
    where = ("--name", "r", "--checkpoints_dir", runs, "--device", "cpu")
    return translate(*where, "--input", source, "--output", output, *more)


def made(runs: Path, source: Path, output: Path, *more: object) -> "rasterio.io.DatasetReader":
    outcome = run_on(runs, source, output, *more)
    assert outcome.code == 0, outcome.err
    return rasterio.open(output / source.name)


@pytest.mark.parametrize(
    "flags", [(), ("--tile", "32"), ("--scale", "0.5"), ("--output_depth", "16")], ids=str
)
def test_the_translation_lies_where_the_picture_does(
    runs: Path, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    source = write(tmp_path / "x.tif", colours(), compress="deflate")
    Image.fromarray(colours()).save(tmp_path / "y.png")
    assert run_on(runs, tmp_path / "y.png", tmp_path / "z.tif", *flags).code == 0
    with rasterio.open(tmp_path / "z.tif") as file:
        expected = file.read()
    with made(runs, source, tmp_path / "out", *flags) as file:
        assert file.crs == PLACE["crs"] and file.transform == PLACE["transform"]
        assert file.tags()["AREA_OR_POINT"] == "Point" and file.nodata is None
        assert file.profile["tiled"] and file.profile["compress"] == "deflate"
        assert file.dataset_mask().min() == 255
        found = file.read()
    assert found.dtype == expected.dtype and found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= (1 if found.dtype == np.uint8 else 3)
    assert names(tmp_path / "out") == ["x.tif"]


def test_another_size_covers_the_same_ground(runs: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "x.tif", colours())
    with made(runs, source, tmp_path / "out", "--size", 40) as file, rasterio.open(source) as before:
        assert file.shape == (40, 40)
        assert np.allclose(file.bounds, before.bounds, rtol=0, atol=1e-6)
    values = colours() // 2 + 100
    values[:, :35] = 0
    with made(runs, write(tmp_path / "y.tif", values, nodata=0), tmp_path / "out", "--size", 40) as file:
        mask = file.dataset_mask()
    assert mask[:, :20].max() == 0 and mask[:, 20:].min() == 255


def test_a_folder_of_several_kinds(runs: Path, tmp_path: Path) -> None:
    """Each keeps its own kind: a plain TIFF has no place that could be lost."""
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.tif", colours())
    Image.fromarray(colours()).save(tmp_path / "in" / "b.tif")
    Image.fromarray(colours()).save(tmp_path / "in" / "c.jpg")
    assert run_on(runs, tmp_path / "in", tmp_path / "out").code == 0
    assert names(tmp_path / "out") == ["a.tif", "b.png", "c.png"]
    assert run_on(runs, tmp_path / "in" / "a.tif", tmp_path / "alone.png").code == 0
    with Image.open(tmp_path / "alone.png") as alone:
        assert alone.format == "PNG"


def test_five_bands(runs: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "x.tif", colours(count=5).astype(np.uint16) * 257, photometric="MINISBLACK")
    with made(runs / "5", source, tmp_path / "out", "--tile", 40) as file:
        assert file.count == 5 and file.dtypes == ("uint8",) * 5 and file.crs == PLACE["crs"]
        assert all(np.ptp(file.read(band)) > 3 for band in file.indexes)


# --- pixels without data


@pytest.mark.parametrize("tile", ["0", "32"])
@pytest.mark.parametrize(
    ("dtype", "nodata", "depth", "kept"),
    [
        ("uint8", 0, 8, True), ("uint8", 255, 8, True), ("uint16", 65535, 16, True), ("uint16", 65535, 8, False),
        ("float32", -9999.0, 8, False), ("float32", np.nan, 8, False), ("int16", -1, 8, False),
    ],
)  # fmt: skip
def test_pixels_without_data(
    runs: Path, tmp_path: Path, dtype: str, nodata: float, depth: int, kept: bool, tile: str
) -> None:
    """The same pixels have no data afterwards, by the same value where it exists, and no other pixel has none."""
    white = {"uint8": 255, "uint16": 65535, "int16": 32767, "float32": 1.0}[dtype]
    values = (colours() / 255 * white * 0.9 + white * 0.05).astype(dtype)
    values[10:20, 5:60] = nodata
    source = write(tmp_path / "x.tif", values, nodata=nodata)
    with made(runs, source, tmp_path / "out", "--output_depth", depth, "--tile", tile) as file:
        assert file.nodata == (nodata if kept else None)
        expected = np.full((50, 70), 255)
        expected[10:20, 5:60] = 0
        assert np.array_equal(file.dataset_mask(), expected)
        found = file.read()
    if kept:
        assert (found[:, 10:20, 5:60] == nodata).all()
    # the network has seen black there
    values[10:20, 5:60] = 0
    with made(runs, write(tmp_path / "black.tif", values), tmp_path / "b", "--output_depth", depth) as file:
        black = file.read()
    seen = expected > 0
    assert np.abs(found[:, seen].astype(int) - black[:, seen]).max() <= (1 if depth == 8 else 3)


@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [("uint8", (500, 3000)), ("uint8", (-100, 155)), ("uint16", (-20, 100)), ("int16", (-0.5, 1))],
)
def test_no_data_are_black_whatever_the_range(
    tmp_path: Path, dtype: str, wanted: tuple[float, float]
) -> None:
    values = np.full((50, 70, 3), 90, dtype)
    values[:9] = 7
    source = GeoTiff(write(tmp_path / "x.tif", values, nodata=7), 3, wanted)
    found = np.asarray(source.whole())
    level = round(np.clip((90 - wanted[0]) / (wanted[1] - wanted[0]), 0, 1) * 255)
    assert (found[:9] == 0).all() and (found[9:] == level).all()
    source.close()


@pytest.mark.parametrize(("nodata", "depth"), [(0, 8), (255, 8), (7, 16), (65535, 16)])
def test_a_pixel_with_the_value_that_means_no_data_is_moved_by_one(
    tmp_path: Path, nodata: int, depth: int
) -> None:
    values = np.full((50, 70, 3), 100, np.uint16)
    values[:, :9] = nodata
    source = GeoTiff(write(tmp_path / "x.tif", values, nodata=nodata), 3, None)
    pixels = np.full((50, 70, 3), nodata, f"uint{depth}")
    with source.writing(tmp_path / "y.tif", (70, 50), 3, depth) as put:
        put((0, 0, 70, 50), pixels)
    with rasterio.open(tmp_path / "y.tif") as file:
        mask, found = file.dataset_mask(), file.read()
    assert mask[:, :9].max() == 0 and mask[:, 9:].min() == 255
    assert (np.abs(found[:, :, 9:].astype(int) - nodata) == 1).all()


def test_a_mask_stays_a_mask(runs: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "x.tif", colours())
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(source, "r+") as file:
        file.write_mask(np.repeat([[True] * 30 + [False] * 40], 50, 0))
    with made(runs, source, tmp_path / "out") as file:
        assert file.nodata is None and file.dataset_mask()[:, :30].min() == 255
        assert file.dataset_mask()[:, 30:].max() == 0
    assert names(tmp_path / "out") == ["x.tif"]


def test_ground_control_points_are_kept(runs: Path, tmp_path: Path) -> None:
    points = [GroundControlPoint(row, column, 8 + column / 100, 47 - row / 100) for row, column in
              ((0, 0), (0, 70), (50, 0))]  # fmt: skip
    source = write(tmp_path / "x.tif", colours(), transform=rasterio.Affine.identity(), gcps=points)
    with made(runs, source, tmp_path / "out") as file:
        found, crs = file.gcps
    with rasterio.open(source) as file:
        before = file.gcps[0]
    assert [(p.row, p.col, p.x, p.y) for p in found] == [(p.row, p.col, p.x, p.y) for p in before]
    assert crs == PLACE["crs"]
    with made(runs, source, tmp_path / "small", "--size", 25) as file:
        small = file.gcps[0]
    assert [(p.row, p.col) for p in small] == [(p.row / 2, p.col * 25 / 70) for p in before]


def test_what_is_lost_of_the_place_is_told(runs: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "x.tif", colours())
    whole = path.read_bytes()
    with tifffile.TiffFile(path) as file:
        tag = file.pages.first.tags["ModelTiepointTag"]
    path.write_bytes(
        whole[: tag.offset] + bytes([0xFE, 0xFF]) + whole[tag.offset + 2 :]
    )  # now an unknown tag
    outcome = run_on(runs, path, tmp_path / "out")
    assert outcome.code == 2 and "x.tif: is damaged: it does not say where it lies" in outcome.error


# --- reading by windows


@pytest.mark.parametrize(
    ("values", "more"),
    [
        (colours(), {}), (colours(count=1), {}), (colours(), {"interleave": "band", "tiled": True}),
        (colours().astype(np.uint16) * 257, {"compress": "lzw"}),
        ((colours().astype(np.int16) * 100), {"compress": "deflate", "predictor": 2}),
        ((colours(count=1).astype(np.uint16) * 16), {"nbits": 12}), (np.float32(colours(count=1) / 255), {}),
        (colours(count=1), {"photometric": "MINISWHITE"}),
        (np.dstack([colours(), np.full((50, 70), 255, np.uint8)]), {"ALPHA": "YES"}),
    ],
    ids=["rgb", "grey", "planes", "uint16", "int16", "12 bits", "float", "white is 0", "alpha"],
)  # fmt: skip
def test_windows_hold_what_the_whole_picture_does(
    tmp_path: Path, values: np.ndarray, more: dict[str, Any]
) -> None:
    path = write(tmp_path / "x.tif", values, **more)
    assert is_geotiff(path)
    for channels in (1, 3):
        whole, file = load_image(path, channels), GeoTiff(path, channels, None)
        for box in ((0, 0, 70, 50), (13, 7, 60, 50), (69, 49, 70, 50)):
            assert np.array_equal(np.asarray(file.crop(box)), np.asarray(whole.crop(box)))
        file.close()
    scanned, known = inspect_placed(path, None, 3), inspect_image(path)
    assert (scanned.size, scanned.mode, scanned.conversion) == (known.size, known.mode, known.conversion)
    assert (scanned.lowest, scanned.highest, scanned.full) == (known.lowest, known.highest, known.full)


def test_windows_of_a_jpeg_in_ycbcr(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tif", colours(), compress="jpeg", photometric="YCBCR", tiled=True)
    file = GeoTiff(path, 3, None)
    assert file.kind is not None
    distance = np.asarray(file.crop((0, 0, 70, 50))).astype(int) - np.asarray(load_image(path))
    assert (
        np.abs(distance).mean() < 1
    )  # libtiff and imagecodecs do not spread the colours of 2x2 pixels alike


def test_values_that_cannot_be_read_are_refused_by_name(runs: Path, tmp_path: Path) -> None:
    for wrong in (-0.5, 1.5, np.nan):
        values = np.float32(colours() / 255)
        values[3, 3] = wrong
        outcome = run_on(runs, write(tmp_path / "x.tif", values), tmp_path / "out")
        assert outcome.code == 2 and "x.tif: holds" in outcome.error and not (tmp_path / "out").exists()
    path = write(tmp_path / "x.tif", colours().astype(np.int16) - 100)
    outcome = run_on(runs / "range", path, tmp_path / "out")
    assert outcome.code == 0 and "outside the value range 0,100 are clipped" in outcome.err
    assert run_on(runs, write(tmp_path / "x.tif", colours(count=5)), tmp_path / "o").code == 2


def test_a_cut_file_is_refused_and_leaves_nothing(runs: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "x.tif", colours(300, 200), compress="deflate", tiled=True)
    whole = path.read_bytes()
    for length in (100, len(whole) // 2, len(whole) - 50):
        path.write_bytes(whole[:length])
        outcome = run_on(runs, path, tmp_path / "out")
        assert outcome.code == 2 and "x.tif" in outcome.error, length
        assert not (tmp_path / "out").exists()
    # its head is whole, its pixels are not; what libraries write by themselves shows in a real process alone
    path.write_bytes(whole)
    with tifffile.TiffFile(path, mode="r+b") as file:
        offset = file.pages.first.dataoffsets[0]
    path.write_bytes(whole[:offset] + bytes(500) + whole[offset + 500 :])
    where = ("--name", "r", "--checkpoints_dir", runs, "--device", "cpu")
    done = subprocess.run(
        command("test", *where, "--input", path, "--output", tmp_path / "out"),
        cwd=ROOT, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert done.stderr.startswith(f"error: {path}: truncated or damaged") and done.stderr.count("\n") == 1


# --- large ones, and what is missing


def test_pixels_beyond_the_limit_name_the_flag(runs: Path, tmp_path: Path) -> None:
    """A file of 65 megapixels that takes no space: its tiles are missing, as GDAL writes what was never written."""
    with rasterio.open(
        tmp_path / "x.tif", "w", driver="GTiff", width=8125, height=8000, count=1, dtype="uint8", tiled=True,
        SPARSE_OK=True, **PLACE,
    ):  # fmt: skip
        pass
    outcome = run_on(runs, tmp_path / "x.tif", tmp_path / "out")
    assert outcome.code == 2 and "--max_pixels" in outcome.error and "x.tif" in outcome.error
    with pixels_allowed(65_000_000):
        info = inspect_placed(tmp_path / "x.tif", None, 3)
    assert info.size == (8125, 8000) and info.highest == 0
    with pytest.raises(UserError, match="--max_pixels"):
        GeoTiff(tmp_path / "x.tif", 3, None)


def test_without_rasterio_one_line_says_what_is_lost(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "x.tif", colours())
    monkeypatch.setitem(sys.modules, "rasterio", None)
    outcome = run_on(runs, source, tmp_path / "out")
    assert outcome.code == 0 and names(tmp_path / "out") == ["x.png"]
    lines = [line for line in outcome.err.splitlines() if "rasterio" in line]
    assert len(lines) == 1 and "pip install rasterio" in lines[0]


def test_a_kill_half_way_leaves_no_file_that_looks_whole(runs: Path, tmp_path: Path) -> None:
    """What it leaves is hidden, and goes with the next call."""
    source = write(tmp_path / "x.tif", colours(1500, 1200))
    arguments = ["--name", "r", "--checkpoints_dir", runs, "--device", "cpu", "--tile", 64]
    arguments += ["--input", source, "--output", tmp_path / "out"]
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    process = subprocess.Popen(
        command("test", *arguments), cwd=ROOT, env=environment(), stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    seen = ""
    while not any(f" {done}/456" in seen for done in range(3, 400)):
        seen += os.read(ours, 4096).decode(errors="replace")  # raises if it ends before
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    os.close(ours)
    left = names(tmp_path / "out")
    assert len(left) == 1 and left[0].startswith(".x.tif.") and left[0].endswith(".tmp")
    assert run_on(runs, write(tmp_path / "y.tif", colours()), tmp_path / "out").code == 0
    assert names(tmp_path / "out") == ["y.tif"]


MEMORY = """
import re, sys
from gan.translate_command import run_test
from gan.translation_options import TranslationOptions
import tifffile, rasterio
for source in sys.argv[1:]:
    options = TranslationOptions(
        name="r", checkpoints_dir="runs", input=(source,), output="out", device="cpu", tile="256"
    )
    run_test(options)
    status = open("/proc/self/status").read()  # ru_maxrss would hold the parent's peak too
    print(int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: reads /proc")
def test_memory_does_not_grow_with_the_picture(tmp_path: Path) -> None:
    untrained_run(tmp_path / "runs", "--norm", "nc_ms", "--base_norm", "none", "--ngf", 1)
    for name, side in (("small", 2000), ("large", 4000)):
        write(tmp_path / f"{name}.tif", np.tile(colours(500, 500), (side // 500, side // 500, 1)), tiled=True)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, "small.tif", "large.tif"], cwd=tmp_path,
        env=environment() | {"PYTHONPATH": str(ROOT), "GDAL_CACHEMAX": "8"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    small, large = (int(line) for line in done.stdout.splitlines() if line.isdigit())
    assert large - small < 45e6, f"{(large - small) / 1e6:.0f} MB more"  # whole, in and out have 72 MB more
