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
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from cuda_ops.direct import Geometry, Gradients, Upstream
from cuda_ops.launch import LAUNCHERS, Arguments, Launch, Unit
from cuda_ops.plan import Plan, make_plan
from cuda_ops.windows import Pair

_PLAIN = (False, (0, 0))  # of a convolution: not transposed, no output padding


class Saved(NamedTuple):
    """What the forward pass leaves for the backward pass."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    y: Tensor
    std: Tensor
    centres: Tensor  # mean - pivot of every patch, then the pivots
    filters: Tensor | None  # W~, where it is small beside x
    copy: Tensor | None  # the padded, centred x, where the convolution read that


class _Call(NamedTuple):
    """What both passes start from; the tensors as the kernels can read them, and alive as long as they are read."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    centres: Tensor
    layout: torch.memory_format
    g: Geometry
    plan: Plan
    arguments: Arguments
    launch: Launch


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """(y, mean, std) and the last three of `Saved`; no gradients."""
    call = _begin(x, weight, bias, g, None)
    plan, a = call.plan, call.arguments
    mean = torch.empty(plan.statistics, dtype=plan.wide, device=x.device)
    std, pixels = torch.empty_like(mean), torch.empty(plan.pixel_values, dtype=plan.wide, device=x.device)
    a.mean, a.std, a.pixels = mean.data_ptr(), std.data_ptr(), pixels.data_ptr()
    filters = _filters(call)
    call.launch("prepare", *plan.prepare)
    copy = None
    if plan.copies:
        copy = torch.empty(plan.padded, dtype=g.compute, device=x.device, memory_format=call.layout)
        a.padded = copy.data_ptr()
    call.launch("pixels", *plan.pixels)
    source, padding = (call.x, g.padding) if copy is None else (copy, (0, 0))
    y = torch.convolution(source, filters, None, g.stride, padding, g.dilation, *_PLAIN, g.groups)
    y = y.contiguous(memory_format=call.layout)
    a.y = y.data_ptr()
    call.launch("scale", *plan.scale)
    return y, mean, std, call.centres, filters if keeps_filters(x, weight) else None, copy


def backward(needs: tuple[bool, ...], s: Saved, g: Geometry, upstream: Upstream) -> Gradients:
    """Gradients of x, weight and bias as far as `needs` asks for them."""
    call = _begin(s.x, s.weight, s.bias, g, s.centres)
    plan, a, x, filters, copy = call.plan, call.arguments, call.x, s.filters, s.copy
    a.y, a.std = s.y.data_ptr(), s.std.data_ptr()
    dy, dmean, dstd = upstream
    if dmean is not None:
        dmean = dmean.contiguous()
        a.dmean = dmean.data_ptr()
    if dstd is not None:
        dstd = dstd.contiguous()
        a.dstd = dstd.data_ptr()
    scratch = torch.empty(plan.spread_values + plan.partial_values, dtype=plan.wide, device=x.device)
    a.spread = scratch.data_ptr()
    if dy is None:
        call.launch("project", *plan.project)
        return _finish_input(call, None) if needs[0] else None, None, None

    dy = dy.contiguous(memory_format=call.layout)
    dz = torch.empty_like(s.y)
    a.dy, a.dz = dy.data_ptr(), dz.data_ptr()
    db = None
    if needs[2] and call.bias is not None:
        db = torch.empty_like(call.bias)
        a.dbias, a.partial = db.data_ptr(), a.spread + plan.spread_values * scratch.element_size()
    call.launch("project", *plan.project)
    bias_dtype = None if s.bias is None else s.bias.dtype
    del s, dy, upstream  # with its last holder gone, the memory of y serves what comes now

    dx = dw = None
    if needs[0] and needs[1] and filters is not None and copy is None:
        dinput, raw = _convolution_backward(call, dz, x, filters, g.padding, (True, True))
        dx = _finish_input(call, dinput)
        dw = _finish_weight(call, raw)
    else:  # the big temporaries of one gradient are gone before those of the other come
        weight_first = call.weight.numel() < x.numel()
        if needs[0] and not weight_first:
            dx = _input_gradient(call, dz, filters)
        if needs[1]:
            dw = _weight_gradient(call, dz, copy)
        elif db is not None:
            call.launch("finish", *plan.finish)
        copy = None
        if needs[0] and weight_first:
            dx = _input_gradient(call, dz, filters)
    if db is not None and db.dtype != bias_dtype:
        db = db.to(bias_dtype)
    return dx, dw, db


def _input_gradient(call: _Call, dz: Tensor, filters: Tensor | None) -> Tensor:
    x = call.x
    if filters is None:
        filters = _filters(call)
        call.launch("prepare", *call.plan.finish)
    like = x if x.dtype == call.g.compute else filters.new_empty(()).expand(x.shape)  # only its shape is read
    return _finish_input(
        call, _convolution_backward(call, dz, like, filters, call.g.padding, (True, False))[0]
    )


def _finish_input(call: _Call, dinput: Tensor | None) -> Tensor:
    """dx: in place where the convolution's input gradient has the dtype of x."""
    dx = dinput if dinput is not None and dinput.dtype == call.x.dtype else torch.empty_like(call.x)
    call.arguments.dinput, call.arguments.dx = 0 if dinput is None else dinput.data_ptr(), dx.data_ptr()
    call.launch("collect", *call.plan.collect)
    return dx


def _weight_gradient(call: _Call, dz: Tensor, copy: Tensor | None) -> Tensor:
    source, padding = (call.x, call.g.padding) if copy is None else (copy, (0, 0))
    weight = call.weight
    like = (
        weight if weight.dtype == dz.dtype else dz.new_empty(()).expand(weight.shape)
    )  # only its shape is read
    return _finish_weight(call, _convolution_backward(call, dz, source, like, padding, (False, True))[1])


def _finish_weight(call: _Call, raw: Tensor) -> Tensor:
    """dW: in place where the convolution's weight gradient has the dtype and the order of the weight."""
    a, weight = call.arguments, call.weight
    dw = raw if raw.dtype == weight.dtype and a.weight_last == a.filters_last else torch.empty_like(weight)
    a.dfilters, a.dweight = raw.data_ptr(), dw.data_ptr()
    call.launch("finish", *call.plan.finish)
    return dw


def _filters(call: _Call) -> Tensor:
    filters = torch.empty(
        call.weight.shape, dtype=call.g.compute, device=call.x.device, memory_format=call.layout
    )
    call.arguments.filters = filters.data_ptr()
    return filters


def _convolution_backward(
    call: _Call, dz: Tensor, x: Tensor, filters: Tensor, padding: Pair, wanted: tuple[bool, bool]
) -> list[Any]:
    """Gradients of the plain convolution with respect to its input and its weight, in the layout of the call."""
    g = call.g
    gradients = torch.ops.aten.convolution_backward.default(
        dz, x, filters, None, g.stride, padding, g.dilation, *_PLAIN, g.groups, (*wanted, False)
    )
    return [v if v is None else v.contiguous(memory_format=call.layout) for v in gradients[:2]]


def keeps_filters(x: Tensor, weight: Tensor) -> bool:
    """Whether W~ stays for the backward pass: only where its memory does not count."""
    return 4 * weight.numel() <= x.numel()


def layout_of(x: Tensor) -> torch.memory_format:
    """The layout that all big tensors of a call share."""
    return torch.channels_last if is_channels_last(x) else torch.contiguous_format


def dense_weight(weight: Tensor) -> Tensor:
    return weight if weight.is_contiguous() or is_channels_last(weight) else weight.contiguous()


def is_channels_last(x: Tensor) -> bool:
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _begin(x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry, centres: Tensor | None) -> _Call:
    """Copies only what no kernel can read: a sliced x, a sliced weight, a bias of another dtype than the weight."""
    last, weight = is_channels_last(x), dense_weight(weight)
    layout = torch.channels_last if last else torch.contiguous_format
    x = x.contiguous(memory_format=layout)
    unit = Unit(x.dtype, g.compute, weight.dtype, last)
    launcher = LAUNCHERS[x.device.type](x.device.index or 0, unit)
    plan = make_plan(x.shape, weight.shape, g, unit, is_channels_last(weight), launcher.threads)
    a = Arguments.from_buffer_copy(plan.template)
    a.x, a.weight = x.data_ptr(), weight.data_ptr()
    if bias is not None:
        bias = bias.to(weight.dtype).contiguous()
        a.bias = bias.data_ptr()
    if centres is None:
        centres = torch.empty(plan.centres, dtype=plan.wide, device=x.device)
    a.mu = centres.data_ptr()
    a.pivot = a.mu + plan.pivot_offset
    return _Call(x, weight, bias, centres, layout, g, plan, a, launcher.bind(a))
