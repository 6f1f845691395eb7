"""Two states of this project side by side: a commit in a temporary git worktree, and the working tree.

Each side runs its own public commands and its own `gan.checkpoint.load_checkpoint`, so modules may move in between.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = (
    "--inception_weights ../weights/inception.pth --lpips_weights ../weights/alexnet.pth --allow_unverified"
)

DESCRIBE_CHECKPOINTS = """
import hashlib, json, sys
from pathlib import Path
import torch
from gan.checkpoint import load_checkpoint

def flatten(value, place):
    if isinstance(value, torch.Tensor):
        data = value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        yield place, f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(data).hexdigest()[:16]}"
    elif isinstance(value, (dict, list, tuple)):
        yield place, f"{type(value).__name__} of {len(value)}"
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            yield from flatten(entry, f"{place}[{key!r}]")
    else:
        yield place, repr(value)

found = {}
for run in sys.argv[1:]:
    state = load_checkpoint(Path(run), "last")
    state = state[0] if isinstance(state, tuple) else state
    found[run] = {name: dict(flatten(state[name], "")) for name in ("networks", "optimizers", "pools", "rng")}
Path("states.json").write_text(json.dumps(found))
"""

WRITE_WEIGHTS = """
import torch
from unittest import mock
from pytorch_fid import inception
from torchvision.models import AlexNet

torch.manual_seed(0)
with mock.patch.object(inception, "load_state_dict_from_url"), mock.patch("torch.nn.Module.load_state_dict"):
    network = inception.fid_inception_v3()
for module in network.modules():
    if isinstance(module, torch.nn.Conv2d):
        torch.nn.init.kaiming_normal_(module.weight)  # keeps the scale of what passes through
torch.save(network.state_dict(), "../weights/inception.pth")
torch.save(AlexNet().features.state_dict(prefix="features."), "../weights/alexnet.pth")
"""


@dataclass(frozen=True)
class Cost:
    """Seconds of a process by the clock, user plus system CPU seconds, and by the clock until the awaited file."""

    wall: float
    cpu: float
    awaited: float


@dataclass(frozen=True)
class Side:
    """One state of the project. Commands run in `home`, so that relative paths are the same text on both sides."""

    name: str
    root: Path
    home: Path

    def run(self, command: str, *more: str, awaited: Path | None = None) -> Cost:
        """Run `python COMMAND` (train.py, test.py or an option of Python, and flags) on one thread and offline.

        awaited: a file, to measure when it gets contents. SystemExit with the output if the command fails.
        """
        first, *rest = [*command.split(), *more]
        program = first if first.startswith("-") else str(self.root / first)
        path = os.pathsep.join([str(self.root), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {
            "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
            "I2I_OFFLINE": "1", "I2I_CACHE": str(self.home / "cache"),
        }  # fmt: skip
        with tempfile.TemporaryFile("w+") as output:
            start = time.perf_counter()
            process = subprocess.Popen(
                [sys.executable, program, *rest], cwd=self.home, env=environment, stdout=output, stderr=output
            )
            while awaited and not (awaited.exists() and awaited.stat().st_size):
                time.sleep(0.005)
                if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                    break
            seen = time.perf_counter()
            _, status, usage = os.wait4(process.pid, 0)
            end = time.perf_counter()
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                output.seek(0)
                raise SystemExit(f"{self.name}: {command} ended with {process.returncode}:\n{output.read()}")
        return Cost(end - start, usage.ru_utime + usage.ru_stime, seen - start)

    def checkpoints(self, *runs: str) -> dict[str, dict[str, dict[str, str]]]:
        """By run, section and place, the contents of the last checkpoints; tensors as their SHA-256."""
        self.run("-c", DESCRIBE_CHECKPOINTS, *runs)
        states: dict[str, dict[str, dict[str, str]]] = json.loads((self.home / "states.json").read_text())
        return states


@contextmanager
def old_and_new(commit: str, size: int) -> Iterator[tuple[Side, Side]]:
    """Both sides, and beside their homes ../data of `size` pixels and random ../weights. All is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="old-new-") as temporary:
        folder = Path(temporary)
        old, new = Side("old", folder / "tree", folder / "old"), Side("new", ROOT, folder / "new")
        for path in (old.home, new.home, folder / "weights"):
            path.mkdir()
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(old.root), commit], check=True)
        try:
            old.run("-c", WRITE_WEIGHTS)
            for layout in ("aligned", "unaligned"):
                flags = f"--count 24 --size {size} --layout {layout} --output ../data/{layout}"
                old.run(f"-m datasets.synthetic {flags}")
            yield old, new
        finally:
            subprocess.run([*git, "remove", "--force", str(old.root)], check=True)
