"""Times and memory of calls on a GPU: CUDA events, CUDA graphs, torch's profiler and its memory statistics."""

import statistics
import sys
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

Call = Callable[[int], None]  # one forward + backward pass on input set i
ROUNDS, ROUND_MS = 7, 8.0


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
    """Milliseconds per pass; the candidates take turns. One that fails is told of and left out of `calls`."""
    runs, repeats = {}, {}
    for name, call in list(calls.items()):
        try:
            for i in range(2):
                call(i)
            runs[name] = (in_graph if graph else in_turn)(call, sets)
            runs[name]()
            repeats[name] = max(1, min(40, int(ROUND_MS / max(elapsed_ms(runs[name]), 1e-3))))
        except Exception as error:  # a figure less is better than nine minutes lost
            first_line = f"{type(error).__name__}: {error}".splitlines()[0]
            print(f"{name} is left out: {first_line}", file=sys.stderr, flush=True)
            del calls[name]
            runs.pop(name, None)

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


def kernel_seconds(call: Call, sets: int) -> dict[str, float]:
    """Seconds per pass in each kernel of cuda_ops/kernels.cu, by the profiler; empty where it sees none."""
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        for i in range(2 * sets):
            call(i)
        torch.cuda.synchronize()
    seconds: dict[str, float] = {}
    for event in recorded.events():
        if event.name.startswith("nc_"):
            name = event.name.removeprefix("nc_")
            seconds[name] = seconds.get(name, 0.0) + event.device_time_total * 1e-6 / (2 * sets)
    return {name: value for name, value in seconds.items() if value > 0}


def copy_bandwidth(device: str, gigabytes: float = 2.0) -> float:
    """Bytes per second of a device-to-device copy, read and written bytes counted."""
    source = torch.empty(int(gigabytes * 2**30 / 4), dtype=torch.float32, device=device).fill_(1.0)
    target = torch.empty_like(source)
    target.copy_(source)
    seconds = statistics.median([elapsed_ms(lambda: target.copy_(source)) for _ in range(9)]) / 1e3  # type: ignore
    return 2 * source.numel() * 4 / seconds
