"""train.py: what it writes, what it refuses, and what happens when its surroundings fail."""

import json
import os
import resource
import shutil
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from training_support import (
    TINY,
    Outcome,
    assert_same_training,
    differences,
    last_state,
    records,
    train,
    tree,
    write_aligned,
    write_unaligned,
)

import train as program
from datasets.errors import UserError
from gan import loop, setup, start
from gan.checkpoint import load_checkpoint
from gan.command_line import parse_train
from gan.pix2pix import Pix2Pix
from gan.run import RunFolder
from gan.viewers import Record, RunInfo, Viewer


@pytest.fixture(scope="module")
def unaligned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_unaligned(tmp_path_factory.mktemp("data") / "unaligned")


@pytest.fixture(scope="module")
def aligned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_aligned(tmp_path_factory.mktemp("data") / "aligned")


def pix2pix(data: Path, runs: Path, *more: object) -> Outcome:
    model = ["--model", "pix2pix", "--norm", "nc_ms", "--name", "r"]
    return train("--dataroot", data, *TINY, *model, "--checkpoints_dir", runs, *more)


def go_on(runs: Path, *more: object) -> Outcome:
    return train("--name", "r", "--checkpoints_dir", runs, "--continue_train", *more)


@pytest.fixture(scope="module")
def trained(aligned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with one finished Pix2Pix, `r`, of two epochs."""
    runs = tmp_path_factory.mktemp("runs")
    outcome = pix2pix(aligned, runs, "--n_epochs", 2)
    assert outcome.code == 0, outcome.err
    assert "test.py --name r" in outcome.out
    return runs


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    """A copy of it to spoil."""
    return shutil.copytree(trained, tmp_path / "runs")


def without_lock(files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {
        name: content
        for name, content in files.items()
        if not name.endswith(("run.lock", "run.log", "run.holder"))
    }


# --- what is written


def test_a_dry_run_prints_the_plan_and_writes_nothing(aligned: Path, tmp_path: Path) -> None:
    outcome = pix2pix(aligned, tmp_path / "runs", "--n_epochs", 4, "--dry_run")
    assert outcome.code == 0, outcome.err
    assert not (tmp_path / "runs").exists()
    parameters = sum(p.numel() for p in load_networks(aligned, tmp_path)["G"].parameters())
    told = (
        "3 pairs",
        f"{parameters / 1e6:.3f} M",
        "4 epochs of 3 = 12",
        "nc_ms",
        str(tmp_path / "runs" / "r"),
    )
    assert [text for text in told if text not in outcome.out] == []


@pytest.mark.parametrize(
    ("precision", "instructions", "slower"),
    [
        ("bf16", {"avx512_bf16": False}, True),
        ("bf16", {"avx512_bf16": True}, False),
        ("fp32", {"avx512_bf16": False}, False),
    ],
)
def test_a_cpu_without_bf16_is_named(
    precision: str,
    instructions: dict[str, bool],
    slower: bool,
    aligned: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, **instructions}, raising=False)
    outcome = pix2pix(aligned, tmp_path / "runs", "--precision", precision, "--dry_run")
    assert (f"cpu, {precision} (slower than fp32" in outcome.out) == slower


def load_networks(aligned: Path, tmp_path: Path) -> dict[str, torch.nn.Module]:
    flags = ["--dataroot", str(aligned), *TINY, "--model", "pix2pix", "--norm", "nc_ms"]
    return setup.generators(parse_train(flags)[0])


def test_the_files_of_a_run(trained: Path) -> None:
    run = trained / "r"
    expected = {
        "options.yaml", "metrics.jsonl", "run.lock", "index.html", "page", "samples", "latest.json", "best.json",
        "ckpt-00000006.safetensors",
    }  # fmt: skip
    there = {path.name for path in run.iterdir()}
    assert expected <= there
    assert {name for name in there if "tmp" in name or "probe" in name or "partial" in name} == set()
    samples = {path.name for path in (run / "samples" / "step-00000006").iterdir()}
    assert samples == {"input.png", "fake.png", "target.png", "grid.png"}
    options = yaml.safe_load((run / "options.yaml").read_text())
    assert options["norm"] == "nc_ms" and options["n_epochs"] == 2 and "visdom_password" not in options


def test_the_lines_of_a_run(trained: Path) -> None:
    lines = records(trained / "r")
    kinds = [(line["kind"], line["step"], line["epoch"]) for line in lines]
    steps = ["train", "train", "train", "samples", "metrics"]
    numbers = [1, 2, 3, 3, 3, 4, 5, 6, 6, 6]
    assert kinds == [(kind, n, 1 + (n > 3)) for kind, n in zip(steps * 2, numbers, strict=True)]
    first = lines[0]
    assert list(first["losses"]) == ["D_real", "D_fake", "G_GAN", "G_L1"] and first["lr"] == 2e-4
    with (trained / "r" / "metrics.jsonl").open() as file:
        assert set(json.loads(file.readline())["time"]) == {"images_per_s", "data_wait"}


def test_val_l1_is_the_distance_of_the_written_pictures(trained: Path) -> None:
    import numpy as np
    from PIL import Image

    last = [line for line in records(trained / "r") if line["kind"] == "metrics"][-1]
    folder = trained / "r" / "samples" / "step-00000006"
    fake, target = (np.asarray(Image.open(folder / f"{kind}.png"), float) for kind in ("fake", "target"))
    assert last["metrics"]["val_l1"] == pytest.approx(np.abs(fake - target).mean() / 255, abs=0.003)


def test_best_is_the_epoch_of_the_smallest_distance(trained: Path) -> None:
    values = {x["epoch"]: x["metrics"]["val_l1"] for x in records(trained / "r") if x["kind"] == "metrics"}
    state, _ = load_checkpoint(trained / "r", "best")
    best = min(values, key=lambda epoch: values[epoch])
    assert state["position"]["epoch"] - 1 == best
    assert state["position"]["best"] == values[best]


def test_saves_between_epochs(aligned: Path, tmp_path: Path) -> None:
    outcome = pix2pix(aligned, tmp_path, "--n_epochs", 1, "--save_step_freq", 1, "--keep", 9)
    assert outcome.code == 0, outcome.err
    assert sorted(path.name for path in (tmp_path / "r").glob("ckpt-*.safetensors")) == [
        f"ckpt-{step:08d}.safetensors" for step in (1, 2, 3)
    ]


def test_the_same_seed_gives_the_same_bits(aligned: Path, trained: Path, tmp_path: Path) -> None:
    assert pix2pix(aligned, tmp_path, "--n_epochs", 2).code == 0
    assert_same_training(tmp_path / "r", trained / "r")


def test_worker_processes_change_nothing(aligned: Path, trained: Path, tmp_path: Path) -> None:
    assert pix2pix(aligned, tmp_path, "--n_epochs", 2, "--num_threads", 2).code == 0
    assert_same_training(tmp_path / "r", trained / "r")


def test_another_seed_gives_other_weights(aligned: Path, trained: Path, tmp_path: Path) -> None:
    assert pix2pix(aligned, tmp_path, "--n_epochs", 2, "--seed", 1).code == 0
    assert any(
        "networks" in place for place in differences(last_state(tmp_path / "r"), last_state(trained / "r"))
    )


def test_cycle_gan_on_pairs_and_in_the_other_direction(aligned: Path, tmp_path: Path) -> None:
    where = ["--dataroot", aligned, "--name", "c", "--checkpoints_dir", tmp_path]
    outcome = train(*where, *TINY, "--n_epochs", 1, "--direction", "BtoA", "--val_holdout")
    assert outcome.code == 0, outcome.err
    assert set((records(tmp_path / "c")[0])["losses"]) == {
        "D_A", "G_A", "cycle_A", "idt_A", "D_B", "G_B", "cycle_B", "idt_B",
    }  # fmt: skip
    steps = [line for line in records(tmp_path / "c") if line["kind"] == "train"]
    assert len(steps) == 2  # one of 3 is held out


# --- what is refused


def test_a_run_that_exists_is_refused_with_both_commands(aligned: Path, trained: Path) -> None:
    before = tree(trained)
    outcome = pix2pix(aligned, trained, "--n_epochs", 9)
    assert outcome.code == 2
    assert "exists already, nothing was changed" in outcome.error
    assert f"python train.py --name r --checkpoints_dir {trained} --continue_train" in outcome.err
    assert "--name that is not taken" in outcome.err
    assert tree(trained) == before


def test_a_run_without_a_name_is_refused_as_well(aligned: Path, tmp_path: Path) -> None:
    (tmp_path / "aligned_pix2pix_batch").mkdir()
    (tmp_path / "aligned_pix2pix_batch" / "options.yaml").write_text("norm: batch\n")
    outcome = train("--dataroot", aligned, *TINY, "--model", "pix2pix", "--checkpoints_dir", tmp_path)
    assert outcome.code == 2 and "exists already" in outcome.error


def test_nothing_left_to_train(trained: Path) -> None:
    before = without_lock(tree(trained))
    outcome = go_on(trained)
    assert outcome.code == 0, outcome.err
    assert "nothing left to train: all 2 epochs of r are done" in outcome.out
    assert (
        "--continue_train --n_epochs 12 --n_epochs_decay 0   # learning rate 0.0002 to 0.0002" in outcome.out
    )
    assert (
        "--continue_train --n_epochs 2 --n_epochs_decay 10   # learning rate 0.00018 to 1.8e-05"
        in outcome.out
    )
    fewer = go_on(trained, "--n_epochs", 1)  # than are done
    assert "all 2 epochs of r are done" in fewer.out and "--n_epochs 12" in fewer.out
    assert without_lock(tree(trained)) == before


def test_an_options_file_of_a_run_that_holds_a_list(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "options.yaml").write_text("dataroot: d\nmodel: [pix2pix]\n")
    outcome = go_on(tmp_path)
    assert outcome.code == 2 and "option 'model' holds a list" in outcome.error


def test_no_run_to_go_on_with(tmp_path: Path) -> None:
    outcome = go_on(tmp_path / "runs")
    assert outcome.code == 2 and "no run to resume" in outcome.error
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--norm", "nc"], ["norm: nc_ms -> nc"]),
        (["--ngf", "4"], ["ngf: 2 -> 4"]),
        (["--batch_size", "2"], ["batch_size: 1 -> 2"]),
        (["--lr", "0.1"], ["lr: 0.0002 -> 0.1"]),
        (["--lambda_L1", "1"], ["lambda_L1: 100.0 -> 1.0"]),
        (["--model", "cycle_gan"], ["model: pix2pix -> cycle_gan"]),
        (["--crop_size", "12"], ["crop_size: 16 -> 12"]),
        (["--seed", "5", "--no_flip"], ["flip: True -> False", "seed: 0 -> 5"]),
        (["--dataroot", "elsewhere"], ["-> elsewhere"]),
    ],
)
def test_other_options_on_resume_are_listed_and_refused(
    trained: Path, flags: list[str], told: list[str]
) -> None:
    before = without_lock(tree(trained))
    outcome = go_on(trained, "--n_epochs", 3, *flags)
    assert outcome.code == 2
    assert "trained with other options" in outcome.error and "--override" in outcome.error
    assert all(any(line.strip().endswith(text) for line in outcome.err.splitlines()) for text in told), (
        outcome.err
    )
    assert without_lock(tree(trained)) == before


def test_an_edited_options_file_does_not_fool_a_resume(runs: Path) -> None:
    """The checkpoint's own options decide, not the file beside it."""
    file = runs / "r" / "options.yaml"
    file.write_text(file.read_text().replace("ngf: 2", "ngf: 4"))
    outcome = go_on(runs, "--n_epochs", 3)
    assert outcome.code == 2
    assert "  ngf: 2 -> 4" in outcome.err.splitlines()
    forced = go_on(runs, "--n_epochs", 3, "--override")
    assert forced.code == 2 and "ngf: 2 -> 4" in forced.error


def test_override_goes_on_with_what_was_asked(runs: Path) -> None:
    outcome = go_on(runs, "--n_epochs", 3, "--override", "--lr", "0.01", "--beta1", "0.9")
    assert outcome.code == 0, outcome.err
    lines = records(runs / "r")
    assert lines[-1]["epoch"] == 3
    [event] = [line for line in lines if line["kind"] == "event"]
    assert event["options"] == {"n_epochs": 3, "lr": 0.01, "beta1": 0.9, "checkpoints_dir": str(runs)}
    assert [line["lr"] for line in lines if line["kind"] == "train"][-1] == 0.01
    groups = [o["param_groups"][0] for o in last_state(runs / "r")["optimizers"].values()]
    assert all(tuple(group["betas"]) == (0.9, 0.999) for group in groups)


@pytest.mark.parametrize("change", ["added", "removed", "altered"])
def test_other_data_on_resume_is_named_and_refused(aligned: Path, tmp_path: Path, change: str) -> None:
    data = shutil.copytree(aligned, tmp_path / "data")
    assert pix2pix(data, tmp_path / "runs", "--n_epochs", 1).code == 0
    first = data / "train" / "p0.png"
    if change == "added":
        shutil.copy(first, data / "train" / "new.png")
    elif change == "removed":
        first.unlink()
    else:
        shutil.copy(data / "train" / "p1.png", first)
    before = without_lock(tree(tmp_path / "runs"))
    outcome = go_on(tmp_path / "runs", "--n_epochs", 2)
    assert outcome.code == 2 and "other data" in outcome.error and "--override" in outcome.error
    counts = {"added": "3 -> 4", "removed": "3 -> 2", "altered": "3 -> 3"}[change]
    name = "train/new.png" if change == "added" else "train/p0.png"
    assert f"{counts} files; 1 {change} (first: {name})" in outcome.err
    assert without_lock(tree(tmp_path / "runs")) == before
    run = tmp_path / "runs" / "r"
    best = last_state(run)["position"]["best"]
    outcome = go_on(tmp_path / "runs", "--n_epochs", 2, "--override")
    assert outcome.code == 0 and "starts anew" in outcome.err
    [event] = [line for line in records(run) if "starts anew" in line.get("message", "")]
    assert f"{best:.4g}" in event["message"]
    [*_, newest] = [line["metrics"]["val_l1"] for line in records(run) if line["kind"] == "metrics"]
    assert last_state(run)["position"]["best"] == newest, "the old value was kept"


@pytest.mark.parametrize("flags", [["--val_count", "3"], ["--load_size", "17"], ["--seed", "5"]])
def test_a_new_yardstick_makes_the_best_start_anew(runs: Path, flags: list[str]) -> None:
    outcome = go_on(runs, "--n_epochs", 3, "--override", *flags)
    assert outcome.code == 0 and "starts anew" in outcome.err


def test_moved_data_keep_the_best(runs: Path, tmp_path: Path) -> None:
    known = last_state(runs / "r")
    moved = tmp_path / "moved"
    moved.symlink_to(yaml.safe_load((runs / "r" / "options.yaml").read_text())["dataroot"])
    outcome = go_on(runs, "--n_epochs", 3, "--dataroot", moved, "--override")
    assert outcome.code == 0 and "starts anew" not in outcome.err
    assert known["position"]["best"] is not None


def test_the_same_command_goes_on_with_the_range_that_auto_has_found(aligned: Path, tmp_path: Path) -> None:
    flags = ("--value_range_A", "auto", "--n_epochs", 1)
    assert pix2pix(aligned, tmp_path, *flags).code == 0
    options = tmp_path / "r" / "options.yaml"
    found = yaml.safe_load(options.read_text())["value_range_A"]
    outcome = go_on(tmp_path, *flags[:2], "--n_epochs", 2)
    assert outcome.code == 0, outcome.err
    assert "," in found and yaml.safe_load(options.read_text())["value_range_A"] == found


def test_a_new_range_replaces_what_auto_has_found(runs: Path) -> None:
    path = runs / "r" / "options.yaml"
    found = {"value_range": "auto", "value_range_A": "0,2999", "value_range_B": "0,70"}
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | found))
    flags = ["--name", "r", "--checkpoints_dir", str(runs), "--continue_train", "--override"]
    options, _ = parse_train([*flags, "--value_range", "0,100", "--value_range_B", "0,50"])
    assert options.data.value_ranges == ((0, 100), (0, 50))


def test_moved_and_renamed_runs_go_on(runs: Path) -> None:
    moved = runs.rename(runs.with_name("moved"))
    (moved / "r").rename(moved / "renamed")
    outcome = train("--name", "renamed", "--checkpoints_dir", moved, "--continue_train", "--n_epochs", 3)
    assert outcome.code == 0, outcome.err
    assert records(moved / "renamed")[-1]["epoch"] == 3


def test_a_run_in_use_is_refused_and_stays_locked(aligned: Path, tmp_path: Path) -> None:
    holder = f"pid {os.getpid()} on "
    fresh = RunFolder(tmp_path / "fresh" / "r")
    fresh.path.mkdir(parents=True)
    with fresh.lock():  # the other one is about to start: nothing is in its folder yet
        outcome = pix2pix(aligned, tmp_path / "fresh", "--n_epochs", 1)
        assert outcome.code == 2 and holder in outcome.error
        assert fresh.lock_file.exists()
        assert pix2pix(aligned, tmp_path / "fresh", "--n_epochs", 1).code == 2
    assert pix2pix(aligned, tmp_path / "fresh", "--n_epochs", 1).code == 0


@pytest.mark.parametrize("place", ["/proc/runs", "file/runs", "file"])
def test_a_place_that_cannot_be_written(aligned: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("x")
    outcome = pix2pix(aligned, tmp_path / place, "--n_epochs", 1)  # an absolute path replaces tmp_path
    assert outcome.code == 2
    outcome.error  # noqa: B018
    assert tree(tmp_path) == {"file": b"x"}


@pytest.mark.parametrize(
    "flags",
    [
        ["--dataroot", "missing"],
        ["--crop_size", "18"],
        ["--device", "mps"],
        ["--preprocess", "crop", "--crop_size", "100"],
    ],
)
def test_a_training_that_does_not_start_leaves_no_folder(
    aligned: Path, tmp_path: Path, flags: list[str]
) -> None:
    outcome = pix2pix(aligned, tmp_path / "a" / "b", "--n_epochs", 1, "--load_size", 100, *flags)
    assert outcome.code == 2, outcome.err
    assert list(tmp_path.iterdir()) == []


def test_too_little_space_is_told_before_training(
    aligned: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (trained / "r" / "ckpt-00000006.safetensors").stat().st_size
    tensors = 3 * 4 * sum(p.numel() for p in load_networks(aligned, tmp_path)["G"].parameters())
    assert tensors < size
    monkeypatch.setattr("gan.run.free_space", lambda _: 2 * tensors)  # less with the discriminator
    outcome = pix2pix(aligned, tmp_path / "runs", "--n_epochs", 1)
    assert outcome.code == 2 and "no space: need" in outcome.error
    assert not (tmp_path / "runs").exists()
    monkeypatch.setattr("gan.run.free_space", lambda _: 2 * size)
    assert pix2pix(aligned, tmp_path / "runs", "--n_epochs", 1).code == 0


def test_a_failed_start_leaves_what_others_put_there(aligned: Path, tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "notes.txt").write_text("mine")
    assert pix2pix(aligned, tmp_path, "--n_epochs", 1, "--crop_size", 18).code == 2
    assert tree(tmp_path) == {"r": b"", "r/notes.txt": b"mine"}


def test_a_crop_for_the_smaller_unet_names_it(aligned: Path, tmp_path: Path) -> None:
    outcome = pix2pix(
        aligned, tmp_path / "runs", "--netG", "unet_256", "--crop_size", 128, "--load_size", 286
    )
    assert outcome.code == 2 and "--netG unet_128 --load_size 143" in outcome.error


def test_a_crop_size_that_is_not_used_refuses_no_picture(aligned: Path, tmp_path: Path) -> None:
    whole = ["--preprocess", "none", "--crop_size", 32, "--n_epochs", 1]  # of pictures with 20 x 20 pixels
    assert pix2pix(aligned, tmp_path, *whole).code == 0
    large = pix2pix(aligned, tmp_path / "runs", *whole, "--netD", "basic", "--crop_size", 64)
    assert "--preprocess: none: the networks need 24x24 pixels, and a picture has 40x20" in large.error


# --- when something fails under way


def test_a_loss_that_is_no_number_stops_the_run_and_spares_the_checkpoint(runs: Path) -> None:
    before = {
        name: content for name, content in tree(runs).items() if "ckpt" in name or name.endswith(".json")
    }
    outcome = go_on(runs, "--n_epochs", 4, "--override", "--lr", "1e30")
    assert outcome.code == 1
    assert "is nan at step 7; last good checkpoint step 6 (try a lower --lr)" in outcome.error
    assert "loss D_" in outcome.error or "loss G_" in outcome.error
    after = tree(runs)
    assert {name: after[name] for name in before} == before
    assert (runs / "r" / "run.log").read_text().count("RunError") > 0


def test_a_loss_that_is_no_number_before_the_first_checkpoint(aligned: Path, tmp_path: Path) -> None:
    outcome = pix2pix(aligned, tmp_path, "--n_epochs", 4, "--lr", "1e30")
    assert outcome.code == 1 and "no checkpoint yet" in outcome.error
    assert go_on(tmp_path, "--override", "--lr", "2e-4", "--n_epochs", 1).code == 0


def test_weights_that_are_no_numbers_are_never_saved(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient may be NaN under a finite loss: the epoch's last step leaves it in the weights."""
    step = Pix2Pix.step

    def poisoned(self: Pix2Pix, batch: Any) -> Any:
        result = step(self, batch)
        next(self.networks["G"].parameters()).data.view(-1)[0] = float("inf" if len(steps) < 2 else "nan")
        steps.append(1)
        return result

    steps: list[int] = []
    monkeypatch.setattr(Pix2Pix, "step", poisoned)
    before = {name: content for name, content in tree(runs).items() if "ckpt" in name}
    outcome = go_on(runs, "--n_epochs", 3, "--override", "--save_step_freq", 1)
    assert outcome.code == 1
    assert ".weight: 1 of " in outcome.error
    assert " values are NaN or infinite after step 7; last good checkpoint step 6" in outcome.error
    assert {name: content for name, content in tree(runs).items() if "ckpt" in name} == before


@pytest.fixture
def small_files(runs: Path) -> Iterator[None]:
    """No file may be as large as a checkpoint."""
    size = (runs / "r" / "ckpt-00000006.safetensors").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_no_room_for_a_checkpoint(runs: Path, small_files: None, aligned: Path, tmp_path: Path) -> None:
    before = {name: content for name, content in tree(runs).items() if "ckpt" in name}
    outcome = go_on(runs, "--n_epochs", 5)
    assert outcome.code == 2
    assert "no space: need" in outcome.error
    assert outcome.err.count("warning: checkpoint not saved") == 1 and "training continues" in outcome.err
    after = tree(runs)
    assert {name: content for name, content in after.items() if "ckpt" in name} == before
    assert [name for name in after if "tmp" in name or "partial" in name] == []


def test_training_goes_on_to_the_same_end_after_a_save_has_failed(
    aligned: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def save(folder: Path, *arguments: Any, **named: Any) -> Path:
        calls.append(named["step"])
        if len(calls) == 1:
            raise UserError(folder, "no space: need 2 MiB, free 1 MiB")
        return real_save(folder, *arguments, **named)

    real_save = loop.save_checkpoint
    monkeypatch.setattr(loop, "save_checkpoint", save)
    outcome = pix2pix(aligned, tmp_path, "--n_epochs", 2)
    assert outcome.code == 0 and calls == [3, 6]
    assert "warning: checkpoint not saved" in outcome.err
    assert_same_training(tmp_path / "r", trained / "r")


def test_used_up_memory_is_one_line(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("gan.pix2pix.Pix2Pix.step", step)
    outcome = go_on(runs, "--n_epochs", 3)
    assert outcome.code == 1
    assert (
        outcome.error == "error: memory: out of memory at step 7 (try a smaller --crop_size or --batch_size)"
    )


def test_ctrl_c_in_the_start_up_leaves_nothing(
    aligned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scan(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(setup, "build_data", scan)
    outcome = pix2pix(aligned, tmp_path / "runs", "--n_epochs", 1)
    assert (outcome.code, outcome.error) == (130, "error: interrupted")
    assert not (tmp_path / "runs").exists()


def test_a_run_folder_that_is_deleted_comes_back_with_the_next_save(
    aligned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Deleting(Viewer):
        def progress(self, step: int, epoch: int) -> None:
            if step == 4:
                shutil.rmtree(tmp_path / "r")

    monkeypatch.setattr(start, "choose_viewers", lambda *_: [Deleting()])
    outcome = pix2pix(aligned, tmp_path, "--n_epochs", 3)
    assert outcome.code == 0, outcome.err
    assert load_checkpoint(tmp_path / "r", "last")[0]["position"]["step"] == 9
    assert go_on(tmp_path, "--n_epochs", 4).code == 0


def test_a_run_folder_that_is_exchanged_spares_the_checkpoints_there(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = shutil.copytree(runs / "r", tmp_path / "other")
    before = tree(other)

    class Exchanging(Viewer):
        def progress(self, step: int, epoch: int) -> None:
            if step == 7:
                (runs / "r").rename(tmp_path / "away")
                (runs / "r").symlink_to(other)

    monkeypatch.setattr(start, "choose_viewers", lambda *_: [Exchanging()])
    outcome = go_on(runs, "--n_epochs", 3, "--keep", 1)
    assert outcome.code == 2 and "is another folder now, with checkpoints of its own" in outcome.error
    after = tree(other)
    assert {name: after[name] for name in before if "ckpt" in name} == {
        name: content for name, content in before.items() if "ckpt" in name
    }


def test_a_removed_holder_file_stops_no_save(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Removing(Viewer):
        def progress(self, step: int, epoch: int) -> None:
            if step == 7:
                (runs / "r" / "run.holder").unlink()

    monkeypatch.setattr(start, "choose_viewers", lambda *_: [Removing()])
    outcome = go_on(runs, "--n_epochs", 3)
    assert outcome.code == 0 and "not saved" not in outcome.err
    assert last_state(runs / "r")["position"]["step"] == 9


def test_pictures_that_scale_width_makes_too_small(aligned: Path, tmp_path: Path) -> None:
    small = ("--preprocess", "scale_width", "--load_size", 16, "--crop_size", 32, "--netD", "basic")
    outcome = pix2pix(aligned, tmp_path, *small)
    assert outcome.code == 2 and "--preprocess: scale_width: the networks need 24x24 pixels" in outcome.error
    assert "which becomes 16x32 (raise --load_size" in outcome.error and list(tmp_path.iterdir()) == []


def test_another_batch_size_goes_on_behind_the_pictures_that_were_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(Viewer):
        def progress(self, step: int, epoch: int) -> None:
            if step == 4:
                os.kill(os.getpid(), signal.SIGTERM)

    data = write_aligned(tmp_path / "data", 6)
    with monkeypatch.context() as patch:
        patch.setattr(start, "choose_viewers", lambda *_: [Stop()])
        assert pix2pix(data, tmp_path / "runs", "--n_epochs", 1).code == 128 + signal.SIGTERM
    outcome = go_on(tmp_path / "runs", "--override", "--batch_size", 2)
    assert outcome.code == 0, outcome.err
    assert last_state(tmp_path / "runs" / "r")["position"]["step"] == 5  # the last two of six, as one batch


def test_what_a_kill_in_a_save_has_left_is_removed_at_the_next_start(runs: Path) -> None:
    newest = runs / "r" / "ckpt-00000006.safetensors"
    for name in ("ckpt-00000007.safetensors", "ckpt-00000002.safetensors"):
        shutil.copy(newest, newest.with_name(name))
    (runs / "r" / "ckpt-00000001.pt.sha256").write_text("0" * 64)
    assert go_on(runs, "--keep", 1).code == 0  # nothing is left to train
    assert [path.name for path in (runs / "r").glob("ckpt-*")] == [newest.name]
    (runs / "r" / "latest.json").write_text("damaged")
    shutil.copy(newest, newest.with_name("ckpt-00000002.safetensors"))
    assert go_on(runs, "--keep", 1).code == 0
    assert len(list((runs / "r").glob("ckpt-*"))) == 2, "nothing is deleted where the pointer is damaged"


def test_our_own_bugs_are_one_line_with_the_traceback_in_the_log(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(*_: object) -> None:
        raise KeyError("oops")

    monkeypatch.setattr("gan.pix2pix.Pix2Pix.step", step)
    outcome = go_on(runs, "--n_epochs", 3)
    assert outcome.code == 1
    assert "internal error: KeyError: 'oops'" in outcome.error
    assert "Traceback" in (runs / "r" / "run.log").read_text()


def test_samples_that_cannot_be_written_stop_nothing(
    aligned: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(loop, "save_samples", fail)
    outcome = pix2pix(aligned, tmp_path, "--n_epochs", 2)
    assert outcome.code == 0
    assert "warning: sample pictures not written" in outcome.err
    assert list(differences(last_state(tmp_path / "r"), last_state(trained / "r"))) == []


class Broken(Viewer):
    """Raises from one of its methods."""

    def __init__(self, method: str) -> None:
        def fail(*_: object) -> None:
            raise RuntimeError("the viewer fell over")

        setattr(self, method, fail)


class Witness(Viewer):
    """Sees everything in order."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def start(self, run: RunInfo, records: Any) -> None:
        self.seen.append("start")

    def record(self, record: Record) -> None:
        self.seen.append(record["kind"])

    def close(self) -> None:
        self.seen.append("close")


def test_viewers_that_fail_are_dropped_and_change_nothing(
    aligned: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    witness = Witness()
    methods = ("start", "record", "progress", "commands", "close")
    viewers = [*(Broken(method) for method in methods), witness]
    monkeypatch.setattr(start, "choose_viewers", lambda *_: viewers)
    outcome = pix2pix(aligned, tmp_path, "--n_epochs", 2)
    assert outcome.code == 0
    assert outcome.err.count("the viewer fell over") == len(methods)
    assert_same_training(tmp_path / "r", trained / "r")
    assert witness.seen == ["start", *(line["kind"] for line in records(tmp_path / "r")), "close"]


def test_a_viewer_can_ask_to_save_sample_and_stop(
    aligned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Asking(Viewer):
        asked = iter([{"save", "sample"}, {"stop"}])

        def commands(self) -> set[str]:
            return next(self.asked, set())

    monkeypatch.setattr(start, "choose_viewers", lambda *_: [Asking()])
    outcome = pix2pix(aligned, tmp_path, "--n_epochs", 5)
    assert outcome.code == 0
    assert "stopped after epoch 1, as asked" in outcome.out and "--continue_train" in outcome.out
    steps = [line["step"] for line in records(tmp_path / "r") if line["kind"] == "samples"]
    assert steps == [1, 3]
    assert (tmp_path / "r" / "ckpt-00000001.safetensors").exists()


def test_metrics_of_the_caller_choose_the_best(aligned: Path, tmp_path: Path) -> None:
    arguments = [
        "--dataroot", str(aligned), *TINY, "--model", "pix2pix", "--checkpoints_dir", str(tmp_path), "--name", "r",
        "--n_epochs", "4", "--best_by", "psnr", "--eval_every", "1", "--keep", "1",
    ]  # fmt: skip
    values = iter([10.0, 30.0, 20.0, 30.0])
    kinds: list[set[str]] = []

    def evaluate(images: Mapping[str, torch.Tensor]) -> dict[str, float]:
        kinds.append(set(images))
        return {"psnr": next(values)}

    assert program.train(*parse_train(arguments), evaluate) == 0
    assert kinds == [{"input", "fake", "target"}] * 4
    state, _ = load_checkpoint(tmp_path / "r", "best")
    assert (state["position"]["epoch"] - 1, state["position"]["best"]) == (2, 30.0)
