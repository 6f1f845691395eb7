"""Forward and backward pass of the CUDA backend: fused kernels (cuda_ops/kernels.cu) around torch's convolutions.

Forward, three launches beside the convolution:
    prepare   W~ = W - mean(W) for every filter, and a pivot per image and group
    pixels    one read of x: channel mean m and squared deviations q of every pixel, and the padded, centred copy
    scale     windows of (m, q) merged to mu_p and s_p; y = act(z / s_p + b) in one pass over z, in place
Backward, r = 1/s, the closed form of `direct`:
    project   one pass over (dy, y): dz = r dy, a_p and b_p of every patch, partial sums of db
    collect   dx = convolution's input gradient + (x - pivot) A - B
    finish    dW = centred(convolution's weight gradient), db

z is not kept for the backward pass, y is: where the activation is flat its gradient is zero, and elsewhere z / s
follows from y. The centred copy is what keeps float32 (and TF32) exact at any input offset; the weight gradient needs
it again. An x that is already float16 or bfloat16 goes to the convolution as it is, and no copy is made.

At batch 1 the GPU waits for these lines, so whatever the shapes decide is decided once, in a `Recipe`.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from cuda_ops.direct import Geometry, Gradients, Upstream
from cuda_ops.launch import LAUNCHERS, Arguments, Launch, Launcher, Unit
from cuda_ops.plan import Plan, make_plan

_convolution_backward = torch.ops.aten.convolution_backward.default
_AS_IT_IS: AbstractContextManager[None] = nullcontext()


class Saved(NamedTuple):
    """What the forward pass leaves for the backward pass."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    y: Tensor
    std: Tensor | None  # None where it is no output: then it lies behind the pivots
    kept: Tensor  # mean - pivot of every patch, then the pivots
    filters: Tensor | None  # W~, where it is small beside x
    copy: Tensor | None  # the padded, centred x, where the convolution read that


class Recipe(NamedTuple):
    """One kind of call, ready to run: for tensors of the shapes, types and layouts it was made for."""

    g: Geometry
    plan: Plan
    launcher: Launcher
    device: str
    layout: torch.memory_format  # of x, y, W~ and all between them
    weight_layout: torch.memory_format
    moments: bool  # whether mean and std are outputs
    dx_in_place: bool  # whether the convolution's gradient can become ours in its own memory
    dw_in_place: bool


def make_recipe(x: Tensor, weight: Tensor, g: Geometry, moments: bool) -> Recipe:
    """Builds the kernels on their first use. Raises BuildError."""
    layout, weight_layout = layout_of(x), layout_of(weight)
    unit = Unit(x.dtype, g.compute, weight.dtype, layout == torch.channels_last)
    launcher = LAUNCHERS[x.device.type](x.device.index or 0, unit)
    weight_last = weight_layout == torch.channels_last
    plan = make_plan(x.shape, weight.shape, g, unit, weight_last, moments, launcher.threads)
    dx_in_place = x.dtype == g.compute
    dw_in_place = weight.dtype == g.compute and weight_layout == layout
    return Recipe(g, plan, launcher, x.device.type, layout, weight_layout, moments, dx_in_place, dw_in_place)


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, recipe: Recipe
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor | None, Tensor | None]:
    """(y, mean, std) and the last three of `Saved`; no gradients. Without `moments`, mean and std are None."""
    g, plan, layout = recipe.g, recipe.plan, recipe.layout
    kept = x.new_empty(plan.kept, dtype=plan.wide)
    x, weight, bias, a, launch = _begin(x, weight, bias, kept, recipe)
    scratch = x.new_empty(plan.forward_scratch, dtype=plan.wide)
    filters = torch.empty_like(weight, dtype=g.compute, memory_format=layout)
    a.pixels, a.filters = scratch.data_ptr(), filters.data_ptr()
    mean = std = copy = None
    if recipe.moments:
        mean = x.new_empty(plan.statistics, dtype=plan.wide)
        std = torch.empty_like(mean)
        a.mean, a.std = mean.data_ptr(), std.data_ptr()
    else:
        a.mean, a.std = a.pixels + plan.mean_offset, a.mu + plan.std_offset
    launch("prepare", *plan.prepare)
    source, padding = x, g.padding
    if plan.copies:
        source = copy = torch.empty(plan.padded, dtype=g.compute, device=x.device, memory_format=layout)
        padding = (0, 0)
        a.padded = copy.data_ptr()
    launch("pixels", *plan.pixels)
    y = torch.convolution(source, filters, None, g.stride, padding, g.dilation, False, (0, 0), g.groups)
    y = y.contiguous(memory_format=layout)
    a.y = y.data_ptr()
    launch("scale", *plan.scale)
    return y, mean, std, kept, filters if plan.keeps_filters else None, copy


def backward(needs: tuple[bool, ...], saved: Saved, recipe: Recipe, upstream: Upstream) -> Gradients:
    """Gradients of x, weight and bias as far as `needs` asks for them.

    Hooks on saved tensors may change their layout (never their type): all that is read is first made to lie as the
    recipe says, which costs nothing where it does.
    """
    g, plan, layout = recipe.g, recipe.plan, recipe.layout
    x, weight, given_bias, y, std, kept, filters, copy = saved
    x, weight, bias, a, launch = _begin(x, weight, given_bias, kept, recipe)
    y = y.contiguous(memory_format=layout)
    scratch = x.new_empty(plan.backward_scratch, dtype=plan.wide)
    a.y, a.spread, a.std = y.data_ptr(), scratch.data_ptr(), a.mu + plan.std_offset
    dy, dmean, dstd = upstream
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
    del saved, y, dy, upstream  # with its last holder gone, the memory of y serves what comes now

    if need_x and need_weight and dz is not None and filters is not None and copy is None:
        numbers = (g.stride, g.padding, g.dilation, False, (0, 0), g.groups, (True, True, False))
        dinput, raw, _ = _convolution_backward(dz, x, filters, None, *numbers)
    for gradient in plan.order:  # the big temporaries of one are gone before those of the other come
        if gradient == "weight":
            if need_weight and dz is not None:
                if raw is None:
                    raw = _weight_gradient(x, weight, dz, copy, g)
                raw = raw.contiguous(memory_format=layout)
                dw = raw if recipe.dw_in_place else torch.empty_like(weight)
                a.dfilters, a.dweight = raw.data_ptr(), dw.data_ptr()
            if raw is not None or db is not None:
                launch("finish", *plan.finish)
            raw = copy = None
        elif need_x:
            if dz is not None:
                if filters is None:
                    filters = torch.empty_like(weight, dtype=g.compute, memory_format=layout)
                    a.filters = filters.data_ptr()
                    launch("prepare", *plan.finish)
                if dinput is None:
                    dinput = _input_gradient(dz, filters, recipe)
                dinput = dinput.contiguous(memory_format=layout)
                a.dinput = dinput.data_ptr()
            dx = dinput if dinput is not None and recipe.dx_in_place else torch.empty_like(x)
            a.dx = dx.data_ptr()
            launch("collect", *plan.collect)
            dinput = filters = None
    if db is not None and given_bias is not None and db.dtype != given_bias.dtype:
        db = db.to(given_bias.dtype)
    return dx, dw, db


def _input_gradient(dz: Tensor, filters: Tensor, recipe: Recipe) -> Tensor:
    """The plain convolution's, as a transposed convolution: the same cuDNN call, sooner reached."""
    g, device = recipe.g, recipe.device
    with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else _AS_IT_IS:
        return torch.convolution(
            dz, filters, None, g.stride, g.padding, g.dilation, True, recipe.plan.output_padding, g.groups
        )


def _weight_gradient(x: Tensor, weight: Tensor, dz: Tensor, copy: Tensor | None, g: Geometry) -> Tensor:
    """The plain convolution's, from what it read: x, or the padded copy."""
    source, padding = (x, g.padding) if copy is None else (copy, (0, 0))
    if weight.dtype != g.compute:  # only its shape is read
        weight = dz.new_empty(()).expand(weight.shape)
    numbers = (g.stride, padding, g.dilation, False, (0, 0), g.groups, (False, True, False))
    return _convolution_backward(dz, source, weight, None, *numbers)[1]


def layout_of(x: Tensor) -> torch.memory_format:
    """channels_last where x lies so, else contiguous."""
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _begin(
    x: Tensor, weight: Tensor, bias: Tensor | None, kept: Tensor, recipe: Recipe
) -> tuple[Tensor, Tensor, Tensor | None, Arguments, Launch]:
    """The inputs as the kernels can read them, to be held as long as these do, and the arguments that point at them.

    Copies only a sliced x, a sliced weight, a bias of another dtype than the weight.
    """
    plan = recipe.plan
    x = x.contiguous(memory_format=recipe.layout)
    weight = weight.contiguous(memory_format=recipe.weight_layout)
    a = Arguments.from_buffer_copy(plan.template)
    a.x, a.weight, a.mu = x.data_ptr(), weight.data_ptr(), kept.data_ptr()
    a.pivot = a.mu + plan.pivot_offset
    if bias is not None:
        bias = (bias if bias.dtype == weight.dtype else bias.to(weight.dtype)).contiguous()
        a.bias = bias.data_ptr()
    return x, weight, bias, a, recipe.launcher.bind(a)
