"""Every command of the README is run: literally with small options on drawn data, or, where it would take long, as its
own dry run."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluate_support import random_inception_state
from foreign_support import resnet, save
from PIL import Image
from tifffile import imread, imwrite
from training_support import untrained_run

from datasets.synthetic import write_dataset
from gan.export_web import RUNTIME

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SMALL = (
    "--netG resnet_6blocks --netD pixel --ngf 4 --ndf 4 --load_size 32 --crop_size 32 --n_epochs 1 --n_epochs_decay 0 "
    "--num_threads 0 --visdom off"
)


def commands() -> list[str]:
    """The lines of the README's sh blocks, without comments."""
    blocks = re.findall(r"```sh\n(.*?)```", README, re.S)
    return [line.split(" #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def run(command: str, cwd: Path) -> str:
    """Run a README command in a folder of its own, as if the project were there; its output."""
    words = shlex.split(command)
    if words[0] == "torchrun":
        words[:1] = ["python", "-m", "torch.distributed.run"]
        words = [str(ROOT / word) if word.endswith(".py") else word for word in words]
    assert words[0] == "python"
    if words[1].endswith(".py"):
        words[1] = str(ROOT / words[1])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "I2I_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *words[1:]], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data that the commands name."""
    place = tmp_path_factory.mktemp("readme")
    write_dataset(place / "FOLDER", count=4, size=32, layout="aligned", seed=1)
    write_dataset(place / "data" / "maps", count=4, size=32, layout="aligned", seed=2)
    write_dataset(place / "data" / "horse2zebra", count=4, size=32, layout="unaligned", seed=3)
    write_dataset(place / "NEW", count=2, size=32, layout="unaligned", seed=4)
    (place / "NEW" / "testA").rename(place / "NEW_PICTURES")
    return place


def test_own_pictures_and_going_on(folder: Path) -> None:
    own = (c for c in commands() if "NAME" in c and "continue" not in c and "TAKEN" not in c)
    train, translate, *evaluations = own
    run(f"{train} {SMALL}", folder)
    run(translate, folder)
    assert sorted(p.name for p in (folder / "TRANSLATED").iterdir()) == sorted(
        p.name for p in (folder / "NEW_PICTURES").iterdir()
    )
    assert len(evaluations) == 2 and all("PSNR" in run(command, folder) for command in evaluations)
    go_on, longer = (c for c in commands() if "continue_train" in c)
    assert "nothing left to train" in run(go_on, folder)
    assert "done: 8 steps" in run(f"{longer} --n_epochs 2", folder)


def test_an_average_of_the_weights(folder: Path) -> None:
    train, translate = (c for c in commands() if "AVERAGED" in c)
    assert "of the generators' weights, decay 0.999" in run(f"{train} {SMALL}", folder)
    assert ", ema)" not in run(translate, folder)
    assert ", ema)" in run(translate.replace("--which raw", "").replace("UNAVERAGED", "MEAN"), folder)


def test_a_large_picture(folder: Path) -> None:
    train, translate = (c for c in commands() if "--name LOCAL" in c)
    run(f"{train} {SMALL}", folder)
    (small,) = sorted((folder / "NEW_PICTURES").iterdir())[:1]
    with Image.open(small) as picture:
        picture.resize((640, 520)).save(folder / "LARGE.png")
    run(translate, folder)
    assert Image.open(folder / "LARGE_B.png").size == (640, 520)


def test_weights_from_elsewhere(folder: Path) -> None:
    shutil.copytree(folder / "data" / "horse2zebra", folder / "NEW_DATA")
    (tune,) = (c for c in commands() if "TUNED" in c)
    run(f"python train.py --dataroot NEW_DATA --name OTHER_RUN {SMALL}", folder)
    assert "G_A, G_B, D_A, D_B of checkpoints/OTHER_RUN" in run(f"{tune} {SMALL}", folder)
    save(resnet(ngf=2, blocks=6), folder / "latest_net_G_A.pth")
    translate, measure = (c for c in commands() if "latest_net" in c)
    assert "translated AtoB (latest_net_G_A.pth)" in run(translate, folder)
    assert "latest_net_G_A.pth" in run(measure, folder)


def test_a_model_is_taken_elsewhere(tmp_path: Path) -> None:
    onnx, web = (c for c in commands() if "TAKEN" in c)
    untrained_run(tmp_path / "checkpoints", "--norm", "none").rename(tmp_path / "checkpoints" / "NAME")
    assert "compared with the run" in run(onnx, tmp_path)
    (code,) = re.findall(r"```python\n(import numpy, onnxruntime.*?)```", README, re.S)
    check = "print(translations.shape == pictures.shape == values.shape)"
    assert "True" in run(f"python -c {shlex.quote(code + check)}", tmp_path)
    for name in RUNTIME:  # in place of what npm fetches
        (tmp_path / name).write_text(name)
    assert "compared with the run" in run(f"{web} --ort .", tmp_path)
    assert {"index.html", "model.onnx"} < {path.name for path in (tmp_path / "TAKEN_PAGE").iterdir()}


def test_five_bands(folder: Path) -> None:
    for number, place in enumerate(("A/train", "B/train", "A/test", "B/test")):
        (folder / "SCENES" / place).mkdir(parents=True)
        values = np.random.default_rng(number).integers(0, 256, (32, 32, 5), dtype=np.uint8)
        imwrite(folder / "SCENES" / place / "x.tif", values, photometric="minisblack", planarconfig="contig")
    train, translate = (c for c in commands() if "BANDS" in c)
    assert "bands 4,3,2 of 5" in run(f"{train} {SMALL}", folder)
    run(translate, folder)
    made = imread(folder / "NEW_BANDS" / "x.tif")
    assert made.shape == (32, 32, 5) and made.dtype == np.uint16


def test_two_processes(folder: Path) -> None:
    (command,) = (c for c in commands() if c.startswith("torchrun "))
    assert "done: 2 steps" in run(f"{command} {SMALL} --device cpu", folder)


def test_curves_and_tensorboard(folder: Path) -> None:
    train, *writers = (c for c in commands() if "LOGGED" in c)
    run(f"{train} {SMALL}", folder)
    assert list((folder / "checkpoints/LOGGED/tensorboard").glob("events.out.tfevents.*"))
    assert [run(writer, folder) for writer in writers] == ["curves.png\n", "curves.csv\n"]


def test_less_memory(folder: Path) -> None:
    (command,) = (c for c in commands() if "SAVING" in c)
    assert "done: 4 steps" in run(f"{command} {SMALL}", folder)


def test_two_folders_are_compared(folder: Path) -> None:
    command, each, save, later = (c for c in commands() if "--fake" in c)
    for split, name in (("testA", "OUTPUTS"), ("testB", "TARGETS")):
        shutil.copytree(folder / "data" / "horse2zebra" / split, folder / name)
        for number, path in enumerate(sorted((folder / name).iterdir())):
            path.rename(path.with_name(f"{number}{path.suffix}"))
    assert "PSNR" in run(command, folder)
    assert "per_image.csv, per_image.json, report.html" in run(each, folder)
    torch.save(random_inception_state(), folder / "inception.pth")
    weights = "--inception_weights inception.pth --allow_unverified"
    assert "FID" in run(f"{save} {weights} --output saved", folder)
    shutil.rmtree(folder / "TARGETS")
    assert "only FID can be computed from it" in run(f"{later} {weights}", folder)


def test_commands_for_table_3_as_dry_runs(folder: Path) -> None:
    long = [c for c in commands() if "--dataroot data/" in c]
    assert len(long) == 2
    for command in long:
        plan = run(f"{command} --dry_run", folder)
        assert "nc_ms" in plan and "200 epochs" in plan
    assert not (folder / "checkpoints" / "maps_nc_ms").exists()
    assert "nc_ms" in run("python -m evaluate.table3 --preset smoke", folder)


def test_make_targets_exist() -> None:
    targets = [c for c in commands() if c.startswith("make ")]
    assert targets == ["make demo", "make test"]
    for command in [*targets, "make setup", "make check", "make bench"]:
        done = subprocess.run(
            ["make", "-n", command.split()[1]], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0 and done.stdout, done.stderr


def test_no_command_is_left_out() -> None:
    """A new line in the README needs a test here."""
    tested = (
        "make ", "NAME", "AVERAGED", "LOCAL", "BANDS", "SHARED", "TUNED", "latest_net", "SAVING", "LOGGED", "--fake",
        "--dataroot data/", "evaluate.table3",
    )  # fmt: skip
    assert [c for c in commands() if not any(mark in c for mark in tested)] == []


def test_the_data_commands_in_the_text(folder: Path) -> None:
    run("python -m datasets.prepare check FOLDER", folder)
    command = "python -m datasets.synthetic --output FOLDER --count 200 --size 128"
    assert command.replace(" ", "") in README.replace("\n", "").replace(" ", "")
    run("python -m datasets.synthetic --output MORE --count 2 --size 32", folder)


def test_every_norm_and_every_linked_file_exists() -> None:
    from models.names import NORM_NAMES

    table = README.split("## `--norm`")[1].split("##")[0]
    assert {name for name in NORM_NAMES if f"`{name}`" in table} == set(NORM_NAMES)
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
