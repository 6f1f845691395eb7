"""Normalized convolution without im2col: one ordinary convolution with centred weights, divided by s_p.

A patch minus its mean sums to zero, so the part of W_o that is constant over the patch contributes nothing:

    y[o,p] = (W~ * x)[o,p] / s_p + b_o          W~_o = W_o - mean(W_o)

A constant added to x changes nothing either, so a pivot per image is subtracted first (after padding, since the padding
zeros belong to the patch); this keeps float32 exact at any input offset. The statistics come from two one-channel maps,
the channel mean m and the channel sum of squared deviations q of every pixel, merged over the window (Chan et al. 1979):

    mu_p = mean of m        (n - correction) var_p = sum of q + C/G * sum of (m - mu_p)^2
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cuda_ops.windows import Pair, accumulation_dtype, window_sum, window_sum_transpose


class Geometry(NamedTuple):
    """The numbers of one call that are not tensors."""

    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    eps: float
    correction: int
    activation: str
    negative_slope: float
    compute: torch.dtype  # what the convolution runs in and y comes out as


def normalized_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    eps: float,
    correction: int,
    activation: str,
    negative_slope: float,
    compute: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, mean, std) as in `cuda_ops.normalized_conv.reference`; memory does not grow with the kernel size."""
    geometry = Geometry(
        stride, padding, dilation, groups, eps, correction, activation, negative_slope, compute
    )
    y, mean, std = _NormalizedConv2d.apply(x, weight, bias, geometry)
    return y, mean, std


def statistics_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class _NormalizedConv2d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, z, pivot, centred_mean, std = _forward(x, weight, bias, geometry)
        mask = (
            y if geometry.activation != "none" else None
        )  # its sign says which side of the activation was taken
        ctx.save_for_backward(x, weight, bias, z, pivot, centred_mean, std, mask)
        ctx.geometry = geometry
        ctx.set_materialize_grads(False)
        return y, centred_mean + pivot, std

    @staticmethod
    def backward(
        ctx: Any, dy: Tensor | None, dmean: Tensor | None, dstd: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight, bias, z, pivot, centred_mean, std, mask = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: the closed form below cannot be differentiated again
            dx, dw, db = _differentiable_backward(
                ctx.needs_input_grad, x, weight, bias, ctx.geometry, dy, dmean, dstd
            )
        else:
            dx, dw, db = _backward(
                ctx.needs_input_grad,
                x,
                weight,
                z,
                pivot,
                centred_mean,
                std,
                mask,
                ctx.geometry,
                dy,
                dmean,
                dstd,
            )
        return dx, dw, db, None


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(y, z, pivot, mean - pivot, std); plain differentiable torch, shapes (N, O, H', W') and (N, G, ., .)."""
    kernel = (weight.shape[2], weight.shape[3])
    entries = weight[0].numel()
    pivot = _pivot(x, g.groups)
    centred = _pad_and_centre(x, pivot, g)  # (N, C, H+2ph, W+2pw), statistics dtype
    channels = centred.unflatten(1, (g.groups, -1))  # (N, G, C/G, H+2ph, W+2pw)
    m = channels.mean(2, keepdim=True)
    deviations = channels - m
    q = (deviations.square() if torch.is_grad_enabled() else deviations.square_()).sum(2)
    m, q = m.squeeze(2).to(accumulation_dtype(x)), q.to(accumulation_dtype(x))
    positions = kernel[0] * kernel[1]
    sums = window_sum(torch.cat([m, m.square(), q], 1), kernel, g.stride, g.dilation)
    sum_m, sum_m2, sum_q = sums.chunk(3, 1)
    mean = sum_m / positions
    if positions > 1:  # between the pixels of a window: sum (m - mu)^2
        sum_q = sum_q + channels.shape[2] * (sum_m2 - positions * mean.square()).clamp_min(0)
    variance = sum_q / (entries - g.correction)
    mean, std = mean.to(centred.dtype), (variance + g.eps).sqrt().to(centred.dtype)

    z = F.conv2d(
        centred.to(g.compute), _centre(weight).to(g.compute), None, g.stride, 0, g.dilation, g.groups
    )

    y = _per_group(z, g.groups) * std.reciprocal().unsqueeze(2)
    if bias is not None:
        shift = bias.to(y.dtype).view(g.groups, -1, 1, 1)
        y = y + shift if torch.is_grad_enabled() else y.add_(shift)
    y = y.flatten(1, 2)
    if g.activation == "relu":
        y = F.relu(y)
    elif g.activation == "leaky_relu":
        y = F.leaky_relu(y, g.negative_slope)
    return y.to(g.compute), z, pivot, mean, std


def _backward(
    needs: tuple[bool, ...],
    x: Tensor,
    weight: Tensor,
    z: Tensor,
    pivot: Tensor,
    mean: Tensor,
    std: Tensor,
    mask: Tensor | None,
    g: Geometry,
    dy: Tensor | None,
    dmean: Tensor | None,
    dstd: Tensor | None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The closed form of SPEC section 1, r = 1/s:

    dz = r dy     dW = centred(conv weight gradient)     db = sum dy
    t_p = d_s - r^2 sum_o(dy z)     a_p = t_p r / (n - correction)
    dx = conv input gradient + x A - B      A = T(a), B = T(a mu - d_mu / n)
    """
    kernel = (weight.shape[2], weight.shape[3])
    entries = weight[0].numel()
    wide = statistics_dtype(x)
    r = std.reciprocal()
    dx = dw = db = None
    t = dstd
    dz = None
    if dy is not None:
        if mask is not None:
            slope = g.negative_slope if g.activation == "leaky_relu" else 0.0
            dy = torch.where(mask > 0, dy, dy * slope)
        if needs[2]:
            db = dy.sum((0, 2, 3), dtype=wide).to(weight.dtype)
        dy_groups = _per_group(dy.to(wide), g.groups)  # (N, G, O/G, H', W')
        dz = (dy_groups * r.unsqueeze(2)).flatten(1, 2).to(g.compute)
        projection = (dy_groups * _per_group(z, g.groups)).sum(2)
        t = -r.square() * projection if dstd is None else dstd - r.square() * projection
    centred = _pad_and_centre(
        x, pivot, g
    )  # made again rather than kept: one pass, and no second copy of x lives on
    if dz is not None and needs[1]:
        dw = _convolution_gradient(dz, centred.to(g.compute), weight.to(g.compute), g, (0, 0), of="weight")
        dw = _centre(dw).to(weight.dtype)
    if needs[0]:
        a = torch.zeros_like(std) if t is None else t * r / (entries - g.correction)
        b = a * mean if dmean is None else a * mean - dmean / entries
        size = (centred.shape[2], centred.shape[3])
        spread = window_sum_transpose(torch.cat([a, b], 1), kernel, g.stride, g.dilation, size)
        map_a, map_b = (v.unsqueeze(2) for v in _crop(spread, g.padding).chunk(2, 1))  # (N, G, 1, H, W)
        inner = _per_group(_crop(centred, g.padding), g.groups)  # carries the same pivot as `mean`
        dx = inner.mul_(map_a).sub_(map_b).flatten(1, 2)
        if dz is not None:
            centred_weight = _centre(weight).to(g.compute)
            dx = (
                _convolution_gradient(dz, x.to(g.compute), centred_weight, g, g.padding, of="input")
                .to(wide)
                .add_(dx)
            )
        dx = dx.to(x.dtype)
    return dx, dw, db


def _differentiable_backward(
    needs: tuple[bool, ...],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    g: Geometry,
    dy: Tensor | None,
    dmean: Tensor | None,
    dstd: Tensor | None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The same gradients through autograd's own rules, so that they can be differentiated again."""
    y, _, pivot, mean, std = _forward(x, weight, bias, g)
    outputs, upstream = [], []
    for output, gradient in ((y, dy), (mean + pivot, dmean), (std, dstd)):
        if gradient is not None:
            outputs.append(output)
            upstream.append(gradient)
    inputs = [v for v, needed in zip((x, weight, bias), needs, strict=False) if needed and v is not None]
    gradients = iter(torch.autograd.grad(outputs, inputs, upstream, create_graph=True, allow_unused=True))
    dx, dw, db = (next(gradients) if needed else None for needed in needs[:3])
    return dx, dw, db


def _pivot(x: Tensor, groups: int) -> Tensor:
    """Mean of every image and group, (N, G, 1, 1), as a constant: any value near the data serves."""
    mean = x.detach().mean((2, 3), dtype=statistics_dtype(x))
    return mean.unflatten(1, (groups, -1)).mean(2)[..., None, None]


def _pad_and_centre(x: Tensor, pivot: Tensor, g: Geometry) -> Tensor:
    """x padded with zeros, minus the pivot (so the border holds -pivot), in the dtype of the statistics."""
    pivot = pivot.repeat_interleave(x.shape[1] // g.groups, 1)  # (N, C, 1, 1)
    if g.padding == (0, 0):
        return x.to(pivot.dtype) - pivot
    (ph, pw), (height, width) = g.padding, x.shape[2:]
    if torch.is_grad_enabled() or torch.compiler.is_compiling():  # no `out=` for autograd and the compiler
        return F.pad(x.to(pivot.dtype), (pw, pw, ph, ph)) - pivot
    layout = (
        torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    )
    padded = torch.empty(
        (*x.shape[:2], height + 2 * ph, width + 2 * pw),
        dtype=pivot.dtype,
        device=x.device,
        memory_format=layout,
    )
    padded[:, :, :ph] = padded[:, :, height + ph :] = -pivot
    padded[:, :, :, :pw] = padded[:, :, :, width + pw :] = -pivot
    torch.sub(x, pivot, out=padded[:, :, ph : height + ph, pw : width + pw])
    return padded


def _crop(padded: Tensor, padding: Pair) -> Tensor:
    height, width = padded.shape[2:]
    return padded[:, :, padding[0] : height - padding[0], padding[1] : width - padding[1]]


def _centre(weight: Tensor) -> Tensor:
    """W~: every filter minus its mean, in float32 or wider."""
    weight = weight.to(statistics_dtype(weight))
    return weight - weight.mean((1, 2, 3), keepdim=True)


def _per_group(x: Tensor, groups: int) -> Tensor:
    """(N, C, H, W) seen as (N, G, C/G, H, W)."""
    return x.unflatten(1, (groups, -1))


def _convolution_gradient(
    dz: Tensor, x: Tensor, weight: Tensor, g: Geometry, padding: Pair, of: str
) -> Tensor:
    """Gradient of the plain convolution with respect to its input or its weight."""
    wanted = (of == "input", of == "weight", False)
    gradients = torch.ops.aten.convolution_backward(
        dz, x, weight, None, g.stride, padding, g.dilation, False, (0, 0), g.groups, wanted
    )
    return gradients[0] if of == "input" else gradients[1]
