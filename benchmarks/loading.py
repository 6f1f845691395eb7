"""Pictures a second of loading alone, beside another program's loader: rounds in which all take turns, in one run.

    python -m benchmarks.loading [--peer FOLDER] [--data FOLDER] [--rounds 5] [--output FILE]

FOLDER of --peer is a checkout of pytorch-CycleGAN-and-pix2pix. --data holds `train` with side-by-side pictures, such as
the Maps data set; without it, pictures of the same size are drawn. Every variant loads two epochs in a new process; the
cache is made anew each time. Figures are medians over the rounds with their range; ratios are taken within a round.
Then a short training, of the default Pix2Pix at 256 pixels, shows which share of its time it waits for data.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import PIL
from tabulate import tabulate

from benchmarks.steps import PEER, ROOT, Variant, Worker, machine

CACHE = ("--cache_gb", "64")

Figures = dict[str, float]
"""Seconds of a pair in the `first` and `second` epoch, and seconds in which the pictures were `kept`."""


def variants(peer: str) -> Iterator[Variant]:
    for count in (0, 2):
        threads = ("--num_threads", str(count))
        if peer:
            yield Variant(f"{PEER}, {count} workers", threads, peer=peer)
        yield Variant(f"ours, {count} workers", threads)
        yield Variant(f"ours with the cache, {count} workers", (*threads, *CACHE))


def loaded(variant: Variant, data: str) -> Figures:
    worker = Worker(variant, {"data": data}, "loading_worker")
    try:
        answers = [worker.ask(line) for line in (1, 2, "kept")]
    finally:
        worker.close()
    if worker.failure:
        raise SystemExit(f"{variant.name}: {worker.failure}")
    return dict(zip(("first", "second", "kept"), map(float, answers), strict=True))


def rows(rounds: Sequence[dict[str, Figures]], chosen: Sequence[Variant]) -> Iterator[list[str]]:
    """Of each variant, and its ratio to the first of as many workers: time of a pair against time of a pair."""
    for variant in chosen:
        base = next(other.name for other in chosen if other.more[:2] == variant.more[:2])
        cells = [variant.name]
        for epoch in ("first", "second"):
            speeds = [1 / figures[variant.name][epoch] for figures in rounds]
            ratios = [figures[variant.name][epoch] / figures[base][epoch] for figures in rounds]
            cells += [shown(speeds, ".0f"), shown(ratios, ".2f")]
        kept = [figures[variant.name]["kept"] for figures in rounds]
        yield [*cells, shown(kept, ".1f") if CACHE[0] in variant.more else ""]


def shown(values: Sequence[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def waits(data: str, more: Sequence[str], pairs: int, epochs: int) -> list[float]:
    """The share of its time that a training on the CPU waits for data, epoch by epoch."""
    with tempfile.TemporaryDirectory() as runs:
        flags = f"--model pix2pix --name r --checkpoints_dir {runs} --max_dataset_size {pairs} --n_epochs {epochs}"
        flags += f" --n_epochs_decay 0 --print_freq {pairs} --device cpu --visdom off"
        command = [sys.executable, "train.py", "--dataroot", data, *flags.split(), *more]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        lines = map(json.loads, Path(runs, "r", "metrics.jsonl").read_text().splitlines())
        return [line["time"]["data_wait"] for line in lines if line["kind"] == "train"]


def about(peer: str) -> str:
    """The machine, the versions, and how busy the machine is, on one line."""
    facts = machine("cpu") | {"Pillow": PIL.__version__, "cores": os.cpu_count()}
    if peer:
        command = ["git", "-C", peer, "rev-parse", "--short", "HEAD"]
        facts["peer at"] = subprocess.run(command, capture_output=True, text=True).stdout.strip() or "?"
    facts["load average"] = "{:.1f} {:.1f} {:.1f}".format(*os.getloadavg())
    return ", ".join(f"{key} {value}" for key, value in facts.items())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", default="", help="a checkout of pytorch-CycleGAN-and-pix2pix")
    parser.add_argument("--data", default="", help="a folder with `train` of side-by-side pictures")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=24, help="of the training; 0: no training")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "loading.md")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as drawn:
        data = str(Path(given.data or drawn).resolve())
        if not given.data:
            flags = f"-m datasets.synthetic --count 240 --size 600 --layout aligned --output {drawn}/maps"
            subprocess.run([sys.executable, *flags.split()], cwd=ROOT, check=True)
            data = f"{drawn}/maps"
        chosen = list(variants(str(Path(given.peer).resolve()) if given.peer else ""))
        rounds: list[dict[str, Figures]] = []
        while len(rounds) < given.rounds:
            turn = chosen if len(rounds) % 2 else chosen[::-1]
            rounds.append({variant.name: loaded(variant, data) for variant in turn})
            print(f"round {len(rounds)} of {given.rounds} done", flush=True)
        facts, count = about(given.peer), len(list(Path(data, "train").iterdir()))
        headers = [
            "loader",
            "first epoch, pairs/s",
            "time ratio",
            "second epoch, pairs/s",
            "time ratio",
            "made in s",
        ]
        table = tabulate(rows(rounds, chosen), headers, tablefmt="github", disable_numparse=True)
        found: list[dict[str, Any]] = []
        for name, more in (("ours", ()), ("ours with the cache", CACHE)) if given.pairs else ():
            found += [{"training": name} | {
                f"epoch {k}": f"{100 * share:.1f} %" for k, share in enumerate(waits(data, more, given.pairs, 3), 1)
            }]  # fmt: skip
    text = (
        f"# Loading\n\n{facts}. {len(rounds)} rounds of {count} pairs, {'Maps' if given.data else 'drawn'}, to 286 "
        f"pixels and crops of 256, batch 1.\n`python -m benchmarks.loading`. Medians and ranges; ratios of time are "
        f"within a round, to the first line of as many workers.\n\n{table}\n"
    )
    if found:
        text += (
            f"\nShare of its time that a training waits for data (Pix2Pix, 256 pixels, {given.pairs} pairs, CPU):\n\n"
            f"{tabulate(found, 'keys', tablefmt='github', disable_numparse=True)}\n"
        )
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
