"""Every kind of file becomes the stated picture or one clear refusal. Expected values are computed with NumPy."""

import os
import resource
import struct
import subprocess
import sys
import tempfile
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import decoding
from datasets.check import scan
from datasets.errors import RunError, UserError
from datasets.images import find_images, inspect_image, load_image, save_png, to_picture, to_tensor
from datasets.layouts import find_sources

ROOT = Path(__file__).resolve().parents[1]
RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (11, 7, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (11, 7), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, (11, 7), dtype=np.uint8)


def saved(picture: Image.Image, path: Path, **options: Any) -> Path:
    picture.save(path, **options)
    return path


def array(path: Path, channels: int = 3) -> np.ndarray:
    return np.asarray(load_image(path, channels))


def luma(colour: np.ndarray) -> np.ndarray:
    return colour.astype(float) @ [0.299, 0.587, 0.114]


def on_white(values: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = (alpha / 255)[..., None] if values.ndim == 3 else alpha / 255
    return np.floor(values * share + 255 * (1 - share) + 0.5).astype(np.uint8)


def three(grey: np.ndarray) -> np.ndarray:
    return np.stack([grey] * 3, axis=2)


def refusal(path: Path, **options: Any) -> str:
    """The reason; everything in images.py refuses alike."""
    with pytest.raises(UserError) as scanned:
        inspect_image(path)
    with pytest.raises(UserError) as caught:
        load_image(path, **options)
    assert caught.value.subject == str(path)
    assert str(scanned.value) == str(caught.value)
    return caught.value.reason


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, pixels: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(pixels)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


# --- what is read, and how


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".ppm", ".webp"])
def test_colour_is_kept_to_the_bit(tmp_path: Path, suffix: str) -> None:
    options = {"lossless": True} if suffix == ".webp" else {}
    path = saved(Image.fromarray(COLOUR), tmp_path / f"x{suffix}", **options)
    assert np.array_equal(array(path), COLOUR)
    assert np.abs(array(path, 1) - luma(COLOUR)).max() <= 1
    for channels in (2, 4, 16):
        with pytest.raises(UserError, match=rf"x\{suffix}: holds 3 bands, not {channels}"):
            load_image(path, channels)


def test_jpeg_is_what_was_saved_up_to_its_loss(tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(64) * 2, np.arange(48) * 2).astype(np.uint8)
    colour = np.dstack([smooth, smooth // 2, 255 - smooth])
    path = saved(Image.fromarray(colour), tmp_path / "x.jpg", quality=98, subsampling=0)
    assert np.abs(array(path).astype(int) - colour).max() <= 4


def test_grey_one_bit_and_palette(tmp_path: Path) -> None:
    grey = saved(Image.fromarray(GREY), tmp_path / "l.png")
    assert np.array_equal(array(grey), three(GREY)) and np.array_equal(array(grey, 1), GREY)
    one = saved(Image.fromarray(GREY > 127), tmp_path / "1.png")
    assert np.array_equal(array(one), three((GREY > 127) * np.uint8(255)))
    table = RNG.integers(0, 256, (256, 3), dtype=np.uint8)
    palette = Image.fromarray(GREY).copy()
    palette.putpalette(table.tobytes())
    for suffix in (".png", ".gif", ".tif"):
        assert np.array_equal(array(saved(palette, tmp_path / f"p{suffix}")), table[GREY])


def test_transparency_is_composited_on_white_or_kept(tmp_path: Path) -> None:
    rgba = np.dstack([COLOUR, ALPHA])
    path = saved(Image.fromarray(rgba), tmp_path / "rgba.png")
    assert np.array_equal(array(path), on_white(COLOUR, ALPHA))
    assert np.abs(array(path, 1) - luma(on_white(COLOUR, ALPHA))).max() <= 1
    assert np.array_equal(array(path, 4), rgba)
    path = saved(Image.fromarray(np.dstack([GREY, ALPHA])), tmp_path / "la.png")
    assert np.array_equal(array(path), three(on_white(GREY, ALPHA)))
    assert np.array_equal(array(path, 1), on_white(GREY, ALPHA))
    assert np.array_equal(array(path, 2), np.dstack([GREY, ALPHA]))
    with pytest.raises(UserError, match="holds 2 bands, not 4"):
        load_image(path, 4)
    path = saved(Image.fromarray(rgba), tmp_path / "rgba.webp", lossless=True, exact=True)
    assert np.array_equal(array(path), on_white(COLOUR, ALPHA))


def test_one_transparent_colour(tmp_path: Path) -> None:
    level = int(GREY[0, 0])
    path = saved(Image.fromarray(GREY), tmp_path / "l.png", transparency=level)
    expected = np.where(level == GREY, 255, GREY)
    assert np.array_equal(array(path, 1), expected)
    assert np.array_equal(array(path, 2)[..., 1], np.where(level == GREY, 0, 255))
    colour = tuple(int(v) for v in COLOUR[0, 0])
    path = saved(Image.fromarray(COLOUR), tmp_path / "rgb.png", transparency=colour)
    assert np.array_equal(array(path)[0, 0], [255, 255, 255])
    assert np.array_equal(array(path)[1:], COLOUR[1:])
    palette = Image.fromarray(GREY).copy()
    palette.putpalette(np.repeat(np.arange(256, dtype=np.uint8), 3).tobytes())
    for suffix in (".png", ".gif"):
        path = saved(palette, tmp_path / f"p{suffix}", transparency=level)
        assert np.array_equal(array(path, 1), expected)


def test_cmyk(tmp_path: Path) -> None:
    ink = np.dstack([COLOUR, GREY])
    path = saved(Image.fromarray(ink, "CMYK"), tmp_path / "x.tif")
    expected = (255.0 - COLOUR) * (255.0 - GREY[..., None]) / 255
    assert np.abs(array(path) - expected).max() <= 1
    smooth = np.full((16, 16, 4), (200, 30, 90, 40), dtype=np.uint8)
    path = saved(Image.fromarray(smooth, "CMYK"), tmp_path / "x.jpg", quality=100)
    assert np.abs(array(path)[0, 0] - np.array([55, 225, 165]) * 215 / 255).max() <= 2


@pytest.mark.parametrize("suffix", [".png", ".pgm"])
def test_16_bit_grey_is_scaled_and_never_clipped(tmp_path: Path, suffix: str) -> None:
    ramp = np.linspace(0, 65535, 4096).round().astype(np.uint16).reshape(64, 64)
    path = saved(Image.fromarray(ramp), tmp_path / f"x{suffix}")
    assert np.array_equal(array(path, 1), np.round(ramp / 65535 * 255))
    assert np.array_equal(array(path)[..., 1], array(path, 1))


def test_16_bit_rgb_keeps_the_upper_byte(tmp_path: Path) -> None:
    values = RNG.integers(0, 65536, (5, 4, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    path = tmp_path / "x.png"
    path.write_bytes(png(4, 5, 16, 2, rows))
    assert np.array_equal(array(path), values >> 8)


# Exif 2.3, tag 274: which visual sides row 0 and column 0 of the stored picture are
SIDES = {
    1: ("top", "left"), 2: ("top", "right"), 3: ("bottom", "right"), 4: ("bottom", "left"),
    5: ("left", "top"), 6: ("right", "top"), 7: ("right", "bottom"), 8: ("left", "bottom"),
}  # fmt: skip


def stored_as(upright: np.ndarray, orientation: int) -> np.ndarray:
    sides = SIDES[orientation]
    if "bottom" in sides:
        upright = upright[::-1]
    if "right" in sides:
        upright = upright[:, ::-1]
    return np.ascontiguousarray(upright if sides[0] in ("top", "bottom") else upright.transpose(1, 0, 2))


@pytest.mark.parametrize("suffix", [".png", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_gives_the_upright_pixels(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(stored_as(COLOUR, orientation))
    path = saved(
        stored, tmp_path / f"x{suffix}", exif=exif, **({"lossless": True} if suffix == ".webp" else {})
    )
    assert np.array_equal(array(path), COLOUR)
    assert inspect_image(path).size == (7, 11)


def test_first_frame_of_animations_and_pages(tmp_path: Path) -> None:
    frames = [Image.fromarray(three(np.full((6, 6), level, np.uint8))) for level in (10, 200, 90)]
    for suffix in (".gif", ".tif", ".png", ".webp"):
        path = saved(frames[0], tmp_path / f"x{suffix}", save_all=True, append_images=frames[1:])
        assert np.abs(array(path).astype(int) - 10).max() <= 2
        assert inspect_image(path).frames == 3


def test_what_a_file_holds(tmp_path: Path) -> None:
    cases = {
        "l": (Image.fromarray(GREY), "L", ""),
        "rgb": (Image.fromarray(COLOUR), "RGB", ""),
        "rgba": (Image.fromarray(np.dstack([COLOUR, ALPHA])), "RGBA", "alpha"),
        "16": (Image.fromarray(GREY.astype(np.uint16)), "I;16", "16-bit grey"),
        "1": (Image.fromarray(GREY > 9), "1", "1 bit"),
    }
    for name, (picture, mode, conversion) in cases.items():
        info = inspect_image(saved(picture, tmp_path / f"{name}.png"))
        assert (info.size, info.mode, info.conversion, info.frames) == ((7, 11), mode, conversion, 1)


# --- what is refused


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "zero bytes"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "an HTML page"),
        (b"just some words\n", "text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "git-lfs pointer"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n/x 1 def\n", "PostScript"),
        (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"></svg>', "SVG"),
        (b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 4, 4, 8, 3) + bytes(200), "Photoshop"),
        (b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X", "AppleDouble"),
        (bytes(range(256)) * 4, "not one of PNG"),
    ],
)
def test_other_content_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "x.png").write_bytes(content)
    assert words in refusal(tmp_path / "x.png")


def test_ghostscript_is_never_started(tmp_path: Path, monkeypatch: Any) -> None:
    marker = tmp_path / "started"
    fake = tmp_path / "bin" / "gs"
    fake.parent.mkdir()
    fake.write_text(f"#!/bin/sh\ntouch {marker}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}{os.pathsep}{os.environ['PATH']}")
    path = tmp_path / "x.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    assert "PostScript" in refusal(path)
    assert not marker.exists()
    with Image.open(path) as unguarded, pytest.raises(Exception):  # noqa: B017
        unguarded.load()  # Pillow left to itself starts it
    assert marker.exists()


def test_things_that_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    assert "folder" in refusal(tmp_path / "folder.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    assert "which does not exist" in refusal(tmp_path / "link.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    assert "loop" in refusal(tmp_path / "loop.png")
    assert "no such file" in refusal(tmp_path / "missing.png")
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for ever
    assert "not a regular file" in refusal(tmp_path / "pipe.png")


def test_an_unreadable_file_is_named() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = saved(Image.fromarray(COLOUR), Path(folder) / "x.png")
        path.chmod(0)
        me = os.geteuid()
        if me == 0:  # permissions do not bind root
            os.seteuid(65534)
        try:
            assert "permission denied" in refusal(path)
        finally:
            os.seteuid(me)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".bmp", ".gif", ".ppm"])
def test_truncated_files_are_refused(tmp_path: Path, suffix: str) -> None:
    values = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = saved(Image.fromarray(values), tmp_path / f"whole{suffix}").read_bytes()
    for share in (0.02, 0.3, 0.6, 0.9):
        path = tmp_path / f"x{suffix}"
        path.write_bytes(whole[: int(len(whole) * share)])
        assert refusal(path)


@pytest.mark.parametrize("level", [0, 9])
def test_no_flipped_bit_of_a_png_changes_the_picture_unnoticed(tmp_path: Path, level: int) -> None:
    whole = saved(Image.fromarray(COLOUR), tmp_path / "whole.png", compress_level=level).read_bytes()
    path = tmp_path / "x.png"
    refused = 0
    for bit in range(8 * 8, 8 * (len(whole) - 12), 3):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(damaged)
        try:
            assert np.array_equal(array(path), COLOUR), bit  # only a checksum was hit
        except UserError:
            refused += 1
    assert refused > 0.9 * 8 * (len(whole) - 20) / 3


def test_bombs_are_refused_by_their_header(tmp_path: Path) -> None:
    code = """
import resource, sys
from pathlib import Path
from datasets.errors import UserError
from datasets.images import load_image
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name in sys.argv[1:]:
    try:
        load_image(Path(name))
    except UserError as error:
        print(error.reason)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    for width, height in ((60000, 60000), (14000, 14000), (8001, 8000), (1, 64_000_000)):
        content = png(width, height, 1, 0, bytes((width // 8 + 2) * min(height, 10000)))
        (tmp_path / f"{width}.png").write_bytes(content)
    command = [sys.executable, "-c", code, *map(str, sorted(tmp_path.iterdir()))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    *reasons, growth = done.stdout.splitlines()
    assert len(reasons) == 4
    assert all("64 megapixels and 65535 a side" in reason for reason in reasons)
    assert int(growth) < 50_000  # KiB
    assert done.stderr == ""


def test_a_picture_just_below_the_limit_is_read(tmp_path: Path) -> None:
    path = saved(Image.fromarray(COLOUR), tmp_path / "x.png")
    with decoding.pixels_allowed(77):
        assert array(path).shape == (11, 7, 3)
    with decoding.pixels_allowed(76):
        assert "megapixels" in refusal(path)


def test_the_limit_can_be_raised_beyond_pillows_own(tmp_path: Path) -> None:
    side = 13_500  # 182 megapixels: more than Pillow opens by itself
    path = tmp_path / "x.png"
    path.write_bytes(png(side, side, 1, 0, bytes((side // 8 + 2) * side)))
    for _ in range(2):
        with pytest.raises(UserError, match="--max_pixels"):
            load_image(path)
        with decoding.pixels_allowed(side**2):
            assert inspect_image(path).size == (side, side)


def test_mutated_files_are_read_or_refused_and_nothing_else(tmp_path: Path) -> None:
    """1000 random cuts and flips of good files; limited memory, no warnings."""
    rng = np.random.default_rng(7)
    values = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
    palette = Image.fromarray(values).quantize(16)
    exif = Image.Exif()
    exif[0x0112] = 6
    colour, wide = Image.fromarray(values), Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    files: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (colour, "a.png", {}), (colour, "a.jpg", {"exif": exif}), (colour, "b.jpg", {"progressive": True}),
        (colour, "a.webp", {}), (colour, "a.bmp", {}), (colour, "a.ppm", {}), (wide, "w.png", {}),
        (colour, "a.tif", {"compression": "tiff_lzw"}), (palette, "p.png", {"transparency": 1}),
        (palette, "a.gif", {"save_all": True, "append_images": [palette.rotate(90)]}),
    ]  # fmt: skip
    good = [saved(picture, tmp_path / name, **options).read_bytes() for picture, name, options in files]
    path = tmp_path / "mutated.png"
    outcomes = {"read": 0, "refused": 0}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # used by earlier tests of this process
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", module=r"PIL\.")  # as datasets.decoding does
        for round_ in range(1000):
            data = bytearray(good[round_ % len(good)])
            for _ in range(int(rng.integers(1, 6))):
                reach = len(data) if rng.random() < 0.5 else min(len(data), 80)  # half of them in the header
                data[int(rng.integers(reach))] ^= 1 << int(rng.integers(8))
            if rng.random() < 0.3:
                del data[int(rng.integers(1, len(data))) :]
            path.write_bytes(data)
            try:
                inspect_image(path)
                load_image(path, (1, 3, 4)[round_ % 3])
                outcomes["read"] += 1
            except UserError as error:
                assert error.subject == str(path)
                outcomes["refused"] += 1
    assert min(outcomes.values()) >= 100, outcomes
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # KiB


# --- folders, tensors, writing


def test_files_of_a_folder(tmp_path: Path) -> None:
    others = ["._b.png", ".hidden.png", "notes.txt"]
    for name in ["b.png", "a.JPG", "c.webp", "a b\n\u00fc.png", "-x.png", *others]:
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "d.png").write_bytes(b"x")
    names = [path.name for path in find_images(tmp_path)]
    assert names == ["-x.png", "a b\n\u00fc.png", "a.JPG", "b.png", "c.webp"]
    with pytest.raises(UserError) as caught:
        find_images(tmp_path / "notes.txt")
    assert caught.value.subject.endswith("notes.txt")


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_pictures_survive_the_way_to_a_tensor_and_back(mode: str) -> None:
    channels = 1 if mode == "L" else len(mode)
    values = (np.arange(16 * 48 * channels) % 256).astype(np.uint8).reshape(16, 48, channels)  # every level
    tensor = to_tensor(Image.fromarray(values.squeeze()))
    assert tensor.shape == (channels, 16, 48) and tensor.dtype == torch.float32 and tensor.is_contiguous()
    assert np.abs(tensor.permute(1, 2, 0).numpy() - (values.astype(np.float64) / 127.5 - 1)).max() < 1e-7
    back = to_picture(tensor)
    assert back.mode == mode and np.array_equal(np.asarray(back), values.squeeze())


def test_a_tensor_is_clamped_and_rounded() -> None:
    levels = torch.tensor([-3.0, -1.0, 1.0, 9.0, float("inf"), 100.4 / 127.5 - 1, 100.6 / 127.5 - 1])
    picture = to_picture(levels.expand(1, 1, -1))
    assert np.asarray(picture).tolist() == [[0, 0, 255, 255, 255, 100, 101]]
    half = torch.zeros(3, 2, 2, dtype=torch.bfloat16, requires_grad=True)
    assert to_picture(half).getpixel((0, 0)) == (128, 128, 128)
    with pytest.raises(RunError, match="NaN"):
        to_picture(torch.full((3, 2, 2), float("nan")))


def test_a_png_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    save_png(Image.fromarray(GREY), path)
    reader = tmp_path / "reader.png"  # stands for whoever has the old file open
    reader.hardlink_to(path)
    save_png(Image.fromarray(COLOUR), path)
    assert np.array_equal(array(path), COLOUR)
    assert np.array_equal(array(reader, 1), GREY)
    reader.unlink()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    big = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))  # the system's own way to fail in the middle
    try:
        with pytest.raises(UserError) as caught:
            save_png(big, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert caught.value.subject == str(path)
    assert np.array_equal(array(path), COLOUR)
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.png"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "missing", Path("/proc/x")):
        with pytest.raises(UserError) as caught:
            save_png(Image.fromarray(COLOUR), folder / "x.png")
        assert caught.value.subject == str(folder / "x.png")
        assert caught.value.exit_code == 2
    old = os.umask(0o027)
    try:
        save_png(Image.fromarray(COLOUR), tmp_path / "m.png")
    finally:
        os.umask(old)
    assert (tmp_path / "m.png").stat().st_mode & 0o777 == 0o640


def test_profiles_and_comments_do_not_follow_into_written_files(tmp_path: Path) -> None:
    for options in ({}, {"transparency": (1, 2, 3)}):
        path = saved(
            Image.fromarray(COLOUR), tmp_path / "x.png", icc_profile=b"profile", dpi=(10, 10), **options
        )
        save_png(load_image(path), tmp_path / "y.png")
        with Image.open(tmp_path / "y.png") as written:
            assert written.info == {}


def test_a_cut_avif_is_not_called_a_video(tmp_path: Path) -> None:
    path = saved(Image.new("RGB", (32, 32), "red"), tmp_path / "x.avif")
    path.write_bytes(path.read_bytes()[:60])
    assert "is an AVIF file, truncated or damaged" in refusal(path)


@pytest.mark.parametrize("error", [MemoryError(), OSError("out of memory error when reading image file")])
def test_too_little_memory_names_the_file_and_is_no_fault_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    path = saved(Image.fromarray(COLOUR), tmp_path / "x.png")

    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", refuse)
    for read in (load_image, inspect_image):
        with pytest.raises(RunError, match="out of memory while it is decoded") as caught:
            read(path)
        assert (caught.value.subject, caught.value.exit_code) == (str(path), 1)
    with pytest.raises(RunError):  # not left out as a bad file
        scan(find_sources(tmp_path, "test", "folder"), crop_size=2, skip_bad=True)
