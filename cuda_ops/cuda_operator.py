"""The CUDA backend as two PyTorch operators, for `torch.compile`: schema, shapes and autograd, all in Python.

normalized_conv::forward   (y, mean, std, kept, filters, copy), the last three as in `cuda_steps.Saved`,
                           an empty tensor for None
normalized_conv::backward  (dx, dw, db), an empty tensor for each gradient that was not asked for
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cuda_ops import cuda_steps, direct
from cuda_ops.plan import keeps_filters, makes_copy
from cuda_ops.windows import output_size

_GEOMETRY = (
    "int[2] stride, int[2] padding, int[2] dilation, int groups, float eps, int correction, str activation, "
    "float negative_slope, ScalarType compute"
)
_library = torch.library.Library("normalized_conv", "DEF")
_library.define(
    f"forward(Tensor x, Tensor weight, Tensor? bias, {_GEOMETRY}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_library.define(
    "backward(Tensor x, Tensor weight, Tensor? bias, Tensor y, Tensor std, Tensor kept, Tensor filters, "
    "Tensor copy, "
    f"Tensor? dy, Tensor? dmean, Tensor? dstd, bool[3] needs, {_GEOMETRY}) -> (Tensor, Tensor, Tensor)"
)


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, g: direct.Geometry
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, mean, std) through the operator."""
    y, mean, std, *_ = torch.ops.normalized_conv.forward.default(x, weight, bias, *g)
    return y, mean, std


def register(device: str) -> None:
    """Makes the operators available on a device type, by the launcher that `launch.LAUNCHERS` holds for it."""
    _library.impl("forward", _forward, device.upper())
    _library.impl("backward", _backward, device.upper())


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, *numbers: Any) -> tuple[Tensor, ...]:
    results = cuda_steps.forward(x, weight, bias, _recipe(x, weight, numbers))
    return tuple(x.new_empty(0, dtype=numbers[-1]) if v is None else v for v in results)


def _backward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    std: Tensor,
    kept: Tensor,
    filters: Tensor,
    copy: Tensor,
    dy: Tensor | None,
    dmean: Tensor | None,
    dstd: Tensor | None,
    needs: Sequence[bool],
    *numbers: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    present = (v if v.numel() else None for v in (filters, copy))
    saved = cuda_steps.Saved(x, weight, bias, y, std, kept, *present)
    upstream = direct.Upstream(dy, dmean, dstd)
    gradients = cuda_steps.backward(tuple(needs), saved, _recipe(x, weight, numbers), upstream)
    likes = (x, weight, weight if bias is None else bias)
    dx, dw, db = (
        (like.new_zeros(like.shape) if needed else like.new_empty(0)) if gradient is None else gradient
        for gradient, like, needed in zip(gradients, likes, needs, strict=True)
    )
    return dx, dw, db


@torch.library.register_fake("normalized_conv::forward", lib=_library)
def _forward_shapes(x: Tensor, weight: Tensor, bias: Tensor | None, *numbers: Any) -> tuple[Tensor, ...]:
    g = _geometry(numbers)
    wide = direct.statistics_dtype(x)
    size = (x.shape[2] + 2 * g.padding[0], x.shape[3] + 2 * g.padding[1])
    out = output_size(size, (weight.shape[2], weight.shape[3]), g.stride, g.dilation)
    y = torch.empty(
        (x.shape[0], weight.shape[0], *out),
        dtype=g.compute,
        device=x.device,
        memory_format=cuda_steps.layout_of(x),
    )
    mean, std = (x.new_empty((x.shape[0], g.groups, *out), dtype=wide) for _ in range(2))
    kept = x.new_empty(mean.numel() + x.shape[0] * g.groups, dtype=wide)
    layout = cuda_steps.layout_of(x)
    filters_and_copy = [
        torch.empty(shape, dtype=g.compute, device=x.device, memory_format=layout)
        if wanted
        else x.new_empty(0, dtype=g.compute)
        for shape, wanted in (
            (weight.shape, keeps_filters(x.shape, weight.shape)),
            ((*x.shape[:2], *size), makes_copy(x.dtype, g.compute)),
        )
    ]
    return y, mean, std, kept, *filters_and_copy


@torch.library.register_fake("normalized_conv::backward", lib=_library)
def _backward_shapes(
    x: Tensor, weight: Tensor, bias: Tensor | None,
    y: Tensor, std: Tensor, kept: Tensor, filters: Tensor, copy: Tensor,
    dy: Tensor | None, dmean: Tensor | None, dstd: Tensor | None, needs: Sequence[bool], *numbers: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=cuda_steps.layout_of(x))
    dw = torch.empty(
        weight.shape,
        dtype=weight.dtype,
        device=weight.device,
        memory_format=cuda_steps.layout_of(weight),
    )
    db = weight.new_empty(0) if bias is None else bias.new_empty(bias.shape)
    return tuple(v if needed else v.new_empty(0) for v, needed in zip((dx, dw, db), needs, strict=True))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, *numbers = inputs
    y, _, std, *kept = output
    ctx.mark_non_differentiable(*kept)
    ctx.save_for_backward(x, weight, bias, y, std, *kept)
    ctx.numbers = numbers
    ctx.set_materialize_grads(False)


def _autograd_backward(
    ctx: Any, dy: Tensor | None, dmean: Tensor | None, dstd: Tensor | None, *unused: Any
) -> tuple[Tensor | None, ...]:
    needs = tuple(ctx.needs_input_grad[:3])
    x, weight, bias, *rest = ctx.saved_tensors
    if torch.is_grad_enabled():  # create_graph=True, as in cuda_ops/cuda.py
        gradients = direct.differentiable_backward(
            needs, x, weight, bias, _geometry(ctx.numbers), direct.Upstream(dy, dmean, dstd)
        )
    else:
        gradients = torch.ops.normalized_conv.backward.default(
            x, weight, bias, *rest, dy, dmean, dstd, needs, *ctx.numbers
        )
    given = (v if needed else None for v, needed in zip(gradients, needs, strict=True))
    return (*given, *(None for _ in ctx.numbers))


def _geometry(numbers: Sequence[Any]) -> direct.Geometry:
    stride, padding, dilation = ((int(v[0]), int(v[1])) for v in numbers[:3])
    return direct.Geometry(stride, padding, dilation, *numbers[3:])


def _recipe(x: Tensor, weight: Tensor, numbers: Sequence[Any]) -> cuda_steps.Recipe:
    return cuda_steps.make_recipe(x, weight, _geometry(numbers), moments=True)


torch.library.register_autograd(
    "normalized_conv::forward", _autograd_backward, setup_context=_setup_context, lib=_library
)
register("cuda")
