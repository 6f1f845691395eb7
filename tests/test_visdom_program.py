"""train.py itself under a Visdom server that never answers, and one that cannot be logged in to."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from visdom_stubs import answer, silence, stub
from visdom_support import ROOT

from gan.checkpoint import load_checkpoint

SMALL = (
    "--model pix2pix --norm nc_ms --netG resnet_6blocks --ngf 4 --ndf 4 --load_size 36 --crop_size 32 --device cpu"
    " --n_epochs 1 --n_epochs_decay 1 --print_freq 1 --display_freq 3 --num_threads 0 --val_count 2"
)


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "VISDOM_PASSWORD": "hunter2"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the newest checkpoint, by its place in it."""
    found: dict[str, torch.Tensor] = {}

    def walk(place: str, value: object) -> None:
        if isinstance(value, torch.Tensor):
            found[place] = value
        elif isinstance(value, dict):
            for key, entry in value.items():
                walk(f"{place}/{key}", entry)
        elif isinstance(value, list | tuple):
            for index, entry in enumerate(value):
                walk(f"{place}/{index}", entry)

    walk("", load_checkpoint(run, "last")[0])
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "towns"
    made = python("-m", "datasets.synthetic", "--output", str(folder), "--count", "6", "--size", "32")
    assert made.returncode == 0, made.stderr
    return folder


def train(data: Path, runs: Path, name: str, *flags: str) -> subprocess.CompletedProcess[str]:
    place = ["--dataroot", str(data), "--checkpoints_dir", str(runs), "--name", name]
    done = python("train.py", *place, *SMALL.split(), *flags)
    assert done.returncode == 0, done.stderr
    return done


def test_weights_and_records_are_those_of_a_training_without_visdom(data, tmp_path):
    begin = time.monotonic()
    quiet = train(data, tmp_path, "off", "--visdom", "off")
    alone = time.monotonic() - begin
    assert "visdom" not in quiet.stderr
    expected = weights(tmp_path / "off")
    assert len(expected) > 20
    for name, behave, login in (("silent", silence, []), ("refusing", answer("400 Bad Request"), ["ada"])):
        flags = ["--visdom_username", *login] if login else []
        with stub(behave) as port:
            begin = time.monotonic()
            place = ["--visdom_server", "http://127.0.0.1", "--visdom_port", str(port)]
            done = train(data, tmp_path, name, "--visdom", "auto", *place, *flags)
        assert time.monotonic() - begin < alone * 2 + 60, "the end does not wait for the server"
        said = [line for line in done.stderr.splitlines() if "visdom" in line.lower()]
        assert len(said) <= 2
        found = weights(tmp_path / name)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[place], expected[place]) for place in expected), "not one bit differs"
        files = b"".join(path.read_bytes() for path in (tmp_path / name).rglob("*") if path.is_file())
        assert b"hunter2" not in files and "hunter2" not in done.stdout + done.stderr
