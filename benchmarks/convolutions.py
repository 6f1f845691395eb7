"""Our forms of convolutions on a CPU beside torch's own: forward and both gradients, taking turns in one process.

    python -m benchmarks.convolutions [--rounds 9] [--output benchmarks/results]

The smaller ones say where a form's `suits` must draw the line: a ratio above 1 in all that it computes is a loss. The
gradients of few outputs are always taken.
"""

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from tabulate import tabulate
from torch import Tensor

from benchmarks.steps import machine
from cuda_ops import few_channels, winograd
from datasets.errors import prepare_for_torch

Calls = dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]]
"""What is computed -> by torch, in our form."""


class Layer(NamedTuple):
    channels: int
    filters: int
    kernel: int
    side: int  # of the output
    stride: int = 1


WINOGRAD = (
    Layer(256, 256, 3, 64), Layer(256, 512, 4, 31), Layer(256, 256, 3, 128), Layer(256, 256, 3, 40),
    Layer(128, 128, 3, 64), Layer(256, 256, 3, 32), Layer(128, 256, 4, 31), Layer(128, 128, 3, 40),
    Layer(64, 64, 3, 128),
)  # fmt: skip
"""Residual blocks and discriminator at 256 pixels come first, then larger and smaller ones."""
FEW_OUTPUTS = (
    Layer(64, 3, 7, 256), Layer(64, 1, 7, 256), Layer(64, 6, 7, 256), Layer(64, 3, 7, 64),
    Layer(64, 3, 7, 32), Layer(64, 3, 3, 256), Layer(512, 1, 4, 30),
)  # fmt: skip
"""The last layer of the ResNet generator at 256 pixels, then other numbers of channels and pixels."""
FEW_INPUTS = (
    Layer(3, 128, 4, 128, 2), Layer(3, 64, 4, 128, 2), Layer(6, 64, 4, 128, 2), Layer(1, 64, 4, 128, 2),
    Layer(3, 64, 4, 32, 2),
)  # fmt: skip
"""Whose gradient of the input is what the last layer of a U-Net computes forward (the first one, at 256 pixels)."""


def calls(layer: Layer) -> Calls:
    channels, filters, kernel, side, stride = layer
    padding = 1 if stride > 1 else 0
    size = (side - 1) * stride + kernel - 2 * padding
    x, dy = torch.randn(1, channels, size, size), torch.randn(1, filters, side, side)
    weight = torch.randn(filters, channels, kernel, kernel) * 0.02
    strides, pads, none = (stride, stride), (padding, padding), (0, 0)

    def gradient(of: int) -> Tensor:
        numbers = (strides, pads, (1, 1), False, none, 1, (of == 0, of == 1, False))
        return torch.ops.aten.convolution_backward(dy, x, weight, None, *numbers)[of]

    if layer in FEW_INPUTS:
        transposed = few_channels.convolve_transposed
        return {
            "of input": (lambda: gradient(0), lambda: transposed(dy, weight, strides, pads, (size, size)))
        }
    form = winograd if layer in WINOGRAD else few_channels
    return {
        "forward": (lambda: torch.conv2d(x, weight), lambda: form.convolve(x, weight, none)),
        "of input": (lambda: gradient(0), lambda: form.input_gradient(dy, weight, none)),
        "of weight": (lambda: gradient(1), lambda: form.weight_gradient(x, dy, none)),
    }


def is_taken(layer: Layer) -> bool:
    channels, filters, kernel, side, stride = layer
    weight = torch.empty(filters, channels, kernel, kernel)
    if layer in FEW_INPUTS:
        return few_channels.suits_transposed(torch.empty(1, filters, side, side), weight, (stride, stride))
    x = torch.empty(1, channels, side, side)  # padding keeps the side, nearly
    if layer in WINOGRAD:
        return winograd.suits(x, weight, (1, 1), (kernel // 2, kernel // 2), (1, 1))
    return few_channels.suits(x, weight, (kernel // 2, kernel // 2))


@contextlib.contextmanager
def always() -> Iterator[None]:
    """Few outputs take their form however few pixels there are."""
    least, few_channels.LEAST_PRODUCTS = few_channels.LEAST_PRODUCTS, 0
    try:
        yield
    finally:
        few_channels.LEAST_PRODUCTS = least


@torch.inference_mode()
@always()
def row(layer: Layer, taken: bool, rounds: int) -> list[str]:
    cells, total = [], {"torch": 0.0, "ours": 0.0}
    for torchs, ours in calls(layer).values():
        seconds: dict[str, list[float]] = {"torch": [], "ours": []}
        for _ in range(rounds + 1):  # the first one warms up
            for name, call in (("torch", torchs), ("ours", ours)):
                begin = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - begin)
        medians = {name: 1e3 * statistics.median(each[1:]) for name, each in seconds.items()}
        cells.append(
            f"{medians['ours']:.1f} / {medians['torch']:.1f} = {medians['ours'] / medians['torch']:.2f}"
        )
        total = {name: total[name] + medians[name] for name in total}
    name = f"{layer.channels}x{layer.side * layer.stride}x{layer.side * layer.stride} -> {layer.filters}, "
    name += f"{layer.kernel}x{layer.kernel}/{layer.stride}"
    return [name, *cells, f"{total['ours'] / total['torch']:.2f}", "yes" if taken else "no"]


def table(layers: tuple[Layer, ...], rounds: int, *columns: str) -> str:
    headers = ["position", *(f"{column}, ms" for column in columns), "all", "taken forward"]
    rows = [row(layer, is_taken(layer), rounds) for layer in layers]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    prepare_for_torch()
    about = ", ".join(f"{key} {value}" for key, value in machine("cpu").items())
    every = ("forward", "gradient of input", "gradient of weight")
    text = f"""# Our forms of convolutions / torch's own

{about}. Medians of {options.rounds}. To measure again: `python -m benchmarks.convolutions`.

## Many channels: Winograd's form

{table(WINOGRAD, options.rounds, *every)}
## Few output channels

{table(FEW_OUTPUTS, options.rounds, *every)}
## Few input channels and stride 2

The gradient of the input is also what a transposed convolution with few output channels computes.

{table(FEW_INPUTS, options.rounds, every[1])}"""
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "convolutions_cpu.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
