"""Normalized convolution without im2col: one ordinary convolution with centred weights, divided by s_p.

A patch minus its mean sums to zero, so the part of W_o that is constant over the patch contributes nothing:

    y[o,p] = (W~ * x)[o,p] / s_p + b_o          W~_o = W_o - mean(W_o)

A constant added to x changes nothing either. So a pivot per image is subtracted first, after padding, because the
padding zeros belong to the patch. This keeps float32 exact at any input offset. The statistics come from two
one-channel maps, the channel mean m and the channel sum of squared deviations q of every pixel, merged over the
window (Chan et al. 1979):

    mu_p = mean of m        (n - correction) var_p = sum of q + C/G * sum of (m - mu_p)^2

On a CPU the pivot is left out where the image mean is small against its spread, which saves a copy of x. Where besides
the weight is much larger than x, its product is centred in its place:  W~ * x = W * x - (sum W) mu.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from cuda_ops import few_channels, winograd
from cuda_ops.padding import IntPair, fold_reflection, pad

TAKERS = 3
"""Entries of a filter that take what rounding leaves over. Each leaves about 2^-9 of it."""

Activation = Literal["none", "relu", "leaky_relu"]
Outputs = tuple[Tensor, Tensor, Tensor]  # y, mean and std
OutputGradients = tuple[
    Tensor | None, Tensor | None, Tensor | None
]  # of y, mean and std; None where not used
InputGradients = tuple[Tensor | None, Tensor | None, Tensor | None]  # of x, weight and bias


class ConvParams(NamedTuple):
    """The arguments of one call that are not tensors."""

    stride: IntPair
    padding: IntPair
    dilation: IntPair
    groups: int
    eps: float
    correction: int
    activation: Activation
    negative_slope: float
    compute: torch.dtype  # what the convolution runs in and y comes out as
    tf32: bool = False  # whether the convolution may round its float32 inputs to TF32
    reflect: bool = False  # whether the padding mirrors x, instead of zeros

    def padded_size(self, x: Sequence[int]) -> IntPair:
        """Height and width of an input of shape `x` with its padding."""
        return x[2] + 2 * self.padding[0], x[3] + 2 * self.padding[1]

    def output_size(self, x: Sequence[int], weight: Sequence[int]) -> IntPair:
        """Height and width of the output for two shapes; not positive where the kernel does not fit."""
        padded, stride, dilation = self.padded_size(x), self.stride, self.dilation
        return (
            (padded[0] - dilation[0] * (weight[2] - 1) - 1) // stride[0] + 1,
            (padded[1] - dilation[1] * (weight[3] - 1) - 1) // stride[1] + 1,
        )


def normalized_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, conv: ConvParams) -> Outputs:
    """(y, mean, std) as in `cuda_ops.normalized_conv.reference`; memory does not grow with the kernel size."""
    # the compiler of torch 2.11 gets the gradients of the Function below wrong
    if torch.compiler.is_compiling() or is_transformed():
        y, _, _, pivot, mean, std = _forward(x, weight, bias, conv)
        return y, mean if pivot is None else mean + pivot, std
    y, mean, std = _NormalizedConv2d.apply(x, weight, bias, conv)
    return y, mean, std


def is_transformed(*gradients: Tensor | None) -> bool:
    """Whether torch.func, forward-mode AD or batched gradients are at work.

    They need operations that torch can differentiate and batch by itself: no kernels, and no backward pass of our own.
    """
    if torch.compiler.is_compiling():
        return False
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return True
    return any(v is not None and torch._C._functorch.is_legacy_batchedtensor(v) for v in gradients)


def activate(x: Tensor, activation: Activation, negative_slope: float) -> Tensor:
    """x of any shape: unchanged (none), rectified (relu), or its negative part times the slope (leaky_relu)."""
    if activation == "relu":
        return F.relu(x)
    if activation == "leaky_relu":
        return F.leaky_relu(x, negative_slope)
    return x


def statistics_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class _NormalizedConv2d(torch.autograd.Function):
    """Backward is the closed form, with r = 1/s, z = W~ * x and T the transposed window sum:

    dz = r dy        dW = centred(conv weight gradient of (x, dz))        db = sum dy
    t_p = d_s - r^2 sum_o(dy z)        a_p = t_p r / (n - correction)
    dx = conv input gradient of (W~, dz) + x A - B        A = T(a)        B = T(a mu - d_mu / n)

    x and mu may both lack the pivot: x A - B does not change. Where z was centred and not W, W takes the place of W~,
    B gains T(sum_o(mean(W_o) dz)), and the mean of dW_o is sum_p(dz mu).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, conv: ConvParams) -> Outputs:
        y, z, filter_sums, pivot, mean, std = _forward(x, weight, bias, conv)
        mask = y if conv.activation != "none" else None  # its sign: the side of the activation that was taken
        ctx.save_for_backward(x, weight, bias, z, filter_sums, pivot, mean, std, mask)
        ctx.conv = conv
        ctx.set_materialize_grads(False)
        return y, mean.clone() if pivot is None else mean + pivot, std

    @staticmethod
    def backward(
        ctx: Any, dy: Tensor | None, dmean: Tensor | None, dstd: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        conv: ConvParams = ctx.conv
        x, weight, bias, z, filter_sums, pivot, mean, std, mask = ctx.saved_tensors
        if torch.is_grad_enabled() or is_transformed(dy, dmean, dstd):  # create_graph=True, or see there
            outputs = (dy, dmean, dstd)
            return *differentiable_backward(ctx.needs_input_grad, x, weight, bias, conv, outputs), None

        kernel, entries, wide = (weight.shape[2], weight.shape[3]), weight[0].numel(), statistics_dtype(x)
        r = std.reciprocal()
        t = dstd
        dx = dw = db = dz = None
        if dy is not None:
            if mask is not None:
                slope = conv.negative_slope if conv.activation == "leaky_relu" else 0.0
                dy = torch.where(mask > 0, dy, dy * slope)
            if ctx.needs_input_grad[2]:
                db = dy.sum((0, 2, 3), dtype=wide).to(weight.dtype)
            dy_groups = _per_group(dy.to(wide), conv.groups)  # (N, G, O/G, H', W')
            products = dy_groups * _per_group(z, conv.groups)
            projection = products.sum(2).mul_(r.square())
            t = -projection if dstd is None else dstd - projection
            dz = torch.mul(dy_groups, r.unsqueeze(2), out=products).flatten(1, 2).to(conv.compute)
        # made again rather than kept: one pass over x, and no second copy of it lives on
        base, padding = _base(x, pivot, conv)
        if ctx.needs_input_grad[0]:
            a = torch.zeros_like(std) if t is None else t * r / (entries - conv.correction)
            b = a * mean if dmean is None else a * mean - dmean / entries
            if filter_sums is not None and dz is not None:
                b.add_((_per_group(dz, conv.groups) * filter_sums).sum(2), alpha=1 / entries)
            spread = _window_sum_transpose(torch.cat([a, b], 1), kernel, conv.padded_size(x.shape), conv)
            # a border of zeros takes no gradient; one of mirrored pixels hands it back to them at the end
            source, border = (base, (0, 0)) if conv.reflect else (x, conv.padding)
            # (N, G, 1, H, W) each
            map_a, map_b = (v.unsqueeze(2) for v in _crop(spread, border).chunk(2, 1))
            inner = _per_group(base if pivot is None else _crop(base, border), conv.groups).to(wide)
            if dz is None:
                dx = (inner * map_a).sub_(map_b).flatten(1, 2)
            else:
                filters = _centre(weight, conv) if filter_sums is None else weight
                dx = _convolution_gradient(0, dz, source, filters, conv, border, std).to(wide)
                _per_group(dx, conv.groups).addcmul_(inner, map_a).sub_(map_b)
            if conv.reflect:
                dx = fold_reflection(dx, conv.padding)
            dx = dx.to(x.dtype, copy=conv.reflect)  # what is returned holds no border in memory
        if dz is not None and ctx.needs_input_grad[1]:
            dw = _convolution_gradient(1, dz, base, weight, conv, padding, std).to(wide)
            if filter_sums is None:
                dw_mean = dw.mean((1, 2, 3), keepdim=True)
            else:
                dw_mean = (_per_group(dz, conv.groups) * mean.unsqueeze(2)).sum((0, 3, 4)).view(-1, 1, 1, 1)
            dw = dw.sub_(dw_mean).to(weight.dtype)
        return dx, dw, db, None


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, conv: ConvParams
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor, Tensor]:
    """(y, z, filter sums, pivot, mean - pivot, std); plain differentiable torch, (N, O, H', W') and (N, G, ., .).

    Filter sums (1, G, O/G, 1, 1) are there where z was centred in the place of the weight.
    """
    kernel, out = (weight.shape[2], weight.shape[3]), conv.output_size(x.shape, weight.shape)
    entries, positions = weight[0].numel(), kernel[0] * kernel[1]
    base, padding, maps, pivot = _base_with_statistics(x, conv)

    def convolve(filters: Tensor) -> Tensor:
        source, sizes = base.to(conv.compute), (conv.stride, padding, conv.dilation, conv.groups)
        if not _must_be_traceable(x) and winograd.suits(source, filters, *sizes) and _is_even(std):
            return winograd.convolve(source, filters, padding)
        return F.conv2d(source, filters, None, *sizes)

    sum_m, sum_m2, sum_q = _window_sum(maps, kernel, out, conv).chunk(3, 1)  # (N, G, H', W') each
    mean = sum_m / positions
    if positions > 1:  # between the pixels of a window: sum (m - mu)^2
        sum_q = sum_q + weight.shape[1] * (sum_m2 - positions * mean.square()).clamp_min(0)
    std = (sum_q / (entries - conv.correction) + conv.eps).sqrt()
    mean, std = _cast(mean, statistics_dtype(x)), _cast(std, statistics_dtype(x))

    filter_sums = None
    if pivot is None and weight.dtype == conv.compute == mean.dtype and weight.numel() > 4 * x.numel():
        filter_sums = _per_group(weight.sum((1, 2, 3)).view(1, -1, 1, 1), conv.groups)
        z, part = convolve(weight), (filter_sums * mean.unsqueeze(2)).flatten(1, 2)
        z = z - part
        if part.norm() > 4 * z.norm():  # its digits are lost
            filter_sums = None
    if filter_sums is None:
        z = convolve(_centre(weight, conv))

    # no view of z per group: what a Function returns as a view takes no in-place ReLU
    scale = std.reciprocal()
    scale = scale if conv.groups == 1 else scale.repeat_interleave(z.shape[1] // conv.groups, 1)
    y = z * scale if bias is None else torch.addcmul(bias.to(scale.dtype).view(-1, 1, 1), z, scale)
    y = activate(y, conv.activation, conv.negative_slope)
    return _cast(y, conv.compute), z, filter_sums, pivot, mean, std


def differentiable_backward(
    needs: Sequence[bool],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    conv: ConvParams,
    output_gradients: OutputGradients,
) -> InputGradients:
    """The gradients by autograd's own rules, so that they can be differentiated again, or batched."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # aliases: one input may have been computed from another, and the way through it is not this layer's
        x, weight = x.view_as(x), weight.view_as(weight)
        bias = None if bias is None else bias.view_as(bias)
        y, _, _, pivot, mean, std = _forward(x, weight, bias, conv)
    outputs = (y, mean if pivot is None else mean + pivot, std)  # the moments depend on x alone
    pairs = [
        (v, dv) for v, dv in zip(outputs, output_gradients, strict=True) if dv is not None and v.requires_grad
    ]
    if not pairs:
        return None, None, None
    used, given = zip(*pairs, strict=True)
    inputs = [v for v, needed in zip((x, weight, bias), needs, strict=False) if needed and v is not None]
    found = iter(torch.autograd.grad(used, inputs, given, create_graph=again, allow_unused=True))
    dx, dw, db = (next(found) if needed else None for needed in needs[:3])
    return dx, dw, db


def _base_with_statistics(x: Tensor, conv: ConvParams) -> tuple[Tensor, IntPair, Tensor, Tensor | None]:
    """What the convolution runs on, the padding it still needs, the maps of its padded pixels, and the pivot."""
    if x.device.type == "cpu" and not _must_be_traceable(x):
        maps = _pixel_statistics(x, conv.groups)
        if x.numel() == 0 or not _mean_is_large(maps, x.shape[1] // conv.groups):
            return *_base(x, None, conv), with_border(maps, conv), None
    pivot = _pivot(x, conv.groups)
    base, padding = _base(x, pivot, conv)
    return base, padding, _pixel_statistics(base, conv.groups), pivot


def _must_be_traceable(x: Tensor) -> bool:
    """Autograd, the compiler and tensors without data need one path, without in-place arithmetic, whatever the data."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or is_transformed():
        return True
    return type(x) not in (Tensor, torch.nn.Parameter)


def _pixel_statistics(x: Tensor, groups: int) -> Tensor:
    """Channel mean m, its square, and sum of squared deviations q of every pixel, (N, 3 G, H, W).

    The maps are float64 where the device has it. They are small, and float64 makes sum(m^2) - K mu^2 harmless
    at any offset.
    """
    channels = _per_group(x.to(statistics_dtype(x)), groups)  # (N, G, C/G, H, W)
    wide = torch.float32 if x.device.type == "mps" else torch.float64

    def maps(part: Tensor) -> Tensor:
        m = part.mean(2, keepdim=True)
        q = (part - m).square().sum(2)
        m = m.squeeze(2).to(wide)
        return torch.cat([m, m.square(), q], 1)

    if _must_be_traceable(x):
        return maps(channels)
    # 4 MiB in float32 at a time, so that what is made on the way stays in the cache
    rows = max(1, (1 << 20) * x.shape[2] // max(x.numel(), 1))
    return torch.cat([maps(part) for part in channels.split(rows, 3)], 2)


def _mean_is_large(maps: Tensor, channels: int) -> bool:
    """Whether some image mean exceeds twice the image's standard deviation: then a pivot pays in accuracy."""
    mean_m, mean_m2, mean_q = maps.mean((2, 3)).chunk(3, 1)
    square = mean_m.square()
    return bool((square > 4 * (mean_q / channels + mean_m2 - square)).any())


def _pivot(x: Tensor, groups: int) -> Tensor:
    """Mean of every image and group, (N, G, 1, 1), as a constant: any value near the data serves."""
    mean = x.detach().mean((2, 3), dtype=statistics_dtype(x))
    return mean.unflatten(1, (groups, -1)).mean(2)[..., None, None]


def with_border(x: Tensor, conv: ConvParams) -> Tensor:
    """x (N, C, H, W) -> (N, C, H+2ph, W+2pw): with a border of zeros, or of its own pixels mirrored."""
    ph, pw = conv.padding
    return pad(x, [pw, pw, ph, ph], "reflect" if conv.reflect else "constant")


def _base(x: Tensor, pivot: Tensor | None, conv: ConvParams) -> tuple[Tensor, IntPair]:
    """What the convolution runs on, and the padding that it still needs."""
    if pivot is not None:
        return _pad_and_centre(x, pivot, conv), (0, 0)
    return (with_border(x, conv), (0, 0)) if conv.reflect else (x, conv.padding)


def _pad_and_centre(x: Tensor, pivot: Tensor, conv: ConvParams) -> Tensor:
    """x with its border, minus the pivot (a border of zeros holds -pivot), in the dtype of the statistics."""
    pivot = pivot.repeat_interleave(x.shape[1] // conv.groups, 1)  # (N, C, 1, 1)
    ph, pw = conv.padding
    if conv.reflect:
        return with_border(x.to(pivot.dtype) - pivot, conv)
    if conv.padding == (0, 0) or _must_be_traceable(x):
        return F.pad(x.to(pivot.dtype), (pw, pw, ph, ph)) - pivot
    last = x.is_contiguous(memory_format=torch.channels_last)
    padded = torch.empty(
        (*x.shape[:2], *conv.padded_size(x.shape)),
        dtype=pivot.dtype,
        device=x.device,
        memory_format=torch.channels_last if last else torch.contiguous_format,
    )
    height, width = x.shape[2:]
    padded[:, :, :ph] = padded[:, :, height + ph :] = -pivot
    padded[:, :, :, :pw] = padded[:, :, :, width + pw :] = -pivot
    torch.sub(x, pivot, out=_crop(padded, conv.padding))
    return padded


def _crop(padded: Tensor, padding: IntPair) -> Tensor:
    height, width = padded.shape[2:]
    return padded[:, :, padding[0] : height - padding[0], padding[1] : width - padding[1]]


def _cast(output: Tensor, dtype: torch.dtype) -> Tensor:
    """For outputs: torch 2.11's compiler loses the gradient of one that a cast without effect returns."""
    return output if output.dtype == dtype else output.to(dtype)


def _centre(weight: Tensor, conv: ConvParams) -> Tensor:
    """W~: every filter minus its mean, in the dtype that the convolution computes in.

    Its entries must sum to zero as the convolution reads them, or the mean of a patch leaks into y, and a flat patch
    multiplies that by 1 / sqrt(eps). So where they are rounded, a few small ones take what is left over.
    """
    was_rounded = weight.dtype == conv.compute and not conv.tf32
    weight = weight.to(statistics_dtype(weight))
    weight = weight - weight.mean((1, 2, 3), keepdim=True)
    if conv.compute.itemsize > 2 and not conv.tf32:
        return weight.to(conv.compute)
    round_ = round_to_tf32 if conv.tf32 else lambda values: values.to(conv.compute).to(values.dtype)
    exact = weight.detach().flatten(1)  # (O, n)
    rounded = round_(exact)
    if was_rounded:  # then a small mean is rounded away from every entry: too much for a few
        rounded = rounded + _steps((exact - rounded).sum(1, keepdim=True), rounded, conv.compute)
    rest = (exact - rounded).sum(1, keepdim=True)
    for columns in rounded[:, : 32 * TAKERS].tensor_split(min(TAKERS, rounded.shape[1]), 1):
        place = columns.abs().argmin(1, keepdim=True)
        before = columns.gather(1, place)
        after = round_(before + rest)
        columns.scatter_(1, place, after)
        rest = rest - (after - before)
    rounded = rounded.view_as(weight)
    if torch.is_grad_enabled():
        rounded = rounded + (weight - weight.detach())  # the value of the one, the gradient of the other
    return rounded.to(conv.compute)


def _steps(total: Tensor, values: Tensor, dtype: torch.dtype) -> Tensor:
    """(O, n): evenly spread steps of values by a unit in the last place of `dtype`; they sum to about total (O, 1)."""
    exponent = torch.frexp(values).exponent
    unit = torch.ldexp(torch.full_like(values, torch.finfo(dtype).eps / 2), exponent) * (values != 0)
    share = total / unit.sum(1, keepdim=True).clamp_min(torch.finfo(unit.dtype).tiny)  # a half at most
    count = torch.arange(values.shape[1] + 1, device=values.device) * share
    return unit * (count + 0.5).floor().diff(dim=1)


def round_to_tf32(x: Tensor) -> Tensor:
    """float32 x to the nearest values with TF32's 10 bits of mantissa, ties to even."""
    bits = x.view(torch.int32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


def _per_group(x: Tensor, groups: int) -> Tensor:
    """(N, C, H, W) seen as (N, G, C/G, H, W)."""
    return x.unflatten(1, (groups, -1))


def _convolution_gradient(
    of: Literal[0, 1], dz: Tensor, x: Tensor, weight: Tensor, conv: ConvParams, padding: IntPair, std: Tensor
) -> Tensor:
    """Gradient of the plain convolution with respect to its input (0) or its weight (1)."""
    x, weight = x.to(conv.compute), weight.to(conv.compute)
    if winograd.suits(x, weight, conv.stride, padding, conv.dilation, conv.groups) and _is_even(std):
        return (
            winograd.weight_gradient(x, dz, padding) if of else winograd.input_gradient(dz, weight, padding)
        )
    if of == 0 and few_channels.suits_transposed(dz, weight, conv.stride, conv.dilation, conv.groups):
        return few_channels.convolve_transposed(dz, weight, conv.stride, padding, (x.shape[2], x.shape[3]))
    numbers = (conv.stride, padding, conv.dilation, False, (0, 0), conv.groups)
    wanted = (of == 0, of == 1, False)
    return torch.ops.aten.convolution_backward(dz, x, weight, None, *numbers, wanted)[of]


def _is_even(std: Tensor) -> bool:
    """Whether no patch is much flatter than others: dividing by its std would magnify what Winograd's form rounds."""
    return std.numel() > 0 and bool(std.max() < 16 * std.min())


def _windows(maps: Tensor, axis: int, kernel: IntPair, positions: int, conv: ConvParams) -> Iterator[Tensor]:
    """For every tap of the kernel along one axis (0 rows, 1 columns), the entries that it meets: strided views."""
    step, reach = conv.stride[axis], conv.dilation[axis]
    for start in range(0, kernel[axis] * reach, reach):
        met = slice(start, start + (positions - 1) * step + 1, step)
        yield maps[..., met, :] if axis == 0 else maps[..., met]


def _window_sum(maps: Tensor, kernel: IntPair, out: IntPair, conv: ConvParams) -> Tensor:
    """Sum of every window: padded maps (N, M, H, W) -> (N, M, *out).

    A window sum is separable, so kh + kw shifted views replace the kh * kw copies that an unfold would make.
    """
    for axis in (0, 1):
        maps, *others = _windows(maps, axis, kernel, out[axis], conv)
        for i, window in enumerate(others):
            maps = maps + window if i == 0 or torch.is_grad_enabled() else maps.add_(window)
    return maps


def _window_sum_transpose(maps: Tensor, kernel: IntPair, size: IntPair, conv: ConvParams) -> Tensor:
    """Every pixel collects from all windows that contain it: (N, M, H', W') -> (N, M, *size)."""
    rows = maps.new_zeros(*maps.shape[:3], size[1])
    for window in _windows(rows, 1, kernel, maps.shape[3], conv):
        window.add_(maps)
    out = maps.new_zeros(*maps.shape[:2], *size)
    for window in _windows(out, 0, kernel, maps.shape[2], conv):
        window.add_(rows)
    return out
