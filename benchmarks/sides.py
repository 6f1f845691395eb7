"""Two states of this project side by side: a commit in a temporary git worktree, and the working tree.

Only the public commands and `gan.checkpoint.load_checkpoint` are called, each by the state it belongs to, so that
modules may move between the two. This file also runs as a script inside either state:
`python -P benchmarks/sides.py FILE RUN [RUN ...]` writes what the last checkpoints of runs hold.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SECTIONS = ("networks", "optimizers", "pools", "rng")


@dataclass(frozen=True)
class Finished:
    """A process that ended well: seconds by the clock, user plus system CPU seconds, output."""

    wall: float
    cpu: float
    output: str


@dataclass(frozen=True)
class Side:
    """One state of the project.

    root: its source. home: the folder its commands run in; relative paths are the same text on both sides.
    """

    name: str
    root: Path
    home: Path

    def run(self, *arguments: object) -> Finished:
        """Run this Python with these arguments on one thread, offline and without a GPU; SystemExit if it fails."""
        environment = os.environ | {
            "PYTHONPATH": str(self.root), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
            "I2I_OFFLINE": "1", "I2I_CACHE": str(self.home / "cache"), "TORCH_HOME": str(self.home / "torch"),
        }  # fmt: skip
        environment.pop("I2I_WEIGHTS", None)
        command = [sys.executable, *map(str, arguments)]
        with tempfile.TemporaryFile("w+") as output:
            start = time.perf_counter()
            process = subprocess.Popen(
                command, cwd=self.home, env=environment, stdout=output, stderr=subprocess.STDOUT
            )
            _, status, usage = os.wait4(process.pid, 0)
            wall = time.perf_counter() - start
            process.returncode = os.waitstatus_to_exitcode(status)
            output.seek(0)
            text = output.read()
        if process.returncode != 0:
            raise SystemExit(f"{self.name}: {' '.join(command)}\nended with {process.returncode}:\n{text}")
        return Finished(wall, usage.ru_utime + usage.ru_stime, text)

    def train(self, *flags: object) -> Finished:
        return self.run(self.root / "train.py", *flags)

    def checkpoints(self, *runs: str) -> dict[str, dict[str, dict[str, str]]]:
        """By run, section and place, the contents of the last checkpoints, as this side reads them."""
        found = self.home / "states.json"
        self.run("-P", ROOT / "benchmarks" / "sides.py", found, *runs)  # -P: this folder holds other modules
        states: dict[str, dict[str, dict[str, str]]] = json.loads(found.read_text())
        return states


@contextmanager
def old_and_new(commit: str) -> Iterator[tuple[Side, Side]]:
    """Both sides, whose homes stand beside each other in a temporary folder. All of it is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="old-new-") as temporary:
        folder = Path(temporary)
        tree = folder / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), commit], check=True)
        try:
            sides = Side("old", tree, folder / "old"), Side("new", ROOT, folder / "new")
            for side in sides:
                side.home.mkdir()
            yield sides
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def flatten(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Every leaf of nested containers as (place, text); a tensor as its type, shape and the SHA-256 of its bytes."""
    if isinstance(value, Mapping):
        yield place, f"{len(value)} entries"
        for key, entry in value.items():
            yield from flatten(entry, f"{place}[{key!r}]")
    elif isinstance(value, list | tuple):
        yield place, f"{type(value).__name__} of {len(value)}"
        for index, entry in enumerate(value):
            yield from flatten(entry, f"{place}[{index}]")
    elif hasattr(value, "untyped_storage"):
        yield place, f"{value.dtype} {tuple(value.shape)} {_tensor_hash(value)}"
    else:
        yield place, repr(value)


def _tensor_hash(tensor: Any) -> str:
    import torch

    as_bytes = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(as_bytes).hexdigest()[:16]


def main() -> None:
    from gan.checkpoint import load_checkpoint

    target, *runs = sys.argv[1:]
    states = {}
    for run in runs:
        loaded: Any = load_checkpoint(Path(run), "last")
        state = loaded[0] if isinstance(loaded, tuple) else loaded
        states[run] = {section: dict(flatten(state[section])) for section in SECTIONS}
    Path(target).write_text(json.dumps(states))


if __name__ == "__main__":
    main()
