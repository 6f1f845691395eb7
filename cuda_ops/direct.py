"""Normalized convolution without im2col: one ordinary convolution with centred weights, divided by s_p.

A patch minus its mean sums to zero, so the part of W_o that is constant over the patch contributes nothing:

    y[o,p] = (W~ * x)[o,p] / s_p + b_o          W~_o = W_o - mean(W_o)

A constant added to x changes nothing either, so a pivot per image is subtracted first (after padding, since the
padding zeros belong to the patch); this keeps float32 exact at any input offset. The statistics come from two
one-channel maps, the channel mean m and the channel sum of squared deviations q of every pixel, merged over the
window (Chan et al. 1979):

    mu_p = mean of m        (n - correction) var_p = sum of q + C/G * sum of (m - mu_p)^2

On a CPU the pivot is left out where the image mean is small against its spread, which saves a copy of x.
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


class Upstream(NamedTuple):
    """Gradients with respect to the three outputs; None where one is not used."""

    y: Tensor | None
    mean: Tensor | None
    std: Tensor | None


Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]  # with respect to x, weight, bias


def normalized_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, mean, std) as in `cuda_ops.normalized_conv.reference`; memory does not grow with the kernel size."""
    y, mean, std = _NormalizedConv2d.apply(x, weight, bias, geometry)
    return y, mean, std


def statistics_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class _NormalizedConv2d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, z, pivot, mean, std = _forward(x, weight, bias, g)
        mask = y if g.activation != "none" else None  # its sign tells which side of the activation was taken
        ctx.save_for_backward(x, weight, bias, z, pivot, mean, std, mask)
        ctx.geometry = g
        ctx.set_materialize_grads(False)
        return y, mean.clone() if pivot is None else mean + pivot, std

    @staticmethod
    def backward(
        ctx: Any, dy: Tensor | None, dmean: Tensor | None, dstd: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        upstream, g, needs = Upstream(dy, dmean, dstd), ctx.geometry, ctx.needs_input_grad
        x, weight, bias, z, pivot, mean, std, mask = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: the closed form below cannot be differentiated again
            gradients = differentiable_backward(needs, x, weight, bias, g, upstream)
        else:
            gradients = _backward(needs, x, weight, z, pivot, mean, std, mask, g, upstream)
        return *gradients, None


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry
) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]:
    """(y, z, pivot, mean - pivot, std); plain differentiable torch, shapes (N, O, H', W') and (N, G, ., .)."""
    kernel = (weight.shape[2], weight.shape[3])
    entries, positions = weight[0].numel(), kernel[0] * kernel[1]
    base, padding, m, q, pivot = _base_with_statistics(x, g)
    z = F.conv2d(
        base.to(g.compute), _centre(weight).to(g.compute), None, g.stride, padding, g.dilation, g.groups
    )

    sums = window_sum(torch.cat([m, m.square(), q], 1), kernel, g.stride, g.dilation)
    sum_m, sum_m2, sum_q = sums.chunk(3, 1)  # (N, G, H', W') each
    mean = sum_m / positions
    if positions > 1:  # between the pixels of a window: sum (m - mu)^2
        sum_q = sum_q + weight.shape[1] * (sum_m2 - positions * mean.square()).clamp_min(0)
    std = (sum_q / (entries - g.correction) + g.eps).sqrt()
    mean, std = _cast(mean, statistics_dtype(x)), _cast(std, statistics_dtype(x))

    y = _per_group(z, g.groups) * std.reciprocal().unsqueeze(2)
    if bias is not None:
        shift = bias.to(y.dtype).view(g.groups, -1, 1, 1)
        y = y + shift if torch.is_grad_enabled() else y.add_(shift)
    y = y.flatten(1, 2)
    if g.activation == "relu":
        y = F.relu(y)
    elif g.activation == "leaky_relu":
        y = F.leaky_relu(y, g.negative_slope)
    return _cast(y, g.compute), z, pivot, mean, std


def _backward(
    needs: tuple[bool, ...],
    x: Tensor,
    weight: Tensor,
    z: Tensor,
    pivot: Tensor | None,
    mean: Tensor,
    std: Tensor,
    mask: Tensor | None,
    g: Geometry,
    upstream: Upstream,
) -> Gradients:
    """The closed form, with r = 1/s, z = W~ * x and T the transposed window sum:

    dz = r dy        dW = centred(conv weight gradient of (x, dz))        db = sum dy
    t_p = d_s - r^2 sum_o(dy z)        a_p = t_p r / (n - correction)
    dx = conv input gradient of (W~, dz) + x A - B        A = T(a)        B = T(a mu - d_mu / n)

    x and mu may both lack the pivot: x A - B does not change.
    """
    dy, dmean, t = upstream
    kernel, entries = (weight.shape[2], weight.shape[3]), weight[0].numel()
    wide = statistics_dtype(x)
    r = std.reciprocal()
    dx = dw = db = dz = None
    if dy is not None:
        if mask is not None:
            slope = g.negative_slope if g.activation == "leaky_relu" else 0.0
            dy = torch.where(mask > 0, dy, dy * slope)
        if needs[2]:
            db = dy.sum((0, 2, 3), dtype=wide).to(weight.dtype)
        dy_groups = _per_group(dy.to(wide), g.groups)  # (N, G, O/G, H', W')
        projection = (dy_groups * _per_group(z, g.groups)).sum(2).mul_(r.square())
        t = -projection if t is None else t - projection
        dz = (dy_groups * r.unsqueeze(2)).flatten(1, 2).to(g.compute)
    # made again rather than kept: one pass over x, and no second copy of it lives on
    base, padding = (x, g.padding) if pivot is None else (_pad_and_centre(x, pivot, g), (0, 0))
    if needs[0]:
        a = torch.zeros_like(std) if t is None else t * r / (entries - g.correction)
        b = a * mean if dmean is None else a * mean - dmean / entries
        size = (x.shape[2] + 2 * g.padding[0], x.shape[3] + 2 * g.padding[1])
        spread = window_sum_transpose(torch.cat([a, b], 1), kernel, g.stride, g.dilation, size)
        map_a, map_b = (v.unsqueeze(2) for v in _crop(spread, g.padding).chunk(2, 1))  # (N, G, 1, H, W)
        inner = _per_group(base if pivot is None else _crop(base, g.padding), g.groups).to(wide)
        if dz is None:
            dx = (inner * map_a).sub_(map_b).flatten(1, 2)
        else:
            centred_weight = _centre(weight).to(g.compute)
            dx = _convolution_gradient(dz, x.to(g.compute), centred_weight, g, g.padding, of="input").to(wide)
            _per_group(dx, g.groups).addcmul_(inner, map_a).sub_(map_b)
        dx = dx.to(x.dtype)
    if dz is not None and needs[1]:
        dw = _convolution_gradient(dz, base.to(g.compute), weight.to(g.compute), g, padding, of="weight").to(
            wide
        )
        dw = dw.sub_(dw.mean((1, 2, 3), keepdim=True)).to(weight.dtype)
    return dx, dw, db


def differentiable_backward(
    needs: tuple[bool, ...], x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry, upstream: Upstream
) -> Gradients:
    """The same gradients through autograd's own rules, so that they can be differentiated again."""
    y, _, pivot, mean, std = _forward(x, weight, bias, g)
    outputs = (y, mean if pivot is None else mean + pivot, std)
    pairs = [
        (output, gradient) for output, gradient in zip(outputs, upstream, strict=True) if gradient is not None
    ]
    inputs = [v for v, needed in zip((x, weight, bias), needs, strict=False) if needed and v is not None]
    found = iter(
        torch.autograd.grad(
            [output for output, _ in pairs],
            inputs,
            [gradient for _, gradient in pairs],
            create_graph=True,
            allow_unused=True,
        )
    )
    dx, dw, db = (next(found) if needed else None for needed in needs[:3])
    return dx, dw, db


def _base_with_statistics(x: Tensor, g: Geometry) -> tuple[Tensor, Pair, Tensor, Tensor, Tensor | None]:
    """What the convolution runs on, the padding it still needs, the padded maps m and q, and the pivot."""
    if x.device.type == "cpu" and not _must_be_traceable():
        m, q = _pixel_statistics(x, g.groups)
        if not _mean_is_large(m, q, x.shape[1] // g.groups):
            ph, pw = g.padding
            m, q = F.pad(torch.cat([m, q], 1), (pw, pw, ph, ph)).chunk(2, 1)
            return x, g.padding, m, q, None
    pivot = _pivot(x, g.groups)
    base = _pad_and_centre(x, pivot, g)
    return base, (0, 0), *_pixel_statistics(base, g.groups), pivot


def _must_be_traceable() -> bool:
    """Autograd and the compiler need one path, without in-place arithmetic, whatever the data."""
    return torch.is_grad_enabled() or torch.compiler.is_compiling()


def _pixel_statistics(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Channel mean m and sum of squared deviations q of every pixel, (N, G, H, W), in the wide dtype of maps."""
    channels = _per_group(x.to(statistics_dtype(x)), groups)  # (N, G, C/G, H, W)
    m = channels.mean(2, keepdim=True)
    if _must_be_traceable():
        q = (channels - m).square().sum(2)
    else:  # a few rows at a time, so that the deviations stay in the cache
        rows = max(1, ROWS_AT_ONCE * x.shape[2] // max(x.numel(), 1))
        q = torch.cat(
            [
                (part - part_m).square_().sum(2)
                for part, part_m in zip(channels.split(rows, 3), m.split(rows, 3), strict=True)
            ],
            2,
        )
    wide = accumulation_dtype(x)
    return m.squeeze(2).to(wide), q.to(wide)


ROWS_AT_ONCE = 1 << 18
"""Elements of the rows whose deviations are worked out together: 1 MiB in float32."""


def _mean_is_large(m: Tensor, q: Tensor, channels: int) -> bool:
    """Whether some image mean exceeds twice the image's standard deviation: then a pivot pays in accuracy."""
    variance = q.mean((2, 3)) / channels + m.var((2, 3), correction=0)
    return bool((m.mean((2, 3)).square() > 4 * variance).any())


def _pivot(x: Tensor, groups: int) -> Tensor:
    """Mean of every image and group, (N, G, 1, 1), as a constant: any value near the data serves."""
    mean = x.detach().mean((2, 3), dtype=statistics_dtype(x))
    return mean.unflatten(1, (groups, -1)).mean(2)[..., None, None]


def _pad_and_centre(x: Tensor, pivot: Tensor, g: Geometry) -> Tensor:
    """x padded with zeros, minus the pivot (so the border holds -pivot), in the dtype of the statistics."""
    pivot = pivot.repeat_interleave(x.shape[1] // g.groups, 1)  # (N, C, 1, 1)
    (ph, pw), (height, width) = g.padding, x.shape[2:]
    if g.padding == (0, 0) or _must_be_traceable():
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


def _cast(output: Tensor, dtype: torch.dtype) -> Tensor:
    """For outputs: torch 2.11's compiler loses the gradient of one that a cast without effect returns."""
    return output if output.dtype == dtype else output.to(dtype)


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
