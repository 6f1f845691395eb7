"""The embedded data: what is written, that it is the same everywhere, that recolouring cannot solve it."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image, ImageDraw

from datasets.errors import UserError
from datasets.synthetic import write_dataset
from datasets.towns import EXTENT, MATERIALS, Thing, Town, draw, pixels_of


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def draw_pair(
    seed: int, split: str, index: int, size: int, task: str = "map"
) -> tuple[Image.Image, Image.Image]:
    town = Town(seed, split, index)
    return draw(town, "photo", size), draw(town, task, size)


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "datasets.synthetic", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_aligned_counts_sizes_and_sides(tmp_path: Path) -> None:
    assert write_dataset(tmp_path / "towns", 10, 32) == {"train": 10, "val": 2, "test": 2}
    for split, count in (("train", 10), ("val", 2), ("test", 2)):
        found = sorted((tmp_path / "towns" / split).iterdir())
        assert len(found) == count
        for path in found:
            with Image.open(path) as image:
                assert (image.format, image.mode, image.size) == ("PNG", "RGB", (64, 32))
    photo, street_map = draw_pair(0, "train", 3, 32)
    with Image.open(tmp_path / "towns/train/town_00003.png") as both:
        assert both.crop((0, 0, 32, 32)).tobytes() == photo.tobytes()
        assert both.crop((32, 0, 64, 32)).tobytes() == street_map.tobytes()


def test_unaligned_has_other_towns_in_train_and_the_same_in_test(tmp_path: Path) -> None:
    counts = write_dataset(tmp_path / "towns", 3, 16, "unaligned", seed=5)
    assert counts == {"trainA": 3, "trainB": 3, "testA": 2, "testB": 2}

    def pixels(name: str, k: int) -> bytes:
        with Image.open(tmp_path / "towns" / name / f"town_{k:05d}.png") as image:
            assert image.size == (16, 16)
            return image.tobytes()

    for k in range(3):
        photo, street_map = draw_pair(5, "train", k, 16)
        assert pixels("trainA", k) == photo.tobytes()
        assert pixels("trainB", k) != street_map.tobytes()
    for k in range(2):
        assert (pixels("testA", k), pixels("testB", k)) == tuple(
            x.tobytes() for x in draw_pair(5, "test", k, 16)
        )


def test_towns_depend_on_seed_split_and_number_only(tmp_path: Path) -> None:
    write_dataset(tmp_path / "few", 2, 16, seed=1)
    write_dataset(tmp_path / "many", 11, 16, seed=1)
    few, many = files(tmp_path / "few"), files(tmp_path / "many")
    assert few.items() <= many.items()
    assert len(set(many.values())) == len(many)
    write_dataset(tmp_path / "other", 2, 16, seed=2)
    assert not set(files(tmp_path / "other").values()) & set(few.values())


def test_pixels_are_the_same_on_every_machine() -> None:
    """Recorded once. A change here changes everybody's embedded data, so it has to be on purpose."""
    digest = hashlib.sha256()
    for k in range(3):
        for look in ("photo", "night", "map"):
            digest.update(draw(Town(7, "train", k), look, 64, extent=200).tobytes())
    assert digest.hexdigest() == "9f3e4720c7697d743d9c9a9f25e453dcbc63d9db688a66f5bc2a0160fb626bed"


def test_every_picture_shows_the_same_town() -> None:
    """Roofs of the geometry have the map's colour at their middles, and at night only the windows shine."""
    size, roofs, windows = 128, 0, 0
    for k in range(3):
        town = Town(0, "train", k)
        street_map, night = (np.asarray(draw(town, look, size)).astype(int) for look in ("map", "night"))
        dark = np.ones((size, size), bool)
        for thing in town.things:
            corners = np.array(thing.points) * size / EXTENT + size / 2
            x, y = corners.mean(axis=0).astype(int)
            inside = 2 <= min(x, y) <= max(x, y) < size - 2
            if thing.material == "roof" and inside:
                assert np.abs(street_map[y, x] - MATERIALS["roof"].map).max() <= 1
                roofs += 1
            elif thing.material == "window":
                (left, top), (right, bottom) = corners.min(axis=0) - 1, corners.max(axis=0) + 1
                dark[max(int(top), 0) : int(bottom) + 1, max(int(left), 0) : int(right) + 1] = False
                assert not inside or night[y, x, 0] > 150
                windows += inside
        assert night[..., 0][dark].max() < 100
    assert roofs > 20
    assert windows > 100


def test_extent_shows_the_middle_at_the_same_scale() -> None:
    town = Town(0, "train", 1)
    whole, middle = np.asarray(draw(town, "map", 128)), np.asarray(draw(town, "map", 64, extent=EXTENT // 2))
    assert np.array_equal(middle, whole[32:96, 32:96])


@pytest.mark.parametrize(("task", "shares"), [("map", (0.7, 0.7)), ("night", (0.6, 0.2))])
def test_no_recolouring_solves_a_task(task: str, shares: tuple[float, float]) -> None:
    """The best affine colour map leaves more than these shares of the mean colour's error (A to B, B to A)."""
    pairs = [draw_pair(0, "train", k, 64, task) for k in range(12)]
    photos, others = (np.concatenate([np.asarray(p[i], float).reshape(-1, 3) for p in pairs]) for i in (0, 1))
    for source, target, share in zip((photos, others), (others, photos), shares, strict=True):
        x = np.concatenate([source, np.ones((len(source), 1))], axis=1)
        fitted = x @ np.linalg.lstsq(x, target, rcond=None)[0]
        assert ((fitted - target) ** 2).mean() > share * ((target.mean(0) - target) ** 2).mean()


def test_polygons_and_discs_against_pillow() -> None:
    """Pillow's own drawing on the fine grid agrees, except on pixels at the edge."""
    side = 192
    scale = side / EXTENT
    corners = [(40.0, 30.0), (200.0, 60.0), (180.0, 190.0), (20.0, 150.0)]
    middle = EXTENT / 2
    for thing, draw_it in (
        (
            Thing("roof", [(x - middle, y - middle) for x, y in corners]),
            lambda d: d.polygon([(x * scale, y * scale) for x, y in corners], fill=1),
        ),
        (
            Thing("crown", [(100 - middle, 120 - middle)], radius=60.0),
            lambda d: d.ellipse([40 * scale, 60 * scale, 160 * scale, 180 * scale], fill=1),
        ),
    ):
        ours = np.zeros((side, side), bool)
        window, mask = pixels_of(thing, side, EXTENT)
        ours[window] = mask
        picture = Image.new("L", (side, side))
        draw_it(ImageDraw.Draw(picture))
        theirs = np.asarray(picture) > 0
        assert theirs.sum() > 6_000
        assert (ours != theirs).sum() < 0.03 * theirs.sum()
    _, mask = pixels_of(Thing("crown", [(-200.0, 300.0)], radius=10.0), side, EXTENT)
    assert not mask.any()


@pytest.mark.parametrize(
    ("flag", "value"),
    [("count", 0), ("count", -3), ("size", 8), ("size", 4096), ("extent", 257), ("seed", -1)],
)
def test_values_out_of_range(tmp_path: Path, flag: str, value: int) -> None:
    arguments = {"count": 2, "size": 16, flag: value}
    with pytest.raises(UserError, match=f"--{flag}: {value} is out of range"):
        write_dataset(tmp_path / "towns", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_folder_with_files_is_untouched(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    result = run("--output", str(tmp_path), "--count", "2", "--size", "16")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith(f"error: {tmp_path}: is not empty")
    assert files(tmp_path) == {"mine.txt": b"kept"}


@pytest.mark.parametrize("output", ["/proc/none/towns", "{file}/towns", "{file}"])
def test_unwritable_output(tmp_path: Path, output: str) -> None:
    (tmp_path / "file").write_text("kept")
    result = run("--output", output.format(file=tmp_path / "file"), "--count", "2", "--size", "16")
    assert result.returncode == 2
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert files(tmp_path) == {"file": b"kept"}


def test_command_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = run("--output", str(tmp_path / "empty"), "--count", "2", "--size", "16", "--layout", "unaligned")
    assert (result.returncode, result.stderr) == (0, "")
    assert "trainA 2, trainB 2, testA 2, testB 2" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
    for wrong in (["--layout", "other"], ["--colour", "red"], ["--count", "two"]):
        result = run("--output", str(tmp_path / "new"), "--count", "2", "--size", "16", *wrong)
        assert result.returncode == 2 and wrong[0] in result.stderr
    assert not (tmp_path / "new").exists()
