"""The two blocks that the networks are made of, down (or level) and up; how they run; the check of input sizes."""

import contextlib
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from cuda_ops import Activation, Moments, activate
from cuda_ops.layer import NormalizedConv2d
from models.names import BaseNormName, UpsampleName
from models.norms import BASE_NORMS, PONO, DynamicMomentShortcut, Positional
from models.quick_convolutions import conv2d, conv_transpose2d

LEAKY_SLOPE = 0.2


class PlainConv2d(nn.Conv2d):
    """`nn.Conv2d` without groups, padded with zeros or by reflection, in the form that is quickest."""

    def forward(self, x: Tensor) -> Tensor:
        if self.padding_mode not in ("zeros", "reflect"):
            return super().forward(x)
        sizes: Any = (self.stride, self.padding, self.dilation, self.padding_mode == "reflect")
        return conv2d(x, self.weight, self.bias, *sizes)


class TransposedConv2d(nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` without groups and dilation, in the form that is quickest."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        if output_size is not None:
            return super().forward(x, output_size)
        sizes: Any = (self.stride, self.padding, self.output_padding)
        return conv_transpose2d(x, self.weight, self.bias, *sizes)


class ConvBlock(nn.Module):
    """conv (-> PONO) -> base norm -> activation, or NC in the place of conv and PONO.

    (N, C, H, W) -> (N, O, H', W') and moments. `positional` chooses between a plain convolution, one followed by
    PONO, and NC. The moments are (N, 1, H', W') each where `keep_moments` asks for them, otherwise None. Where the
    activation follows NC directly (base norm `none`), the layer applies it itself, in one pass with its epilogue.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        padding_mode: Literal["zeros", "reflect"] = "zeros",
        base_norm: BaseNormName = "none",
        bias: bool | None = None,
        positional: Positional = "none",
        keep_moments: bool = False,
        activation: Activation = "none",
    ) -> None:
        super().__init__()
        base = BASE_NORMS[base_norm]
        bias = base.bias_before if bias is None else bias
        fused = positional == "nc" and base_norm == "none"
        self.positional = positional
        self.keep_moments = keep_moments
        self.activation: Activation = "none" if fused else activation
        sizes = (in_channels, out_channels, kernel_size, stride, padding)
        self.conv: nn.Conv2d
        if positional == "nc":
            self.conv = NormalizedConv2d(
                *sizes,
                bias=bias,
                padding_mode=padding_mode,
                return_moments=keep_moments,
                activation=activation if fused else "none",
                negative_slope=LEAKY_SLOPE,
            )
        else:
            self.conv = PlainConv2d(*sizes, bias=bias, padding_mode=padding_mode)
        self.pono = PONO() if positional == "pono" else None
        self.norm = base.layer(out_channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Moments | None]:
        moments = None
        if self.positional == "nc" and self.keep_moments:
            y, moments = self.conv(x)  # (N, O, H', W'), (N, 1, H', W')
        else:
            y = self.conv(x)  # (N, O, H', W')
        if self.pono is not None:
            y, moments = self.pono(y)  # (N, O, H', W'), (N, 1, H', W')
        y = activate(self.norm(y), self.activation, LEAKY_SLOPE)  # (N, O, H', W')
        return y, moments if self.keep_moments else None


class ResizeConv2d(PlainConv2d):
    """Nearest neighbours at twice the size, then a 3x3 convolution: (N, C, H, W) -> (N, O, 2H, 2W).

    Every pixel gets equally many taps; those of a transposed convolution alternate, which shows as a checkerboard.
    Source: Odena et al. 2016, "Deconvolution and Checkerboard Artifacts".
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, padding_mode="reflect", bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def up_conv(
    in_channels: int, out_channels: int, kernel_size: Literal[3, 4], upsample: UpsampleName, bias: bool
) -> nn.Module:
    """The layer that doubles the sides: (N, C, H, W) -> (N, O, 2H, 2W). `kernel_size` is the transposed conv's."""
    if upsample == "resize":
        return ResizeConv2d(in_channels, out_channels, bias)
    return TransposedConv2d(
        in_channels, out_channels, kernel_size, stride=2, padding=1, output_padding=kernel_size % 2, bias=bias
    )


class UpBlock(nn.Module):
    """Up conv -> base norm (-> DMS) (-> dropout) -> ReLU: (N, C, H, W) -> (N, O, 2H, 2W).

    The transposed kernel is 3x3 in the ResNet generator and 4x4 in the U-Net.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Literal[3, 4],
        *,
        base_norm: BaseNormName,
        upsample: UpsampleName,
        dynamic: bool,
        dropout: bool = False,
    ) -> None:
        super().__init__()
        base = BASE_NORMS[base_norm]
        self.conv = up_conv(in_channels, out_channels, kernel_size, upsample, base.bias_before)
        self.norm = base.layer(out_channels)
        self.dms = DynamicMomentShortcut(out_channels, base_norm) if dynamic else None
        self.dropout = nn.Dropout(0.5) if dropout else nn.Identity()

    def forward(self, x: Tensor, moments: Moments | None = None) -> Tensor:
        y = self.norm(self.conv(x))  # (N, O, 2H, 2W)
        if self.dms is not None:
            y = self.dms(y, moments)  # (N, O, 2H, 2W)
        return F.relu(self.dropout(y))  # (N, O, 2H, 2W)


def run_block(block: nn.Module, *inputs: Any, recompute: bool) -> Any:
    """`block(*inputs)`; with `recompute`, the backward pass computes what it needs again instead of keeping it.

    Outputs, gradients, random numbers and running statistics stay the same. Source: Chen et al. 2016, "Training Deep
    Nets with Sublinear Memory Cost".
    """
    if not recompute or not torch.is_grad_enabled():
        return block(*inputs)
    contexts = lambda: (contextlib.nullcontext(), _KeepingBuffers(block))
    return checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts)


class _KeepingBuffers:
    """Afterwards the running statistics are what they were: the second pass over a batch does not count.

    It may be entered again and again: a retained graph is passed through more than once.
    """

    def __init__(self, block: nn.Module) -> None:
        self.block = block

    def __enter__(self) -> None:
        self._before = [(buffer, buffer.clone()) for buffer in self.block.buffers()]

    def __exit__(self, *_: object) -> None:
        for buffer, before in self._before:
            buffer.copy_(before)


def check_size(network: nn.Module, x: Tensor, multiple: int, minimum: int) -> None:
    """Raise ValueError unless both sides of x (N, C, H, W) are multiples of `multiple` and >= `minimum`."""
    height, width = x.shape[-2:]
    if height % multiple or width % multiple or min(height, width) < minimum:
        what = f"sides that are multiples of {multiple} and" if multiple > 1 else "sides of"
        raise ValueError(
            f"{type(network).__name__} takes {what} at least {minimum} pixels, "
            f"got height {height} and width {width}"
        )
