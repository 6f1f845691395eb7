"""The CUDA backend: `direct` with fused kernels (cuda_ops/kernels.cu) around torch's own convolutions.

Forward, three launches beside the convolution:
    prepare   W~ = W - mean(W) for every filter, and a pivot per image and group
    pixels    one read of x: channel mean m and squared deviations q of every pixel, and the padded copy
    scale     windows of (m, q) merged to mu_p and s_p; y = act(z / s_p + b) in one pass over z, in place
Backward, r = 1/s, the closed form of `direct`:
    project   one pass over (dy, y): dz = r dy, a_p and b_p of every patch, partial sums of db
    collect   dx = convolution's input gradient + (x - pivot) A - B
    finish    dW = centred(convolution's weight gradient), db

The backward pass keeps y, not z. Where the activation is flat its gradient is zero, and elsewhere z / s follows from y.
The centred copy keeps float32 (and TF32) exact at any input offset; the weight gradient reads it again. An x that is
already float16 or bfloat16 goes to the convolution as it is: without a copy, or with one that adds a mirrored border.
With such a border, `collect` sums what all places that mirror a pixel would get.

At batch 1 the GPU waits for these lines. So whatever the shapes decide is decided once, in a `KernelPlan`.

The kernels serve plain tensors. `cuda_ops.normalized_conv` leaves all other calls to `direct`: under `torch.compile`, a
dispatch mode (tracers, selective checkpointing) or a function transform, and tensors that only stand for others (fake
ones, wrappers).
"""

import ctypes
import math
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cuda_ops import direct
from cuda_ops.direct import ConvParams, InputGradients, OutputGradients
from cuda_ops.nvrtc import DTYPES, LAUNCHERS, Arguments, BuildError, Dims, Launcher, LaunchKernel, Unit
from cuda_ops.padding import IntPair

_MOST_GROUPS = 65535  # the second dimension of a grid
_MOST_PIXELS = 2**30  # of one padded channel: such counts are 32 bits wide, whole tensors have 64-bit indices
_MOST_BLOCKS = 1024  # of `project`: each holds one row of partial sums
_ACTIVATION_CODES = {"none": 0, "relu": 1, "leaky_relu": 2}
_AS_IT_IS: AbstractContextManager[None] = nullcontext()
_convolution_backward = torch.ops.aten.convolution_backward.default

_outcomes: dict[tuple[str, int, Unit], str | None] = {}
_warned: set[tuple[str, str]] = set()


def why_not(x: Tensor, weight: Tensor, conv: ConvParams, warn: bool = False) -> str | None:
    """None where the kernels can serve these tensors, else the reason. Builds them on first use.

    With `warn`, kernels that should run on this device but cannot be built are reported, each reason once, as a
    UserWarning. Raises BuildError where they cannot be built just now: in a graph capture, or without memory.
    """
    if x.device.type not in LAUNCHERS:
        return f"x is on the device {x.device.type}, the kernels are for cuda"
    if weight.device != x.device:
        return f"x is on {x.device} and weight on {weight.device}"
    for dtype in (x.dtype, conv.compute, weight.dtype):
        if dtype not in DTYPES:
            return f"the kernels have no {dtype}"
    if conv.groups > _MOST_GROUPS:
        return f"more than {_MOST_GROUPS} groups"
    if x.numel() == 0:
        return "x is empty"
    if math.prod(conv.padded_size(x.shape)) >= _MOST_PIXELS:
        return f"{_MOST_PIXELS} pixels or more in one channel"
    return build_failure(x.device.type, x.device.index or 0, unit_of(x, weight, conv), warn)


def build_failure(device: str, index: int, unit: Unit, warn: bool = False) -> str | None:
    """Why the kernels of a unit cannot be had on this device; None where they are loaded now."""
    key = (device, index, unit)
    if key not in _outcomes:
        try:
            LAUNCHERS[device](index, unit)
        except BuildError as error:
            if error.passing:
                raise
            _outcomes[key] = str(error)
        else:
            _outcomes[key] = None
    failure = _outcomes[key]
    if failure is not None and warn and (device, failure) not in _warned:
        _warned.add((device, failure))
        warnings.warn(f"normalized_conv2d falls back to its torch form: {failure}", stacklevel=4)
    return failure


def unit_of(x: Tensor, weight: Tensor, conv: ConvParams) -> Unit:
    return Unit(x.dtype, conv.compute, weight.dtype, layout_of(x) == torch.channels_last)


def layout_of(x: Tensor) -> torch.memory_format:
    """channels_last where x lies so, else contiguous."""
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


class KernelPlan(NamedTuple):
    """All that does not change between two calls of the same shapes, types and layouts."""

    conv: ConvParams
    launcher: Launcher
    moments: bool  # whether mean and std are outputs
    layout: torch.memory_format  # of x, y, W~ and all between them
    weight_layout: torch.memory_format
    dx_in_place: bool  # whether the convolution's gradient can become ours in its own memory
    dw_in_place: bool
    template: bytes  # of Arguments, without pointers
    wide: torch.dtype  # of the statistics
    copies: bool  # whether the convolution reads a padded copy of x
    keeps_filters: bool  # whether W~ stays for the backward pass
    padded: tuple[int, int, int, int]  # shape of the padded x
    statistics: tuple[int, int, int, int]  # (N, G, H', W')
    output_padding: (
        IntPair  # of the transposed convolution that leads back to the size of what the convolution read
    )
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


def make_plan(x: Tensor, weight: Tensor, conv: ConvParams, moments: bool) -> KernelPlan:
    """Builds the kernels on their first use. Raises BuildError."""
    unit = unit_of(x, weight, conv)
    launcher = LAUNCHERS[x.device.type](x.device.index or 0, unit)
    return _plan(x.shape, weight.shape, conv, unit, layout_of(weight), moments, launcher)


@lru_cache(maxsize=4096)
def _plan(
    x: torch.Size,
    weight: torch.Size,
    conv: ConvParams,
    unit: Unit,
    weight_layout: torch.memory_format,
    moments: bool,
    launcher: Launcher,
) -> KernelPlan:
    images, channels, height, width = x
    outputs, per_group, kh, kw = weight
    (padded_height, padded_width), (out_height, out_width) = conv.padded_size(x), conv.output_size(x, weight)
    groups, entries = conv.groups, per_group * kh * kw
    wide = torch.float64 if unit.x == torch.float64 else torch.float32
    layout = torch.channels_last if unit.channels_last else torch.contiguous_format
    template = Arguments(
        images=images, channels=channels, height=height, width=width, outputs=outputs, groups=groups,
        kh=kh, kw=kw, sh=conv.stride[0], sw=conv.stride[1], ph=conv.padding[0], pw=conv.padding[1],
        dh=conv.dilation[0], dw=conv.dilation[1], out_height=out_height, out_width=out_width,
        weight_last=weight_layout == torch.channels_last, filters_last=unit.channels_last,
        activation=_ACTIVATION_CODES[conv.activation], tf32=conv.tf32, reflect=conv.reflect,
        slope=conv.negative_slope, eps=conv.eps, entries=entries, degrees=entries - conv.correction,
    )  # fmt: skip
    pixels, places = images * padded_height * padded_width, images * out_height * out_width
    patches = groups * places

    def grid(pixels: int, channels: int, share: bool) -> tuple[Dims, Dims]:
        block, size = tile(launcher.threads, channels, pixels, unit.channels_last)
        across = block[0] if unit.channels_last else block[1]
        # Blocks share the channels of a pixel. Each thread still has eight of them, to pay for the statistics.
        parts = max(1, min(-(-channels // (8 * across)), _MOST_GROUPS // groups)) if share else 1
        return (-(-pixels // size), groups * parts), block

    project, block = grid(places, outputs // groups, False)
    blocks = template.blocks = min(project[0], _MOST_BLOCKS)
    return KernelPlan(
        conv=conv,
        launcher=launcher,
        moments=moments,
        layout=layout,
        weight_layout=weight_layout,
        dx_in_place=unit.x == unit.compute and not conv.reflect,
        dw_in_place=unit.weight == unit.compute and weight_layout == layout,
        template=ctypes.string_at(ctypes.addressof(template), ctypes.sizeof(template)),
        wide=wide,
        # A half type goes to the convolution as it is. W~ stays only where its memory does not count.
        copies=conv.reflect or unit.x != unit.compute or unit.x in (torch.float32, torch.float64),
        keeps_filters=4 * math.prod(weight) <= math.prod(x),
        padded=(images, channels, padded_height, padded_width),
        statistics=(images, groups, out_height, out_width),
        output_padding=(
            (padded_height - conv.dilation[0] * (kh - 1) - 1) % conv.stride[0],
            (padded_width - conv.dilation[1] * (kw - 1) - 1) % conv.stride[1],
        ),
        order=("weight", "input") if math.prod(weight) < math.prod(x) else ("input", "weight"),
        kept=patches + images * groups + (0 if moments else patches),
        pivot_offset=patches * wide.itemsize,
        std_offset=(patches + images * groups) * wide.itemsize,
        forward_scratch=2 * groups * pixels + (0 if moments else patches),
        mean_offset=2 * groups * pixels * wide.itemsize,
        backward_scratch=2 * patches + blocks * outputs,
        partial_offset=2 * patches * wide.itemsize,
        prepare=((outputs + images * groups, 1), (launcher.threads, 1)),
        finish=((outputs, 1), (launcher.threads, 1)),
        pixels=grid(pixels, per_group, False),
        scale=grid(places, outputs // groups, True),
        project=((blocks, project[1]), block),
        collect=grid(images * height * width, per_group, True),
    )


def tile(threads: int, channels: int, pixels: int, channels_last: bool) -> tuple[Dims, int]:
    """(block, pixels per block) for a map of `pixels` with `channels` per group.

    The contiguous dimension lies along the block's first axis. NCHW takes 32 pixels, one cache line of float32 a row;
    where the map is so small that this leaves most of the GPU idle, 8 (one memory sector).
    """
    most = 32 if channels_last or pixels < 32 * 256 else 8
    across = min(most, 1 << max(0, channels - 1).bit_length())  # a power of two
    return (across, threads // across) if channels_last else (threads // across, across), threads // across


class Saved(NamedTuple):
    """What the forward pass leaves for the backward pass."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    y: Tensor
    std: Tensor | None  # None where it is no output: then it lies behind the pivots
    kept: Tensor  # mean - pivot of every patch, then the pivots
    filters: Tensor | None  # W~, where it is small beside x
    copy: Tensor | None  # the padded x, where the convolution read that


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, plan: KernelPlan
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor | None, Tensor | None]:
    """(y, mean, std) and the last three of `Saved`; no gradients. Without `moments`, mean and std are None."""
    conv, layout = plan.conv, plan.layout
    kept = x.new_empty(plan.kept, dtype=plan.wide)
    x, weight, bias, a, launch = _begin(x, weight, bias, kept, plan)
    scratch = x.new_empty(plan.forward_scratch, dtype=plan.wide)
    filters = torch.empty_like(weight, dtype=conv.compute, memory_format=layout)
    a.pixels, a.filters = scratch.data_ptr(), filters.data_ptr()
    mean = std = copy = None
    if plan.moments:
        mean = x.new_empty(plan.statistics, dtype=plan.wide)
        std = torch.empty_like(mean)
        a.mean, a.std = mean.data_ptr(), std.data_ptr()
    else:
        a.mean, a.std = a.pixels + plan.mean_offset, a.mu + plan.std_offset
    launch("prepare", *plan.prepare)
    source, padding = x, conv.padding
    if plan.copies:
        source = copy = torch.empty(plan.padded, dtype=conv.compute, device=x.device, memory_format=layout)
        padding = (0, 0)
        a.padded = copy.data_ptr()
    launch("pixels", *plan.pixels)
    y = torch.convolution(
        source, filters, None, conv.stride, padding, conv.dilation, False, (0, 0), conv.groups
    )
    y = y.contiguous(memory_format=layout)
    a.y = y.data_ptr()
    launch("scale", *plan.scale)
    return y, mean, std, kept, filters if plan.keeps_filters else None, copy


def _backward(
    needs: Sequence[bool], saved: Saved, plan: KernelPlan, output_gradients: OutputGradients
) -> InputGradients:
    """Gradients of x, weight and bias as far as `needs` asks for them.

    Hooks on saved tensors may change their layout (never their type). So all that is read is first made to lie as the
    plan says, which costs nothing where it does.
    """
    conv, layout = plan.conv, plan.layout
    x, weight, given_bias, y, std, kept, filters, copy = saved
    x, weight, bias, a, launch = _begin(x, weight, given_bias, kept, plan)
    y = y.contiguous(memory_format=layout)
    scratch = x.new_empty(plan.backward_scratch, dtype=plan.wide)
    a.y, a.spread, a.std = y.data_ptr(), scratch.data_ptr(), a.mu + plan.std_offset
    dy, dmean, dstd = output_gradients
    if std is not None:
        std = std.contiguous()
        a.std = std.data_ptr()
    if dmean is not None:
        dmean = dmean.contiguous()
        a.dmean = dmean.data_ptr()
    if dstd is not None:
        dstd = dstd.contiguous()
        a.dstd = dstd.data_ptr()
    dx = dw = db = dz = dinput = raw = None
    need_x, need_weight, need_bias, *_ = needs
    if dy is not None:  # else the moments alone have gradients
        dy, dz = dy.contiguous(memory_format=layout), torch.empty_like(y)
        a.dy, a.dz = dy.data_ptr(), dz.data_ptr()
        if need_bias and bias is not None:
            db = torch.empty_like(bias)
            a.dbias, a.partial = db.data_ptr(), a.spread + plan.partial_offset
    launch("project", *plan.project)
    del saved, y, dy, output_gradients  # with its last holder gone, the memory of y serves what comes now

    if need_x and need_weight and dz is not None and filters is not None and copy is None:
        numbers = (conv.stride, conv.padding, conv.dilation, False, (0, 0), conv.groups, (True, True, False))
        dinput, raw, _ = _convolution_backward(dz, x, filters, None, *numbers)
    for gradient in plan.order:  # the big temporaries of one are gone before those of the other come
        if gradient == "weight":
            if need_weight and dz is not None:
                if raw is None:
                    raw = _weight_gradient(x, weight, dz, copy, conv)
                raw = raw.contiguous(memory_format=layout)
                dw = raw if plan.dw_in_place else torch.empty_like(weight)
                a.dfilters, a.dweight = raw.data_ptr(), dw.data_ptr()
            if raw is not None or db is not None:
                launch("finish", *plan.finish)
            raw = copy = None
        elif need_x:
            if dz is not None:
                if filters is None:
                    filters = torch.empty_like(weight, dtype=conv.compute, memory_format=layout)
                    a.filters = filters.data_ptr()
                    launch("prepare", *plan.finish)
                if dinput is None:
                    dinput = _input_gradient(dz, filters, plan)
                dinput = dinput.contiguous(memory_format=layout)
                a.dinput = dinput.data_ptr()
            dx = dinput if dinput is not None and plan.dx_in_place else torch.empty_like(x)
            a.dx = dx.data_ptr()
            launch("collect", *plan.collect)
            dinput = filters = None
    if db is not None and given_bias is not None and db.dtype != given_bias.dtype:
        db = db.to(given_bias.dtype)
    return dx, dw, db


def _begin(
    x: Tensor, weight: Tensor, bias: Tensor | None, kept: Tensor, plan: KernelPlan
) -> tuple[Tensor, Tensor, Tensor | None, Arguments, LaunchKernel]:
    """The inputs as the kernels can read them, to be held as long as these do, and the arguments that point at them.

    Copies only a sliced x, a sliced weight, a bias of another dtype than the weight.
    """
    x = x.contiguous(memory_format=plan.layout)
    weight = weight.contiguous(memory_format=plan.weight_layout)
    a = Arguments.from_buffer_copy(plan.template)
    a.x, a.weight, a.mu = x.data_ptr(), weight.data_ptr(), kept.data_ptr()
    a.pivot = a.mu + plan.pivot_offset
    if bias is not None:
        bias = (bias if bias.dtype == weight.dtype else bias.to(weight.dtype)).contiguous()
        a.bias = bias.data_ptr()
    return x, weight, bias, a, plan.launcher.bind(a)


def _input_gradient(dz: Tensor, filters: Tensor, plan: KernelPlan) -> Tensor:
    """The plain convolution's, as a transposed convolution: the same cuDNN call, sooner reached.

    Of the size of x, or with a mirrored border of the size of the padded x.
    """
    conv, device = plan.conv, dz.device.type
    with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else _AS_IT_IS:
        padding = (0, 0) if conv.reflect else conv.padding  # mirrored pixels have a gradient, zeros have none
        numbers = (conv.stride, padding, conv.dilation, True, plan.output_padding, conv.groups)
        return torch.convolution(dz, filters, None, *numbers)


def _weight_gradient(x: Tensor, weight: Tensor, dz: Tensor, copy: Tensor | None, conv: ConvParams) -> Tensor:
    """The plain convolution's, from what it read: x, or the padded copy."""
    source, padding = (x, conv.padding) if copy is None else (copy, (0, 0))
    if weight.dtype != conv.compute:  # only its shape is read
        weight = dz.new_empty(()).expand(weight.shape)
    numbers = (conv.stride, padding, conv.dilation, False, (0, 0), conv.groups, (False, True, False))
    return _convolution_backward(dz, source, weight, None, *numbers)[1]


def normalized_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, plan: KernelPlan
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(y, mean, std) as in `reference`; None for mean and std where the plan is without moments."""
    if plan.moments:
        y, mean, std = _NormalizedConv2d.apply(x, weight, bias, plan)
        return y, mean, std
    return _NormalizedConv2d.apply(x, weight, bias, plan), None, None


class _NormalizedConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, plan: KernelPlan) -> Any:
        y, mean, std, *kept = _forward(x, weight, bias, plan)
        ctx.save_for_backward(x, weight, bias, y, std, *kept)
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        return (y, mean, std) if plan.moments else y

    @staticmethod
    def backward(
        ctx: Any, dy: Tensor | None, dmean: Tensor | None = None, dstd: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        needs, outputs = ctx.needs_input_grad, (dy, dmean, dstd)
        # With create_graph=True, and under transforms, torch must differentiate or batch the operations of this pass.
        if torch.is_grad_enabled() or direct.is_transformed(*outputs):
            x, weight, bias, *_ = ctx.saved_tensors
            return *direct.differentiable_backward(needs, x, weight, bias, ctx.plan.conv, outputs), None
        return *_backward(needs, _take_saved(ctx), ctx.plan, outputs), None


def _take_saved(ctx: Any) -> Saved:
    """The saved tensors; where the graph is not retained, the caller is their last holder."""
    saved = Saved(*ctx.saved_tensors)
    ctx.maybe_clear_saved_tensors()
    return saved
