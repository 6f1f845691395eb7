"""Convolutions with few output channels on a CPU: the last layer of a generator, the gradient of a picture.

torch's CPU library computes output channels in groups of 8 or 16 and needs several groups to keep a core busy, so one
that makes 3 channels of a picture costs as much as if it made 24. Here neighbouring pixels are channels as well: 2x2
pixels of 3 channels are the 12 channels of a convolution with stride 2, whose filters are one row and one column larger
and hold the given filter at four places, with zeros around it. A transposed convolution with stride 2 needs no zeros:
of its 4x4 filter, each of the 2x2 pixels takes other entries.

The gradients of a layer with few outputs are those of one that makes many channels out of few, for which the library
has a fast form.

An infinite input spoils the pixels beside those that see it.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from cuda_ops.padding import IntPair

MOST_CHANNELS = 6
"""Of an output. With more, the library's own form is as quick."""
LEAST_PRODUCTS = 4_000_000
"""For each channel of the output: with fewer, the rest takes longer than the products."""


def suits(x: Tensor, weight: Tensor, padding: IntPair) -> bool:
    """Whether `convolve` is quicker than torch's own. It takes that itself where it is not."""
    height, width = (x.shape[2 + i] + 2 * padding[i] - weight.shape[2 + i] + 1 for i in (0, 1))
    return _pays(x, weight.shape[0], weight, max(0, height) * max(0, width))


@torch.autocast("cpu", enabled=False)
def convolve(x: Tensor, weight: Tensor, padding: IntPair) -> Tensor:
    """`F.conv2d` with stride 1: (N, C, H, W) and (O, C, kh, kw) -> (N, O, H', W'), for any O."""
    if not suits(x, weight, padding):
        return F.conv2d(x, weight, padding=padding)
    channels, kernel = weight.shape[0], weight.shape[2:]
    height, width = (x.shape[2 + i] + 2 * padding[i] - kernel[i] + 1 for i in (0, 1))
    rows, columns = (2, 4) if channels <= 2 else (2, 2)
    below, right = -height % rows, -width % columns
    if any((*padding, below, right)):  # with padding of its own the library is slow at these sizes
        x = F.pad(x, (padding[1], padding[1] + right, padding[0], padding[0] + below))
    blocks = weight.new_zeros(
        channels, rows, columns, weight.shape[1], kernel[0] + rows - 1, kernel[1] + columns - 1
    )
    for i in range(rows):
        for j in range(columns):
            blocks[:, i, j, :, i : i + kernel[0], j : j + kernel[1]] = weight
    y = _interleave(F.conv2d(x, blocks.flatten(0, 2), None, (rows, columns)), rows, columns)
    return y[:, :, :height, :width].contiguous() if below or right else y


def suits_transposed(
    x: Tensor, weight: Tensor, stride: IntPair, dilation: IntPair = (1, 1), groups: int = 1
) -> bool:
    """Whether `convolve_transposed` of x (N, C, H, W) with weight (C, O, kh, kw) is quicker than torch's own."""
    if x.device.type != "cpu" or groups != 1 or dilation != (1, 1) or min(stride) == 1:
        return False
    return _pays(x, weight.shape[1], weight, x.shape[2] * x.shape[3])


@torch.autocast("cpu", enabled=False)
def convolve_transposed(
    x: Tensor, weight: Tensor, stride: IntPair, padding: IntPair, size: IntPair
) -> Tensor:
    """`F.conv_transpose2d` to an output of `size`: (N, C, H, W) and (C, O, kh, kw) -> (N, O, *size).

    It is also the gradient of the input (N, O, *size) of a convolution, where x is the gradient of its output.
    """
    # entry k = stride * tap + phase adds x[i] w[k] to y[stride * (i + tap) + phase - padding]
    weight = F.pad(weight, (0, -weight.shape[3] % stride[1], 0, -weight.shape[2] % stride[0]))
    phases = weight.unflatten(3, (-1, stride[1])).unflatten(2, (-1, stride[0]))  # (C, O, th, sh, tw, sw)
    filters = phases.flip(2, 4).permute(1, 3, 5, 0, 2, 4).flatten(0, 2)  # (O sh sw, C, th, tw)
    reach = (filters.shape[2] - 1, filters.shape[3] - 1)
    y = _interleave(F.conv2d(x, filters, padding=reach), *stride)
    below, right = (size[i] + padding[i] - y.shape[2 + i] for i in (0, 1))
    return F.pad(y, (-padding[1], right, -padding[0], below)).contiguous()


@torch.autocast("cpu", enabled=False)
def input_gradient(dy: Tensor, weight: Tensor, padding: IntPair) -> Tensor:
    """Of `convolve`: dy (N, O, H', W') -> (N, C, H, W), many channels out of few."""
    border = (weight.shape[2] - 1 - padding[0], weight.shape[3] - 1 - padding[1])
    return F.conv2d(dy, weight.transpose(0, 1).flip(2, 3), padding=border)


@torch.autocast("cpu", enabled=False)
def weight_gradient(x: Tensor, dy: Tensor, padding: IntPair) -> Tensor:
    """Of `convolve`: x (N, C, H, W) and dy (N, O, H', W') -> (O, C, kh, kw).

    It is the gradient of the turned filters of `input_gradient`, where x is the gradient of the output.
    """
    kernel = [x.shape[i] + 2 * padding[i - 2] - dy.shape[i] + 1 for i in (2, 3)]
    turned = x.new_empty(x.shape[1], dy.shape[1], *kernel)
    border = (kernel[0] - 1 - padding[0], kernel[1] - 1 - padding[1])
    numbers = ((1, 1), border, (1, 1), False, (0, 0), 1, (False, True, False))
    dw = torch.ops.aten.convolution_backward(x, dy, turned, None, *numbers)[1]
    return dw.flip(2, 3).transpose(0, 1)


def _pays(x: Tensor, channels: int, weight: Tensor, positions: int) -> bool:
    """channels: of the output. positions: where a picture of x meets the filter."""
    if channels > MOST_CHANNELS or x.dtype not in (torch.float32, torch.float64) or not x.is_contiguous():
        return False
    rows, columns = weight.shape[2:]
    return min(rows, columns) > 1 and x.shape[1] * rows * columns * positions >= LEAST_PRODUCTS


def _interleave(y: Tensor, rows: int, columns: int) -> Tensor:
    """(N, O rows columns, H, W) -> (N, O, H rows, W columns)."""
    y = y.unflatten(1, (-1, rows, columns)).permute(0, 1, 4, 2, 5, 3)  # (N, O, H, rows, W, columns)
    return y.flatten(4).flatten(2, 3)
