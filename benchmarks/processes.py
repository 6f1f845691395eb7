"""The training step of several processes against one: time, images per second, bytes and collectives.

    python -m benchmarks.processes --worlds 1 2 --device cpu [--steps 20] [--output FILE] [flags of train.py]

Each number of processes is a torchrun command of its own, of `--batch_size` pictures per process. On a machine with
GPUs, `--worlds 1 2 4 8 --device cuda` measures these. The collectives of one step are counted by torch's profiler.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from tabulate import tabulate

ROOT = Path(__file__).resolve().parents[1]
WARM_UP = 3


def measure(flags: list[str], device: str, steps: int) -> dict[str, Any]:
    """Medians of this process's steps; what is exchanged in one more. Runs under torchrun."""
    import torch.distributed as dist
    from torch.profiler import ProfilerActivity, profile

    from gan.command_line import parse_options
    from gan.processes import join
    from gan.setup import build_trainer

    with join() as processes:
        options = parse_options(["--dataroot", "none", "--device", device, *flags])
        trainer = build_trainer(options, processes)
        size, draws = options.data.crop_size, torch.Generator().manual_seed(processes.rank)
        count, world = options.data.batch_size, processes.world
        a, b = options.model.input_nc, options.model.output_nc
        batch: dict[str, Any] = {
            "A": torch.rand(count, a, size, size, generator=draws) * 2 - 1,
            "B": torch.rand(count, b, size, size, generator=draws) * 2 - 1,
            "counts": [count] * world,
        }

        def step(number: int) -> float:
            begin = time.perf_counter()
            processes.begin_step(0, number)
            result = trainer.step(batch)
            [loss.item() for loss in result.losses.values()]  # waits for the device
            if world > 1:
                processes.agree()
            return time.perf_counter() - begin

        seconds = statistics.median([step(number) for number in range(WARM_UP + steps)][WARM_UP:])
        reduced: list[int] = []
        with (
            mock.patch.object(dist, "all_reduce", _recording(dist.all_reduce, reduced)),
            profile(activities=[ProfilerActivity.CPU]) as profiled,
        ):
            step(WARM_UP + steps)
        names = [event.name for event in profiled.events() or ()]
        calls = Counter(name.strip("_").removeprefix("c10d::") for name in names if name.startswith("c10d::"))
        parameters = sum(p.numel() for net in trainer.networks.values() for p in net.parameters())
        return {
            "processes": world,
            "global batch": count * world,
            "ms per step": round(1000 * seconds, 1),
            "images/s": round(count * world / seconds, 3),
            "MB all-reduced per step": round(sum(reduced) / 1e6, 2),
            "MB of parameters": round(4 * parameters / 1e6, 2),
            "collectives per step": ", ".join(f"{n} {name}" for name, n in calls.items()) or "none",
        }


def _recording(function: Callable[..., Any], sizes: list[int]) -> Callable[..., Any]:
    """The function, which adds the bytes of its first argument to `sizes`."""

    def recording(tensor: torch.Tensor, *more: Any, **named: Any) -> Any:
        sizes.append(tensor.nbytes)
        return function(tensor, *more, **named)

    return recording


def run(world: int, flags: list[str], device: str, steps: int) -> dict[str, Any]:
    """The figures of process 0 of a job of its own."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.json"
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
        worker = [
            "-m",
            "benchmarks.processes",
            "--worker",
            str(found),
            "--device",
            device,
            "--steps",
            str(steps),
        ]
        environment = {"OMP_NUM_THREADS": "1"} | os.environ | {"PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, *launcher, *worker, *flags], cwd=ROOT, env=environment, check=True)
        return dict(json.loads(found.read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--worlds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--output", type=Path, help="JSON file")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    asked, flags = parser.parse_known_args()
    if asked.worker:
        figures = measure(flags, asked.device, asked.steps)
        if int(os.environ["RANK"]) == 0:
            asked.worker.write_text(json.dumps(figures))
        return
    rows = [run(world, flags, asked.device, asked.steps) for world in asked.worlds]
    print(tabulate(rows, headers="keys", tablefmt="github"))
    if asked.output:
        asked.output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
