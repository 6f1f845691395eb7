"""train.py itself: with a Visdom server of its own, one that never answers, and one that cannot be logged in to."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from visdom_support import ROOT, ask, needs_visdom, unused_port, wait_until
from visdom_training import answer, silence, stub

from gan.viewers.visdom_server import Address, Unreachable

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
    return load_file(max(run.glob("ckpt-*.safetensors")))


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


def shows_samples(port: int, env: str) -> bool:
    """Whether a Visdom server on this machine shows a picture in the samples pane."""
    try:
        return ask(Address(port=port), "win_data", win="samples", eid=env)["type"] == "image"
    except Unreachable:
        return False


@needs_visdom
def test_samples_are_live_in_the_middle_of_a_long_epoch(tmp_path):
    """`--visdom on` with the default loader workers, which are forked while the server starts."""
    data = tmp_path / "towns"
    made = python("-m", "datasets.synthetic", "--output", str(data), "--count", "4", "--size", "64")
    assert made.returncode == 0, made.stderr
    for picture in list((data / "train").iterdir()):
        for copy in range(1000):
            picture.with_name(f"{copy}-{picture.name}").hardlink_to(picture)
    port = unused_port()
    command = [sys.executable, "train.py", "--dataroot", str(data), "--checkpoints_dir", str(tmp_path)]
    small = "--name live --model pix2pix --device cpu --load_size 64 --crop_size 64 --netG resnet_6blocks --ngf 16"
    command += [*small.split(), "--display_freq", "5", "--visdom", "on", "--visdom_port", str(port)]
    with (tmp_path / "printed").open("w") as printed:
        training = subprocess.Popen(command, cwd=ROOT, stdout=printed, stderr=printed)
    try:
        wait_until(lambda: shows_samples(port, "live") or training.poll() is not None)
        logged = (tmp_path / "live" / "metrics.jsonl").read_text()
        assert '"epoch": 1' in logged and '"epoch": 2' not in logged, "the first epoch is under way"
        training.send_signal(signal.SIGTERM)
        training.wait()
    finally:
        training.kill()
        training.wait()
    assert f"visdom: http://localhost:{port}/env/live" in (tmp_path / "printed").read_text()
