"""Convolutions of many channels on a CPU with a quarter of the multiplications (Winograd's minimal filtering).

For kernels of 3x3 and 4x4 with stride 1. A tile of outputs, 4x4 or 3x3, sees 6x6 inputs. Inputs and filter are taken as
coefficients of polynomials, because polynomials can be multiplied point by point: both go over to their values in 6x6
points, and the products of these go back to a tile of outputs.

    y = A' [ sum over channels of (G w G') . (B' x B) ] A          . is the product of entries

So 36 products take the place of 144, and for every point the channels and tiles make one matrix product. The gradient
of the weight has the same form: there the tile of dy is the filter, and the outputs are the kernel.

Sources: Lavin & Gray 2016, "Fast Algorithms for Convolutional Neural Networks"; Alam et al. 2022, "Winograd Convolution
for Deep Neural Networks: Efficient Point Selection". The points here are 0, 3/4, -3/4, 3/2, -3/2 and infinity. They
round with a third of the error of the usual ones, which have 1 and 2 in the place of 3/4 and 3/2.

In float32 an output is wrong by up to 2e-6 of the largest ones around it (the direct sum: 3e-7). So what divides by the
spread of a patch, which may be much flatter than those around it, cannot always take this form. An infinite input
spoils its whole tile.
"""

from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from cuda_ops.padding import IntPair

LEAST_CHANNELS = 128
"""With fewer channels in or out, the matrix products are too small to pay for the rest."""
LEAST_PRODUCTS = 4_000_000
"""Of channels in, channels out and tiles of a picture, for the same reason."""
MOST_TILES = 512
"""At once, or else one row of them: their values in the points take 2 or 4 times the memory of the picture."""


def suits(
    x: Tensor, weight: Tensor, stride: IntPair, padding: IntPair, dilation: IntPair, groups: int = 1
) -> bool:
    """Whether a convolution of x (N, C, H, W) with weight (O, C, k, k) is quicker in this form."""
    if type(x) not in (Tensor, torch.nn.Parameter):  # one without data, say
        return False
    kernel = weight.shape[2]
    if stride != (1, 1) or dilation != (1, 1) or groups != 1 or max(padding) >= kernel:
        return False
    if kernel not in (3, 4) or weight.shape[3] != kernel or min(weight.shape[:2]) < LEAST_CHANNELS:
        return False
    if x.device.type != "cpu" or x.dtype != weight.dtype or x.dtype not in (torch.float32, torch.float64):
        return False
    rows, columns = _tiles(_output_size(x, kernel, padding), kernel)
    products = weight.shape[0] * weight.shape[1] * rows * columns
    return products >= LEAST_PRODUCTS and x.is_contiguous() and weight.is_contiguous()


@torch.autocast("cpu", enabled=False)
def convolve(x: Tensor, weight: Tensor, padding: IntPair) -> Tensor:
    """`F.conv2d` with stride 1: (N, C, H, W) and (O, C, k, k) -> (N, O, H', W'). Not differentiable."""
    points = _points(weight.shape[2], x.dtype)
    u = torch.matmul(points, weight.flatten(2).transpose(1, 2))  # (O, 36, C)
    return _convolve(x, u.transpose(0, 1), weight.shape[2], padding)


@torch.autocast("cpu", enabled=False)
def input_gradient(dy: Tensor, weight: Tensor, padding: IntPair) -> Tensor:
    """Of `convolve`: dy (N, O, H', W') -> (N, C, H, W). A convolution with the filters turned by 180 degrees."""
    kernel = weight.shape[2]
    turned = _points(kernel, dy.dtype).flip(1)
    u = torch.matmul(turned, weight.flatten(2).transpose(1, 2))  # (O, 36, C)
    return _convolve(dy, u.permute(1, 2, 0), kernel, (kernel - 1 - padding[0], kernel - 1 - padding[1]))


@torch.autocast("cpu", enabled=False)
def weight_gradient(x: Tensor, dy: Tensor, padding: IntPair) -> Tensor:
    """Of `convolve`: x (N, C, H, W) and dy (N, O, H', W') -> (O, C, k, k)."""
    kernel = x.shape[2] + 2 * padding[0] - dy.shape[2] + 1
    tile, filters, channels = 7 - kernel, dy.shape[1], x.shape[1]
    rows, columns = _tiles((dy.shape[2], dy.shape[3]), kernel)
    dy = F.pad(dy, (0, tile * columns - dy.shape[3], 0, tile * rows - dy.shape[2]))
    total = x.new_zeros(36, filters, channels)
    for n, first, part in _strips(x, kernel, padding):
        v = _evaluate(part, 6, tile)  # (36, C, tiles)
        u = _evaluate(dy[n, :, tile * first :][:, : part.shape[1] - kernel + 1], tile, tile)  # (36, O, tiles)
        total.baddbmm_(u, v.transpose(1, 2))
    dw = torch.mm(total.flatten(1).t(), _points(kernel, x.dtype))  # (O C, k * k)
    return dw.view(filters, channels, kernel, kernel)


def _convolve(x: Tensor, u: Tensor, kernel: int, padding: IntPair) -> Tensor:
    """u (36, O, C): the filters in the points. The output comes first in memory, so the rest leaves one gap behind."""
    height, width = size = _output_size(x, kernel, padding)
    rows, columns = _tiles(size, kernel)
    tile, filters = 7 - kernel, u.shape[1]
    y = x.new_empty(len(x), filters, tile * rows, tile * columns)
    for n, first, part in _strips(x, kernel, padding):
        v = _evaluate(part, 6, tile)  # (36, C, tiles)
        tiles = torch.mm(_points(tile, x.dtype).t(), torch.bmm(u, v).flatten(1))  # (tile * tile, O tiles)
        tiles = tiles.view(tile, tile, filters, -1, columns)
        own = y[n].view(filters, rows, tile, columns, tile)[:, first : first + tiles.shape[3]]
        own.copy_(tiles.permute(2, 3, 0, 4, 1))
    return y if y.shape[2:] == size else y[:, :, :height, :width].contiguous()


@cache
def _points(side: int, dtype: torch.dtype) -> Tensor:
    """(36, side * side): from inputs (side 6), or from filters and outputs (3 and 4), to their values in the points.

    Outputs go the other way.
    """
    finite, powers = [0, 0.75, -0.75, 1.5, -1.5], range(side)
    # (6, side): a polynomial of so many coefficients has its last one as its value at infinity
    values = [*([point**k for k in powers] for point in finite), [k == side - 1 for k in powers]]
    matrix = torch.tensor(values, dtype=torch.float64, device="cpu")
    if side == 6:
        matrix = torch.linalg.inv(matrix).t().contiguous()
    return torch.kron(matrix, matrix).to(dtype)


def _evaluate(part: Tensor, side: int, step: int) -> Tensor:
    """(C, height, width) in windows of `side` -> their values in the points, (36, C, windows)."""
    points = _points(side, part.dtype).view(36, 1, side, side)
    return F.conv2d(part.unsqueeze(1), points, stride=step).flatten(2).transpose(0, 1)


def _output_size(x: Tensor, kernel: int, padding: IntPair) -> IntPair:
    return x.shape[2] + 2 * padding[0] - kernel + 1, x.shape[3] + 2 * padding[1] - kernel + 1


def _tiles(size: IntPair, kernel: int) -> IntPair:
    """How many tiles cover an output, down and across."""
    return -(-size[0] // (7 - kernel)), -(-size[1] // (7 - kernel))


def _strips(x: Tensor, kernel: int, padding: IntPair) -> Iterator[tuple[int, int, Tensor]]:
    """Index of the picture, first row of tiles, and the part of x (C, ., .) that these rows see, with its border."""
    tile, (rows, columns) = 7 - kernel, _tiles(_output_size(x, kernel, padding), kernel)
    below = tile * rows + kernel - 1 - x.shape[2] - padding[0]
    right = tile * columns + kernel - 1 - x.shape[3] - padding[1]
    if any((*padding, below, right)):
        x = F.pad(x, (padding[1], right, padding[0], below))
    step = max(1, MOST_TILES // columns)
    for n in range(len(x)):
        for first in range(0, rows, step):
            last = min(first + step, rows)
            yield n, first, x[n, :, tile * first : tile * last + kernel - 1]
