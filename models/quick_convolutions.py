"""Convolutions in the forms that are quickest on a CPU; their results are torch's but for rounding.

Few positions: the innermost layers of a U-Net see maps of 1x1 to 8x8 pixels with hundreds of channels, so nearly all of
their time goes into reading the weights. In every call, forward and backward, torch's CPU library first copies them
into an order of its own. A matrix product takes them as they are.

Few output channels, as in the last layer of a generator: `cuda_ops/few_channels.py`.

Many channels, and stride 1: `cuda_ops/winograd.py`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cuda_ops import few_channels, winograd
from cuda_ops.direct import is_transformed
from cuda_ops.padding import IntPair, pad

ROWS_PER_POSITION = 16
"""A product is taken where the weight has this many rows (its first dimension) for every position of the batch."""
INPUTS_PER_OUTPUT = 4
"""Output channels are few where the layer has this many input channels for each of them."""


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: IntPair,
    padding: IntPair,
    dilation: IntPair,
    reflect: bool = False,
) -> Tensor:
    """`F.conv2d` without groups: (N, C, H, W) -> (N, O, H', W'). The padding may mirror x."""
    kernel, may_choose = (weight.shape[2], weight.shape[3]), _may_choose(x, weight)
    if may_choose and stride == dilation == (1, 1):
        few = weight.shape[0] * INPUTS_PER_OUTPUT <= weight.shape[1] and max(padding) < min(kernel)
        autocast = torch.is_autocast_enabled("cpu")
        if not autocast and winograd.suits(x, weight, stride, padding, dilation):
            return _StrideOne.apply(winograd, x, weight, bias, padding, reflect)  # (N, O, H', W')
        if few:
            if autocast:  # as it does itself: float64 stays
                narrow = torch.get_autocast_dtype("cpu")
                x, weight = (v.to(narrow) if v.dtype == torch.float32 else v for v in (x, weight))
            return _StrideOne.apply(few_channels, x, weight, bias, padding, reflect)  # (N, O, H', W')
    if reflect:
        x, padding = _mirrored(x, padding), (0, 0)
    if may_choose:
        height, width = (
            (x.shape[2 + i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in (0, 1)
        )  # fmt: skip
        if _few_positions(x, weight, height * width):
            patches = F.unfold(x, kernel, dilation, padding, stride)  # (N, C kh kw, H' W')
            y = F.linear(patches.transpose(1, 2), weight.flatten(1), bias)  # (N, H' W', O)
            return y.transpose(1, 2).contiguous().unflatten(2, (height, width))
    return F.conv2d(x, weight, bias, stride, padding, dilation)


def conv_transpose2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: IntPair, padding: IntPair, output_padding: IntPair
) -> Tensor:
    """`F.conv_transpose2d` without groups and dilation: (N, C, H, W) -> (N, O, H', W')."""
    if not _may_choose(x, weight):
        return F.conv_transpose2d(x, weight, bias, stride, padding, output_padding)
    kernel = (weight.shape[2], weight.shape[3])
    height, width = (
        (x.shape[2 + i] - 1) * stride[i] - 2 * padding[i] + kernel[i] + output_padding[i] for i in (0, 1)
    )
    if not torch.is_autocast_enabled("cpu") and few_channels.suits_transposed(x, weight, stride):
        y = few_channels.convolve_transposed(x, weight, stride, padding, (height, width))
    elif _few_positions(x, weight, x.shape[2] * x.shape[3]):
        # what every input pixel adds to the window around it: (N, H W, C) @ (C, O kh kw)
        parts = F.linear(x.flatten(2).transpose(1, 2), weight.flatten(1).t())
        y = F.fold(parts.transpose(1, 2), (height, width), kernel, padding=padding, stride=stride)
    else:
        return F.conv_transpose2d(x, weight, bias, stride, padding, output_padding)
    return y if bias is None else y + bias.view(-1, 1, 1).to(y.dtype)


def _may_choose(x: Tensor, weight: Tensor) -> bool:
    """Not on a GPU nor in channels-last format; not in an exported or compiled graph, whose form must fit all sizes.

    Nor under torch.func and forward-mode AD, which know only torch's own operations.
    """
    if torch.compiler.is_compiling() or is_transformed(x, weight):
        return False
    return x.device.type == "cpu" and type(x) is Tensor and weight.is_contiguous()


def _few_positions(x: Tensor, weight: Tensor, positions: int) -> bool:
    return 0 < x.shape[0] * positions * ROWS_PER_POSITION <= weight.shape[0]


class _StrideOne(torch.autograd.Function):
    """Convolution with stride 1. It keeps x without its mirrored border, as a ReLU before it keeps it too.

    form: `cuda_ops.winograd` or `cuda_ops.few_channels`.
    """

    @staticmethod
    def forward(
        ctx: Any, form: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: IntPair, reflect: bool
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.form, ctx.padding, ctx.reflect = form, padding, reflect
        source, border = (_mirrored(x, padding), (0, 0)) if reflect else (x, padding)
        y: Tensor = form.convolve(source, weight, border)
        return y if bias is None else y.add_(bias.view(-1, 1, 1))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        source, border = (_mirrored(x, ctx.padding), (0, 0)) if ctx.reflect else (x, ctx.padding)
        wanted, dx, dw, db = ctx.needs_input_grad[1:4], None, None, None
        if torch.is_grad_enabled() or is_transformed(dy):  # to be differentiated again, or many at once
            numbers = ((1, 1), border, (1, 1), False, (0, 0), 1, (*wanted[:2], False))
            dx, dw, _ = torch.ops.aten.convolution_backward(dy, source, weight, None, *numbers)
        else:
            dx = ctx.form.input_gradient(dy, weight, border) if wanted[0] else None
            dw = ctx.form.weight_gradient(source, dy, border) if wanted[1] else None
        if dx is not None and ctx.reflect:
            dx = torch.ops.aten.reflection_pad2d_backward(dx, x, _sides(ctx.padding))
        if wanted[2]:
            db = dy.sum((0, 2, 3))
        return None, dx, dw, db, None, None


def _mirrored(x: Tensor, padding: IntPair) -> Tensor:
    return pad(x, _sides(padding), "reflect")


def _sides(padding: IntPair) -> list[int]:
    return [padding[1], padding[1], padding[0], padding[0]]
