"""Large pictures in tiles: equal to one piece where all layers are local, refused where they are not; memory; kills."""

import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from training_support import ROOT, Outcome, command, environment, picture, translate, untrained_run

from datasets.errors import UserError
from datasets.images import to_tensor
from gan import tiling
from gan.tiling import Tiling, pad_to_fit, translate_tiles
from gan.translate import Translator
from models.build import build_generator, initialize
from models.receptive_field import halo
from models.resnet import ResnetGenerator

LOCAL = [
    ("nc", "none"), ("nc_ms", "none"), ("nc_ms", "batch"), ("pono", "none"), ("pono", "batch"), ("pono_ms", "none"),
    ("pono_ms", "batch"), ("nc_dms", "batch"), ("batch", "batch"), ("none", "none"),
]  # fmt: skip


def generator(norm: str, base_norm: str, upsample: str = "transposed", **more: Any) -> nn.Module:
    """In float64 and eval mode, with running statistics as if it had been trained."""
    torch.manual_seed(0)
    more = {"ngf": 2, "n_blocks": 2, "dropout": True, **more}
    network = ResnetGenerator(norm=norm, base_norm=base_norm, upsample=upsample, **more)
    initialize(network, "kaiming", generator=torch.Generator().manual_seed(1))
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 2)
    return network.double().eval()


def difference(network: nn.Module, image: Image.Image, side: int) -> float:
    """Between tiles and one piece, at worst; every pixel is in one tile."""

    def run(images: Tensor) -> Tensor:
        with torch.no_grad():
            return network(images.double())

    whole = run(pad_to_fit(to_tensor(image)[None], network))[0, :, : image.height, : image.width]
    joined = torch.full_like(whole, float("nan"))
    for (left, top, right, bottom), output in translate_tiles(run, network, image, side):
        assert left % 4 == top % 4 == 0 and joined[:, top:bottom, left:right].isnan().all()
        joined[:, top:bottom, left:right] = output
    return float((joined - whole).abs().max())


@pytest.mark.parametrize("upsample", ["transposed", "resize"])
@pytest.mark.parametrize(("norm", "base_norm"), LOCAL)
def test_tiles_equal_one_piece_and_need_all_of_the_halo(
    norm: str, base_norm: str, upsample: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, image = generator(norm, base_norm, upsample), picture(118, 97)
    assert difference(network, image, 50) < 1e-13
    monkeypatch.setattr(tiling, "halo", lambda network: halo(network) - 4)
    assert difference(network, image, 50) > 1e-9


@pytest.mark.parametrize("size", [(2, 2), (3, 200), (201, 5), (64, 64), (65, 129)])
def test_sizes_that_need_padding(size: tuple[int, int]) -> None:
    """Of the whole picture, before it is cut: only its own border is reflected."""
    assert difference(generator("nc_ms", "none"), picture(*size), 32) < 1e-13


def test_the_halo_counts_the_blocks() -> None:
    for name, blocks in (("resnet_6blocks", 6), ("resnet_9blocks", 9)):
        assert halo(build_generator(name, ngf=2, norm="nc", base_norm="none")) == 12 + 8 * blocks


def test_instance_norm_errs_at_any_halo(monkeypatch: pytest.MonkeyPatch) -> None:
    for around in (28, 64):
        monkeypatch.setattr(tiling, "halo", lambda network, around=around: around)
        assert difference(generator("instance", "instance"), picture(118, 97), 20) > 1e-3


# --- when


def test_ordinary_pictures_stay_in_one_piece() -> None:
    network = generator("nc_ms", "none")
    for size, side in (((2048, 2048), 0), ((2048, 2049), 12 * 28), ((12_000, 12_000), 12 * 28)):
        assert Tiling("auto").side(network, size) == side
    assert Tiling("100").side(network, (100, 100)) == Tiling("0").side(network, (10**5, 10**5)) == 0
    assert Tiling("100").side(network, (101, 2)) == 100


NOT_LOCAL: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "instance": (lambda: generator("instance", "instance"), "InstanceNorm2d depends on the whole picture (--tile 0"),
    "batch": (lambda: generator("nc_ms", "batch").train(), "BatchNorm2d depends on the whole picture in --test_mode"),
    "dropout": (lambda: generator("none", "none", dropout=True).train(), "Dropout depends on the whole"),
    "unet": (
        lambda: build_generator("unet_128", ngf=2).eval(), "a U-Net looks 256 pixels far, through its bottleneck"
    ),
    "unknown": (
        lambda: nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.AdaptiveAvgPool2d(1)), "AdaptiveAvgPool2d depends"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_LOCAL)
def test_what_sees_the_whole_picture_is_refused_with_the_reason(name: str) -> None:
    network, said = NOT_LOCAL[name][0](), NOT_LOCAL[name][1]
    with pytest.raises(UserError) as refused:
        Tiling("100").side(network, (200, 90))
    assert str(refused.value).startswith("--tile: 200x90 pixels cannot be cut: ") and said in str(
        refused.value
    )
    assert Tiling("auto").side(network, (8000, 8000)) == 0  # as it always was
    with pytest.raises(UserError, match="cannot be cut"):
        Tiling("auto").side(network, (8001, 8000))


def test_inexact_tiles_are_for_instance_norm_alone(capsys: pytest.CaptureFixture[str]) -> None:
    tiling._warn_of_inexact_tiles.cache_clear()
    assert Tiling("100", inexact=True).side(generator("instance", "instance"), (101, 2)) == 100
    assert "--tile_inexact" in capsys.readouterr().err
    for network in (build_generator("unet_128", ngf=2).eval(), generator("nc_ms", "batch").train()):
        with pytest.raises(UserError) as refused:
            Tiling("100", inexact=True).side(network, (200, 90))
        assert "inexact" not in refused.value.fix


# --- test.py


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    untrained_run(folder, "--norm", "nc_ms", "--base_norm", "batch", "--init_type", "kaiming")
    untrained_run(folder / "instance")
    return folder


def run_on(runs: Path, source: Path, output: Path, *more: object) -> Outcome:
    where = ("--name", "r", "--checkpoints_dir", runs, "--device", "cpu")
    return translate(*where, "--input", source, "--output", output, *more)


def test_single_precision_is_equal_to_a_hundred_thousandth(runs: Path) -> None:
    translator, image = Translator.load(runs / "r", device="cpu"), picture(500, 410)
    whole = translator(to_tensor(image)[None])[0]
    for (left, top, right, bottom), output in translate_tiles(translator, translator.network, image, 128):
        torch.testing.assert_close(output, whole[:, top:bottom, left:right], atol=1e-5, rtol=0)


@pytest.mark.parametrize("flags", [(), ("--scale", "0.7"), ("--size", "170")], ids=["", "scale", "size"])
def test_files_in_tiles_are_those_in_one_piece(runs: Path, tmp_path: Path, flags: tuple[str, ...]) -> None:
    (tmp_path / "in").mkdir()
    for k, size in enumerate([(200, 150), (200, 150), (40, 30)]):
        picture(*size, k).save(tmp_path / "in" / f"{k}.png")
    for tile in ("0", "64"):
        outcome = run_on(runs, tmp_path / "in", tmp_path / tile, "--tile", tile, "--batch_size", 2, *flags)
        assert outcome.code == 0, outcome.err
    for path in (tmp_path / "0").iterdir():
        one, tiles = (np.asarray(Image.open(tmp_path / way / path.name), int) for way in ("0", "64"))
        assert np.abs(one - tiles).max() <= 1 and (one != tiles).mean() < 1e-3 and one.std() > 1


def test_what_test_py_refuses(runs: Path, tmp_path: Path) -> None:
    picture(200, 150).save(tmp_path / "x.png")
    outcome = run_on(runs / "instance", tmp_path / "x.png", tmp_path / "out", "--tile", 64)
    assert outcome.code == 2 and "InstanceNorm2d depends on the whole picture" in outcome.error
    assert not (tmp_path / "out").exists()
    inexact = run_on(runs / "instance", tmp_path / "x.png", tmp_path / "out", "--tile", 64, "--tile_inexact")
    assert inexact.code == 0
    for value in ("9", "-1", "many", "1e3", "9" * 5000):
        assert "error: --tile: is " in run_on(runs, tmp_path / "x.png", tmp_path / "o", "--tile", value).error
    small = run_on(runs, tmp_path / "x.png", tmp_path / "o", "--max_pixels", 29_999)
    assert small.code == 2 and "--max_pixels" in small.error and not (tmp_path / "o").exists()
    assert run_on(runs, tmp_path / "x.png", tmp_path / "o", "--max_pixels", 30_000).code == 0


def seen_on_a_terminal(process: "subprocess.Popen[bytes]", terminal: int) -> Iterator[str]:
    """What a process writes to its terminal, piece by piece, until it ends."""
    while process.poll() is None:
        try:
            yield os.read(terminal, 4096).decode(errors="replace")
        except OSError:  # the other end is closed
            return


def test_a_kill_half_way_leaves_no_file(runs: Path, tmp_path: Path) -> None:
    """A real process on a terminal of its own, killed when the bar says that a tile is done."""
    picture(1500, 1200).save(tmp_path / "x.png")
    arguments = ["--name", "r", "--checkpoints_dir", runs, "--device", "cpu", "--tile", 64]
    arguments += ["--input", tmp_path / "x.png", "--output", tmp_path / "out"]
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    process = subprocess.Popen(
        command("test", *arguments), cwd=ROOT, env=environment(), stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    seen = ""
    for text in seen_on_a_terminal(process, ours):
        seen += text
        if "tiles" in seen and any(f"{done}/456" in seen for done in range(1, 400)):
            process.send_signal(signal.SIGKILL)
            break
    assert process.wait() == -signal.SIGKILL, seen
    os.close(ours)
    assert list((tmp_path / "out").iterdir()) == []


MEMORY = """
import re, sys
from pathlib import Path
from gan.translate_command import run_test
from gan.translation_options import TranslationOptions
import tifffile
def peak():  # ru_maxrss would hold the parent's peak too
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
for source in sys.argv[2:]:
    options = TranslationOptions(
        name="r", checkpoints_dir="runs", input=(source,), output="out", device="cpu", tile=sys.argv[1]
    )
    run_test(options)
    print(peak())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: reads /proc")
def test_memory_grows_by_the_picture_alone(tmp_path: Path) -> None:
    """Each further pixel is held as Pillow does, as its translation, and as a copy of that for the encoder."""
    untrained_run(tmp_path / "runs", "--norm", "nc_ms", "--base_norm", "none", "--ngf", 4)
    for name, side in (("small", 400), ("large", 1600)):
        picture(side, side).save(tmp_path / f"{name}.png")
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, "256", "small.png", "large.png"],
        cwd=tmp_path, env=environment() | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    small, large = (int(line) for line in done.stdout.splitlines() if line.isdigit())
    per_pixel = (large - small) / (1600**2 - 400**2)
    assert per_pixel < 40, f"{per_pixel:.0f} bytes a pixel"  # one piece takes 140
