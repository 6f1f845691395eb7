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
from torch.profiler import ProfilerActivity, profile

from benchmarks.nc_goals import CONV, HEADER, IN, minimum_bytes, row_text, summary, summary_table
from benchmarks.positions import Position, generator_positions
from cuda_ops import normalized_conv2d

Call = Callable[[int], None]  # one forward + backward pass on input set i
Forward = Callable[[Tensor, Tensor, Tensor], Tensor]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LAYOUTS = {"nchw": torch.contiguous_format, "channels-last": torch.channels_last}
ROUNDS, ROUND_MS, MOST_SETS = 7, 8.0, 8
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


def nc(p: Position, backend: str) -> Forward:
    def forward(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return normalized_conv2d(x, w, b, p.stride, p.padding, activation="relu", backend=backend)  # type: ignore

    return forward


def candidates(p: Position) -> dict[str, Forward]:
    return {
        "nc": nc(p, "cuda"),
        IN: lambda x, w, b: F.relu(F.instance_norm(F.conv2d(x, w, b, p.stride, p.padding))),
        CONV: lambda x, w, b: F.relu(F.conv2d(x, w, b, p.stride, p.padding)),
        "direct": nc(p, "direct"),
        "reference": nc(p, "reference"),
    }


def elapsed_ms(run: Callable[[], None]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def in_graph(call: Call, sets: int) -> Callable[[], None]:
    """A CUDA graph of one pass over every input set. The call has run before: nothing is compiled in the capture."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call(0)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(sets):
            call(i)
    return graph.replay


def in_turn(call: Call, sets: int) -> Callable[[], None]:
    def run() -> None:
        for i in range(sets):
            call(i)

    return run


def medians(calls: dict[str, Call], sets: int, graph: bool) -> dict[str, float]:
    """Milliseconds per pass; the candidates take turns."""
    runs, repeats = {}, {}
    for name, call in calls.items():
        for i in range(2):
            call(i)
        runs[name] = (in_graph if graph else in_turn)(call, sets)
        runs[name]()
        repeats[name] = max(1, min(40, int(ROUND_MS / max(elapsed_ms(runs[name]), 1e-3))))

    def one_round(name: str) -> float:
        def run() -> None:
            for _ in range(repeats[name]):
                runs[name]()

        return elapsed_ms(run) / (repeats[name] * sets)

    times = [{name: one_round(name) for name in runs} for _ in range(ROUNDS)]
    return {name: statistics.median([t[name] for t in times]) for name in runs}


def peak_bytes(call: Call) -> int:
    """What one pass holds at its peak, beyond its inputs."""
    call(0)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call(0)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def kernel_seconds(call: Call, sets: int) -> float | None:
    """Seconds per pass in the kernels of cuda_ops/kernels.cu, by the profiler; None where it sees no GPU kernel."""
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        for i in range(2 * sets):
            call(i)
        torch.cuda.synchronize()
    total = sum(e.device_time_total for e in recorded.events() if e.name.startswith("nc_"))
    return total * 1e-6 / (2 * sets) or None


def copy_bandwidth(gigabytes: float = 2.0) -> float:
    """Bytes per second of a device-to-device copy, read and written bytes counted."""
    source = torch.empty(int(gigabytes * 2**30 / 4), dtype=torch.float32, device="cuda").fill_(1.0)
    target = torch.empty_like(source)
    target.copy_(source)
    seconds = statistics.median([elapsed_ms(lambda: target.copy_(source)) for _ in range(9)]) / 1e3  # type: ignore
    return 2 * source.numel() * 4 / seconds


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
    """What counts most comes first, should the time run out."""
    for batch, dtype, layout in itertools.product((16, 4, 1), ("bf16", "fp32"), LAYOUTS):
        for p in positions:
            yield Setting(p, batch, dtype, layout)


def measure(s: Setting, device: str, cache_bytes: int, copy: float, with_compiler: bool) -> dict[str, Any]:
    p, inputs = s.position, Inputs(s, device, cache_bytes)
    calls = {name: inputs.call(forward) for name, forward in candidates(p).items()}
    if with_compiler:
        torch._dynamo.reset()
        calls["compiled direct"] = inputs.call(torch.compile(nc(p, "direct"), fullgraph=True, dynamic=False))
    row: dict[str, Any] = {
        "position": p.label, "where": p.where, "batch": s.batch, "dtype": s.dtype, "layout": s.layout,
        "ms": medians(calls, inputs.sets, graph=s.batch == 1),
        "peak": {name: peak_bytes(call) for name, call in calls.items()},
    }  # fmt: skip
    seconds = kernel_seconds(calls["nc"], inputs.sets) if s.batch == 16 else None
    if seconds:
        size, item = (p.height, p.width), DTYPES[s.dtype].itemsize
        moved = minimum_bytes(s.batch, p.channels, size, p.out_channels, p.output, p.kernel, p.padding, item)
        row["bandwidth"] = moved / seconds / copy
    return row


def run(output: Path | None, minutes: float, device: str = "cuda") -> list[dict[str, Any]]:
    """Measures, prints, and writes nc_layer_cuda.json and .md into `output`; returns the summary."""
    start = time.monotonic()
    torch.backends.cudnn.allow_tf32 = True
    properties = torch.cuda.get_device_properties(0)
    facts = {
        "GPU": properties.name, "torch": torch.__version__, "CUDA": torch.version.cuda,
        "cuDNN": torch.backends.cudnn.version(), "python": platform.python_version(), "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    copy = copy_bandwidth()
    facts["copy bandwidth, TB/s"] = round(copy / 1e12, 2)
    host = host_microseconds(device)
    positions = [p for p in generator_positions() if p.output != (1, 1)]
    print(", ".join(f"{name} {value}" for name, value in facts.items()), HEADER, sep="\n\n", flush=True)
    rows: list[dict[str, Any]] = []
    left_out = []
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
    lines = summary(rows, host)
    spent = (time.monotonic() - start) / 60
    closing = f"{spent:.1f} minutes; {len(left_out)} of {len(rows) + len(left_out)} settings not measured"
    print("", summary_table(lines), closing, sep="\n\n")
    if output:
        output.mkdir(parents=True, exist_ok=True)
        content = {
            "facts": facts,
            "host us": host,
            "summary": lines,
            "left out": list(map(str, left_out)),
            "rows": rows,
        }
        (output / "nc_layer_cuda.json").write_text(json.dumps(content, indent=1, default=str) + "\n")
        about = ", ".join(f"{name} {value}" for name, value in facts.items())
        table = "\n".join([HEADER, *map(row_text, rows)])
        (output / "nc_layer_cuda.md").write_text(
            f"# NC layer on a GPU\n\n{about}; {closing}\n\n{summary_table(lines)}\n\n{table}\n"
        )
    return lines
