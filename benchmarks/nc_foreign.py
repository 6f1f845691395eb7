"""The NC layer against an independent one, `NormConv2d` of the package pylocron: values, time and memory.

    pip install --no-deps --target FOLDER pylocron
    python -m benchmarks.nc_foreign --package FOLDER [--repeats 7] [--output DIR]

That layer unfolds, divides the variance by n and adds 1e-14, so ours is called with correction 0 and that eps. Only its
file of functions is loaded, which needs nothing but torch. Gradients are compared, and backward passes are timed, only
if it has them: version 0.3.0 changes in place what its own backward pass needs, and torch refuses that.
"""

import argparse
import importlib.util
import json
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor

from benchmarks.nc_layer import medians, peak_memory
from benchmarks.positions import Position, generator_positions
from benchmarks.steps import machine
from cuda_ops import normalized_conv2d
from cuda_ops.padding import pad

EPS = 1e-14
Layer = Callable[..., Tensor]


def foreign_layer(folder: Path) -> Layer:
    """Its function, as (x, weight, bias, stride, padding) -> y."""
    spec = importlib.util.spec_from_file_location("foreign", folder / "holocron" / "nn" / "functional.py")
    if spec is None or spec.loader is None:
        raise SystemExit(
            f"{folder}: no holocron/nn/functional.py; pip install --no-deps --target {folder} pylocron"
        )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    layer: Layer = partial(module.norm_conv2d, eps=EPS)
    return layer


def ours(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
    y = normalized_conv2d(x, weight, bias, stride, padding, eps=EPS, correction=0)
    assert isinstance(y, Tensor)
    return y


def tensors(p: Position, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draws = torch.Generator().manual_seed(0)
    shapes = (
        (1, p.channels, p.height, p.width), (p.out_channels, p.channels, p.kernel, p.kernel), (p.out_channels,),
        (1, p.out_channels, *p.output),
    )  # fmt: skip
    x, weight, bias, upstream = (
        torch.randn(shape, generator=draws, dtype=torch.float64).to(dtype) for shape in shapes
    )
    return x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), upstream


def with_border(x: Tensor, p: Position) -> tuple[Tensor, int]:
    """What both layers are given, and their padding: the other one knows zeros only, so a mirrored border is made."""
    return (pad(x, [p.padding] * 4, "reflect"), 0) if p.reflect else (x, p.padding)


def why_no_gradients(layer: Layer) -> str:
    """The error of its backward pass; nothing if that works."""
    p = Position("small", 2, 5, 5, 3, 3, 1, 1)
    *inputs, upstream = tensors(p, torch.float64)
    try:
        layer(*inputs, p.stride, p.padding).backward(upstream)
    except RuntimeError as error:
        return str(error).split(":")[0]
    return ""


def difference(layer: Layer, p: Position, gradients: bool) -> float:
    """Largest difference in float64, of the output and of the gradients if they are there, relative to the largest."""
    results: list[list[Tensor]] = []
    functions: tuple[Layer, Layer] = (ours, layer)
    for function in functions:
        *inputs, upstream = tensors(p, torch.float64)
        with torch.set_grad_enabled(gradients):
            x, padding = with_border(inputs[0], p)
            y = function(x, *inputs[1:], p.stride, padding)
        results.append([y.detach(), *(torch.autograd.grad(y, inputs, upstream) if gradients else ())])
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(*results, strict=True))


def measure(layer: Layer, p: Position, repeats: int, gradients: bool) -> dict[str, Any]:
    *inputs, upstream = tensors(p, torch.float32)

    def call(function: Layer) -> Callable[[], None]:
        def run() -> None:
            with torch.set_grad_enabled(gradients):
                x, padding = with_border(inputs[0], p)
                y = function(x, *inputs[1:], p.stride, padding)
            if gradients:
                torch.autograd.grad(y, inputs, upstream)

        return run

    calls = {"conv+IN": call(ours), "foreign": call(layer)}  # `medians` looks for the first name
    ms = medians(calls, repeats)
    peaks = {name: peak_memory(run) for name, run in calls.items()}
    return {
        "position": p.label, "difference": difference(layer, p, gradients), "ours ms": ms["conv+IN"],
        "theirs ms": ms["foreign"], "time": ms["foreign"] / ms["conv+IN"],
        "memory": peaks["foreign"] / peaks["conv+IN"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument(
        "--package", type=Path, required=True, help="the folder that pip installed pylocron into"
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    layer, rows = foreign_layer(options.package), []
    missing, left_out = why_no_gradients(layer), ""
    for p in generator_positions():
        if p.output == (1, 1):
            left_out = p.label
            continue
        rows.append(measure(layer, p, options.repeats, not missing))
        print(rows[-1], file=sys.stderr, flush=True)
    cells = [
        [r["position"], f"{r['difference']:.0e}", f"{r['ours ms']:.2f}", f"{r['theirs ms']:.2f}", f"{r['time']:.1f}",
         f"{r['memory']:.1f}"]
        for r in rows
    ]  # fmt: skip
    headers = [
        "layer",
        "difference",
        "ours, ms",
        "theirs, ms",
        "theirs / ours, time",
        "theirs / ours, peak memory",
    ]
    facts = machine("cpu")
    text = "\n\n".join(
        [
            "# The NC layer beside pylocron's NormConv2d",
            ", ".join(f"{name} {value}" for name, value in facts.items()),
            f"Forward only, since the other layer has no gradients: {missing}."
            if missing
            else "Forward and backward.",
            "Batch 1. Difference: in float64, relative to the largest value. Mirrored borders are made before both "
            f"layers. Left out: {left_out}, with a single position.",
            tabulate(cells, headers, tablefmt="github", disable_numparse=True),
            f"Medians: {statistics.median(r['time'] for r in rows):.1f} times our time, "
            f"{statistics.median(r['memory'] for r in rows):.1f} times our memory.",
        ]
    )
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "nc_foreign_cpu.md").write_text(text + "\n")
    (options.output / "nc_foreign_cpu.json").write_text(
        json.dumps({"machine": facts, "rows": rows}, indent=1) + "\n"
    )
    print(text)


if __name__ == "__main__":
    main()
