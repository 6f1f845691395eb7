"""The scan tells every problem at once, leaves out what it is asked to, and knows the data again."""

import os
import shutil
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from conftest import noise
from PIL import Image

from datasets import check, images
from datasets.check import changes, scan
from datasets.errors import UserError
from datasets.images import load_image
from datasets.layouts import find_sources


@pytest.fixture
def unaligned(tmp_path: Path) -> Path:
    for i in range(4):
        noise(tmp_path / "trainA" / f"{i}.png", seed=i)
        noise(tmp_path / "trainB" / f"{i}.png", seed=9 + i)
    return tmp_path


@pytest.fixture
def paired(tmp_path: Path) -> Path:
    for i in range(4):
        noise(tmp_path / "A" / "train" / f"{i}.png", seed=i)
        noise(tmp_path / "B" / "train" / f"{i}.png", seed=9 + i)
    return tmp_path


def look(root: Path, **options: Any) -> Any:
    return scan(find_sources(root, "train"), **({"crop_size": 16} | options))


def refused(root: Path, **options: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        look(root, **options)
    assert caught.value.exit_code == 2
    return caught.value


def test_good_data_passes_unchanged(unaligned: Path) -> None:
    sources, report = look(unaligned)
    assert sources == find_sources(unaligned, "train")
    assert (report.bad, report.notes()) == ((), [])
    assert report.sizes == {(24, 18): 8}
    assert report.modes == {"RGB": 8}


def test_all_bad_files_are_listed_at_once_or_left_out(unaligned: Path) -> None:
    folder = unaligned / "trainA"
    whole = noise(unaligned / "whole.jpg", (64, 64)).read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:600])
    (folder / "empty.png").touch()
    (folder / "folder.png").mkdir()
    (folder / "link.png").symlink_to("gone.png")
    (folder / "page.jpg").write_text("<html>404</html>")
    flipped = bytearray((folder / "0.png").read_bytes())
    flipped[500] ^= 1
    (folder / "flipped.png").write_bytes(flipped)
    (folder / "._0.png").write_bytes(b"\x00\x05\x16\x07")
    before = {path: path.stat().st_size for path in folder.iterdir() if not path.is_symlink()}
    error = refused(unaligned)
    assert error.subject == str(unaligned)
    assert error.reason == "7 of 15 images cannot be used"
    assert "--skip_bad" in error.fix
    expected = ["cut.jpg", "cut.png", "empty.png", "flipped.png", "folder.png", "link.png", "page.jpg"]
    assert [line.split(":")[0] for line in error.details] == [f"trainA/{name}" for name in expected]
    sources, report = look(unaligned, skip_bad=True)
    assert [path.name for path in sources.a] == ["0.png", "1.png", "2.png", "3.png"]
    assert report.bad == error.details
    assert report.notes()[0].startswith("7 files left out: trainA/cut.jpg: ")
    assert before == {path: path.stat().st_size for path in folder.iterdir() if not path.is_symlink()}


def test_a_single_bad_file_is_the_subject(unaligned: Path) -> None:
    (unaligned / "trainB" / "2.png").write_bytes(b"")
    error = refused(unaligned)
    path = unaligned / "trainB" / "2.png"
    assert str(error) == f"{path}: is empty (zero bytes) (replace or remove it; or --skip_bad)"


def test_a_bad_file_takes_its_partner_with_it(paired: Path) -> None:
    (paired / "B" / "train" / "2.png").write_bytes(b"")
    sources, _ = look(paired, skip_bad=True)
    for files in (sources.a, sources.b):
        assert [path.name for path in files] == ["0.png", "1.png", "3.png"]


def test_nothing_left_is_refused_also_with_skip_bad(unaligned: Path) -> None:
    for path in (unaligned / "trainA").iterdir():
        path.write_bytes(b"")
    assert refused(unaligned, skip_bad=True).reason == "no usable image is left"


def test_pairs_of_unequal_size_are_named_with_both_sizes(paired: Path) -> None:
    noise(paired / "B" / "train" / "1.png", (20, 18))
    error = refused(paired)
    assert error.subject == str(paired / "A" / "train" / "1.png")
    assert error.reason == "is 24x18, its partner B/train/1.png 20x18"
    assert len(look(paired, independent=True)[0].b) == 4
    assert [path.name for path in look(paired, skip_bad=True)[0].b] == ["0.png", "2.png", "3.png"]


def test_sizes_of_pairs_are_compared_upright(paired: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(paired / "B" / "train" / "1.png", (18, 24), exif=exif)
    assert look(paired)[1].sizes == {(24, 18): 8}


def test_side_by_side_files(tmp_path: Path) -> None:
    noise(tmp_path / "train" / "0.png", (32, 16))
    noise(tmp_path / "train" / "1.png", (33, 16))
    error = refused(tmp_path)
    assert (error.subject, error.reason[-5:]) == (str(tmp_path / "train" / "1.png"), "33x16")
    sources, report = look(tmp_path, skip_bad=True)
    assert sources.a == sources.b == (tmp_path / "train" / "0.png",)
    assert not report.same_files
    noise(tmp_path / "train" / "1.png", (16, 16))  # its halves are 8 wide
    assert "8x16, smaller than --crop_size 16" in refused(tmp_path, preprocess="crop").reason
    assert len(look(tmp_path)[0].a) == 2


def test_too_small_for_the_crop_or_for_anything(unaligned: Path) -> None:
    assert refused(unaligned, crop_size=20, preprocess="crop").reason == "8 of 8 images cannot be used"
    assert len(look(unaligned, crop_size=20)[0].a) == 4
    noise(unaligned / "trainA" / "1.png", (1, 1))
    assert refused(unaligned).reason == "image is 1x1, needs at least 2x2"


def test_what_is_converted_is_counted(unaligned: Path) -> None:
    with Image.open(unaligned / "trainA" / "0.png") as picture:
        picture.load()
    picture.convert("L").save(unaligned / "trainA" / "1.png")
    picture.convert("RGBA").save(unaligned / "trainA" / "2.png")
    picture.quantize().save(unaligned / "trainB" / "1.png")
    picture.save(unaligned / "trainB" / "9.gif", save_all=True, append_images=[picture.rotate(90)])
    (unaligned / "trainB" / "0.png").unlink()
    _, report = look(unaligned)
    with Image.open(unaligned / "trainB" / "9.gif") as gif:
        assert report.modes == Counter(["RGB"] * 4 + ["L", "RGBA", "P", gif.mode])
    assert report.converted["alpha"] == 1
    assert report.several_frames == 1
    assert report.notes() == [
        "1 file with several frames or pages (2 in trainB/9.gif): the first is used",
        f"converted to 8 bits a channel: 1 alpha, {report.converted['palette']} palette",
        "1 file grey among colour",
    ]


def test_a_sliver_of_the_value_range_and_flat_pictures_are_told(unaligned: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(4):
        values = rng.integers(0, 4096, (18, 24), dtype=np.uint16)
        values[0, :2] = 0, 4095
        (unaligned / "trainA" / f"{i}.png").unlink()
        tifffile.imwrite(unaligned / "trainA" / f"{i}.tif", values)
    Image.new("RGBA", (24, 18), (255, 255, 255, 90)).save(unaligned / "trainB" / "0.png")
    sliver, flat = [note for note in look(unaligned)[1].notes() if note[1] == ":"]
    assert sliver == "A: values use 0..4095 of 65535 (--value_range_A 0,4095 or auto stretches them)"
    assert flat == "B: 1 of 4 files of nearly one colour (first: trainB/0.png)"


def ranges(root: Path, a: Any, b: Any = None) -> Any:
    return scan(replace(find_sources(root, "train"), ranges=(a, b)), crop_size=16)


def test_a_value_range_stretches_and_counts_what_it_clips(unaligned: Path) -> None:
    for i in range(4):
        (unaligned / "trainA" / f"{i}.png").unlink()
        values = np.linspace(-100 * i, 1000, 24 * 18).reshape(18, 24).astype(np.int16)
        tifffile.imwrite(unaligned / "trainA" / f"{i}.tif", values)
    assert "--value_range" in refused(unaligned).details[0]
    sources, report = ranges(unaligned, "auto")
    assert sources.ranges == ((-300, 1000), None)
    assert report.values["A"].clipped == 0
    darkest = np.asarray(sources.load_a(3))
    assert (darkest.min(), darkest.max()) == (0, 255)
    assert np.asarray(sources.load_a(0)).min() == round(300 / 1300 * 255)
    sources, report = ranges(unaligned, (0.0, 500.0))
    below = sum(np.count_nonzero(np.linspace(-100 * i, 1000, 432).astype(np.int16) < 0) for i in range(4))
    above = sum(np.count_nonzero(np.linspace(-100 * i, 1000, 432).astype(np.int16) > 500) for i in range(4))
    assert f"A: {below + above} values outside the value range 0,500 are clipped" in report.notes()


def test_a_value_range_of_8_bits_leaves_alpha_alone(tmp_path: Path) -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    picture = Image.merge("LA", [Image.fromarray(values), Image.fromarray(255 - values)])
    picture.save(tmp_path / "x.png")
    got = np.asarray(load_image(tmp_path / "x.png", 2, (10, 20)))
    assert np.array_equal(got[..., 0], np.rint((values.clip(10, 20) - 10.0) * 25.5))
    assert np.array_equal(got[..., 1], 255 - values)


def test_auto_needs_one_number_format_and_more_than_one_value(unaligned: Path) -> None:
    tifffile.imwrite(unaligned / "trainA" / "0.tif", np.zeros((18, 24), np.uint16))
    with pytest.raises(UserError, match="several number formats"):
        ranges(unaligned, "auto")
    for path in (unaligned / "trainA").glob("*.png"):
        path.unlink()
    with pytest.raises(UserError, match=r"all values of .* are 0"):
        ranges(unaligned, "auto")


def test_what_else_the_folders_hold_is_named(unaligned: Path) -> None:
    (unaligned / "trainA" / "more").mkdir()
    (unaligned / "trainB" / "x.heic").touch()
    (unaligned / "trainB" / "y.DCM").touch()
    assert look(unaligned)[1].notes() == [
        "left out: trainA: 1 folder (first: more)",
        "left out: trainB: 2 files of other kinds (.dcm .heic)",
    ]


def test_folders_of_other_programs_are_told(tmp_path: Path) -> None:
    noise(tmp_path / "train_label" / "0.png"), noise(tmp_path / "train_img" / "0.png")
    assert look(tmp_path)[1].notes() == ["layout: A is train_label, B is train_img: paired"]


def test_a_and_b_of_the_same_files_is_worth_a_note(unaligned: Path) -> None:
    shutil.rmtree(unaligned / "trainB")
    (unaligned / "trainB").symlink_to(unaligned / "trainA")
    assert look(unaligned)[1].notes() == ["A and B are the same files"]


def test_the_fingerprint_knows_the_data_again_and_every_change(
    unaligned: Path, tmp_path_factory: Any
) -> None:
    first = look(unaligned)[1]
    copy = tmp_path_factory.mktemp("copy") / "elsewhere"
    shutil.copytree(unaligned, copy)  # other folder, other times
    assert look(copy)[1].fingerprint == first.fingerprint
    assert look(copy, skip_bad=True)[1].listing == first.listing
    assert changes(first.listing, first.listing) == ""
    path = copy / "trainA" / "1.png"
    content = bytearray(path.read_bytes())
    path.write_bytes(path.read_bytes() + b"x")
    assert look(copy)[1].fingerprint != first.fingerprint
    noise(path, seed=50)
    altered = look(copy)[1]
    assert altered.fingerprint != first.fingerprint
    assert changes(first.listing, altered.listing) == "8 -> 8 files; 1 altered (first: trainA/1.png)"
    path.write_bytes(content)
    os.utime(path, (1, 1))
    assert look(copy)[1].fingerprint == first.fingerprint
    path.unlink()
    noise(copy / "trainB" / "a b.png")
    told = changes(first.listing, look(copy)[1].listing)
    assert told == "8 -> 8 files; 1 added (first: trainB/a b.png), 1 removed (first: trainA/1.png)"


def test_a_file_that_has_not_changed_is_read_once(unaligned: Path, monkeypatch: Any) -> None:
    reads = []
    original = check._read

    def counted(path: Path, *how: Any) -> check.FileRecord:
        reads.append(path)
        return original(path, *how)

    monkeypatch.setattr(check, "_read", counted)
    look(unaligned)
    assert len(reads) == 8
    look(unaligned)
    assert len(reads) == 8
    noise(unaligned / "trainA" / "0.png", (26, 18))
    look(unaligned)
    assert len(reads) == 9


def test_ctrl_c_ends_the_scan_and_its_threads(unaligned: Path, monkeypatch: Any) -> None:
    def interrupt(*_: Any) -> check.FileRecord:
        raise KeyboardInterrupt

    monkeypatch.setattr(check, "_read", interrupt)
    threads = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        look(unaligned)
    assert set(threading.enumerate()) <= threads


def test_a_side_by_side_file_is_decoded_once(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "train").mkdir()
    tifffile.imwrite(tmp_path / "train" / "x.tif", np.arange(512, dtype=np.uint16).reshape(16, 32))
    decoded: list[Path] = []
    read_tiff = images.read_tiff
    monkeypatch.setattr(
        images, "read_tiff", lambda path, *limits: decoded.append(path) or read_tiff(path, *limits)
    )
    assert ranges(tmp_path, "auto", (0.0, 500.0))[0].ranges == ((0, 495), (0, 500))
    assert len(decoded) == 1


def test_the_halves_of_a_file_have_their_own_value_ranges(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    a = np.linspace(-100, 1000, 256).astype(np.int16).reshape(16, 16)
    b = np.linspace(0, 30_000, 256).astype(np.int16).reshape(16, 16)
    tifffile.imwrite(tmp_path / "train" / "x.tif", np.concatenate([a, b], 1))
    sources, report = ranges(tmp_path, "auto")
    assert sources.ranges == ((-100, 1000), None)
    assert np.asarray(sources.load_a(0)).max() == 255
    sources, report = ranges(tmp_path, (0.0, 1000.0), (0.0, 20_000.0))
    for domain, half, limit in (("A", a, 1000), ("B", b, 20_000)):
        outside = np.count_nonzero((half < 0) | (half > limit))
        note = f"{domain}: {outside} values outside the value range 0,{limit} are clipped"
        assert note in report.notes()
    with pytest.raises(UserError, match="negative values"):
        ranges(tmp_path, None, (0.0, 20_000.0))
