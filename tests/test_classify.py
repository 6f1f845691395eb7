"""tools/classify.py: both layouts of data, every norm, exact resume, the page, ghost batches, bad input."""

import hashlib
import json
import os
import pickle
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.datasets import CIFAR100
from training_support import Outcome, call, differences, records, tree

from benchmarks import classify as benchmark
from benchmarks.result_pages import READING
from datasets.errors import UserError
from gan.checkpoint import load_checkpoint, save_checkpoint
from models.classifier import GhostBatchNorm2d, resnet18_small
from tools import classify
from tools.class_pictures import load_labelled
from tools.classify_options import ClassifyOptions, parse

COLOURS = {"blue": (40, 60, 200), "green": (40, 200, 60), "red": (200, 60, 40)}
TINY = [
    "--width",
    "0.05",
    "--size",
    "8",
    "--batch_size",
    "6",
    "--n_epochs",
    "2",
    "--print_freq",
    "1",
    "--device",
    "cpu",
]


def coloured(colour: tuple[int, int, int], seed: int, size: int = 8) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 30, (size, size, 3))
    return (np.array(colour) + noise).clip(0, 255).astype(np.uint8)


def write_classes(root: Path, train: int = 16, test: int = 8, size: int = 8) -> Path:
    """train/CLASS/*.png and test/CLASS/*.png: noise around a colour for each class."""
    for split, count in {"train": train, "test": test}.items():
        for number, (name, colour) in enumerate(COLOURS.items()):
            folder = root / split / name
            folder.mkdir(parents=True)
            for k in range(count):
                pixels = coloured(colour, 1000 * (split == "test") + 100 * number + k, size)
                Image.fromarray(pixels).save(folder / f"{k}.png")
    return root


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp("classes") / "data")


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp("classes") / "few", train=8, test=4)


def run(data: Path, runs: Path, name: str, *more: object) -> Outcome:
    return call("tools.classify", "--dataroot", data, "--checkpoints_dir", runs, "--name", name, *TINY, *more)


@pytest.mark.parametrize("norm", ["bn", "gn", "nc", "gn_nc", "bn_nc"])
def test_each_norm_learns(folders: Path, tmp_path: Path, norm: str) -> None:
    """Three colours, of which chance gets 67 % wrong. Two pictures a norm are too few here: no ghost batches."""
    flags = ["--n_epochs", 8, "--lr", 0.02, "--width", 0.1, "--batch_size", 12, "--ghost_batch", 0]
    done = run(folders, tmp_path, "r", "--norm", norm, *flags)
    assert done.code == 0, done.err
    last = records(tmp_path / "r")[-1]
    assert last["kind"] == "metrics"
    assert last["metrics"]["test_error"] <= 20
    page = (tmp_path / "r" / "page" / "data-00000.js").read_text()
    assert '"test_error"' in page and "8" in (tmp_path / "r" / "index.html").read_text()
    assert "python -m tools.classify --name r" in (tmp_path / "r" / "page" / "state.js").read_text()


def test_a_stopped_training_resumes_to_the_bit(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped by a signal in the middle of the second epoch, with batch norm's statistics and momentum to restore."""
    assert run(few, tmp_path, "whole", "--norm", "bn_nc").code == 0
    rate = ClassifyOptions.learning_rate

    def stopping(options: ClassifyOptions, progress: float) -> float:
        if progress == 6 / 8:
            os.kill(os.getpid(), signal.SIGTERM)
        return rate(options, progress)

    with monkeypatch.context() as patch:
        patch.setattr(ClassifyOptions, "learning_rate", stopping)
        stopped = run(few, tmp_path, "parted", "--norm", "bn_nc")
    assert stopped.code == 128 + signal.SIGTERM, stopped.err
    assert "stopped at step 6; saved" in stopped.out
    command = stopped.out.splitlines()[-1].split()
    assert command[:3] == ["python", "-m", "tools.classify"]
    assert call("tools.classify", *command[3:]).code == 0
    one, other = (load_checkpoint(tmp_path / name)[0] for name in ("whole", "parted"))
    for name in ("networks", "optimizers", "rng", "position"):
        assert list(differences(one[name], other[name], name)) == []
    assert records(tmp_path / "whole") == records(tmp_path / "parted")


def write_cifar100(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """A small data set in the layout of CIFAR-100; torchvision is told the MD5 of these files."""
    folder = root / CIFAR100.base_folder
    folder.mkdir(parents=True)
    pixels: dict[str, np.ndarray] = {}

    def write(name: str, content: dict[str, object]) -> list[str]:
        (folder / name).write_bytes(data := pickle.dumps(content))
        return [name, hashlib.md5(data).hexdigest()]

    lists = {}
    for seed, (name, count) in enumerate({"train": 12, "test": 6}.items()):
        rng = np.random.default_rng(seed)
        pixels[name] = rng.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
        labels = [k % 3 for k in range(count)]
        lists[name] = [write(name, {"data": pixels[name].reshape(count, -1), "fine_labels": labels})]
    meta = write("meta", {"fine_label_names": list(COLOURS)})
    monkeypatch.setattr(CIFAR100, "train_list", lists["train"])
    monkeypatch.setattr(CIFAR100, "test_list", lists["test"])
    monkeypatch.setattr(CIFAR100, "meta", {"filename": "meta", "key": "fine_label_names", "md5": meta[1]})
    return pixels


def test_the_layout_of_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = write_cifar100(tmp_path / "c", monkeypatch)
    data = load_labelled(tmp_path / "c", 32)
    assert np.array_equal(data.train.pictures.numpy(), pixels["train"])
    assert np.array_equal(data.test.pictures.numpy(), pixels["test"])
    assert data.test.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert list(data.classes) == list(COLOURS)
    assert run(tmp_path / "c", tmp_path, "r").code == 0
    (tmp_path / "c" / CIFAR100.base_folder / "test").write_bytes(
        b"\x80\x04."
    )  # no pickle that is known is read
    done = run(tmp_path / "c", tmp_path, "s")
    assert done.error.endswith("cifar-100-python: is incomplete or damaged (unpack the archive again)")


def test_class_folders(tmp_path: Path) -> None:
    data = load_labelled(write_classes(tmp_path / "d", train=2, test=1, size=16), 8)
    assert (data.train.pictures.shape, data.test.pictures.shape) == ((6, 3, 8, 8), (3, 3, 8, 8))
    assert data.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.train.pictures.float().mean((2, 3))[::2].argmax(1).tolist() == [2, 1, 0]
    assert list(data.classes) == ["blue", "green", "red"]


def test_ghost_batches_are_batch_norms_of_parts() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 5, 3, 4, dtype=torch.float64)
    ghost, plain = GhostBatchNorm2d(5, 2).double(), nn.BatchNorm2d(5).double()
    nn.init.normal_(ghost.weight)
    nn.init.normal_(ghost.bias)
    plain.load_state_dict(ghost.state_dict())
    means, variances, expected = [], [], torch.empty_like(x)
    for k in range(len(x) // 2):
        assert plain.running_mean is not None and plain.running_var is not None
        plain.reset_running_stats()
        expected[k :: len(x) // 2] = plain(x[k :: len(x) // 2])
        means.append(plain.running_mean.clone())
        variances.append(plain.running_var.clone())
    torch.testing.assert_close(ghost(x), expected)
    torch.testing.assert_close(ghost.running_mean, torch.stack(means).mean(0))
    torch.testing.assert_close(ghost.running_var, torch.stack(variances).mean(0))
    plain.load_state_dict(ghost.state_dict())
    torch.testing.assert_close(ghost.eval()(x), plain.eval()(x), rtol=0, atol=0)


def test_the_norm_sees_a_ghost_batch_only() -> None:
    """The score of a picture depends on its own ghost batch with batch norm, and on itself alone with NC and GN."""
    for norm, depends_on in {"bn": [0, 2], "bn_nc": [0, 2], "gn": [0], "nc": [0], "gn_nc": [0]}.items():
        torch.manual_seed(0)
        network = resnet18_small(3, norm, 0.05, ghost_batch=2).train()  # type: ignore[arg-type]
        x = torch.rand(4, 3, 16, 16, requires_grad=True)
        network(x)[0].sum().backward()
        assert x.grad is not None
        assert [n for n in range(4) if x.grad[n].abs().sum() > 1e-9] == depends_on, norm


def test_the_learning_rate() -> None:
    options = ClassifyOptions(lr=1)
    rates = [options.learning_rate(progress) for progress in (0.025, 0.05, 0.5, 0.51, 0.75, 0.76, 1)]
    assert rates == pytest.approx([0.5, 1, 1, 0.1, 0.1, 0.01, 0.01])


BAD = {
    "--dataroot NOWHERE": "NOWHERE: no such folder (give a folder with train/CLASS",
    "--norm ln": "--norm: is ln (allowed: bn, gn, nc, gn_nc, bn_nc)",
    "--width 0.02": "--width: is 0.02: a patch of a 1x1 convolution would be one value, which has no variance",
    "--norm bn --ghost_batch 1 --size 8": "--ghost_batch: is 1, and the last maps of pictures of 8 pixels have one",
    "--width 0": "--width: is 0.0 (allowed: more than 0 to 16)",
    "--lr nan": "--lr: is nan (allowed: more than 0 to 1e+09)",
    "--n_epochs 0": "--n_epochs: is 0 (allowed: 1 or more)",
    "--ghost_batch 4": "--ghost_batch: does not divide --batch_size 6 (use a divisor of it, or 0)",
    "--batch_size 50": "--batch_size: is above the 48 pictures (lower it)",
    "--name a/b": "--name: 'a/b' is a path, not a name",
    "--name other --continue_train": "other: no run to resume (check --name and --checkpoints_dir)",
    "--depth 18": "--depth: unknown flag (see python -m tools.classify --help)",
}


@pytest.mark.parametrize("flags", BAD)
def test_bad_flags(folders: Path, tmp_path: Path, flags: str) -> None:
    done = run(folders, tmp_path, "r", *flags.split())
    assert done.code == 2
    assert BAD[flags] in done.error
    assert tree(tmp_path) == {}


def test_a_loss_that_is_not_finite(few: Path, tmp_path: Path) -> None:
    """A rate beyond all measure. No checkpoint holds what came of it."""
    done = run(few, tmp_path, "r", "--lr", 1e9, "--norm", "bn", "--print_freq", 100)
    assert done.code == 1
    assert "training: " in done.error and "(try a lower --lr)" in done.error
    assert list((tmp_path / "r").glob("ckpt-*")) == []


def test_bad_data(tmp_path: Path) -> None:
    data = write_classes(tmp_path / "d", train=2, test=1)
    (data / "test" / "red" / "0.png").rename(data / "test" / "0.png")
    assert run(data, tmp_path / "runs", "r").error.endswith(
        "red: holds no picture (add pictures or remove the folder)"
    )
    (data / "test" / "red").rmdir()
    assert (
        "d: the class red is in train only (both need the same classes)"
        in run(data, tmp_path / "runs", "r").error
    )
    (data / "test" / "red").mkdir()
    (data / "test" / "red" / "0.png").write_bytes(b"\x89PNG nothing")
    assert "red/0.png: " in run(data, tmp_path / "runs", "r").error
    assert not (tmp_path / "runs").exists()


def test_what_is_not_resumed(few: Path, tmp_path: Path) -> None:
    """Other options, other pictures, another program's run; nothing of the run changes."""
    assert run(few, tmp_path, "r").code == 0
    before = tree(tmp_path)
    again = run(few, tmp_path, "r")
    assert "this run exists already" in again.error
    assert "python -m tools.classify --name r" in again.err
    resume = ["--checkpoints_dir", tmp_path, "--name", "r", "--continue_train"]
    assert (
        "--lr: is 3.0, the run was trained with 0.1 (leave it out)"
        in call("tools.classify", *resume, "--lr", 3).error
    )
    other = write_classes(tmp_path / "other", train=3)
    done = call("tools.classify", *resume, "--dataroot", other)
    assert "the run was trained with other pictures" in done.error
    assert call("test", "--name", "r", "--checkpoints_dir", tmp_path, "--input", other).code == 2
    changed = {name for name, content in tree(tmp_path).items() if before.get(name, content) != content}
    assert changed == set()


@pytest.mark.parametrize("part", ["data", "optimizers", "rng", "position"])
def test_a_checkpoint_without_a_part(few: Path, tmp_path: Path, part: str) -> None:
    options = parse(["--dataroot", str(few), "--name", "r", "--checkpoints_dir", str(tmp_path), *TINY])
    training = classify.Training(options, load_labelled(few, options.size))
    options.run.path.mkdir()
    options.run.write_options(options.stored)
    training.save()
    state, path = load_checkpoint(options.run.path)
    del state[part]
    save_checkpoint(options.run.path, state, step=0, epoch=0, keep=1)
    done = call("tools.classify", "--name", "r", "--checkpoints_dir", tmp_path, "--continue_train")
    assert done.code == 2
    assert done.error.startswith(f"error: {path}: malformed state (")
    assert part in done.error and done.error.endswith("(use another checkpoint)")


def test_the_table_of_the_benchmark(tmp_path: Path) -> None:
    (tmp_path / "classify").mkdir()
    facts = {"CPU": "x", "python": "3", "torch": "2", "date": "today"}
    same = dict.fromkeys(benchmark.SAME, 1) | {"test_pictures": 9, "machine": facts, "date": "2026-01-02"}
    for norm, seed, error in (("gn", 0, 50.0), ("nc", 0, 30.0), ("gn", 1, 52.0)):
        result = {"norm": norm, "seed": seed, "test_error": error, **same}
        (tmp_path / "classify" / f"{norm}_{seed}.json").write_text(json.dumps(result))
    lines = benchmark.write_table(tmp_path, "0,1").read_text().splitlines()
    assert "| GN | 51.00 ± 1.41 | 50.00, 52.00 | 10.14 |" in lines
    assert "| NC | 30.00 | 30.00 | 8.52 |" in lines
    missing = "NC seed 1, GN+NC seed 0, GN+NC seed 1, BN seed 0, BN seed 1, BN+NC seed 0, BN+NC seed 1"
    assert f"Missing: {missing}." in " ".join(lines)
    assert " test pictures. 2026-01-02, x,\n" in "\n".join(lines)
    page, own = tmp_path / "classify.md", f"\n{READING}\n\nNC is ahead.\n"
    page.write_text(page.read_text() + own)
    (tmp_path / "classify" / "nc_0.json").unlink()
    text = benchmark.write_table(tmp_path, "0,1").read_text()
    assert text.endswith(own) and text.count(READING) == 1 and "| NC | | | 8.52 |" in text
    other = same | {"norm": "nc", "seed": 2, "test_error": 1.0, "epochs": 3, "date": "2026-01-03"}
    (tmp_path / "classify" / "nc_2.json").write_text(json.dumps(other))
    with pytest.raises(UserError, match="other settings: epochs 1, not 3"):
        benchmark.write_table(tmp_path, "0,1")
    assert page.read_text() == text


@pytest.mark.slow
def test_cifar_10_as_class_folders(real_data: Path, tmp_path: Path) -> None:
    """All of it is read; a small network beats chance (90 %) after 100 steps."""
    root = real_data / "cifar10"
    if not (root / "train").is_dir():
        pytest.skip("CIFAR-10 not available: I2I_REAL_DATA/cifar10 needs train/CLASS and test/CLASS")
    data = load_labelled(root, 32)
    assert [len(split.labels) for split in (data.train, data.test)] == [50_000, 10_000]
    assert torch.bincount(data.train.labels).tolist() == [5_000] * 10
    part = type(data)(
        type(data.train)(data.train.pictures[::8], data.train.labels[::8]),
        type(data.test)(data.test.pictures[::20], data.test.labels[::20]),
        data.classes,
    )
    flags = [
        "--dataroot",
        root,
        "--checkpoints_dir",
        tmp_path,
        "--name",
        "r",
        "--width",
        0.1,
        "--n_epochs",
        2,
    ]
    code, metrics = classify.train(
        parse([*map(str, flags), "--batch_size", "125", "--ghost_batch", "0"]), part
    )
    assert code == 0
    assert metrics["test_error"] < 80
    assert json.loads((tmp_path / "r" / "latest.json").read_text())["step"] == 100
