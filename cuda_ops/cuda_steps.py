"""Forward and backward pass of the CUDA backend: fused kernels (cuda_ops/kernels.cu) around torch's convolutions.

Forward, three launches beside the convolution:
    prepare   W~ = W - mean(W) for every filter, and a pivot per image and group
    pixels    one read of x: channel mean m and squared deviations q of every pixel, and the padded, centred copy
    scale     windows of (m, q) merged to mu_p and s_p; y = act(z / s_p + b) in one pass over z, in place
Backward, r = 1/s, the closed form of `direct`:
    project   one pass over (dy, y): dz = r dy, a_p and b_p of every patch, partial sums of db
    collect   dx = convolution's input gradient + (x - pivot) A - B
    finish    dW = centred(convolution's weight gradient), db

x and y alone are kept for the backward pass: where the activation is flat its gradient is zero, and elsewhere z / s
follows from y. The centred copy is what keeps float32 (and TF32) exact at any input offset; it is made again in the
backward pass rather than kept. An x that is already float16 or bfloat16 goes to the convolution as it is.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cuda_ops.direct import Geometry, Gradients, Upstream
from cuda_ops.launch import LAUNCHERS, Arguments, Launcher, Unit
from cuda_ops.plan import Plan, make_plan
from cuda_ops.windows import Pair


@dataclass(frozen=True)
class Saved:
    """What the forward pass leaves for the backward pass."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    y: Tensor
    mu: Tensor
    std: Tensor
    pivot: Tensor


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(y, mean, std, mean - pivot, pivot); no gradients."""
    x, weight, bias, layout = _dense(x, weight, bias)
    launch, plan, a = _begin(x, weight, g)
    device, wide = x.device, plan.wide
    filters = torch.empty(weight.shape, dtype=g.compute, device=device, memory_format=layout)
    pivot = torch.empty(plan.statistics[:2], dtype=wide, device=device)
    pixels = torch.empty((*plan.statistics[:2], *plan.padded[2:], 2), dtype=wide, device=device)
    mu, mean, std = (torch.empty(plan.statistics, dtype=wide, device=device) for _ in range(3))
    source, padding = x, g.padding
    if plan.copies:
        source, padding = (
            torch.empty(plan.padded, dtype=g.compute, device=device, memory_format=layout),
            (0, 0),
        )
        a.padded = source.data_ptr()
    a.x, a.weight, a.filters, a.pivot = x.data_ptr(), weight.data_ptr(), filters.data_ptr(), pivot.data_ptr()
    a.pixels, a.mu, a.mean, a.std = pixels.data_ptr(), mu.data_ptr(), mean.data_ptr(), std.data_ptr()
    a.bias = 0 if bias is None else bias.data_ptr()
    launch("prepare", *plan.prepare, a)
    launch("pixels", *plan.pixels, a)
    y = torch.ops.aten.convolution.default(
        source, filters, None, g.stride, padding, g.dilation, False, (0, 0), g.groups
    )
    y = y.contiguous(memory_format=layout)
    a.y = y.data_ptr()
    launch("scale", *plan.scale, a)
    return y, mean, std, mu, pivot


def backward(
    needs: tuple[bool, ...],
    s: Saved,
    g: Geometry,
    upstream: Upstream,
) -> Gradients:
    """Gradients of x, weight and bias as far as `needs` asks for them."""
    x, weight, bias, layout = _dense(s.x, s.weight, s.bias)
    launch, plan, a = _begin(x, weight, g)
    device = x.device
    dy = None if upstream.y is None else upstream.y.contiguous(memory_format=layout)
    dmean, dstd = (None if v is None else v.contiguous() for v in upstream[1:])
    for name, tensor in (
        ("x", x), ("weight", weight), ("bias", bias), ("y", s.y), ("mu", s.mu), ("std", s.std), ("pivot", s.pivot),
        ("dy", dy), ("dmean", dmean), ("dstd", dstd),
    ):  # fmt: skip
        setattr(a, name, 0 if tensor is None else tensor.data_ptr())

    spread = torch.empty((*plan.statistics, 2), dtype=plan.wide, device=device)
    a.spread = spread.data_ptr()
    dz = db = dw = dx = partial = None
    if dy is not None:
        dz = torch.empty_like(s.y)
        a.dz = dz.data_ptr()
        if needs[2]:
            assert bias is not None
            partial = torch.empty((plan.project[0][0], s.y.shape[1]), dtype=plan.wide, device=device)
            db = torch.empty_like(bias)
            a.partial, a.dbias, a.blocks = partial.data_ptr(), db.data_ptr(), plan.project[0][0]
    launch("project", *plan.project, a)

    def input_gradient() -> Tensor:
        dinput = None
        if dz is not None:
            filters = torch.empty(weight.shape, dtype=g.compute, device=device, memory_format=layout)
            a.filters = filters.data_ptr()
            launch("prepare", (weight.shape[0], 1), plan.prepare[1], a)
            reader = (
                x if x.dtype == g.compute else filters.new_empty(()).expand(x.shape)
            )  # only its shape is read
            dinput = _convolution_gradient(dz, reader, filters, g, g.padding, of=0).contiguous(
                memory_format=layout
            )
            a.dinput = dinput.data_ptr()
        dx = dinput if dinput is not None and dinput.dtype == x.dtype else torch.empty_like(x)
        a.dx = dx.data_ptr()
        launch("collect", *plan.collect, a)
        return dx

    def weight_gradient(dz: Tensor) -> Tensor:
        source, padding = x, g.padding
        if plan.copies:
            source, padding = (
                torch.empty(plan.padded, dtype=g.compute, device=device, memory_format=layout),
                (0, 0),
            )
            a.padded = source.data_ptr()
            launch("pixels", *plan.pixels, a)
        shape = (
            weight if weight.dtype == g.compute else dz.new_empty(()).expand(weight.shape)
        )  # only that is read
        return _convolution_gradient(dz, source, shape, g, padding, of=1).contiguous(memory_format=layout)

    raw = None
    weight_first = (
        weight.numel() < x.numel()
    )  # the big temporaries of one are gone before those of the other come
    if needs[0] and not weight_first:
        dx = input_gradient()
    if needs[1] and dz is not None:
        raw = weight_gradient(dz)
        dw = (
            raw if raw.dtype == weight.dtype and a.weight_last == a.filters_last else torch.empty_like(weight)
        )
        a.dfilters, a.dweight = raw.data_ptr(), dw.data_ptr()
    if dw is not None or db is not None:
        launch("finish", (weight.shape[0], 1), plan.prepare[1], a)
    if needs[0] and weight_first:
        dx = input_gradient()
    return dx, dw, db if db is None or s.bias is None else db.to(s.bias.dtype)


def _convolution_gradient(
    dz: Tensor, x: Tensor, filters: Tensor, g: Geometry, padding: Pair, of: int
) -> Tensor:
    """Gradient of the plain convolution with respect to its input (of=0) or its weight (of=1)."""
    wanted = (of == 0, of == 1, False)
    gradients = torch.ops.aten.convolution_backward.default(
        dz, x, filters, None, g.stride, padding, g.dilation, False, (0, 0), g.groups, wanted
    )
    return gradients[of]


def layout_of(x: Tensor) -> torch.memory_format:
    """The layout that all big tensors of a call share."""
    return torch.channels_last if is_channels_last(x) else torch.contiguous_format


def dense_weight(weight: Tensor) -> Tensor:
    return weight if is_channels_last(weight) else weight.contiguous()


def is_channels_last(x: Tensor) -> bool:
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _dense(
    x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, torch.memory_format]:
    """Copies only what no kernel can read: a sliced x, a sliced weight, a bias of another dtype than the weight."""
    layout, weight = layout_of(x), dense_weight(weight)
    if bias is not None:
        bias = bias.to(weight.dtype).contiguous()
    return x.contiguous(memory_format=layout), weight, bias, layout


def _begin(x: Tensor, weight: Tensor, g: Geometry) -> tuple[Launcher, Plan, Arguments]:
    unit = Unit(x.dtype, g.compute, weight.dtype, is_channels_last(x))
    launcher = LAUNCHERS[x.device.type](x.device.index or 0, unit)
    plan = make_plan(tuple(x.shape), tuple(weight.shape), g, unit, is_channels_last(weight), launcher.threads)
    return launcher, plan, Arguments.from_buffer_copy(plan.template)
