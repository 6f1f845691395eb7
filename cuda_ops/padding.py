"""Padding that keeps the memory format on every device, and the way back from a reflected border."""

import torch
from torch import Tensor
from torch.nn import functional as F

IntPair = tuple[int, int]
"""Rows and columns."""


def pad(x: Tensor, pads: list[int], mode: str) -> Tensor:
    """`F.pad` of x (N, C, H, W) by `pads` (left, right, top, bottom) entries.

    CUDA's own reflection always returns NCHW. On some versions of torch its gradient is not deterministic, or wrong
    where the map is hardly larger than the pads. So with channels-last or deterministic algorithms, reflected slices
    are joined instead.
    """
    if mode != "reflect" or not x.is_cuda:
        return F.pad(x, pads, mode=mode)
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    if not last and not torch.are_deterministic_algorithms_enabled():
        return F.pad(x, pads, mode=mode)
    for dim, before, after in ((2, pads[2], pads[3]), (3, pads[0], pads[1])):
        end = x.shape[dim] - 1
        if max(before, after) > end:
            raise ValueError(f"reflected padding {pads} must be smaller than the input {tuple(x.shape[2:])}")
        parts = [x.narrow(dim, 1, before).flip(dim), x, x.narrow(dim, end - after, after).flip(dim)]
        x = torch.cat([part for part in parts if part.shape[dim]], dim)
    return x


def fold_reflection(dx: Tensor, padding: IntPair) -> Tensor:
    """The gradient of what was padded by reflection: dx (N, C, H+2ph, W+2pw) -> (N, C, H, W), a view of dx.

    Changes dx: every mirrored entry is added to its origin, always in the same order.
    """
    for dim, p in ((2, padding[0]), (3, padding[1])):
        size = dx.shape[dim] - 2 * p
        inner = dx.narrow(dim, p, size)
        inner.narrow(dim, 1, p).add_(dx.narrow(dim, 0, p).flip(dim))
        inner.narrow(dim, size - 1 - p, p).add_(dx.narrow(dim, p + size, p).flip(dim))
        dx = inner
    return dx
