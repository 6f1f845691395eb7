"""The whole training step, in variants and beside another program's: rounds in which all take turns, in one run.

    python -m benchmarks.steps --device cpu [--peer FOLDER] [--models cycle_gan pix2pix] [--rounds 7] [--output DIR]

FOLDER is a checkout of pytorch-CycleGAN-and-pix2pix. Every variant is a process of its own and waits while another one
runs. Figures are medians over the rounds, with their range, and ratios within a round to the peer (without a peer, to
our plain step).
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

ROOT = Path(__file__).resolve().parents[1]
PEER = "peer"


@dataclass(frozen=True)
class Variant:
    """A step to be timed; `more` are flags."""

    name: str
    more: tuple[str, ...] = ()
    graph: bool = False
    peer: str = ""


NC_MS, BF16, JOINED = ("--norm", "nc_ms"), ("--precision", "bf16"), ("--batch_passes",)


def variants(model: str, device: str, peer: str) -> Iterator[Variant]:
    """Those that the goals speak of. Pix2Pix has batch norm by default, which --batch_passes does not go with."""
    joined = JOINED if model == "cycle_gan" else ()
    if peer:
        yield Variant(PEER, peer=peer)
    yield Variant("ours")
    yield Variant("ours nc_ms", NC_MS)
    if joined:
        yield Variant("ours --batch_passes", joined)
    if device == "cpu":
        yield Variant("ours bf16", BF16)
        return
    yield Variant("ours --channels_last", ("--channels_last",))
    yield Variant("ours graph", graph=True)
    if joined:
        yield Variant("ours graph --batch_passes", joined, graph=True)
    yield Variant("ours graph bf16", (*joined, *BF16), graph=True)
    yield Variant("ours graph bf16 nc_ms", (*NC_MS, *JOINED[: len(joined)], *BF16), graph=True)
    yield Variant("ours graph bf16 --channels_last", (*joined, *BF16, "--channels_last"), graph=True)


@dataclass
class Worker:
    """A process of benchmarks/step_worker.py, or of another program that answers lines as it does."""

    variant: Variant
    spec: dict[str, Any]
    program: str = "step_worker"
    seconds: list[float] = field(default_factory=list)
    peak: int = 0
    failure: str = ""

    def __post_init__(self) -> None:
        spec = self.spec | {"more": self.variant.more, "graph": self.variant.graph, "peer": self.variant.peer}
        # a peer has a package `models` too, so this one is not on its path
        program = ["-m", f"benchmarks.{self.program}"]
        cwd = ROOT
        if self.variant.peer:
            program, cwd = [str(ROOT / "benchmarks" / f"{self.program}.py")], Path(self.variant.peer)
        self._process = subprocess.Popen(
            [sys.executable, *program, json.dumps(spec)],
            cwd=cwd,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(cwd), os.environ.get("PYTHONPATH", "")])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        if self._answer() != "ready":
            self.failure = self.failure or "did not start"

    def ask(self, line: object) -> str:
        if self.failure:
            return ""
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # it has ended: the answer says so
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        assert self._process.stdout and self._process.stderr
        line = self._process.stdout.readline().strip()
        if not line:
            told = self._process.stderr.read().strip().splitlines()
            self.failure = (told or ["it ended without a word"])[-1][:200]
        return line

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def measure(
    model: str,
    batch: int,
    size: int,
    device: str,
    chosen: list[Variant],
    *,
    rounds: int = 7,
    steps: int = 1,
    small: tuple[str, ...] = (),
    until: float = float("inf"),
) -> list[dict[str, Any]]:
    """One row a variant: seconds, their range, ratio, peak memory; or the failure.

    small: flags that make every network small. until: `time.monotonic()` at which no further round begins.
    """
    spec = {
        "model": model,
        "batch": batch,
        "size": size,
        "device": device,
        "warm_up": 5 if device == "cuda" else 1,
    }
    workers = []
    try:
        for variant in chosen:
            if time.monotonic() > until:
                break
            with_small = (
                variant if variant.peer else Variant(variant.name, (*variant.more, *small), variant.graph)
            )
            workers.append(Worker(with_small, spec))
        for done in range(rounds):
            if done and time.monotonic() > until:
                break
            for worker in workers:
                if (answer := worker.ask(steps)) and not worker.failure:
                    worker.seconds.append(float(answer))
        for worker in workers:
            worker.peak = int(worker.ask("peak") or 0)
    finally:
        for worker in workers:
            worker.close()
    return [row(worker, workers[0], model, batch) for worker in workers]


def row(worker: Worker, base: Worker, model: str, batch: int) -> dict[str, Any]:
    found: dict[str, Any] = {"model": model, "batch": batch, "step": worker.variant.name}
    if worker.failure or not worker.seconds:
        return found | {"failure": worker.failure or "no round"}
    ratios = [mine / its for mine, its in zip(worker.seconds, base.seconds, strict=False)]
    found |= {
        "ms": 1e3 * statistics.median(worker.seconds),
        "range": [1e3 * min(worker.seconds), 1e3 * max(worker.seconds)],
        "rounds": len(worker.seconds),
        "MiB": worker.peak / 2**20,
    }
    if ratios:
        found |= {"ratio": statistics.median(ratios), "ratios": [min(ratios), max(ratios)]}
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown. The ratio is to the first step of a model and batch."""
    cells = []
    for r in rows:
        if "failure" in r:
            cells.append([r["model"], r["batch"], r["step"], r["failure"], "", "", ""])
            continue
        between = lambda pair, form: f"{pair[0]:{form}} to {pair[1]:{form}}"
        ratio = f"{r['ratio']:.2f} ({between(r['ratios'], '.2f')})" if "ratio" in r else ""
        cells.append(
            [
                r["model"],
                r["batch"],
                r["step"],
                f"{r['ms']:.1f}",
                between(r["range"], ".1f"),
                ratio,
                f"{r['MiB']:.0f}",
            ]
        )
    headers = ["model", "batch", "step", "ms", "range", "ratio to the first", "peak MiB"]
    return tabulate(cells, headers, tablefmt="github", disable_numparse=True)


def machine(device: str) -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        names = [
            line.split(":", 1)[1].strip()
            for line in information.read_text().splitlines()
            if "model name" in line
        ]
        cpu = names[0] if names else cpu
    facts = {
        "CPU": cpu, "threads": torch.get_num_threads(), "torch": torch.__version__, "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    if device == "cuda":
        facts = {"GPU": torch.cuda.get_device_name(0), "CUDA": torch.version.cuda, **facts}
    return facts


def write(output: Path, name: str, title: str, facts: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """NAME.json and NAME.md, written anew with every result, so that a run that is cut leaves what it has."""
    output.mkdir(parents=True, exist_ok=True)
    (output / f"{name}.json").write_text(json.dumps({"machine": facts, "rows": rows}, indent=1) + "\n")
    about = ", ".join(f"{key} {value}" for key, value in facts.items())
    (output / f"{name}.md").write_text(f"# {title}\n\n{about}\n\n{table(rows)}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--peer", default="", help="a checkout of pytorch-CycleGAN-and-pix2pix")
    parser.add_argument(
        "--models", nargs="+", choices=("cycle_gan", "pix2pix"), default=["cycle_gan", "pix2pix"]
    )
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=1, help="steps of a round")
    parser.add_argument(
        "--only", nargs="*", default=[], help="names of the variants to measure, beside the first"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    peer = str(Path(options.peer).resolve()) if options.peer else ""
    facts = machine(options.device) | {"rounds": options.rounds, "steps in a row": options.steps}
    rows: list[dict[str, Any]] = []
    for model in options.models:
        first, *others = variants(model, options.device, peer)
        chosen = [first, *(v for v in others if not options.only or v.name in options.only)]
        rows += measure(
            model,
            options.batch,
            options.size,
            options.device,
            chosen,
            rounds=options.rounds,
            steps=options.steps,
        )
        write(options.output, f"steps_{options.device}", "The training step", facts, rows)
    print(table(rows))


if __name__ == "__main__":
    main()
