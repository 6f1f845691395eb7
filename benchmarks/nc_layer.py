"""Speed and memory of the NC layer, forward + backward, as ratios within one process.

    python benchmarks/nc_layer.py [--repeats 7] [--threads 2] [--output DIR]
    python benchmarks/nc_layer.py --device cuda [--minutes 8.5] [--output DIR]      (benchmarks/nc_layer_gpu.py)

The candidates take turns, so that a noisy machine disturbs them alike; a figure is the median of `repeats` rounds.
Against: `reference` (unfold), and convolution + InstanceNorm2d (plain convolution where the output is 1x1, for which
InstanceNorm is undefined). Memory is the peak of what the call allocates, read off torch's profiler.
"""

import argparse
import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.positions import Position, generator_positions
from cuda_ops import normalized_conv2d
from datasets.errors import prepare_for_torch

Call = Callable[[], None]


def candidates(p: Position, batch: int = 1) -> dict[str, Call]:
    """Name -> one forward + backward at this position."""
    torch.manual_seed(0)
    x = torch.randn(batch, p.channels, p.height, p.width).requires_grad_()
    weight = (torch.randn(p.out_channels, p.channels, p.kernel, p.kernel) * 0.02).requires_grad_()
    bias = torch.zeros(p.out_channels).requires_grad_()
    upstream = torch.randn(batch, p.out_channels, *p.output)
    has_instance_norm = p.output != (1, 1)

    def run(forward: Callable[[], Tensor]) -> Call:
        def call() -> None:
            forward().backward(upstream)
            x.grad = weight.grad = bias.grad = None

        return call

    def nc(backend: str) -> Call:
        options = {"padding_mode": p.padding_mode, "backend": backend}
        return run(lambda: normalized_conv2d(x, weight, bias, p.stride, p.padding, **options))  # type: ignore[return-value, arg-type]

    def baseline() -> Tensor:
        y = p.convolve(x, weight, bias)
        return F.instance_norm(y) if has_instance_norm else y

    return {"conv+IN": run(baseline), **{name: nc(name) for name in ("direct", "reference", "auto")}}


def medians(calls: dict[str, Call], repeats: int) -> dict[str, float]:
    """Median milliseconds of each, alternating; short calls are repeated inside a round."""
    for call in calls.values():
        call()
    start = time.perf_counter()
    calls["conv+IN"]()
    inner = max(1, min(20, int(0.02 / max(time.perf_counter() - start, 1e-6))))
    times: dict[str, list[float]] = {name: [] for name in calls}
    draw = random.Random(0)
    for _ in range(repeats):
        for name, call in draw.sample(list(calls.items()), len(calls)):  # nobody always follows the same one
            call()  # untimed: the heap and the caches are as this candidate leaves them, not the one before
            start = time.perf_counter()
            for _ in range(inner):
                call()
            times[name].append((time.perf_counter() - start) / inner * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def peak_memory(call: Call) -> int:
    """Bytes that the call holds at its peak, beyond what was there before."""
    call()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    peak = held = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def measure(repeats: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for p in generator_positions():
        calls = candidates(p)
        ms = medians(calls, repeats)
        memory = {name: peak_memory(calls[name]) for name in ("conv+IN", "auto", "reference")}
        rows.append(
            {
                "position": p.label,
                "where": p.where,
                "baseline": "conv+IN" if p.output != (1, 1) else "conv",
                "ms": {name: round(value, 3) for name, value in ms.items()},
                "auto / baseline": round(ms["auto"] / ms["conv+IN"], 3),
                "reference / auto": round(ms["reference"] / ms["auto"], 2),
                "auto / better of both": round(ms["auto"] / min(ms["direct"], ms["reference"]), 3),
                "peak memory / baseline": round(memory["auto"] / memory["conv+IN"], 2),
                "reference's peak / auto's": round(memory["reference"] / memory["auto"], 2),
            }
        )
        print(row_text(rows[-1]), flush=True)
    return rows


COLUMNS = (
    "auto / baseline",
    "reference / auto",
    "auto / better of both",
    "peak memory / baseline",
    "reference's peak / auto's",
)


def row_text(row: dict[str, object]) -> str:
    cells = [str(row["position"]), str(row["where"]), str(row["baseline"]), *(str(row[c]) for c in COLUMNS)]
    return "| " + " | ".join(cells) + " |"


def summary(rows: list[dict[str, object]]) -> dict[str, float]:
    def column(name: str) -> list[float]:
        return [float(str(row[name])) for row in rows]

    target = next(row for row in rows if row["where"] == "3x3 at 256x64x64")
    return {
        "reference / auto at 3x3 256x64x64": float(str(target["reference / auto"])),
        "auto / baseline, median": round(statistics.median(column("auto / baseline")), 3),
        "auto / baseline, worst": max(column("auto / baseline")),
        "auto / better of both, worst": max(column("auto / better of both")),
        "peak memory / baseline, worst": max(column("peak memory / baseline")),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--output", type=Path, help="folder for nc_layer_cpu.json and .md, or nc_layer_cuda.json and .md"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--minutes", type=float, default=8.5, help="with --device cuda: no new setting after these"
    )
    arguments = parser.parse_args()
    if arguments.device == "cuda":
        if not torch.cuda.is_available():
            print(
                "error: --device cuda: torch finds no NVIDIA GPU (`python -m cuda_ops` tells more)",
                file=sys.stderr,
            )
            sys.exit(2)
        from benchmarks.nc_layer_gpu import run

        run(arguments.output, arguments.minutes)
        return
    prepare_for_torch()  # as every command does
    torch.set_num_threads(arguments.threads)
    header = "| position | of | baseline | " + " | ".join(COLUMNS) + " |"
    rule = "|" + "---|" * (3 + len(COLUMNS))
    print(header, rule, sep="\n")
    rows = measure(arguments.repeats)
    figures = summary(rows)
    facts = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": arguments.threads,
        "processor": platform.processor() or platform.machine(),
        "date": time.strftime("%Y-%m-%d"),
    }
    closing = "\n".join(f"{name}: {value}" for name, value in figures.items())
    print(f"\n{closing}")
    if arguments.output:
        arguments.output.mkdir(parents=True, exist_ok=True)
        content = {"facts": facts, "summary": figures, "rows": rows}
        (arguments.output / "nc_layer_cpu.json").write_text(json.dumps(content, indent=1) + "\n")
        table = "\n".join([header, rule, *map(row_text, rows)])
        about = ", ".join(f"{name} {value}" for name, value in facts.items())
        text = f"# NC layer on a CPU\n\n{about}\n\n{closing}\n\n{table}\n"
        (arguments.output / "nc_layer_cpu.md").write_text(
            text.replace("\n\n" + closing, "\n\n" + closing.replace("\n", "  \n"))
        )


if __name__ == "__main__":
    main()
