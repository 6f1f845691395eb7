"""Every place where a generator can hold a normalized convolution, with the shapes it meets there."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cuda_ops.layer import NormalizedConv2d
from cuda_ops.padding import pad
from models.build import build_generator


@dataclass(frozen=True)
class Position:
    """One layer: input (C, H, W) and the convolution's geometry."""

    where: str
    channels: int
    height: int
    width: int
    out_channels: int
    kernel: int
    stride: int
    padding: int
    reflect: bool = False

    @property
    def padding_mode(self) -> Literal["zeros", "reflect"]:
        return "reflect" if self.reflect else "zeros"

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """The plain convolution at this place: x (N, C, H, W) -> (N, O, H', W')."""
        if self.reflect:
            return F.conv2d(pad(x, [self.padding] * 4, "reflect"), weight, bias, self.stride)
        return F.conv2d(x, weight, bias, self.stride, self.padding)

    @property
    def label(self) -> str:
        shape = f"{self.channels}x{self.height}x{self.width} -> {self.out_channels}"
        return f"{shape}, {self.kernel}x{self.kernel}/{self.stride}"

    @property
    def output(self) -> tuple[int, int]:
        height, width = (
            (n + 2 * self.padding - self.kernel) // self.stride + 1 for n in (self.height, self.width)
        )
        return height, width


def generator_positions(size: int = 256, ngf: int = 64) -> list[Position]:
    """The distinct NC layers of `--norm nc` in resnet_9blocks and unet_256, and the 3x3 at 256x64x64."""
    found: dict[tuple[object, ...], Position] = {}
    for name in ("resnet_9blocks", "unet_256"):
        network = build_generator(name, ngf=ngf, norm="nc", base_norm="none").eval()
        for layer in network.modules():
            if isinstance(layer, NormalizedConv2d):
                layer.register_forward_pre_hook(_recorder(name, found))
        with torch.no_grad():
            network(torch.zeros(1, 3, size, size))
    extra = Position("3x3 at 256x64x64", 256, 64, 64, 256, 3, 1, 1)
    return [*found.values(), extra]


def _recorder(name: str, found: dict[tuple[object, ...], Position]):  # type: ignore[no-untyped-def]
    def record(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, NormalizedConv2d)
        _, channels, height, width = arguments[0].shape
        kernel, stride, padding = layer.kernel_size[0], layer.stride[0], int(layer.padding[0])
        shape = (channels, height, width, layer.out_channels, kernel, stride, padding)
        reflect = layer.padding_mode == "reflect"
        found.setdefault((*shape, reflect), Position(name, *shape, reflect))

    return record
