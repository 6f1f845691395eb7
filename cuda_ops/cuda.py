"""The CUDA backend: `direct` with fused kernels around torch's own convolutions (cuda_ops/cuda_steps.py).

Plain tensors go straight to the kernels. Under `torch.compile` or a dispatch mode (tracers, selective checkpointing),
and for tensors that only stand for others (fake ones, wrappers), a call is an operator (cuda_ops/cuda_operator.py): one
node to the dispatcher, at twice the host time.
"""

import warnings
from typing import Any

import torch
from torch import Tensor

from cuda_ops import cuda_steps, direct
from cuda_ops.compile import DTYPES, BuildError
from cuda_ops.launch import LAUNCHERS, Unit
from cuda_ops.windows import Pair

_outcomes: dict[tuple[str, int, Unit], str | None] = {}
_warned: set[str] = set()
_MOST_GROUPS = 65535  # the second dimension of a grid
_MOST_PIXELS = 2**30  # of one padded channel: such counts are 32 bits wide, whole tensors have 64-bit indices


def why_not(
    x: Tensor, weight: Tensor, compute: torch.dtype, padding: Pair, groups: int, warn: bool = False
) -> str | None:
    """None where the kernels can serve these tensors, else the reason. Builds them on first use.

    With `warn`, kernels that should run on this device but cannot be built are told once, as a UserWarning.
    """
    if x.device.type not in LAUNCHERS:
        return f"x is on the device {x.device.type}, the kernels are for cuda"
    if weight.device != x.device:
        return f"x is on {x.device} and weight on {weight.device}"
    for dtype in (x.dtype, compute, weight.dtype):
        if dtype not in DTYPES:
            return f"the kernels have no {dtype}"
    if groups > _MOST_GROUPS:
        return f"more than {_MOST_GROUPS} groups"
    if x.numel() == 0:
        return "x is empty"
    if (x.shape[-2] + 2 * padding[0]) * (x.shape[-1] + 2 * padding[1]) >= _MOST_PIXELS:
        return f"{_MOST_PIXELS} pixels or more in one channel"
    last = cuda_steps.layout_of(x) == torch.channels_last
    return build_failure(x.device.type, x.device.index or 0, x.dtype, compute, weight.dtype, last, warn)


@torch.compiler.assume_constant_result
def build_failure(
    device: str,
    index: int,
    x: torch.dtype,
    compute: torch.dtype,
    weight: torch.dtype,
    channels_last: bool,
    warn: bool,
) -> str | None:
    """Why the kernels of these types cannot be had on this device; None where they are loaded now."""
    unit = Unit(x, compute, weight, channels_last)
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
    if failure is not None and warn and device not in _warned:
        _warned.add(device)
        warnings.warn(f"normalized_conv2d falls back to its torch form: {failure}", stacklevel=4)
    return failure


def normalized_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, recipe: cuda_steps.Recipe
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(y, mean, std) as in `reference`; None for mean and std where the recipe is without moments."""
    if recipe.moments:
        y, mean, std = _NormalizedConv2d.apply(x, weight, bias, recipe)
        return y, mean, std
    return _NormalizedConv2d.apply(x, weight, bias, recipe), None, None


class _NormalizedConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, recipe: cuda_steps.Recipe) -> Any:
        y, mean, std, *kept = cuda_steps.forward(x, weight, bias, recipe)
        ctx.save_for_backward(x, weight, bias, y, std, *kept)
        ctx.recipe = recipe
        ctx.set_materialize_grads(False)
        return (y, mean, std) if recipe.moments else y

    @staticmethod
    def backward(
        ctx: Any, dy: Tensor | None, dmean: Tensor | None = None, dstd: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        needs, upstream = ctx.needs_input_grad, direct.Upstream(dy, dmean, dstd)
        if (
            torch.is_grad_enabled()
        ):  # create_graph=True: the kernels cannot be differentiated again, torch's own can
            x, weight, bias, *_ = ctx.saved_tensors
            gradients = direct.differentiable_backward(needs, x, weight, bias, ctx.recipe.g, upstream)
        else:
            gradients = cuda_steps.backward(needs, _take_saved(ctx), ctx.recipe, upstream)
        return (*gradients, None)


def _take_saved(ctx: Any) -> cuda_steps.Saved:
    """The saved tensors; where the graph is not retained, the caller is their last holder."""
    saved = cuda_steps.Saved(*ctx.saved_tensors)
    ctx.maybe_clear_saved_tensors()
    return saved
