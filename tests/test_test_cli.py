"""test.py: folders and test splits in, pictures and a results page out."""

import html.parser
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image
from training_support import (
    ROOT,
    Outcome,
    environment,
    picture,
    translate,
    tree,
    untrained_run,
    write_aligned,
    write_unaligned,
)

from datasets.images import to_picture, to_tensor
from gan.translate import Translator


@pytest.fixture(scope="module")
def unaligned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_unaligned(tmp_path_factory.mktemp("data") / "u")


@pytest.fixture(scope="module")
def runs(unaligned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with a CycleGAN `r` on unaligned data."""
    folder = tmp_path_factory.mktemp("runs")
    untrained_run(folder, "--norm", "nc_ms", "--dataroot", unaligned)
    return folder


def run_on(runs: Path, source: Path, output: Path, *more: object) -> Outcome:
    return translate(
        "--name", "r", "--checkpoints_dir", runs, "--device", "cpu", "--input", source, "--output", output, *more
    )  # fmt: skip


def split(runs: Path, results: Path, *more: object) -> Outcome:
    return translate(
        "--name", "r", "--checkpoints_dir", runs, "--device", "cpu", "--results_dir", results, *more
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of every kind, none of which needs --skip_bad."""
    source = tmp_path / "in"
    source.mkdir()
    picture(20, 16, 1).save(source / "plain.png")
    picture(33, 17, 2).save(source / "photo.jpg")
    picture(16, 16, 3, "L").save(source / "grey.png")
    picture(16, 16, 4, "P").save(source / "palette.png")
    picture(16, 16, 5).save(source / "plain.jpg")
    picture(2, 2, 6).save(source / "tiny.webp", lossless=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    picture(24, 10, 7).save(source / "turned.jpg", exif=exif)
    (source / "notes.txt").write_text("not a picture")
    return source


def test_a_folder_keeps_names_and_sizes(runs: Path, folder: Path, tmp_path: Path) -> None:
    before = tree(folder)
    outcome = run_on(runs, folder, tmp_path / "new" / "out", "--batch_size", 2)
    assert outcome.code == 0, outcome.err
    assert "7 pictures translated AtoB (epoch 3)" in outcome.out
    sizes = {path.name: Image.open(path).size for path in (tmp_path / "new" / "out").iterdir()}
    assert sizes == {
        "plain.png.png": (20, 16), "plain.jpg.png": (16, 16), "photo.png": (33, 17), "grey.png": (16, 16),
        "palette.png": (16, 16), "tiny.png": (2, 2), "turned.png": (10, 24),
    }  # fmt: skip
    assert tree(folder) == before


def test_the_pixels_are_those_of_the_network(runs: Path, folder: Path, tmp_path: Path) -> None:
    """Against a second way from a file to a file: numpy and the generator alone."""
    assert run_on(runs, folder / "plain.png", tmp_path / "out").code == 0
    pixels = np.asarray(Image.open(folder / "plain.png"), np.float32)
    translator = Translator.load(runs / "r", device="cpu")
    x = torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)[None]
    with torch.no_grad():
        y = translator.network(x)[0].permute(1, 2, 0).numpy()
    written = np.asarray(Image.open(tmp_path / "out" / "plain.png"), np.float32)
    assert np.abs(written - (y + 1) * 127.5).max() <= 0.51


@pytest.fixture
def shrunk(tmp_path: Path) -> Path:
    """A run whose training saw pictures of 60 x 40 pixels at 20 x 20: a third and a half of their size."""
    untrained_run(tmp_path / "shrunk", sizes={"A": (60.0, 40.0), "B": (20.0, 20.0)})
    picture(90, 44, 1).save(tmp_path / "x.png")
    return tmp_path


def translation(folder: Path, *flags: object) -> tuple[np.ndarray, str]:
    outcome = run_on(folder / "shrunk", folder / "x.png", folder / "out", *flags)
    assert outcome.code == 0, outcome.err
    return np.asarray(Image.open(folder / "out" / "x.png"), int), outcome.err


@pytest.mark.parametrize(
    ("flags", "seen", "told"),
    [
        ([], (30, 22), "at the scale of training, 0.333 x 0.5"),
        (["--scale", "trained"], (30, 22), "at the scale of training, 0.333 x 0.5"),
        (["--scale", "native"], (90, 44), "at the pictures' own size"),
        (["--scale", "0.5"], (45, 22), "at 0.5 times the pictures' size"),
        (["--direction", "BtoA"], (90, 44), "near the size in training"),
    ],
)
def test_a_picture_is_seen_at_the_scale_of_training(
    shrunk: Path, flags: list[str], seen: tuple[int, int], told: str
) -> None:
    """Against Pillow's resize and the generator alone."""
    found, err = translation(shrunk, *flags)
    direction = "BtoA" if "BtoA" in flags else "AtoB"
    translator = Translator.load(shrunk / "shrunk" / "r", device="cpu", direction=direction)
    image = Image.open(shrunk / "x.png").resize(seen, Image.Resampling.BICUBIC)
    small = to_picture(translator(to_tensor(image)[None])[0])
    assert np.array_equal(found, np.asarray(small.resize((90, 44), Image.Resampling.BICUBIC), int))
    assert told in err


def test_a_run_without_sizes_translates_as_it_is_and_says_so(runs: Path, tmp_path: Path) -> None:
    picture(90, 44, 1).save(tmp_path / "x.png")
    outcome = run_on(runs, tmp_path / "x.png", tmp_path / "out")
    assert "the size of the training pictures is not known" in outcome.err


@pytest.mark.parametrize(
    "flags", [["--scale", "native", "--size", "8"], ["--scale", "0"], ["--scale", "big"]]
)
def test_a_scale_that_cannot_be(shrunk: Path, flags: list[str]) -> None:
    outcome = run_on(shrunk / "shrunk", shrunk / "x.png", shrunk / "out", *flags)
    assert outcome.code == 2 and "--scale" in outcome.error
    assert not (shrunk / "out").exists()


def test_a_scale_for_which_there_is_no_memory_names_the_flag(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    picture(20, 16, 1).save(tmp_path / "in" / "x.png")

    def no_memory(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "resize", no_memory)
    outcome = run_on(runs, tmp_path / "in", tmp_path / "out", "--scale", 100)
    assert outcome.code == 1 and "out of memory at 2000x1600 pixels (give a smaller --scale" in outcome.error


def test_batches_write_the_pictures_of_one_by_one(runs: Path, folder: Path, tmp_path: Path) -> None:
    for count in (1, 3):
        assert run_on(runs, folder, tmp_path / str(count), "--batch_size", count).code == 0
    for path in (tmp_path / "1").iterdir():
        one, three = (np.asarray(Image.open(tmp_path / way / path.name), int) for way in "13")
        assert np.abs(one - three).max() <= 1


def test_size_and_number_can_be_forced(runs: Path, folder: Path, tmp_path: Path) -> None:
    assert run_on(runs, folder, tmp_path / "out", "--size", 12, "--num_test", 3).code == 0
    assert [Image.open(path).size for path in (tmp_path / "out").iterdir()] == [(12, 12)] * 3


def test_names_that_need_care(runs: Path, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    names = ["<script>alert(1)<", "-rf", "a b", "ünï", "new\nline", "100%", "#1", os.fsdecode(b"\xff\xfe")]
    for name in names:
        picture(8, 8).save(source / f"{name}.png")
    outcome = run_on(runs, source, tmp_path / "out")
    assert outcome.code == 0, outcome.err
    assert {path.stem for path in (tmp_path / "out").iterdir()} == set(names)


def test_a_name_does_not_depend_on_pictures_that_are_skipped(runs: Path, tmp_path: Path) -> None:
    """`a.png` alone would become `a.png`, which is the picture itself."""
    (tmp_path / "a.jpg").write_bytes(b"damaged")
    picture(8, 8).save(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    outcome = run_on(
        runs, tmp_path / "a.jpg", tmp_path, "--skip_bad", "--input", tmp_path / "a.jpg", tmp_path / "a.png"
    )
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "a.png").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"a.jpg", "a.png", "a.png.png"}


def test_the_input_folder_is_no_output_folder(runs: Path, folder: Path, tmp_path: Path) -> None:
    before = tree(tmp_path)
    (tmp_path / "link").symlink_to(folder)
    for source, output in ((folder, folder), (folder, tmp_path / "link"), (folder / "plain.png", folder)):
        outcome = run_on(runs, source, output)
        assert outcome.code == 2 and "is the input folder" in outcome.error
    (tmp_path / "link").unlink()
    assert tree(tmp_path) == before
    assert run_on(runs, folder / "photo.jpg", folder).code == 0  # beside it, under another name
    assert tree(tmp_path).keys() - before.keys() == {"in/photo.png"}


def test_several_pictures_as_a_shell_expands_them(runs: Path, folder: Path, tmp_path: Path) -> None:
    given = [
        "--name",
        "r",
        "--checkpoints_dir",
        runs,
        "--device",
        "cpu",
        "--output",
        tmp_path / "out",
        "--input",
    ]
    outcome = translate(*given, *sorted(folder.glob("*.png")), folder / "plain.jpg")
    assert outcome.code == 0, outcome.err
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"grey.png", "palette.png", "plain.png.png", "plain.jpg.png"}
    (folder / "sub").mkdir()
    shutil.copy(folder / "grey.png", folder / "sub")
    for wrong in (folder, folder / "sub" / "grey.png"):
        outcome = translate(*given, folder / "grey.png", wrong)
        assert outcome.code == 2 and "several folders, or pictures of one name" in outcome.error


def test_one_bad_file_stops_before_anything_is_written(runs: Path, folder: Path, tmp_path: Path) -> None:
    (folder / "bad.png").write_bytes((folder / "plain.png").read_bytes()[:40])
    Image.new("RGB", (1, 9)).save(folder / "thin.png")
    before = tree(tmp_path)
    outcome = run_on(runs, folder, tmp_path / "a" / "out")
    assert outcome.code == 2
    assert "2 of 9 images cannot be used" in outcome.error and "--skip_bad" in outcome.error
    assert "bad.png" in outcome.err and "thin.png: image is 1x9, needs at least 2x2" in outcome.err
    assert tree(tmp_path) == before
    skipped = run_on(runs, folder, tmp_path / "out", "--skip_bad")
    assert skipped.code == 0 and "7 pictures translated" in skipped.out
    assert len(list((tmp_path / "out").iterdir())) == 7


def test_nothing_usable_is_refused_with_skip_bad_too(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("x")
    assert run_on(runs, tmp_path / "bad.png", tmp_path / "out", "--skip_bad").code == 2
    assert not (tmp_path / "out").exists()


# --- the test split and its page


class Page(html.parser.HTMLParser):
    """Pictures and tags of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.pictures: list[Path] = []
        self.text = ""
        self._folder = path.parent
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "img":
            self.pictures.append(self._folder / unquote(dict(attrs)["src"] or "", errors="surrogateescape"))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize(("direction", "source", "target"), [("AtoB", "A", "B"), ("BtoA", "B", "A")])
def test_the_test_split_of_unpaired_data(
    runs: Path, tmp_path: Path, direction: str, source: str, target: str
) -> None:
    outcome = split(runs, tmp_path, "--direction", direction)
    assert outcome.code == 0, outcome.err
    folder = tmp_path / "r" / f"test_last_{direction}"
    assert str(folder / "index.html") in outcome.out
    names = {path.name for path in (folder / "images").iterdir()}
    assert names == {f"p{k}_{kind}.png" for k in range(3) for kind in (f"real_{source}", f"fake_{target}")}
    page = Page(folder / "index.html")
    assert all(path.is_file() for path in page.pictures) and len(page.pictures) == 6
    assert "script" not in page.tags and f"translated to {target}" in page.text


@pytest.mark.parametrize("direction", ["AtoB", "BtoA"])
def test_the_test_split_of_pairs_shows_the_targets(tmp_path: Path, direction: str) -> None:
    data = write_aligned(tmp_path / "data")
    untrained_run(tmp_path / "runs", "--model", "pix2pix", "--dataroot", data, "--direction", direction)
    assert split(tmp_path / "runs", tmp_path / "results").code == 0
    folder = tmp_path / "results" / "r" / f"test_last_{direction}"
    halves = np.asarray(Image.open(data / "test" / "p1.png"))
    for side, expected in (("A", halves[:, :20]), ("B", halves[:, 20:])):
        assert (np.asarray(Image.open(folder / "images" / f"p1_real_{side}.png")) == expected).all()
    source, target = direction.split("to")
    order = [path.name.rsplit("_", 2)[1:] for path in Page(folder / "index.html").pictures[:3]]
    assert order == [["real", f"{source}.png"], ["fake", f"{target}.png"], ["real", f"{target}.png"]]


def test_names_are_escaped_on_the_page(tmp_path: Path) -> None:
    data = write_unaligned(tmp_path / "data", 1)
    (data / "testA" / "p0.png").rename(data / "testA" / "<script>alert(1)<.png")
    for name in ("a&b \"c\" 'd'.png", "100%#?.png", os.fsdecode(b"\xff.png")):
        picture(8, 8).save(data / "testA" / name)
    untrained_run(tmp_path / "runs", "--dataroot", data)
    outcome = split(tmp_path / "runs", tmp_path / "results")
    assert outcome.code == 0, outcome.err
    page = Page(tmp_path / "results" / "r" / "test_last_AtoB" / "index.html")
    assert "script" not in page.tags and "<script>alert(1)<" in page.text and "a&b \"c\" 'd'" in page.text
    assert len(page.pictures) == 8 and all(path.is_file() for path in page.pictures)


def test_a_bad_picture_of_the_split(tmp_path: Path) -> None:
    data = write_aligned(tmp_path / "data")
    (data / "test" / "p1.png").write_bytes(b"")
    picture(21, 10).save(data / "test" / "odd.png")
    untrained_run(tmp_path / "runs", "--model", "pix2pix", "--dataroot", data)
    outcome = split(tmp_path / "runs", tmp_path / "results")
    assert outcome.code == 2 and "p1.png" in outcome.err and "odd.png" in outcome.err
    assert not (tmp_path / "results").exists()
    skipped = split(tmp_path / "runs", tmp_path / "results", "--skip_bad")
    assert skipped.code == 0 and "2 pictures translated" in skipped.out


def test_data_that_has_gone_or_moved(tmp_path: Path) -> None:
    data = write_unaligned(tmp_path / "data")
    untrained_run(tmp_path / "runs", "--dataroot", data)
    moved = data.rename(tmp_path / "moved")
    outcome = split(tmp_path / "runs", tmp_path / "results")
    assert outcome.code == 2
    assert str(data)[-60:] in outcome.error and "--dataroot" in outcome.error
    assert not (tmp_path / "results").exists()
    assert split(tmp_path / "runs", tmp_path / "results", "--dataroot", moved, "--num_test", 2).code == 0
    assert len(list((tmp_path / "results" / "r" / "test_last_AtoB" / "images").iterdir())) == 4


def test_a_plain_folder_is_read_with_the_value_range_of_its_domain(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    Image.new("RGB", (16, 16), (50, 50, 50)).save(tmp_path / "plain" / "x.png")
    ranges = ("--value_range_A", "0,100", "--value_range_B", "0,200")
    untrained_run(tmp_path / "runs", "--dataroot", write_unaligned(tmp_path / "data"), *ranges)
    for direction, domain, expected in (("AtoB", "A", 128), ("BtoA", "B", 64)):
        flags = ("--dataroot", tmp_path / "plain", "--direction", direction)
        outcome = split(tmp_path / "runs", tmp_path, *flags)
        assert outcome.code == 0, outcome.err
        page = tmp_path / "r" / f"test_last_{direction}"
        with Image.open(page / "images" / f"x_real_{domain}.png") as seen:
            assert seen.getpixel((0, 0)) == (expected,) * 3


# --- runs and checkpoints


def test_flags_of_the_command(runs: Path, folder: Path, tmp_path: Path) -> None:
    assert "error: --name: is required" in translate().error
    assert "--output" in translate("--name", "r", "--input", folder).error
    assert "--input" in translate("--name", "r", "--output", folder).error
    flags = {
        "--size": (1, 10**6),
        "--num_test": (0, 10**30),
        "--batch_size": (0, 10**30),
        "--epoch": ("9" * 5000,),
    }
    for flag, value in ((flag, value) for flag, values in flags.items() for value in values):
        outcome = run_on(runs, folder, tmp_path / "out", flag, value)
        assert f"error: {flag}: is {str(value)[:30]}" in outcome.error and "(allowed: " in outcome.error
    assert run_on(runs, folder, tmp_path / "out", "--direction", "AtoC").code == 2
    assert run_on(runs, folder, tmp_path / "out", "--epoch", "first").code == 2
    assert not (tmp_path / "out").exists()


def test_an_unknown_run_lists_those_that_are_there(runs: Path, tmp_path: Path) -> None:
    outcome = translate("--name", "x", "--checkpoints_dir", runs)
    assert outcome.code == 2 and "no such run" in outcome.error and "runs there: r" in outcome.error
    assert "no run is there" in translate("--name", "x", "--checkpoints_dir", tmp_path).error
    assert translate("--name", "../r", "--checkpoints_dir", runs).code == 2


def test_a_damaged_checkpoint(tmp_path: Path, folder: Path) -> None:
    """The newest one falls back to the one before; one that was asked for by number does not."""
    run = untrained_run(tmp_path / "runs", epoch=2)
    untrained_run(tmp_path / "runs", epoch=3)
    newest = run / "ckpt-00000006.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    outcome = run_on(tmp_path / "runs", folder, tmp_path / "out")
    assert outcome.code == 0 and "(epoch 2)" in outcome.out
    assert "warning: " in outcome.err and newest.name in outcome.err
    asked = run_on(tmp_path / "runs", folder, tmp_path / "asked", "--epoch", 3)
    assert asked.code == 2 and "incomplete" in asked.error
    older = run / "ckpt-00000004.safetensors"
    data = bytearray(older.read_bytes())
    data[len(data) // 2] ^= 1
    older.write_bytes(data)
    neither = run_on(tmp_path / "runs", folder, tmp_path / "neither")
    assert neither.code == 2 and "no valid checkpoint" in neither.error
    assert not (tmp_path / "asked").exists() and not (tmp_path / "neither").exists()


def test_a_copied_run_needs_nothing_else(runs: Path, folder: Path, tmp_path: Path) -> None:
    """The checkpoint alone knows the options: options.yaml may be missing, and the current folder is of no account."""
    copy = shutil.copytree(runs, tmp_path / "copy")
    (copy / "r" / "options.yaml").unlink()
    assert run_on(runs, folder, tmp_path / "one").code == 0
    assert run_on(copy, folder, tmp_path / "two").code == 0
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_the_real_command_from_another_folder(runs: Path, folder: Path, tmp_path: Path) -> None:
    arguments = ["--name", "r", "--checkpoints_dir", str(runs), "--input", "in", "--output", "sub dir/out"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "test.py"), *arguments],
        cwd=tmp_path, env=environment() | {"LANG": "C", "LC_ALL": "C"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "sub dir" / "out").iterdir())) == 7


MEMORY = """
import sys
from pathlib import Path
from gan.translate_command import run_test
from gan.translation_options import TranslationOptions
def resident(source):
    options = TranslationOptions(name="r", checkpoints_dir="runs", input=(source,), output="out", device="cpu")
    run_test(options)
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
first = resident("few")
print(resident("many") - first)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux: reads /proc")
def test_memory_does_not_grow_with_the_number_of_files(tmp_path: Path) -> None:
    untrained_run(tmp_path / "runs", "--ngf", 1)
    for source, count in (("few", 100), ("many", 1500)):
        (tmp_path / source).mkdir()
        for k in range(count):
            Image.new("RGB", (8, 8), (k % 256, 0, 0)).save(tmp_path / source / f"{k}.bmp")
    done = subprocess.run(
        [sys.executable, "-c", MEMORY],
        cwd=tmp_path, env=environment() | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").iterdir())) == 1500
    grown = int(done.stdout.split()[-1])
    assert grown < 12e6, f"{grown / 1e6:.1f} MB more for 1400 files more"


KILLED = """
import itertools, os, signal, sys
from datasets import files, images

def third_time_killed(path, data, durable=True, calls=itertools.count(1)):
    call = next(calls)  # no two threads get the same number
    with files.replacing(path, durable) as write:
        write(data)
        if call == 3:
            os.kill(os.getpid(), signal.SIGKILL)

images.write_atomically = third_time_killed
import runpy
runpy.run_path("test.py", run_name="__main__")
"""


def test_a_kill_leaves_no_half_file(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for k in range(5):
        picture(20, 16, k).save(tmp_path / "in" / f"{k}.png")
    flags = [
        "--name",
        "r",
        "--checkpoints_dir",
        runs,
        "--device",
        "cpu",
        "--input",
        tmp_path / "in",
        "--output",
    ]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, flags), tmp_path / "out"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert len([name for name in left if name.endswith(".tmp")]) > 0
    assert translate(*flags, tmp_path / "whole").code == 0
    for name in left:
        if name.endswith(".png"):
            assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert translate(*flags, tmp_path / "out").code == 0
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
