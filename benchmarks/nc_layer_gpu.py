"""Speed and memory of the NC layer on an NVIDIA GPU: every goal of the CUDA backend, in one run of under nine minutes.

    python benchmarks/nc_layer.py --device cuda [--output DIR] [--minutes 8.5]

Forward + backward at every NC position of both generators at 256 x 256 (1x1 outputs aside), float32 with TF32 and
bfloat16, NCHW and channels-last. Batch 4 and 16 eagerly, batch 1 inside a CUDA graph. Times are CUDA events, medians
of rounds in which the candidates take turns; the inputs rotate through more memory than the L2 cache holds.
"""

import itertools
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu_timing import Call, copy_bandwidth, kernel_seconds, medians, peak_bytes
from benchmarks.nc_goals import (
    CONV,
    CONVOLUTIONS,
    HEADER,
    IN,
    kernel_bytes,
    kernel_table,
    minimum_bytes,
    row_text,
    summary,
    summary_table,
)
from benchmarks.positions import Position, generator_positions
from cuda_ops import normalized_conv2d
from cuda_ops.padding import pad

Forward = Callable[[Tensor, Tensor, Tensor], Tensor]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LAYOUTS = {"nchw": torch.contiguous_format, "channels-last": torch.channels_last}
MOST_SETS = 8
COMPILED_POSITIONS = 3  # where the compiled direct form is measured: every compilation takes its seconds


@dataclass(frozen=True)
class Setting:
    position: Position
    batch: int
    dtype: str
    layout: str


class Inputs:
    """Rotating sets of (x, dy), one weight and one bias."""

    def __init__(self, s: Setting, device: str, cache_bytes: int) -> None:
        p, dtype, layout = s.position, DTYPES[s.dtype], LAYOUTS[s.layout]
        x_shape, y_shape = (s.batch, p.channels, p.height, p.width), (s.batch, p.out_channels, *p.output)
        one_set = (torch.Size(x_shape).numel() + torch.Size(y_shape).numel()) * dtype.itemsize
        self.sets = max(1, min(MOST_SETS, -(-2 * cache_bytes // one_set)))
        torch.manual_seed(0)

        def make(*shape: int) -> Tensor:
            return torch.randn(shape, device=device).to(dtype).contiguous(memory_format=layout)

        self.x = [make(*x_shape).requires_grad_() for _ in range(self.sets)]
        self.dy = [make(*y_shape) for _ in range(self.sets)]
        self.weight = make(p.out_channels, p.channels, p.kernel, p.kernel).mul_(0.02).requires_grad_()
        self.bias = torch.zeros(p.out_channels, device=device, dtype=dtype).requires_grad_()

    def call(self, forward: Forward) -> Call:
        def run(i: int) -> None:
            x = self.x[i % self.sets]
            y = forward(x, self.weight, self.bias)
            torch.autograd.grad(y, (x, self.weight, self.bias), self.dy[i % self.sets])

        return run

    def convolutions(self, p: Position) -> Call:
        """The three convolutions of a pass and nothing else."""
        padding = 0 if p.reflect else p.padding
        numbers = ([p.stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1)
        sets = [pad(x.detach(), [p.padding] * 4, "reflect") if p.reflect else x.detach() for x in self.x]

        def run(i: int) -> None:
            x, dy = sets[i % self.sets], self.dy[i % self.sets]
            weight = self.weight.detach()
            torch.ops.aten.convolution(x, weight, None, *numbers)
            torch.ops.aten.convolution_backward(dy, x, weight, None, *numbers, (True, True, False))

        return run


def nc(p: Position, backend: str) -> Forward:
    def forward(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        options = {"padding_mode": p.padding_mode, "activation": "relu", "backend": backend}
        return normalized_conv2d(x, w, b, p.stride, p.padding, **options)  # type: ignore

    return forward


def candidates(p: Position) -> dict[str, Forward]:
    return {
        "nc": nc(p, "cuda"),
        IN: lambda x, w, b: F.relu(F.instance_norm(p.convolve(x, w, b))),
        CONV: lambda x, w, b: F.relu(p.convolve(x, w, b)),
        "direct": nc(p, "direct"),
        "reference": nc(p, "reference"),
    }


def host_microseconds(device: str, passes: int = 20) -> dict[str, float]:
    """Host time of one pass at a size that the GPU is done with before the next call comes."""
    p = Position("small", 16, 16, 16, 16, 3, 1, 1)
    inputs = Inputs(Setting(p, 1, "fp32", "nchw"), device, 0)
    calls = {
        name: inputs.call(forward) for name, forward in candidates(p).items() if name in ("nc", IN, CONV)
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(30):
        for name, call in calls.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            for i in range(passes):
                call(i)
            times[name].append((time.perf_counter() - start) / passes * 1e6)
    return {name: statistics.median(values[5:]) for name, values in times.items()}


def settings(positions: list[Position]) -> Iterator[Setting]:
    """What counts most comes first, should the time run out; every batch of a type and layout before the next one."""
    for dtype, layout, batch in itertools.product(("bf16", "fp32"), LAYOUTS, (16, 4, 1)):
        for p in positions:
            yield Setting(p, batch, dtype, layout)


def measure(s: Setting, device: str, cache_bytes: int, copy: float, with_compiler: bool) -> dict[str, Any]:
    p, inputs = s.position, Inputs(s, device, cache_bytes)
    calls = {name: inputs.call(forward) for name, forward in candidates(p).items()}
    if with_compiler:
        torch._dynamo.reset()
        calls["compiled direct"] = inputs.call(torch.compile(nc(p, "direct"), fullgraph=True, dynamic=False))
    if s.batch == 16:
        calls[CONVOLUTIONS] = inputs.convolutions(p)
    ms = medians(calls, inputs.sets, graph=s.batch == 1)
    row: dict[str, Any] = {
        "position": p.label, "where": p.where, "batch": s.batch, "dtype": s.dtype, "layout": s.layout,
        "ms": ms, "peak": {name: peak_bytes(call) for name, call in calls.items()},
    }  # fmt: skip
    if s.batch == 16 and "nc" in calls:
        row |= _bandwidths(s, calls["nc"], inputs.sets, ms, copy)
    return row


def _bandwidths(s: Setting, call: Call, sets: int, ms: dict[str, float], copy: float) -> dict[str, Any]:
    """Bytes that must move beside the convolutions over the time that they took, over the copy bandwidth.

    The time is the sum of the kernels, by the profiler; where it sees none, what the pass took beyond its convolutions.
    """
    p, item = s.position, DTYPES[s.dtype].itemsize
    size = (p.height, p.width)
    shape = (s.batch, p.channels, size, p.out_channels, p.output, p.kernel, p.padding, item, p.reflect)
    try:
        seconds = kernel_seconds(call, sets)
    except Exception as error:  # whatever keeps the profiler from the GPU: the difference still tells
        seconds = {}
        print(f"the profiler does not work: {error}".splitlines()[0], file=sys.stderr, flush=True)
    rest = (ms["nc"] - ms[CONVOLUTIONS]) * 1e-3 if CONVOLUTIONS in ms else 0.0
    found: dict[str, Any] = {"kernel us": {name: value * 1e6 for name, value in seconds.items()}}
    if rest > 0:
        found["bandwidth by difference"] = minimum_bytes(*shape) / rest / copy
    if seconds:
        found["bandwidth"] = minimum_bytes(*shape) / sum(seconds.values()) / copy
        moved = kernel_bytes(*shape)
        found["kernel bandwidth"] = {name: moved[name] / seconds[name] / copy for name in seconds}
    elif rest > 0:
        found["bandwidth"] = found["bandwidth by difference"]
    return found


def run(output: Path | None, minutes: float, device: str = "cuda") -> list[dict[str, Any]]:
    """Measures, prints, and keeps nc_layer_cuda.json and .md in `output` up to date; returns the summary."""
    start = time.monotonic()
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.matmul.allow_tf32 = True  # the unfold form's product, as the convolutions have it
    properties = torch.cuda.get_device_properties(0)
    facts = {
        "GPU": properties.name, "torch": torch.__version__, "CUDA": torch.version.cuda,
        "cuDNN": torch.backends.cudnn.version(), "python": platform.python_version(), "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    copy = copy_bandwidth(device)
    facts["copy bandwidth, TB/s"] = round(copy / 1e12, 2)
    host = host_microseconds(device)
    positions = [p for p in generator_positions() if p.output != (1, 1)]
    print(", ".join(f"{name} {value}" for name, value in facts.items()), HEADER, sep="\n\n", flush=True)
    rows: list[dict[str, Any]] = []
    left_out: list[Setting] = []
    for s in settings(positions):
        spent = (time.monotonic() - start) / 60
        if spent > minutes:
            left_out.append(s)
            continue
        compiler = s.batch == 4 and s.position in positions[:COMPILED_POSITIONS] and spent < 0.8 * minutes
        try:
            rows.append(measure(s, device, properties.L2_cache_size, copy, compiler))
        except torch.OutOfMemoryError as error:
            left_out.append(s)
            print(f"out of memory: {s}: {error}", file=sys.stderr)
            continue
        finally:
            torch.cuda.empty_cache()
        print(row_text(rows[-1]), flush=True)
        if output:
            write(output, facts, host, rows, left_out, start)
    if output:
        write(output, facts, host, rows, left_out, start)
    lines = summary(rows, host)
    print("", summary_table(lines), kernel_table(rows), closing(rows, left_out, start), sep="\n\n")
    return lines


def closing(rows: list[dict[str, Any]], left_out: list[Setting], start: float) -> str:
    spent = (time.monotonic() - start) / 60
    return f"{spent:.1f} minutes; {len(left_out)} of {len(rows) + len(left_out)} settings not measured"


def write(
    output: Path,
    facts: dict[str, Any],
    host: dict[str, float],
    rows: list[dict[str, Any]],
    left_out: list[Setting],
    start: float,
) -> None:
    """Both files, after every setting: a run that is cut short leaves what it has."""
    output.mkdir(parents=True, exist_ok=True)
    lines = summary(rows, host)
    content = {
        "facts": facts, "host us": host, "summary": lines, "left out": list(map(str, left_out)), "rows": rows,
    }  # fmt: skip
    (output / "nc_layer_cuda.json").write_text(json.dumps(content, indent=1, default=str) + "\n")
    about = ", ".join(f"{name} {value}" for name, value in facts.items())
    parts = [f"# NC layer on a GPU\n\n{about}; {closing(rows, left_out, start)}", summary_table(lines)]
    parts += [kernel_table(rows), "\n".join([HEADER, *map(row_text, rows)])]
    (output / "nc_layer_cuda.md").write_text("\n\n".join(parts) + "\n")
