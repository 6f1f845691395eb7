"""--ema: the average against a loop by hand, exact resume, and who uses it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training_support import (
    ROOT,
    TINY,
    Outcome,
    differences,
    environment,
    last_state,
    picture,
    records,
    start,
    train,
    translate,
    write_aligned,
)

from datasets.images import load_image, to_picture, to_tensor
from datasets.transforms import evaluation_resize
from gan.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from gan.command_line import parse_train
from gan.options import from_dict
from gan.setup import build_trainer, checkpoint_size, generators
from gan.translate import Translator

DECAY = 0.8
MODELS = {
    "cycle_gan": ["--model", "cycle_gan", "--norm", "nc_ms"],
    "pix2pix": ["--model", "pix2pix"],  # batch norm: running statistics
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_aligned(tmp_path_factory.mktemp("data") / "a")


def flags(data: Path, runs: Path, *more: object) -> list[object]:
    where = ["--dataroot", data, "--name", "r", "--checkpoints_dir", runs]
    return [*where, *TINY, *MODELS["pix2pix"], *more]


def run(data: Path, runs: Path, *more: object) -> Path:
    outcome = train(*flags(data, runs, *more))
    assert outcome.code == 0, outcome.err
    return runs / "r"


def go_on(runs: Path, *more: object) -> Outcome:
    return train("--name", "r", "--checkpoints_dir", runs, "--continue_train", *more)


def averages(run: Path) -> dict[str, Any]:
    return dict(load_checkpoint(run, "last")[0]["averages"])


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four epochs with --ema; nobody changes it."""
    return run(data, tmp_path_factory.mktemp("runs"), "--ema", DECAY, "--n_epochs", 4)


@pytest.mark.parametrize("model", MODELS)
def test_the_average_is_that_of_a_loop_by_hand(model: str) -> None:
    options = [*TINY, *MODELS[model], "--dataroot", "none"]
    trainer = build_trainer(parse_train([*options, "--ema", str(DECAY)])[0])
    plain = build_trainer(parse_train(options)[0])
    generators = [name for name in trainer.networks if name.startswith("G")]
    assert list(trainer.averages) == generators and plain.averages == {}
    expected = {
        name: {key: value.double() for key, value in trainer.networks[name].state_dict().items()}
        for name in generators
    }
    draws = torch.Generator().manual_seed(0)
    for _ in range(5):
        batch = {side: torch.rand(1, 3, 16, 16, generator=draws) * 2 - 1 for side in "AB"}
        for one in (trainer, plain):
            torch.manual_seed(7)
            one.step(batch)
            one.update_averages()
        for name in generators:
            for key, value in trainer.networks[name].state_dict().items():
                is_buffer = "running" in key or "tracked" in key
                hand = DECAY * expected[name][key] + (1 - DECAY) * value.double()
                expected[name][key] = value.double() if is_buffer else hand
    for name in generators:
        found = trainer.averages[name].state_dict()
        assert any("running" in key for key in found) == (model == "pix2pix")
        for key, value in found.items():
            assert torch.allclose(value.double(), expected[name][key], rtol=1e-6, atol=1e-7), (name, key)
        assert any(differences(found, trainer.networks[name].state_dict()))
    assert not list(
        differences(
            {name: network.state_dict() for name, network in trainer.networks.items()},
            {name: network.state_dict() for name, network in plain.networks.items()},
        )
    ), "the training itself is the same without an average"
    weights = 4 * sum(p.numel() for name in generators for p in trainer.networks[name].parameters())
    assert checkpoint_size(trainer) == checkpoint_size(plain) + weights


@pytest.mark.parametrize("model", MODELS)
def test_samples_are_those_of_the_average(model: str) -> None:
    options = [*TINY, *MODELS[model], "--dataroot", "none", "--ema", str(DECAY)]
    trainer = build_trainer(parse_train(options)[0])
    batch = {side: torch.rand(1, 3, 16, 16) * 2 - 1 for side in "AB"}
    trainer.step(batch)
    trainer.update_averages()
    images = trainer.sample(batch)
    for fake, name, side in (("fake_B", "G_A", "A"), ("fake_A", "G_B", "B"), ("fake", "G", "A")):
        if fake in images:
            with torch.no_grad():
                assert torch.equal(images[fake], trainer.averages[name].eval()(batch[side]))
                assert not torch.equal(images[fake], trainer.networks[name].eval()(batch[side]))


def test_without_it_nothing_is_stored_and_with_it_the_training_is_the_same(
    data: Path, trained: Path, tmp_path: Path
) -> None:
    plain = run(data, tmp_path, "--n_epochs", 4)
    assert "averages" not in load_checkpoint(plain, "last")[0]
    ours, theirs = last_state(trained), last_state(plain)
    for state in (ours, theirs):
        del state["position"]["best"]  # of other samples
    assert list(differences(ours, theirs)) == []
    losses = [[line for line in records(each) if line["kind"] == "train"] for each in (trained, plain)]
    assert losses[0] == losses[1] != []
    values = [[line for line in records(each) if line["kind"] == "metrics"] for each in (trained, plain)]
    assert values[0] != values[1], "validation uses the average"


def test_stopped_after_every_epoch(data: Path, trained: Path, tmp_path: Path) -> None:
    run(data, tmp_path, "--ema", DECAY, "--n_epochs", 1)
    for epochs in (2, 3, 4):
        assert go_on(tmp_path, "--n_epochs", epochs).code == 0
    assert list(differences(averages(tmp_path / "r"), averages(trained))) == []
    assert list(differences(last_state(tmp_path / "r"), last_state(trained))) == []


def test_kill_9_of_the_real_command(data: Path, trained: Path, tmp_path: Path) -> None:
    process = start("train", *flags(data, tmp_path, "--ema", DECAY, "--n_epochs", 500))
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("epoch 2/"):
                break
    finally:
        process.kill()
        process.communicate()
    kept = last_state(tmp_path / "r")["position"]["epoch"] - 1
    reference = (
        trained if kept < 4 else run(data, tmp_path / "longer", "--ema", DECAY, "--n_epochs", kept + 1)
    )
    assert go_on(tmp_path, "--n_epochs", max(4, kept + 1)).code == 0
    assert list(differences(averages(tmp_path / "r"), averages(reference))) == []
    assert list(differences(last_state(tmp_path / "r"), last_state(reference))) == []


def test_switched_on_it_starts_at_the_weights(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path, "--n_epochs", 1)
    refused = go_on(tmp_path, "--n_epochs", 2, "--ema", 0.5)
    assert refused.code == 2 and "--override" in refused.error and "  ema: 0.0 -> 0.5" in refused.err
    before = load_checkpoint(tmp_path / "r", "last")[0]["networks"]["G"]
    outcome = go_on(tmp_path, "--n_epochs", 2, "--ema", 0.999999, "--override")
    assert outcome.code == 0, outcome.err
    assert "--ema: the average starts at the weights of step 3" in outcome.err.splitlines()
    average = averages(tmp_path / "r")["G"]
    for key, value in before.items():
        if "running" not in key and "tracked" not in key:
            assert torch.allclose(average[key], value, rtol=0, atol=1e-7)
    [event] = [line for line in records(tmp_path / "r") if line["kind"] == "event"]
    assert event["options"] == {"n_epochs": 2, "ema": 0.999999}
    assert "the average starts" not in go_on(tmp_path, "--n_epochs", 3).err


def test_switched_off_it_ends(data: Path, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "r")
    outcome = go_on(tmp_path, "--n_epochs", 5, "--ema", 0, "--override")
    assert outcome.code == 0, outcome.err
    assert "--ema: the average is not kept after step 12" in outcome.err.splitlines()
    assert "averages" not in load_checkpoint(tmp_path / "r", "last")[0]
    assert not Translator.load(tmp_path / "r", device="cpu").is_average
    plain = run(data, tmp_path / "plain", "--n_epochs", 5)
    assert not list(differences(last_state(tmp_path / "r")["networks"], last_state(plain)["networks"]))


def network_of(run: Path, part: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The generator with the weights of a part of the checkpoint, in eval mode."""
    state = load_checkpoint(run, "last")[0]
    network = generators(from_dict(state["options"]))["G"].eval().requires_grad_(False)
    network.load_state_dict(state[part]["G"])
    return network


def translated(run: Path, output: Path, *more: object) -> tuple[torch.Tensor, str]:
    source = output.with_name("input.png")
    picture(16, 16).save(source)
    where = ["--name", "r", "--checkpoints_dir", run.parent, "--input", source, "--output", output]
    outcome = translate(*where, "--device", "cpu", *more)
    assert outcome.code == 0, outcome.err
    return to_tensor(load_image(output)), outcome.out


def test_test_py_uses_the_average_unless_it_is_told_not_to(trained: Path, tmp_path: Path) -> None:
    for which, part in (([], "averages"), (["--which", "ema"], "averages"), (["--which", "raw"], "networks")):
        found, told = translated(trained, tmp_path / f"{part}.png", *which)
        expected = network_of(trained, part)(to_tensor(load_image(tmp_path / "input.png"))[None])[0]
        assert torch.equal(found, to_tensor(to_picture(expected)))
        assert ("(epoch 4, ema)" in told) == (part == "averages")
    assert (tmp_path / "averages.png").read_bytes() != (tmp_path / "networks.png").read_bytes()


def test_both_kinds_of_weights_have_a_results_page_of_their_own(trained: Path, tmp_path: Path) -> None:
    for more in ([], ["--which", "raw"]):
        where = ["--name", "r", "--checkpoints_dir", trained.parent, "--results_dir", tmp_path]
        assert translate(*where, "--device", "cpu", *more).code == 0
    assert {path.name for path in (tmp_path / "r").iterdir()} == {"test_last_AtoB", "test_last_raw_AtoB"}
    pages = [
        (tmp_path / "r" / name / "index.html").read_text()
        for name in ("test_last_AtoB", "test_last_raw_AtoB")
    ]
    assert ["epoch 4, ema" in page for page in pages] == [True, False]


def test_the_evaluation_uses_the_average_and_keeps_both_apart(
    data: Path, trained: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained, tmp_path / "r")
    rows = {}
    half = evaluation_resize(load_image(data / "test" / "p0.png").crop((0, 0, 20, 20)), 16)
    for which, part in (("ema", "averages"), ("raw", "networks")):
        command = [sys.executable, "-m", "evaluate", tmp_path / "r", "--metrics", "psnr", "--which", which]
        done = subprocess.run(
            command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        place = tmp_path / "r" / "evaluation"
        report = place / ("raw" if which == "raw" else "") / "report.json"
        [rows[which]] = json.loads(report.read_text())["rows"]
        assert ("epoch 4, step 12, ema)" in done.stdout.replace("\n", " ")) == (which == "ema"), done.stdout
        expected = to_picture(network_of(trained, part)(to_tensor(half)[None])[0])
        output = place / f"epoch-4-step-12{'-ema' * (which == 'ema')}" / "AtoB" / "p0.png"
        assert load_image(output).tobytes() == expected.tobytes()
    assert rows["ema"]["values"] != rows["raw"]["values"]
    assert rows["ema"]["weights"] == "ema" and "weights" not in rows["raw"]


@pytest.mark.parametrize("decay", ["1", "-0.1", "nan", "2"])
def test_a_decay_that_is_none_is_refused(decay: str, data: Path, tmp_path: Path) -> None:
    outcome = train(*flags(data, tmp_path, "--ema", decay))
    assert (
        outcome.code == 2 and "--ema: is " in outcome.error and "allowed: 0 to less than 1" in outcome.error
    )
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("damage", ["a missing network", "a missing tensor", "another shape", "no tensors"])
def test_an_average_that_does_not_fit_is_refused(damage: str, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "r")
    state, path = load_checkpoint(tmp_path / "r", "last")
    average = state["averages"]["G"]
    key = next(iter(average))
    if damage == "a missing network":
        del state["averages"]["G"]
    elif damage == "a missing tensor":
        del average[key]
    elif damage == "another shape":
        average[key] = average[key][:1]
    else:
        state["averages"] = {"G": 3}
    for info in list_checkpoints(tmp_path / "r"):
        info.path.unlink()
    save_checkpoint(tmp_path / "r", state, step=12, epoch=4, keep=1)
    outcome = go_on(tmp_path, "--n_epochs", 5)
    assert outcome.code == 2 and str(path) in outcome.error
    where = ["--name", "r", "--checkpoints_dir", tmp_path, "--input", ROOT / "docs" / "demo.png"]
    refused = translate(*where, "--output", tmp_path / "x.png", "--device", "cpu")
    assert refused.code == 2 and str(path) in refused.error
