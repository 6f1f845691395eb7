"""Tiny trainings for tests: generated pictures, the two commands called in this process, states compared bit by bit."""

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datasets import errors
from gan.checkpoint import load_checkpoint, save_checkpoint
from gan.command_line import parse_train
from gan.options import stored_dict
from gan.run import RunFolder
from gan.setup import build_trainer
from gan.state import Position, capture

ROOT = Path(__file__).resolve().parents[1]

TINY = [
    "--load_size", "20", "--crop_size", "16", "--ngf", "2", "--ndf", "2", "--netD", "pixel", "--netG", "resnet_6blocks",
    "--num_threads", "0", "--visdom", "off", "--device", "cpu", "--n_epochs_decay", "0", "--val_count", "1",
    "--print_freq", "1",
]  # fmt: skip
"""Flags of a training that takes a fraction of a second."""


class Outcome(NamedTuple):
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one error line; asserts that it is one and short, with indented details at most."""
        lines = self.err.splitlines()
        [line] = [text for text in lines if text.startswith("error: ")]
        assert len(line) <= 300, line
        assert "Traceback" not in self.err, self.err
        assert all(text.startswith("  ") for text in lines[lines.index(line) + 1 :]), self.err
        return line


def _main_of(program: str) -> Callable[[], int]:
    if "." in program:
        return importlib.import_module(program).main
    # by its path: `import test` would find the standard library's package
    spec = importlib.util.spec_from_file_location(f"program_{program}", ROOT / f"{program}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    main: Callable[[], int] = module.main
    return main


def call(program: str, *arguments: object) -> Outcome:
    """Run train.py, test.py (`program` without .py) or a module in this process, as the command line would."""
    main, threads = _main_of(program), torch.get_num_threads()
    out, err = io.StringIO(), io.StringIO()
    code = -1
    torch.set_num_threads(1)  # bits are promised for equal numbers of threads
    try:
        with (
            mock.patch.object(sys, "argv", [f"{program}.py", *map(str, arguments)]),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            try:
                errors.run_command(main)
            except SystemExit as leaving:
                code = leaving.code if isinstance(leaving.code, int) else 1
    finally:
        torch.set_num_threads(threads)
        errors.set_log_file(None)
        errors.set_debug(False)
    return Outcome(code, out.getvalue(), err.getvalue())


def train(*arguments: object) -> Outcome:
    return call("train", *arguments)


def translate(*arguments: object) -> Outcome:
    return call("test", *arguments)


def command(program: str, *arguments: object) -> list[str]:
    """The command line of a real process; run it in ROOT with `ENVIRONMENT`."""
    return [sys.executable, f"{program}.py", *map(str, arguments)]


def start(program: str, *arguments: object, **options: Any) -> "subprocess.Popen[str]":
    """A real process, its output in pipes."""
    pipe = subprocess.PIPE
    kwargs: dict[str, Any] = {"cwd": ROOT, "stdout": pipe, "stderr": pipe, "text": True, "env": environment()}
    return subprocess.Popen(command(program, *arguments), **(kwargs | options))


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def picture(width: int, height: int, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """Smooth coloured noise: nothing in it is constant or symmetric."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def write_unaligned(root: Path, count: int = 3, size: int = 20) -> Path:
    """trainA trainB testA testB of square pictures."""
    for number, folder in enumerate(("trainA", "trainB", "testA", "testB")):
        (root / folder).mkdir(parents=True)
        for k in range(count):
            picture(size, size, 100 * number + k).save(root / folder / f"p{k}.png")
    return root


def write_aligned(root: Path, count: int = 3, size: int = 20) -> Path:
    """train test of side-by-side pictures; B is A with its colours inverted."""
    for number, folder in enumerate(("train", "test")):
        (root / folder).mkdir(parents=True)
        for k in range(count):
            a = np.asarray(picture(size, size, 100 * number + k))
            Image.fromarray(np.concatenate([a, 255 - a], 1)).save(root / folder / f"p{k}.png")
    return root


def untrained_run(
    runs: Path, *flags: object, epoch: int = 3, sizes: dict[str, tuple[float, float]] | None = None
) -> Path:
    """The folder of run `r`, with a checkpoint of fresh weights as if after `epoch` epochs of two steps.

    sizes: median sizes of the pictures that it was trained on.
    """
    arguments = ["--dataroot", "none", "--name", "r", "--checkpoints_dir", runs, "--dry_run", *TINY, *flags]
    options, _ = parse_train([str(argument) for argument in arguments])
    trainer = build_trainer(options)
    stored = stored_dict(options)
    state = capture(trainer, Position(epoch + 1, 0, 2 * epoch), stored, 0, ["none 0 0"], sizes or {})
    run = RunFolder(runs / "r")
    run.path.mkdir(parents=True, exist_ok=True)
    run.write_options(stored)
    save_checkpoint(run.path, state, step=2 * epoch, epoch=epoch, keep=9)
    return run.path


def write_first_format(folder: Path, state: dict[str, Any], *, step: int, epoch: int) -> Path:
    """A checkpoint as the versions before 2.0 wrote it: zip file, sidecar, pointer."""
    path = folder / f"ckpt-{step:08d}.pt"
    torch.save(state, path)
    size, digest = path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()
    sidecar = f"# bytes: {size}\n# step: {step}\n# epoch: {epoch}\n{digest}  {path.name}\n"
    path.with_name(f"{path.name}.sha256").write_text(sidecar)
    (folder / "latest.json").write_text(json.dumps({"file": path.name, "step": step, "epoch": epoch}))
    return path


def records(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without wall-clock figures."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "time"} for line in lines]


def last_state(run: Path) -> dict[str, Any]:
    """Networks, optimisers, pools, random states and position of the newest checkpoint."""
    state, _ = load_checkpoint(run, "last")
    return {name: state[name] for name in ("networks", "optimizers", "pools", "rng", "position")}


def differences(a: Any, b: Any, where: str = "state") -> Iterator[str]:
    """Places at which two states are not equal to the last bit."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.dtype != b.dtype or a.shape != b.shape or a.numpy().tobytes() != b.numpy().tobytes():
            yield where
    elif isinstance(a, Mapping) and isinstance(b, Mapping):
        if a.keys() != b.keys():
            yield f"{where}: keys"
        for key in a.keys() & b.keys():
            yield from differences(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple):
        if len(a) != len(b):
            yield f"{where}: {len(a)} and {len(b)} entries"
        for index, (one, other) in enumerate(zip(a, b, strict=False)):
            yield from differences(one, other, f"{where}[{index}]")
    elif a != b:
        yield f"{where}: {a} and {b}"


def assert_same_training(one: Path, other: Path) -> None:
    """Two runs ended in the same bits and wrote the same lines."""
    assert list(differences(last_state(one), last_state(other))) == []
    assert records(one) == records(other)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content, every folder with nothing."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in sorted(folder.rglob("*"))
    }
