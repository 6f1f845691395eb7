"""Bad input, one clear line each: the file or flag, the reason, the fix; exit code 2, no traceback, nothing on disk."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from training_support import (
    ROOT,
    TINY,
    Outcome,
    command,
    environment,
    picture,
    records,
    train,
    translate,
    tree,
    untrained_run,
    write_aligned,
    write_unaligned,
)


def write_paired(root: Path, count: int = 3, size: int = 20) -> Path:
    """A/train and B/train."""
    for number, folder in enumerate(("A/train", "B/train")):
        (root / folder).mkdir(parents=True)
        for k in range(count):
            picture(size, size, 10 * number + k).save(root / folder / f"p{k}.png")
    return root


def pair_sizes(root: Path) -> None:
    picture(18, 20).save(write_paired(root) / "B" / "train" / "p1.png")


def unmatched(root: Path) -> None:
    write_paired(root)
    (root / "A" / "train" / "p1.png").rename(root / "A" / "train" / "other.png")


def spoil(name: str, content: bytes) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        (write_unaligned(root) / "trainA" / name).write_bytes(content)

    return write


def truncate(name: str) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        file = write_unaligned(root) / "trainA" / name
        picture(64, 64).save(file)
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    return write


def flip_bits(root: Path) -> None:
    file = write_unaligned(root) / "trainA" / "p1.png"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)


def broken_link(root: Path) -> None:
    (write_unaligned(root) / "trainA" / "link.png").symlink_to(root / "nowhere.png")


def no_crop(root: Path) -> None:
    picture(12, 40).save(write_unaligned(root) / "trainB" / "small.png")


def thin(root: Path) -> None:
    Image.new("RGB", (1, 40)).save(write_unaligned(root) / "trainB" / "thin.png")


def odd_width(root: Path) -> None:
    Image.fromarray(np.zeros((20, 41, 3), np.uint8)).save(write_aligned(root) / "train" / "odd.png")


def one_sided(root: Path) -> None:
    shutil.rmtree(write_unaligned(root) / "trainB")


def empty(root: Path) -> None:
    root.mkdir()


def no_image(root: Path) -> None:
    for side in "AB":
        (root / f"train{side}").mkdir(parents=True)
        (root / f"train{side}" / "readme.txt").write_text("x")


def plain(root: Path) -> None:
    root.mkdir()
    picture(20, 20).save(root / "a.png")


def a_file(root: Path) -> None:
    root.write_text("x")


Case = tuple[Callable[[Path], object], list[str], list[str]]

DATA: dict[str, Case] = {
    "missing folder": (lambda root: None, [], ["no such folder"]),
    "a file": (a_file, [], ["is a file, a folder is needed"]),
    "empty folder": (empty, [], ["no data set here", "looked for trainA and trainB", "in it: nothing"]),
    "no image": (no_image, [], ["trainA: no image in it", "first readme.txt", ".png"]),
    "one plain folder": (plain, [], ["no train split", "trainA and trainB"]),
    "A without B": (one_sided, [], ["trainA without trainB", "(add trainB)"]),
    "zero bytes": (spoil("p1.png", b""), [], ["trainA/p1.png", "--skip_bad"]),
    "text": (spoil("new.jpg", b"hello"), [], ["trainA/new.jpg", "--skip_bad"]),
    "a page": (spoil("new.jpg", b"<!doctype html><html>404</html>"), [], ["trainA/new.jpg", "--skip_bad"]),
    "truncated jpeg": (truncate("cut.jpg"), [], ["trainA/cut.jpg", "--skip_bad"]),
    "truncated png": (truncate("cut.png"), [], ["trainA/cut.png", "--skip_bad"]),
    "flipped bits": (flip_bits, [], ["trainA/p1.png", "--skip_bad"]),
    "broken link": (broken_link, [], ["trainA/link.png", "--skip_bad"]),
    "smaller than the crop": (
        no_crop, ["--preprocess", "crop"], ["small.png", "12x40, smaller than --crop_size 16", "resize_and_crop"],
    ),
    "one pixel wide": (thin, [], ["thin.png", "1x40, needs at least 2x2"]),
    "odd width": (odd_width, [], ["odd.png", "odd width, 41x20"]),
    "sizes of a pair": (pair_sizes, ["--model", "pix2pix"], ["p1.png", "20x20", "18x20"]),
    "unmatched stems": (unmatched, [], ["3 images in A, 3 in B", "other.png", "p1.png"]),
    "no pairs": (write_unaligned, ["--model", "pix2pix"], ["holds no pairs", "--model cycle_gan"]),
    "layout that is not there": (write_unaligned, ["--dataset_mode", "aligned"], ["no folder train"]),
    "crop that does not fit": (
        write_unaligned, ["--crop_size", "18"], ["--crop_size: 18 does not fit resnet_6blocks", "multiples of 4"],
    ),
    "crop for a U-Net": (
        write_unaligned, ["--netG", "unet_128"], ["--crop_size: 16 does not fit unet_128", "128"],
    ),
    "crop for a discriminator": (
        write_unaligned, ["--netD", "basic"], ["--crop_size: 16 does not fit --netD basic", "(allowed: 24 or more)"],
    ),
    "sizes that vary": (
        write_unaligned, ["--preprocess", "none", "--batch_size", "2"], ["--preprocess: none gives pictures of many"],
    ),
    "nothing left to train on": (
        write_unaligned, ["--val_holdout", "--val_count", "3"], ["--val_count: leaves no image"],
    ),
    "load smaller than crop": (
        write_unaligned, ["--preprocess", "scale_width_and_crop", "--load_size", "12"], ["--load_size: 12 is smaller"],
    ),
}  # fmt: skip


def training(root: Path, place: Path, *more: object) -> Outcome:
    arguments = ["--dataroot", root, "--name", "r", "--checkpoints_dir", place / "runs", "--n_epochs", 1]
    return train(*arguments, *TINY, *more)


@pytest.mark.parametrize("case", DATA)
def test_data_that_cannot_be_trained_on(case: str, tmp_path: Path) -> None:
    write, flags, told = DATA[case]
    write(tmp_path / "data")
    before = tree(tmp_path)
    outcome = training(tmp_path / "data", tmp_path, *flags)
    assert outcome.code == 2
    assert all(text in outcome.error for text in told), outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert tree(tmp_path) == before
    dry = training(tmp_path / "data", tmp_path, *flags, "--dry_run")
    assert (dry.code, dry.error.split(";")[0]) == (outcome.code, outcome.error.split(";")[0])


def test_skip_bad_goes_on_without_them_and_says_which(tmp_path: Path) -> None:
    data = write_unaligned(tmp_path / "data")
    (data / "trainA" / "p1.png").write_bytes(b"")
    (data / "trainB" / "text.jpg").write_text("x")
    listed = training(data, tmp_path)
    assert listed.code == 2
    assert "2 of 7 images cannot be used" in listed.error
    assert [line.split(":")[0] for line in listed.err.splitlines()[1:]] == [
        "  trainA/p1.png",
        "  trainB/text.jpg",
    ]
    outcome = training(data, tmp_path, "--skip_bad")
    assert outcome.code == 0, outcome.err
    assert "2 A, 3 B" in outcome.out
    assert records(tmp_path / "runs" / "r")[-1]["step"] == 3
    told = outcome.out + outcome.err
    assert "trainA/p1.png" in told and "trainB/text.jpg" in told
    log = (tmp_path / "runs" / "r" / "run.log").read_text()
    assert "trainA/p1.png" in log and "trainB/text.jpg" in log


def test_a_long_list_is_cut_at_ten(tmp_path: Path) -> None:
    data = write_unaligned(tmp_path / "data")
    for k in range(15):
        (data / "trainA" / f"bad{k:02d}.png").write_bytes(b"")
    outcome = training(data, tmp_path)
    lines = outcome.err.splitlines()
    assert "15 of 21 images cannot be used" in outcome.error
    assert len(lines) == 12 and lines[-1].strip().startswith("... and 5 more")


def test_pairs_of_unequal_size_are_fine_without_pairs(tmp_path: Path) -> None:
    """CycleGAN draws A and B independently, also from two folders of pairs."""
    pair_sizes(tmp_path / "data")
    assert training(tmp_path / "data", tmp_path).code == 0


def test_a_picture_that_is_spoiled_while_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named, and skipped with --skip_bad; the checkpoint before stays."""
    from gan import start
    from gan.viewers import Viewer

    class Spoiler(Viewer):
        def progress(self, step: int, epoch: int) -> None:
            if step == 4:
                for path in (tmp_path / "data" / "trainA").iterdir():
                    if path.name != "p0.png":
                        path.write_bytes(b"")

    write_unaligned(tmp_path / "data")
    good = shutil.copytree(tmp_path / "data", tmp_path / "good")
    monkeypatch.setattr(start, "choose_viewers", lambda *_: [Spoiler()])
    outcome = training(tmp_path / "data", tmp_path, "--n_epochs", 3)
    assert outcome.code == 2
    assert "trainA/p" in outcome.error
    assert (tmp_path / "runs" / "r" / "ckpt-00000003.safetensors").exists()
    shutil.rmtree(tmp_path / "data")
    shutil.copytree(good, tmp_path / "data")
    skipping = training(tmp_path / "data", tmp_path, "--n_epochs", 3, "--name", "s", "--skip_bad")
    assert skipping.code == 0, skipping.err
    assert skipping.err.count("warning: ") == 1 and "a neighbour is taken" in skipping.err
    assert "trainA/p" in (tmp_path / "runs" / "s" / "run.log").read_text()


def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    write_unaligned(tmp_path / "data")
    outcome = training(tmp_path / "data", tmp_path, "--device", "mps")
    assert outcome.code == 2 and "error: --device: mps is not available here (available: cpu" in outcome.error


# --- test.py


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    untrained_run(folder)
    return folder


INPUTS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "missing": (lambda path: None, ["no such file or folder"]),
    "empty folder": (empty, ["no image in it", "in it: nothing"]),
    "zero bytes": (lambda path: path.write_bytes(b""), ["is empty", "--skip_bad"]),
    "text": (lambda path: path.write_text("x"), ["looks like text", "--skip_bad"]),
    "one pixel": (lambda path: Image.new("RGB", (1, 1)).save(path, "PNG"), ["image is 1x1", "--skip_bad"]),
}


@pytest.mark.parametrize("case", INPUTS)
def test_input_that_cannot_be_translated(case: str, runs: Path, tmp_path: Path) -> None:
    write, told = INPUTS[case]
    write(tmp_path / "in.png")
    before = tree(tmp_path)
    arguments = ["--name", "r", "--checkpoints_dir", runs, "--input", tmp_path / "in.png"]
    outcome = translate(*arguments, "--output", tmp_path / "out")
    assert outcome.code == 2
    assert all(text in outcome.error for text in told), outcome.err
    assert "in.png" in outcome.err
    assert tree(tmp_path) == before


@pytest.mark.parametrize("place", ["/proc/out", "file/out", "file"])
def test_output_that_cannot_be_written(place: str, runs: Path, tmp_path: Path) -> None:
    picture(8, 8).save(tmp_path / "in.png")
    (tmp_path / "file").write_text("x")
    before = tree(tmp_path)
    arguments = ["--name", "r", "--checkpoints_dir", runs, "--input", tmp_path / "in.png"]
    outcome = translate(*arguments, "--output", tmp_path / place)
    assert outcome.code == 2 and os.path.basename(place) in outcome.error  # noqa: PTH119
    assert tree(tmp_path) == before


CHECKPOINTS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", "no valid checkpoint"),
    "half": (lambda data: data[: len(data) // 2], "incomplete"),
    "flipped": (lambda data: data[:-500] + bytes([data[-500] ^ 1]) + data[-499:], "checksum"),
    "a page": (lambda data: b"<!doctype html>" + b" " * (len(data) - 15), "no valid checkpoint"),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
@pytest.mark.parametrize("program", ["train", "test"])
def test_the_only_checkpoint_is_damaged(case: str, program: str, tmp_path: Path) -> None:
    damage, told = CHECKPOINTS[case]
    data = write_unaligned(tmp_path / "data")
    run = untrained_run(tmp_path / "runs", "--dataroot", data)
    file = run / "ckpt-00000006.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    before = {
        name: content for name, content in tree(tmp_path).items() if not name.endswith((".log", ".lock"))
    }
    arguments: list[object] = ["--name", "r", "--checkpoints_dir", tmp_path / "runs"]
    if program == "train":
        outcome = train(*arguments, "--continue_train", "--n_epochs", 9)
    else:
        outcome = translate(*arguments, "--results_dir", tmp_path / "results")
    assert outcome.code == 2
    assert told in outcome.error, outcome.error
    assert "weights_only" not in outcome.err
    after = {
        name: content for name, content in tree(tmp_path).items() if not name.endswith((".log", ".lock"))
    }
    assert after == before


# --- the real commands: exit code, streams, and that nothing else is printed


@pytest.mark.parametrize(
    ("program", "arguments", "told"),
    [
        ("train", ["--dataroot", "{here}/none"], "no such folder"),
        ("train", ["--dataroot", "{here}", "--lr", "-1"], "--lr: is -1.0 (allowed: greater than 0, finite)"),
        ("test", ["--name", "none", "--checkpoints_dir", "{here}"], "no such run"),
    ],
)
def test_the_real_commands(program: str, arguments: list[str], told: str, tmp_path: Path) -> None:
    filled = [text.format(here=tmp_path) for text in arguments]
    if program == "train":
        filled += ["--visdom", "off", "--checkpoints_dir", str(tmp_path / "runs")]
    done = subprocess.run(
        command(program, *filled), cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    outcome = Outcome(done.returncode, done.stdout, done.stderr)
    assert outcome.code == 2 and outcome.out == ""
    assert told in outcome.error and len(outcome.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
