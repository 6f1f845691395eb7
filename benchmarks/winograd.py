"""Winograd's form beside torch's own convolution: forward and both gradients, taking turns in one process.

    python -m benchmarks.winograd [--rounds 9] [--output benchmarks/results]

The smaller ones say where `cuda_ops.winograd.suits` must draw the line: a ratio above 1 in all three is a loss.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tabulate import tabulate
from torch import Tensor

from benchmarks.steps import machine
from cuda_ops import winograd
from datasets.errors import prepare_for_torch

POSITIONS = (
    # channels, filters, kernel, side of the output
    (256, 256, 3, 64), (256, 512, 4, 31), (256, 256, 3, 128), (256, 256, 3, 40), (128, 128, 3, 64),
    (256, 256, 3, 32), (128, 256, 4, 31), (128, 128, 3, 40), (64, 64, 3, 128),
)  # fmt: skip
"""Residual blocks and discriminator at 256 pixels come first, then larger and smaller ones."""


def pairs(channels: int, filters: int, kernel: int, side: int) -> dict[str, tuple[Callable[[], Tensor], ...]]:
    """What is computed -> by torch, in this form."""
    x = torch.randn(1, channels, side + kernel - 1, side + kernel - 1)
    weight, dy = torch.randn(filters, channels, kernel, kernel) * 0.02, torch.randn(1, filters, side, side)
    none = (0, 0)

    def gradient(of: int) -> Tensor:
        numbers = ((1, 1), none, (1, 1), False, none, 1, (of == 0, of == 1, False))
        return torch.ops.aten.convolution_backward(dy, x, weight, None, *numbers)[of]

    return {
        "forward": (lambda: torch.conv2d(x, weight), lambda: winograd.convolve(x, weight, none)),
        "of input": (lambda: gradient(0), lambda: winograd.input_gradient(dy, weight, none)),
        "of weight": (lambda: gradient(1), lambda: winograd.weight_gradient(x, dy, none)),
    }


@torch.inference_mode()
def row(position: tuple[int, int, int, int], rounds: int) -> list[str]:
    cells, taken = [], {"torch": 0.0, "winograd": 0.0}
    for torchs, ours in pairs(*position).values():
        seconds: dict[str, list[float]] = {"torch": [], "winograd": []}
        for _ in range(rounds + 1):  # the first one warms up
            for name, call in (("torch", torchs), ("winograd", ours)):
                begin = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - begin)
        medians = {name: 1e3 * statistics.median(each[1:]) for name, each in seconds.items()}
        cells.append(
            f"{medians['winograd']:.1f} / {medians['torch']:.1f} = {medians['winograd'] / medians['torch']:.2f}"
        )
        taken = {name: taken[name] + medians[name] for name in taken}
    channels, filters, kernel, side = position
    x, weight = torch.empty(1, channels, side, side), torch.empty(filters, channels, kernel, kernel)
    chosen = winograd.suits(x, weight, (1, 1), (kernel // 2, kernel // 2), (1, 1))
    name = f"{channels}x{side}x{side} -> {filters}, {kernel}x{kernel}"
    return [name, *cells, f"{taken['winograd'] / taken['torch']:.2f}", "yes" if chosen else "no"]


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    prepare_for_torch()
    headers = ["position", "forward, ms", "gradient of input, ms", "gradient of weight, ms", "all", "taken"]
    rows = [row(position, options.rounds) for position in POSITIONS]
    about = ", ".join(f"{key} {value}" for key, value in machine("cpu").items())
    text = f"# Winograd's form / torch's own\n\n{about}. Medians of {options.rounds}.\n\n"
    text += tabulate(rows, headers, tablefmt="github", disable_numparse=True) + "\n"
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "winograd_cpu.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
