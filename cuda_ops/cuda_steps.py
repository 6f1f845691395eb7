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
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cuda_ops.direct import Geometry, Gradients, Upstream
from cuda_ops.launch import LAUNCHERS, Arguments, Launch, Launcher, Unit
from cuda_ops.plan import Plan, make_plan
from cuda_ops.windows import Pair

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


class _Call(NamedTuple):
    """What a pass works on; the tensors as the kernels can read them, and alive as long as they are read."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    kept: Tensor
    arguments: Arguments
    launch: Launch
    recipe: Recipe


def make_recipe(x: Tensor, weight: Tensor, g: Geometry, moments: bool) -> Recipe:
    """Builds the kernels on their first use. Raises BuildError."""
    layout, weight_layout = layout_of(x), layout_of(weight)
    unit = Unit(x.dtype, g.compute, weight.dtype, layout == torch.channels_last)
    launcher = LAUNCHERS[x.device.type](x.device.index or 0, unit)
    weight_last = weight_layout == torch.channels_last
    plan = make_plan(x.shape, weight.shape, g, unit, weight_last, moments, launcher.threads)
    return Recipe(g, plan, launcher, x.device.type, layout, weight_layout, moments)


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, recipe: Recipe
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor | None, Tensor | None]:
    """(y, mean, std) and the last three of `Saved`; no gradients. Without `moments`, mean and std are None."""
    g, plan, layout = recipe.g, recipe.plan, recipe.layout
    kept = x.new_empty(plan.kept, dtype=plan.wide)
    x, weight, bias, _, a, launch, _ = _begin(x, weight, bias, kept, recipe)
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


def backward(needs: tuple[bool, ...], s: Saved, recipe: Recipe, upstream: Upstream) -> Gradients:
    """Gradients of x, weight and bias as far as `needs` asks for them.

    Hooks on saved tensors may change their layout (never their type): all that is read is first made to lie as the
    recipe says, which costs nothing where it does.
    """
    plan, layout = recipe.plan, recipe.layout
    call = _begin(s.x, s.weight, s.bias, s.kept, recipe)
    x, _, bias, _, a, launch, _ = call
    y, filters, copy = s.y.contiguous(memory_format=layout), s.filters, s.copy
    std = None if s.std is None else s.std.contiguous()
    scratch = x.new_empty(plan.backward_scratch, dtype=plan.wide)
    a.y, a.spread = y.data_ptr(), scratch.data_ptr()
    a.std = a.mu + plan.std_offset if std is None else std.data_ptr()
    dy, dmean, dstd = upstream
    if dmean is not None:
        dmean = dmean.contiguous()
        a.dmean = dmean.data_ptr()
    if dstd is not None:
        dstd = dstd.contiguous()
        a.dstd = dstd.data_ptr()
    if dy is None:
        launch("project", *plan.project)
        return _finish_input(call, None) if needs[0] else None, None, None

    dy, dz, db = dy.contiguous(memory_format=layout), torch.empty_like(y), None
    a.dy, a.dz = dy.data_ptr(), dz.data_ptr()
    if needs[2] and bias is not None:
        db = torch.empty_like(bias)
        a.dbias, a.partial = db.data_ptr(), a.spread + plan.partial_offset
    launch("project", *plan.project)
    bias_dtype = None if s.bias is None else s.bias.dtype
    del s, y, dy, upstream  # with its last holder gone, the memory of y serves what comes now

    dx = dw = None
    if needs[0] and needs[1] and filters is not None and copy is None:
        dinput, raw, _ = _gradients(call, dz, x, filters, recipe.g.padding, (True, True, False))
        dx = _finish_input(call, dinput)
        dw = _finish_weight(call, raw)
    else:  # the big temporaries of one gradient are gone before those of the other come
        if needs[0] and not plan.weight_first:
            dx = _input_gradient(call, dz, filters)
        if needs[1]:
            dw = _weight_gradient(call, dz, copy)
        elif db is not None:
            launch("finish", *plan.finish)
        copy = None
        if needs[0] and plan.weight_first:
            dx = _input_gradient(call, dz, filters)
    if db is not None and db.dtype != bias_dtype:
        db = db.to(bias_dtype)
    return dx, dw, db


def _input_gradient(call: _Call, dz: Tensor, filters: Tensor | None) -> Tensor:
    """The convolution's input gradient as a transposed convolution: the same cuDNN call, sooner reached."""
    g, plan, device = call.recipe.g, call.recipe.plan, call.recipe.device
    if filters is None:
        filters = torch.empty_like(call.weight, dtype=g.compute, memory_format=call.recipe.layout)
        call.arguments.filters = filters.data_ptr()
        call.launch("prepare", *plan.finish)
    with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else _AS_IT_IS:
        dinput = torch.convolution(
            dz, filters, None, g.stride, g.padding, g.dilation, True, plan.output_padding, g.groups
        )
    return _finish_input(call, dinput)


def _finish_input(call: _Call, dinput: Tensor | None) -> Tensor:
    """dx: in place where the convolution's input gradient has the dtype of x."""
    a, x = call.arguments, call.x
    if dinput is not None:
        dinput = dinput.contiguous(memory_format=call.recipe.layout)
        a.dinput = dinput.data_ptr()
    dx = dinput if dinput is not None and dinput.dtype == x.dtype else torch.empty_like(x)
    a.dx = dx.data_ptr()
    call.launch("collect", *call.recipe.plan.collect)
    return dx


def _weight_gradient(call: _Call, dz: Tensor, copy: Tensor | None) -> Tensor:
    source, padding = (call.x, call.recipe.g.padding) if copy is None else (copy, (0, 0))
    weight = call.weight
    like = (
        weight if weight.dtype == dz.dtype else dz.new_empty(()).expand(weight.shape)
    )  # only its shape is read
    return _finish_weight(call, _gradients(call, dz, source, like, padding, (False, True, False))[1])


def _finish_weight(call: _Call, raw: Tensor) -> Tensor:
    """dW: in place where the convolution's weight gradient has the dtype and the order of the weight."""
    a, weight, recipe = call.arguments, call.weight, call.recipe
    raw = raw.contiguous(memory_format=recipe.layout)
    in_place = raw.dtype == weight.dtype and recipe.weight_layout == recipe.layout
    dw = raw if in_place else torch.empty_like(weight)
    a.dfilters, a.dweight = raw.data_ptr(), dw.data_ptr()
    call.launch("finish", *recipe.plan.finish)
    return dw


def _gradients(
    call: _Call, dz: Tensor, x: Tensor, filters: Tensor, padding: Pair, wanted: tuple[bool, bool, bool]
) -> Any:
    """Gradients of the plain convolution with respect to its input and its weight."""
    g = call.recipe.g
    return _convolution_backward(
        dz, x, filters, None, g.stride, padding, g.dilation, False, (0, 0), g.groups, wanted
    )


def layout_of(x: Tensor) -> torch.memory_format:
    """channels_last where x lies so, else contiguous."""
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _begin(x: Tensor, weight: Tensor, bias: Tensor | None, kept: Tensor, recipe: Recipe) -> _Call:
    """Copies only what no kernel can read: a sliced x, a sliced weight, a bias of another dtype than the weight."""
    x = x.contiguous(memory_format=recipe.layout)
    weight = weight.contiguous(memory_format=recipe.weight_layout)
    a = Arguments.from_buffer_copy(recipe.plan.template)
    a.x, a.weight, a.mu = x.data_ptr(), weight.data_ptr(), kept.data_ptr()
    a.pivot = a.mu + recipe.plan.pivot_offset
    if bias is not None:
        bias = (bias if bias.dtype == weight.dtype else bias.to(weight.dtype)).contiguous()
        a.bias = bias.data_ptr()
    return _Call(x, weight, bias, kept, a, recipe.launcher.bind(a), recipe)
