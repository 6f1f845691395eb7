"""Sizes and launch shapes of one call of the CUDA backend: all that does not change while the shapes do not."""

import ctypes
import math
from functools import lru_cache
from typing import NamedTuple

import torch

from cuda_ops.direct import Geometry
from cuda_ops.launch import Arguments, Dims, Unit
from cuda_ops.windows import Pair, output_size

ACTIVATION_CODES = {"none": 0, "relu": 1, "leaky_relu": 2}
_MOST_BLOCKS = 1024  # of `project`: each holds one row of partial sums


class Plan(NamedTuple):
    """All that does not change between two calls of the same shapes."""

    template: bytes  # of Arguments, without pointers
    wide: torch.dtype
    copies: bool  # whether the convolution reads a padded, centred copy of x
    padded: tuple[int, int, int, int]
    statistics: tuple[int, int, int, int]  # (N, G, H', W')
    output_padding: Pair  # of the transposed convolution that leads back to the size of x
    keeps_filters: bool  # whether W~ stays for the backward pass
    order: tuple[str, str]  # of the gradients: the smaller one comes first
    # Buffers of statistics, in values, and what lies in them behind their first map, in bytes from their start:
    kept: int  # a centre per patch, a pivot per image and group; s where it is no output
    pivot_offset: int
    std_offset: int
    forward_scratch: int  # m and q of every pixel; mu where it is no output
    mean_offset: int
    backward_scratch: int  # a and b of every patch, partial sums of db
    partial_offset: int
    prepare: tuple[Dims, Dims]  # grid and block of every kernel
    pixels: tuple[Dims, Dims]
    scale: tuple[Dims, Dims]
    project: tuple[Dims, Dims]
    collect: tuple[Dims, Dims]
    finish: tuple[Dims, Dims]


@lru_cache(maxsize=4096)
def make_plan(
    x: tuple[int, ...],
    weight: tuple[int, ...],
    g: Geometry,
    unit: Unit,
    weight_last: bool,
    moments: bool,
    threads: int,
) -> Plan:
    """Sizes and launch shapes of one call; `x` and `weight` are shapes. `moments`: whether mu and s are outputs."""
    images, channels, height, width = x
    outputs, per_group, kh, kw = weight
    padded = (height + 2 * g.padding[0], width + 2 * g.padding[1])
    out_height, out_width = output_size(padded, (kh, kw), g.stride, g.dilation)
    entries = per_group * kh * kw
    template = Arguments(
        images=images, channels=channels, height=height, width=width, outputs=outputs, groups=g.groups,
        kh=kh, kw=kw, sh=g.stride[0], sw=g.stride[1], ph=g.padding[0], pw=g.padding[1],
        dh=g.dilation[0], dw=g.dilation[1], out_height=out_height, out_width=out_width,
        weight_last=weight_last, filters_last=unit.channels_last,
        activation=ACTIVATION_CODES[g.activation], slope=g.negative_slope, eps=g.eps,
        entries=entries, degrees=entries - g.correction,
    )  # fmt: skip
    last, groups = unit.channels_last, g.groups
    wide = torch.float64 if unit.x == torch.float64 else torch.float32
    patches, pixels = images * groups * out_height * out_width, images * groups * padded[0] * padded[1]

    def grid(pixels: int, channels: int, share: bool) -> tuple[Dims, Dims]:
        block, size = tile(threads, channels, pixels, last)
        parts = chunks(block, channels, groups, last) if share else 1
        return (-(-pixels // size), groups * parts), block

    project, block = grid(images * out_height * out_width, outputs // groups, False)
    blocks = template.blocks = min(project[0], _MOST_BLOCKS)
    return Plan(
        template=ctypes.string_at(ctypes.addressof(template), ctypes.sizeof(template)),
        wide=wide,
        copies=makes_copy(unit.x, unit.compute),
        padded=(images, channels, *padded),
        statistics=(images, groups, out_height, out_width),
        output_padding=(
            (padded[0] - g.dilation[0] * (kh - 1) - 1) % g.stride[0],
            (padded[1] - g.dilation[1] * (kw - 1) - 1) % g.stride[1],
        ),
        keeps_filters=keeps_filters(x, weight),
        order=("weight", "input") if math.prod(weight) < math.prod(x) else ("input", "weight"),
        kept=patches + images * groups + (0 if moments else patches),
        pivot_offset=patches * wide.itemsize,
        std_offset=(patches + images * groups) * wide.itemsize,
        forward_scratch=2 * pixels + (0 if moments else patches),
        mean_offset=2 * pixels * wide.itemsize,
        backward_scratch=2 * patches + blocks * outputs,
        partial_offset=2 * patches * wide.itemsize,
        prepare=((outputs + images * groups, 1), (threads, 1)),
        finish=((outputs, 1), (threads, 1)),
        pixels=grid(images * padded[0] * padded[1], per_group, False),
        scale=grid(images * out_height * out_width, outputs // groups, True),
        project=((blocks, project[1]), block),
        collect=grid(images * height * width, per_group, True),
    )


def makes_copy(x: torch.dtype, compute: torch.dtype) -> bool:
    """Whether the convolution reads a padded, centred copy of x: not where x is a half type already."""
    return x != compute or x in (torch.float32, torch.float64)


def keeps_filters(x: tuple[int, ...], weight: tuple[int, ...]) -> bool:
    """Whether W~ stays for the backward pass, by the shapes: only where its memory does not count."""
    return 4 * math.prod(weight) <= math.prod(x)


def tile(threads: int, channels: int, pixels: int, channels_last: bool) -> tuple[Dims, int]:
    """(block, pixels per block) for a map of `pixels` with `channels` per group.

    The contiguous dimension lies along the block's first axis. NCHW takes 32 pixels, one cache line of float32 a row;
    where the map is so small that this leaves most of the GPU idle, 8 (one memory sector).
    """
    if channels_last:
        across = min(32, _power_of_two(channels))
        return (across, threads // across), threads // across
    across = min(32 if pixels < 32 * 256 else 8, _power_of_two(channels))
    return (threads // across, across), threads // across


def chunks(block: Dims, channels: int, groups: int, channels_last: bool) -> int:
    """How many blocks share the channels of a pixel: each thread still has eight of them, to pay for the statistics."""
    across = block[0] if channels_last else block[1]
    return max(1, min(math.ceil(channels / (8 * across)), 65535 // groups))


def _power_of_two(n: int) -> int:
    """The smallest one that is not below n."""
    return 1 << max(0, n - 1).bit_length()
