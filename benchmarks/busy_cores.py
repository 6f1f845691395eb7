"""A training beside other programs: how long torch's threads spin while they wait for each other.

    python -m benchmarks.busy_cores [--rounds 5] [--busy 0 1 2] [--spins 300000 10000 1000]

GNU OpenMP's own count is 300,000; `datasets.errors.prepare_for_torch` sets 10,000 for every command. --busy: how
many other programs keep a core busy meanwhile. Prints milliseconds per step, the least of all rounds and the median.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from tabulate import tabulate

ROOT = Path(__file__).resolve().parents[1]
FLAGS = "--dataroot none --device cpu --norm nc_ms --netG unet_128 --load_size 128 --crop_size 128 --ngf 16 --ndf 16"


def seconds_per_step(steps: int) -> float:
    """Of a small CycleGAN in this process, after two steps to warm up."""
    import torch

    from gan.command_line import parse_options
    from gan.setup import build_trainer

    trainer = build_trainer(parse_options(FLAGS.split()))
    batch = {side: torch.rand(1, 3, 128, 128) * 2 - 1 for side in "AB"}
    for count in (2, steps):
        begin = time.perf_counter()
        for _ in range(count):
            trainer.step(batch)
    return (time.perf_counter() - begin) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--busy", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--spins", type=int, nargs="*", default=[300_000, 10_000, 1_000])
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        print(1000 * seconds_per_step(options.steps))
        return
    found: dict[tuple[int, int], list[float]] = {}
    for _ in range(options.rounds):
        for busy in options.busy:
            others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
            try:
                for spins in options.spins:
                    inside = [
                        sys.executable,
                        "-m",
                        "benchmarks.busy_cores",
                        "--inside",
                        "--steps",
                        str(options.steps),
                    ]
                    environment = os.environ | {"GOMP_SPINCOUNT": str(spins)}
                    text = subprocess.check_output(inside, env=environment, cwd=ROOT, text=True)
                    found.setdefault((busy, spins), []).append(float(text))
            finally:
                for other in others:
                    other.kill()
                    other.wait()
    heads = ["other programs", *(f"{spins:,} turns" for spins in options.spins)]
    rows = [
        [
            busy,
            *(
                f"{min(ms):.0f} .. {statistics.median(ms):.0f}"
                for ms in (found[busy, s] for s in options.spins)
            ),
        ]
        for busy in options.busy
    ]
    print(f"ms per step, least .. median of {options.rounds} rounds, {os.cpu_count()} cores\n")
    print(tabulate(rows, heads, tablefmt="github"))


if __name__ == "__main__":
    main()
