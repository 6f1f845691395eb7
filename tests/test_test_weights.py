"""test.py with weights from elsewhere in the place of a run: `--weights FILE`."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_support import patch_discriminator, resnet, save, unet, with_drawn_weights
from PIL import Image
from torch import nn
from training_support import (
    ROOT,
    command,
    environment,
    picture,
    translate,
    tree,
    untrained_run,
    write_unaligned,
)

from gan.generator_file import write_generator
from gan.translate import Translator


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    return with_drawn_weights(resnet(blocks=6)).eval()


@pytest.fixture(scope="module")
def file(theirs: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(theirs, tmp_path_factory.mktemp("weights") / "latest_net_G.pth")


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path), float)


def expected(network: nn.Module, path: Path) -> np.ndarray:
    """What the other implementation computes, in float, before it becomes 8 bits."""
    x = torch.from_numpy(pixels(path).astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    with torch.no_grad():
        return (network(x)[0].permute(1, 2, 0).numpy() + 1) * 127.5


def test_a_foreign_file_in_a_real_process(theirs: nn.Module, file: Path, tmp_path: Path) -> None:
    picture(20, 16, 1).save(tmp_path / "x.png")
    flags = [
        "--weights",
        file,
        "--input",
        tmp_path / "x.png",
        "--output",
        tmp_path / "out",
        "--device",
        "cpu",
    ]
    done = subprocess.run(
        command("test", *flags), cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (
        done.stderr.count(
            "translated at the pictures' own size: the size of the training pictures is not known"
        )
        == 1
    )
    assert "1 pictures translated AtoB (latest_net_G.pth)" in done.stdout
    difference = np.abs(pixels(tmp_path / "out" / "x.png") - expected(theirs, tmp_path / "x.png"))
    assert difference.max() <= 0.51


def test_a_unet_and_the_direction_that_is_asked(tmp_path: Path) -> None:
    network = with_drawn_weights(unet(downs=7)).eval()
    path = save(network, tmp_path / "latest_net_G.pth")
    picture(128, 128, 1).save(tmp_path / "x.png")
    for mode in ("eval", "train"):
        flags = [
            "--weights",
            path,
            "--input",
            tmp_path / "x.png",
            "--output",
            tmp_path / mode,
            "--test_mode",
            mode,
        ]
        outcome = translate(*flags, "--direction", "BtoA", "--device", "cpu")
        assert outcome.code == 0 and "translated BtoA" in outcome.out, outcome.err
    difference = np.abs(pixels(tmp_path / "eval" / "x.png") - expected(network, tmp_path / "x.png"))
    assert difference.max() <= 0.51
    assert (pixels(tmp_path / "eval" / "x.png") != pixels(tmp_path / "train" / "x.png")).any()  # dropout


def test_an_exported_file_translates_as_its_run_does(tmp_path: Path) -> None:
    run = untrained_run(tmp_path / "runs", sizes={"A": (60.0, 40.0), "B": (20.0, 20.0)})
    (tmp_path / "hub").mkdir()
    write_generator(Translator.load(run, device="cpu"), tmp_path / "hub" / "model.safetensors")
    picture(90, 44, 1).save(tmp_path / "x.png")
    told = []
    for name, flags in (
        ("a", ["--name", "r", "--checkpoints_dir", tmp_path / "runs"]),
        ("b", ["--weights", tmp_path / "hub"]),
    ):
        outcome = translate(
            *flags, "--input", tmp_path / "x.png", "--output", tmp_path / name, "--device", "cpu"
        )
        assert outcome.code == 0, outcome.err
        told.append((outcome.err, outcome.out.partition(":")[0]))
    assert told[0] == told[1] and "translated at the scale of training" in told[0][0]
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_the_test_split_of_a_data_folder(file: Path, tmp_path: Path) -> None:
    data = write_unaligned(tmp_path / "data")
    flags = ["--weights", file, "--dataroot", data, "--results_dir", tmp_path / "results", "--device", "cpu"]
    assert translate(*flags).code == 0
    page = (tmp_path / "results" / "latest_net_G" / "test_last_AtoB" / "index.html").read_text()
    assert "latest_net_G AtoB, latest_net_G.pth" in page
    outcome = translate("--weights", file, "--results_dir", tmp_path / "none")
    assert outcome.error.startswith("error: --dataroot: is missing") and not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--name", "r"], "--weights: does not go with --name"),
        (["--epoch", "best"], "is a file, not a run, and has no checkpoint best"),
        (["--epoch", "newest"], "--epoch: is newest"),
        (["--weights", "{here}/latest_net_D.pth"], "is a discriminator, not a generator"),
        (["--weights", "{here}/none.pth"], "none.pth: no such run"),
        (["--weights", "{here}/x.png"], "x.png: not a plain-tensor checkpoint"),
        (["--output", "{here}"], "--output: is the input folder"),
    ],
)
def test_what_is_refused(file: Path, tmp_path: Path, flags: list[str], said: str) -> None:
    save(patch_discriminator(), tmp_path / "latest_net_D.pth")
    picture(20, 16, 1).save(tmp_path / "x.png")
    before = tree(tmp_path)
    arguments = ["--weights", file, "--input", tmp_path / "x.png", "--output", tmp_path / "out"]
    outcome = translate(*arguments, *(flag.format(here=tmp_path) for flag in flags))
    assert outcome.code == 2 and said in outcome.error
    assert tree(tmp_path) == before
