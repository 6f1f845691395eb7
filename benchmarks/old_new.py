"""What the working tree costs against a commit: steps, evaluations and start-up, interleaved in one run.

    python -m benchmarks.old_new --base COMMIT [--rounds 5] [--output FILE]

Every round measures both sides, and the one that goes first changes from round to round. Figures are medians over the
rounds; ratios are taken within a round. CPU time is user plus system time: on a shared machine it is the steadier.
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import statistics
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.sides import WEIGHTS, Cost, Side, old_and_new

COMMON = (
    "--ngf 16 --ndf 16 --norm nc_ms --n_epochs 1 --n_epochs_decay 0 --num_threads 0 --device cpu --visdom off"
)
CYCLE = "--model cycle_gan --dataroot ../data/unaligned --netG resnet_6blocks --load_size 64 --crop_size 64"
PAIRS = "--model pix2pix --dataroot ../data/aligned --netG unet_128 --load_size 128 --crop_size 128"
EVALUATE = f"-m evaluate run --metrics fid,lpips,psnr,ssim,l1 --output report --device cpu {WEIGHTS}"
WARM_UP, STEPS = 4, 24

Figures = dict[str, tuple[float, float]]
"""By name: seconds by the clock, CPU seconds."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", required=True, metavar="COMMIT", help="the commit to compare with")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each side")
    parser.add_argument("--output", type=Path, help="file for the table")
    arguments = parser.parse_args()
    rounds: list[tuple[Figures, Figures]] = []
    with old_and_new(arguments.base, size=64) as (old, new):
        for side in (old, new):
            train(side, CYCLE, 1)  # compiles modules
        while len(rounds) < arguments.rounds:
            figures: dict[Side, Figures] = {old: {}, new: {}}
            for measure in (start_up, cycle_gan_step, pix2pix_step, evaluation):
                for side in (old, new) if len(rounds) % 2 else (new, old):
                    figures[side] |= measure(side)
            rounds.append((figures[old], figures[new]))
            print(f"round {len(rounds)} of {arguments.rounds} done", flush=True)
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(": ", 1)[1] for line in cpuinfo.splitlines() if line.startswith("model name")]
    machine = f"{[*names, platform.machine()][0]}, {os.cpu_count()} cores, Python {platform.python_version()}"
    text = (
        f"# Old against new\n\n{datetime.date.today()}, {machine}, torch {torch.__version__}, one thread a process.\n"
        f"Old is {arguments.base}. {len(rounds)} rounds (`python -m benchmarks.old_new`). Ratios are new / old, with "
        f"their range.\n\n" + "\n".join(table(rounds)) + "\n"
    )
    print(text, end="")
    if arguments.output:
        arguments.output.write_text(text)


def table(rounds: list[tuple[Figures, Figures]]) -> Iterator[str]:
    yield "| | old s | new s | ratio by the clock | old CPU s | new CPU s | ratio of CPU time |"
    yield "|---|" + "---:|" * 6
    for name in rounds[0][0]:
        cells = [name]
        for kind in (0, 1):
            old, new = ([figures[side][name][kind] for figures in rounds] for side in (0, 1))
            ratios = [b / a for a, b in zip(old, new, strict=True)]
            cells += [f"{statistics.median(old):.3g}", f"{statistics.median(new):.3g}"]
            cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        yield f"| {' | '.join(cells)} |"


def train(side: Side, flags: str, steps: int) -> Cost:
    run = side.home / "checkpoints/run"
    shutil.rmtree(run, ignore_errors=True)
    length = f"--name run --print_freq 1 --max_dataset_size {steps}"
    return side.run(f"train.py {COMMON} {flags} {length}", awaited=run / "metrics.jsonl")


def start_up(side: Side) -> Figures:
    page, one_step = side.run("train.py --help"), train(side, CYCLE, 1)
    return {
        "`train.py --help`": (page.wall, page.cpu),
        "command to first step (CPU: to the end of a run of one step)": (one_step.awaited, one_step.cpu),
    }


def cycle_gan_step(side: Side) -> Figures:
    return {"CycleGAN step, resnet_6blocks, ngf 16, nc_ms, 64 pixels": seconds_per_step(side, CYCLE)}


def pix2pix_step(side: Side) -> Figures:
    return {"Pix2Pix step, unet_128, ngf 16, nc_ms, 128 pixels": seconds_per_step(side, PAIRS)}


def seconds_per_step(side: Side, flags: str) -> tuple[float, float]:
    """By the clock the median over the steps, from metrics.jsonl; CPU time from the difference of two lengths."""
    short, long = train(side, flags, WARM_UP), train(side, flags, STEPS)
    lines = (side.home / "checkpoints/run/metrics.jsonl").read_text().splitlines()
    records = [record for record in map(json.loads, lines) if record["kind"] == "train"]
    seconds = [1 / record["time"]["images_per_s"] for record in records if record["step"] > WARM_UP]
    return statistics.median(seconds), (long.cpu - short.cpu) / (STEPS - WARM_UP)


def evaluation(side: Side) -> Figures:
    """Of the run that `pix2pix_step` left: first with nothing kept, then unchanged."""
    for folder in ("cache", "report", "checkpoints/run/evaluation"):
        shutil.rmtree(side.home / folder, ignore_errors=True)
    first, second = side.run(EVALUATE), side.run(EVALUATE)
    return {
        "first evaluation (FID, LPIPS, PSNR, SSIM, L1)": (first.wall, first.cpu),
        "second evaluation, unchanged": (second.wall, second.cpu),
    }


if __name__ == "__main__":
    main()
