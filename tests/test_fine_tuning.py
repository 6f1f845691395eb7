"""A training that starts from other weights (`--init_from`), and parts that stand still (`--freeze`)."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_support import patch_discriminator, resnet, save, unet, with_drawn_weights
from torch import Tensor
from training_support import (
    ROOT,
    TINY,
    command,
    differences,
    environment,
    last_state,
    train,
    tree,
    untrained_run,
    write_aligned,
    write_unaligned,
)

from gan.checkpoint import load_checkpoint, save_checkpoint
from gan.generator_file import write_generator
from gan.pretrained import read_pretrained
from gan.translate import Translator

PIX2PIX = ["--model", "pix2pix", "--base_norm", "instance", "--norm", "instance"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_unaligned(tmp_path_factory.mktemp("data") / "unaligned")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_aligned(tmp_path_factory.mktemp("data") / "aligned")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CycleGAN run of the last epoch 4 and the best epoch 3, with other weights in each; `r` in its folder."""
    runs = tmp_path_factory.mktemp("sources")
    untrained_run(runs, "--seed", 7, epoch=3)
    state, _ = load_checkpoint(runs / "r")
    save_checkpoint(runs / "r", state, step=6, epoch=3, keep=9, best=True)
    untrained_run(runs, "--seed", 8, epoch=4)
    return runs / "r"


def lines_of(out: str) -> dict[str, str]:
    """The plan: name -> text."""
    return dict(line.strip().split("  ", 1) for line in out.splitlines() if "  " in line.strip())


def started(data: Path, runs: Path, *flags: object, epochs: int = 0) -> tuple[dict[str, Any], dict[str, str]]:
    """The state of a run of a learning rate that changes nothing, and its plan."""
    arguments = ["--dataroot", data, "--name", "new", "--checkpoints_dir", runs, *TINY, "--lr", 1e-30]
    outcome = train(*arguments, "--n_epochs", 1, *flags)
    assert outcome.code == 0, outcome.err
    return last_state(runs / "new")["networks"], lines_of(outcome.out)


def refused(data: Path, runs: Path, *flags: object) -> str:
    before = tree(runs) if runs.exists() else {}
    outcome = train("--dataroot", data, "--name", "new", "--checkpoints_dir", runs, *TINY, *flags)
    assert outcome.code == 2
    assert (tree(runs) if runs.exists() else {}) == before
    return outcome.error


def equal(one: dict[str, Tensor], other: dict[str, Tensor], without: str = "nothing") -> bool:
    keys = [key for key in one if not key.startswith(without)]
    return one.keys() == other.keys() and all(
        torch.allclose(one[key], other[key], atol=1e-12) for key in keys
    )


@pytest.mark.parametrize(("which", "epoch"), [("", 4), ("@last", 4), ("@best", 3), ("@3", 3)])
def test_a_run(data: Path, source: Path, tmp_path: Path, which: str, epoch: int) -> None:
    networks, plan = started(data, tmp_path, "--init_from", f"{source}{which}", "--seed", 1)
    expected, path = load_checkpoint(source, epoch)
    assert all(equal(networks[name], expected["networks"][name]) for name in ("G_A", "G_B", "D_A", "D_B"))
    assert plan["weights"] == f"G_A, G_B, D_A, D_B of {path} (epoch {epoch}, step {2 * epoch})"
    position = last_state(tmp_path / "new")["position"]
    assert (position["step"], position["epoch"]) == (3, 2)  # from the beginning


def test_an_average_starts_at_the_weights_that_were_taken(data: Path, source: Path, tmp_path: Path) -> None:
    started(data, tmp_path, "--init_from", source, "--ema", 0.9)
    expected = load_checkpoint(source)[0]["networks"]
    averages = load_checkpoint(tmp_path / "new")[0]["averages"]
    assert all(equal(averages[name], expected[name]) for name in ("G_A", "G_B"))


def test_a_run_by_its_name(data: Path, source: Path) -> None:
    arguments = ["--dataroot", data, "--name", "dry", "--checkpoints_dir", source.parent, "--dry_run", *TINY]
    outcome = train(*arguments, "--init_from", "r@best")
    assert outcome.code == 0 and "G_A, G_B, D_A, D_B of" in lines_of(outcome.out)["weights"]


@pytest.mark.parametrize("direction", ["AtoB", "BtoA"])
def test_an_exported_file(data: Path, pairs: Path, source: Path, tmp_path: Path, direction: str) -> None:
    translator = Translator.load(source, direction=direction, device="cpu")
    write_generator(translator, tmp_path / "x.safetensors")
    flags = ["--init_from", tmp_path / "x.safetensors"]
    networks, plan = started(data, tmp_path / "cycle", *flags)
    name, other = ("G_A", "G_B") if direction == "AtoB" else ("G_B", "G_A")
    assert equal(networks[name], translator.network.state_dict())
    assert (
        plan["weights"].startswith(f"{name} of {tmp_path}")
        and f"; fresh: {other}, D_A, D_B" in plan["weights"]
    )
    networks, plan = started(pairs, tmp_path / "pairs", *flags, *PIX2PIX)
    assert equal(networks["G"], translator.network.state_dict())
    assert plan["weights"].startswith(f"G (from {name}) of") and plan["weights"].endswith("; fresh: D")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("foreign")
    for seed, side in enumerate("AB"):
        generator = resnet(ngf=2, blocks=6)
        discriminator = patch_discriminator(ndf=2, count=1)
        save(with_drawn_weights(generator, seed), folder / f"latest_net_G_{side}.pth")
        save(with_drawn_weights(discriminator, seed), folder / f"latest_net_D_{side}.pth")
    return folder


LAYERS = ["--netD", "n_layers", "--n_layers_D", 1]


def test_a_foreign_folder_and_a_foreign_file(data: Path, foreign: Path, tmp_path: Path) -> None:
    networks, plan = started(data, tmp_path / "folder", "--init_from", foreign, *LAYERS)
    expected = read_pretrained(foreign, discriminators=True)[0]["networks"]
    assert all(equal(networks[name], expected[name]) for name in expected) and len(expected) == 4
    assert plan["weights"] == f"G_A, G_B, D_A, D_B of {foreign / 'latest_net_G_A.pth'}"
    networks, plan = started(data, tmp_path / "file", "--init_from", foreign / "latest_net_G_B.pth")
    assert equal(networks["G_B"], expected["G_B"]) and not equal(networks["G_A"], expected["G_A"])
    assert plan["weights"].endswith("latest_net_G_B.pth; fresh: G_A, D_A, D_B")


def test_a_foreign_pix2pix(pairs: Path, data: Path, tmp_path: Path) -> None:
    generator = save(with_drawn_weights(unet(ngf=2, downs=7)), tmp_path / "latest_net_G.pth")
    save(with_drawn_weights(patch_discriminator(6, 2, "batch", count=1)), tmp_path / "latest_net_D.pth")
    flags = ["--netG", "unet_128", "--load_size", 128, "--crop_size", 128, "--norm", "batch"]
    networks, plan = started(
        pairs, tmp_path / "runs", "--init_from", tmp_path, "--model", "pix2pix", *LAYERS, *flags
    )
    expected = read_pretrained(tmp_path, discriminators=True)[0]["networks"]
    for name in ("G", "D"):
        parameters = {
            key: value for key, value in networks[name].items() if "running" not in key and "num_" not in key
        }
        assert equal(parameters, {key: expected[name][key] for key in parameters})
    assert plan["weights"] == f"G, D of {generator}"
    plan = started(data, tmp_path / "cycle", "--init_from", generator, "--direction", "BtoA", *flags)[1]
    assert plan["weights"] == f"G_B (from G) of {generator}; fresh: G_A, D_A, D_B"


def test_other_channels_draw_only_the_layers_concerned(data: Path, source: Path, tmp_path: Path) -> None:
    flags = ["--input_nc", 1, "--lambda_identity", 0, "--seed", 2]
    networks, plan = started(data, tmp_path / "other", "--init_from", source, *flags)
    drawn, _ = started(data, tmp_path / "drawn", *flags)
    expected = load_checkpoint(source)[0]["networks"]
    for name, layer in (("G_A", "stem.conv"), ("G_B", "out"), ("D_B", "first.conv")):
        inside = [key for key in networks[name] if key.startswith(layer)]
        assert len(inside) == 2
        assert all(torch.allclose(networks[name][key], drawn[name][key], atol=1e-12) for key in inside)
        others = networks[name].keys() - set(inside)
        assert all(torch.allclose(networks[name][k], expected[name][k], atol=1e-12) for k in others)
    assert equal(networks["D_A"], expected["D_A"])
    assert plan["weights"].endswith(
        "; fresh: G_A.stem.conv (1 channels, not 3), G_B.out (1 channels, not 3), D_B.first.conv (1 channels, not 3)"
    )


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--ngf", 4], "has ngf 2, not 4 (add --ngf 2)"),
        (["--netG", "resnet_9blocks", "--norm", "nc_ms"],
         "norm instance, not nc_ms (add --netG resnet_6blocks --norm instance)"),
        (["--upsample", "resize"], "(add --upsample transposed)"),
        (["--netD", "basic", "--crop_size", "32", "--load_size", "32"], "(add --netD pixel)"),
        (["--ndf", 4], "(add --ndf 2)"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)  # fmt: skip
def test_other_networks_are_refused(
    data: Path, source: Path, tmp_path: Path, flags: list[object], said: str
) -> None:
    assert said in refused(data, tmp_path / "runs", "--init_from", source, *flags)


def test_the_flags_of_the_refusal_make_it_fit(data: Path, foreign: Path, tmp_path: Path) -> None:
    line = refused(data, tmp_path, "--init_from", foreign, "--ngf", 3)
    flags = line.rpartition("(add ")[2].rstrip(")").split()
    assert flags == ["--ngf", "2", "--netD", "n_layers", "--n_layers_D", "1"]
    assert started(data, tmp_path, "--init_from", foreign, *flags)[1]["weights"].startswith(
        "G_A, G_B, D_A, D_B of"
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nobody", "nobody: no such run, here or in"),
        ("{source}@best5", "names no checkpoint (allowed: RUN, RUN@last, RUN@best, RUN@EPOCH)"),
        ("{source}@9", "no checkpoint of epoch 9 (there are: 3, 4)"),
        ("{source}/options.yaml", "is not a plain-tensor checkpoint but looks like text"),
        ("{here}", "no checkpoint here"),
        ("{here}/nan.pth", "nan.pth: G: stem.conv.weight: 1 of 294 values are NaN or infinite"),
        ("{here}/d.pth", "is a discriminator, not a generator"),
        ("{here}/nan.pth@best", "nan.pth: is a file, not a run, and has no checkpoint best"),
    ],
)  # fmt: skip
def test_sources_that_are_none(data: Path, source: Path, tmp_path: Path, name: str, said: str) -> None:
    network = resnet(ngf=2, blocks=6)
    network.state_dict()["model.1.weight"].view(-1)[5] = float("nan")
    save(network, tmp_path / "nan.pth")
    save(patch_discriminator(), tmp_path / "d.pth")
    line = refused(data, tmp_path / "runs", "--init_from", name.format(source=source, here=tmp_path))
    assert said in line


def test_a_hostile_run_is_refused(data: Path, source: Path, tmp_path: Path) -> None:
    state, _ = load_checkpoint(source)
    for change in ({"options": state["options"] | {"model": 7}}, {"options": {}}, {"networks": {"D_A": {}}}):
        folder = tmp_path / "hostile"
        save_checkpoint(folder, state | change, step=1, epoch=1, keep=1)
        assert refused(data, tmp_path / "runs", "--init_from", folder)


def test_a_resumed_run_needs_its_source_no_more(data: Path, source: Path, tmp_path: Path) -> None:
    copy = save(with_drawn_weights(resnet(ngf=2, blocks=6)), tmp_path / "latest_net_G_A.pth")
    flags = [
        *TINY,
        "--dataroot",
        data,
        "--checkpoints_dir",
        tmp_path,
        "--init_from",
        copy,
        "--freeze",
        "G_A.stem.*,D_?.o*",
    ]
    assert train("--name", "whole", *flags, "--n_epochs", 3).code == 0
    assert train("--name", "halves", *flags, "--n_epochs", 1).code == 0
    copy.unlink()
    resumed = train("--name", "halves", "--checkpoints_dir", tmp_path, "--continue_train", "--n_epochs", 3)
    assert resumed.code == 0, resumed.err
    assert list(differences(last_state(tmp_path / "whole"), last_state(tmp_path / "halves"))) == []
    other = train(
        "--name", "halves", "--checkpoints_dir", tmp_path, "--continue_train", "--init_from", source
    )
    assert other.code == 2 and "trained with other options" in other.error


def test_a_run_without_a_checkpoint_starts_from_the_source_again(
    data: Path, source: Path, tmp_path: Path
) -> None:
    started(data, tmp_path, "--init_from", source)
    for path in (tmp_path / "new").glob("ckpt-*"):
        path.unlink()
    (tmp_path / "new" / "latest.json").unlink()
    outcome = train("--name", "new", "--checkpoints_dir", tmp_path, "--continue_train")
    assert outcome.code == 0 and "weights" in lines_of(outcome.out)
    expected = load_checkpoint(source)[0]["networks"]["G_A"]
    assert equal(last_state(tmp_path / "new")["networks"]["G_A"], expected)


def test_what_is_frozen_stands_still_to_the_bit(data: Path, source: Path, tmp_path: Path) -> None:
    patterns = "G_A.stem.*, G_B.blocks.[01].*,D_A.*"
    arguments = ["--dataroot", data, "--name", "new", "--checkpoints_dir", tmp_path, *TINY, "--n_epochs", 2]
    outcome = train(*arguments, "--init_from", source, "--freeze", patterns, "--lr", 0.01)
    assert outcome.code == 0, outcome.err
    before, after = load_checkpoint(source)[0]["networks"], last_state(tmp_path / "new")
    for name in before:
        for key in before[name]:
            full = f"{name}.{key}"
            still = full.startswith(("G_A.stem.", "G_B.blocks.0.", "G_B.blocks.1.", "D_A."))
            assert torch.equal(before[name][key], after["networks"][name][key]) == still, full
    moments = {name: len(state["state"]) for name, state in after["optimizers"].items()}
    total = sum(len(before[name]) for name in ("G_A", "G_B"))
    assert moments == {"G": total - 2 - 8, "D": len(before["D_B"])}
    assert lines_of(outcome.out)["frozen"].endswith("16 tensors")


@pytest.mark.parametrize(
    ("patterns", "said"),
    [
        ("G_C.*", "G_C.* matches no parameter (their names: G_A.stem.conv.weight to D_B.out.bias)"),
        ("G_A.stem.*,g_a.*", "g_a.* matches no parameter"),
        ("D_*", "leaves nothing of D_A and D_B to train"),
        ("*", "leaves nothing of G_A and G_B to train"),
    ],
)
def test_patterns_that_cannot_be(data: Path, tmp_path: Path, patterns: str, said: str) -> None:
    assert said in refused(data, tmp_path / "runs", "--freeze", patterns)


@pytest.mark.parametrize("kind", ["run", "exported", "folder", "file"])
def test_as_a_real_process(kind: str, data: Path, source: Path, foreign: Path, tmp_path: Path) -> None:
    exported = tmp_path / "model.safetensors"
    if kind == "exported":
        write_generator(Translator.load(source, device="cpu"), exported)
    name = {
        "run": f"{source}@best",
        "exported": tmp_path,
        "folder": foreign,
        "file": foreign / "latest_net_G_A.pth",
    }[kind]
    flags = [
        "--dataroot",
        data,
        "--name",
        "new",
        "--checkpoints_dir",
        tmp_path / "runs",
        *TINY,
        "--n_epochs",
        1,
    ]
    flags += ["--init_from", name, *(LAYERS if kind == "folder" else [])]
    done = subprocess.run(
        command("train", *flags), cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert lines_of(done.stdout)["weights"].startswith("G_A")
    assert "done: 3 steps" in done.stdout
