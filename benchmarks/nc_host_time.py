"""Host time of one forward + backward pass of the CUDA backend, against conv + InstanceNorm2d + ReLU.

    python benchmarks/nc_host_time.py [--device cpu|cuda] [--rounds 200]

At batch 1 a GPU may wait for the program that feeds it, so what counts there is the time until the last kernel is
launched. On a GPU this is measured as it is: passes of a small layer, without synchronising, few enough that no queue
fills up. Without a GPU the same Python code runs on tiny CPU tensors with a launcher that launches nothing: see
`NOT_INCLUDED`. The candidates take turns; medians of the rounds.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from torch import Tensor

from cuda_ops import normalized_conv2d, nvrtc

PASSES = 20  # between two looks at the clock: about 300 launches, and the driver's queue takes 1024
SHAPES = {"cpu": (2, 10), "cuda": (16, 16)}  # channels and side of x, both small enough to be done at once
NOT_INCLUDED = """\
Not included: the launches themselves ({launches} a pass of nc, about 8 of the other); what cuDNN does on the host (the
same three convolutions on both sides); and that with cuDNN the bias and its gradient are operations of their own (nc
has them in its kernels). Included: the arithmetic of the tiny CPU convolutions on both sides, and that of the
normalization and the ReLU on the other."""


class CountingLauncher:
    """Stands in for the GPU: counts the launches and leaves the memory as it is."""

    threads = 256

    def __init__(self) -> None:
        self.launches = 0

    def bind(self, arguments: nvrtc.Arguments) -> nvrtc.LaunchKernel:
        return self.launch

    def launch(self, kernel: str, grid: nvrtc.Dims, block: nvrtc.Dims) -> None:
        self.launches += 1


def candidates(device: str, dtype: torch.dtype) -> dict[str, Callable[[], None]]:
    """One forward + backward pass of each; gradients of x, weight and bias."""
    channels, side = SHAPES[device]
    x = torch.randn(1, channels, side, side, device=device, dtype=dtype, requires_grad=True)
    conv = torch.nn.Conv2d(channels, channels, 3, padding=1).to(device, dtype)
    inputs, dy = (x, *conv.parameters()), torch.randn_like(x)

    def nc(return_moments: bool = False) -> Tensor:
        y = normalized_conv2d(
            x, conv.weight, conv.bias, (1, 1), (1, 1), activation="relu", return_moments=return_moments
        )
        return y[0] if isinstance(y, tuple) else y

    forward: dict[str, Callable[[], Tensor]] = {
        "conv + InstanceNorm2d + ReLU": lambda: F.relu(F.instance_norm(conv(x))),
        "nc": nc,
        "nc with its moments": lambda: nc(True),
    }
    return {name: partial(one_pass, layer, inputs, dy) for name, layer in forward.items()}


def one_pass(layer: Callable[[], Tensor], inputs: tuple[Tensor, ...], dy: Tensor) -> None:
    torch.autograd.grad(layer(), inputs, dy)


def medians(calls: dict[str, Callable[[], None]], device: str, rounds: int) -> dict[str, float]:
    """Microseconds per pass. CPU time where no GPU works beside it: other programs disturb it less."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(rounds + 10):
        for name, call in calls.items():
            if device == "cuda":
                torch.cuda.synchronize()
            start = clock()
            for _ in range(PASSES):
                call()
            if round_ >= 10:  # the first ones warm up
                times[name].append((clock() - start) / PASSES * 1e6)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=default)
    parser.add_argument("--rounds", type=int, default=200)
    arguments = parser.parse_args()
    device, stand_in = arguments.device, CountingLauncher()
    torch.set_num_threads(1)
    if device == "cpu":
        nvrtc.LAUNCHERS["cpu"] = lambda index, unit: stand_in
    where = torch.cuda.get_device_name() if device == "cuda" else "CPU, stand-in for the launches"
    print(f"torch {torch.__version__}, {where}; microseconds of host time per forward + backward pass")
    for dtype in (torch.float32, torch.bfloat16) if device == "cuda" else (torch.float32,):
        calls = candidates(device, dtype)
        found = medians(calls, device, arguments.rounds)
        base = next(iter(found.values()))
        for name, value in found.items():
            print(f"{str(dtype).removeprefix('torch.'):9} {name:29} {value:7.1f}   {value / base:.2f}")
    if device == "cpu":
        stand_in.launches = 0
        calls["nc"]()
        print(NOT_INCLUDED.format(launches=stand_in.launches))
    return 0


if __name__ == "__main__":
    sys.exit(main())
