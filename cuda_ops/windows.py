"""Sums over kernel windows and their transpose, one axis at a time and without im2col.

A window sum is separable, so kh + kw shifted slices replace the kh * kw copies that an unfold would make.
"""

import torch
from torch import Tensor

Pair = tuple[int, int]


def output_size(size: Pair, kernel: Pair, stride: Pair, dilation: Pair) -> Pair:
    """Number of window positions on a map that is already padded; not positive where the window does not fit."""
    height, width = (
        (length - reach * (k - 1) - 1) // step + 1
        for length, k, step, reach in zip(size, kernel, stride, dilation, strict=True)
    )
    return height, width


def window_sum(maps: Tensor, kernel: Pair, stride: Pair, dilation: Pair) -> Tensor:
    """Sum of every window: (N, M, H, W) -> (N, M, H', W'). No padding: pad first."""
    height, width = output_size((maps.shape[2], maps.shape[3]), kernel, stride, dilation)
    rows = _sum(
        [
            maps[:, :, i * dilation[0] : i * dilation[0] + (height - 1) * stride[0] + 1 : stride[0]]
            for i in range(kernel[0])
        ]
    )
    return _sum(
        [
            rows[..., j * dilation[1] : j * dilation[1] + (width - 1) * stride[1] + 1 : stride[1]]
            for j in range(kernel[1])
        ]
    )


def _sum(slices: list[Tensor]) -> Tensor:
    if len(slices) == 1:
        return slices[0]
    total = slices[0] + slices[1]
    for part in slices[2:]:
        total = total + part if torch.is_grad_enabled() else total.add_(part)
    return total


def window_sum_transpose(maps: Tensor, kernel: Pair, stride: Pair, dilation: Pair, size: Pair) -> Tensor:
    """Every pixel collects from all windows that contain it: (N, M, H', W') -> (N, M, H, W) with (H, W) = size."""
    n, m, height, width = maps.shape
    rows = maps.new_zeros(n, m, height, size[1])
    for j in range(kernel[1]):
        start = j * dilation[1]
        rows[..., start : start + (width - 1) * stride[1] + 1 : stride[1]].add_(maps)
    out = maps.new_zeros(n, m, size[0], size[1])
    for i in range(kernel[0]):
        start = i * dilation[0]
        out[:, :, start : start + (height - 1) * stride[0] + 1 : stride[0]].add_(rows)
    return out


def accumulation_dtype(tensor: Tensor) -> torch.dtype:
    """float64 for the one-channel maps wherever the device has it: they are small, and it makes
    sum(m^2) - K mu^2 harmless at any offset."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64
