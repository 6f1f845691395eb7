"""Normalized convolution: the public function, the oracle, and the switch between the backends.

Every im2col row is standardised before the product with the weights. A row is what one output position sees: all
channels, padding zeros included (Kim et al. 2020, "Normalized Convolutional Neural Network", Algorithm 1):

    mu_p  = mean(u_p)        var_p = sum((u_p - mu_p)^2) / (n - correction)      s_p = sqrt(var_p + eps)
    y[o,p] = W_o . (u_p - mu_p) / s_p + b_o

`reference` below is that definition, word by word. `direct` (cuda_ops/direct.py) is the same function as one ordinary
convolution with centred weights; `cuda` (cuda_ops/cuda.py) is `direct` with fused kernels.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from cuda_ops import cuda, direct
from cuda_ops.direct import Activation, ConvParams, Outputs, activate
from cuda_ops.nvrtc import LAUNCHERS
from cuda_ops.padding import IntPair

Backend = Literal["auto", "reference", "direct", "cuda"]
BACKENDS: tuple[str, ...] = get_args(Backend)
ACTIVATIONS: tuple[str, ...] = get_args(Activation)
PaddingMode = Literal["zeros", "reflect"]
PADDING_MODES: tuple[str, ...] = get_args(PaddingMode)


class Moments(NamedTuple):
    """Patch statistics, each (N, G, H', W') in float32 or wider: `mean` = mu_p, `std` = s_p (eps inside the root)."""

    mean: Tensor
    std: Tensor


def normalized_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | IntPair = 1,
    padding: int | IntPair = 0,
    dilation: int | IntPair = 1,
    groups: int = 1,
    *,
    padding_mode: PaddingMode = "zeros",
    eps: float = 1e-5,
    correction: int = 1,
    return_moments: bool = False,
    backend: Backend = "auto",
    activation: Activation = "none",
    negative_slope: float = 0.2,
) -> Tensor | tuple[Tensor, Moments]:
    """Normalized convolution of `x` (N, C, H, W) with `weight` (O, C/G, kh, kw) and `bias` (O,) -> (N, O, H', W').

    With `return_moments` the patch statistics come along: (y, Moments). Statistics are float32 (float64 for float64
    inputs) whatever the dtype of `x` or autocast; `y` has the dtype that a convolution would give. `activation` is
    applied to y; a backend may fuse it. `padding_mode="reflect"` mirrors x at its border, as `F.pad` does.

    Raises ValueError for shapes that do not fit, for a patch without variance (C/G * kh * kw <= correction), for an
    unknown backend, activation or padding mode, for reflected padding that is not smaller than x, and for a negative
    slope below 0. Raises RuntimeError where `backend="cuda"` is not available.

    >>> x, weight = torch.tensor([[[[1.0, 3.0]]]]), torch.tensor([[[[1.0, 2.0]]]])
    >>> normalized_conv2d(x, weight, correction=0, eps=0.0)  # the patch standardises to (-1, 1)
    tensor([[[[1.]]]])
    """
    given = (
        stride, padding, dilation, groups, padding_mode, eps, correction, activation, negative_slope, backend,
        return_moments,
    )  # fmt: skip
    if torch.compiler.is_compiling() or not _is_plain(x, weight, bias):
        call = _prepare(x, weight, bias, given, False)
    else:
        device = x.device.type
        signature = (
            x.shape, x.stride(), x.dtype, x.device, weight.shape, weight.stride(), weight.dtype, weight.device,
            None if bias is None else (bias.shape, bias.device), LAUNCHERS.get(device),
            autocast_dtype(device), uses_tf32(x.device), given,
        )  # fmt: skip
        try:
            known = _calls.get(signature)
        except TypeError:  # a list among the numbers cannot be looked up
            known = _prepare(x, weight, bias, given, True)
        if known is None:
            if len(_calls) >= _MOST_CALLS:  # images of ever new sizes: those still in use come back
                _calls.clear()
            known = _calls[signature] = _prepare(x, weight, bias, given, True)
        call = known
    with torch.autocast(call.autocast, enabled=False) if call.autocast else _AS_IT_IS:
        y, mean, std = call.function(x, weight, bias, call.how)
    return (y, Moments(mean, std)) if return_moments else y


class _Call(NamedTuple):
    """A call of this signature, checked and decided."""

    function: Callable[[Tensor, Tensor, Tensor | None, Any], tuple[Tensor, Any, Any]]
    how: Any  # its last argument: ConvParams, or the KernelPlan made of them
    autocast: str  # the device type whose autocast must be off inside, or nothing


_PLAIN = frozenset({Tensor, torch.nn.Parameter, type(None)})
_AS_IT_IS: AbstractContextManager[None] = nullcontext()
_calls: dict[tuple[object, ...], _Call] = {}  # at batch 1 the checks would take as long as a convolution
_MOST_CALLS = 4096


def _is_plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the kernels may be launched on these tensors.

    Others may have no memory to point at, and a dispatch mode (a tracer, selective checkpointing) or a function
    transform would not see the launches.
    """
    plain = type(x) in _PLAIN and type(weight) in _PLAIN and type(bias) in _PLAIN
    return plain and not direct.is_transformed() and not torch._C._len_torch_dispatch_stack()


def _prepare(x: Tensor, weight: Tensor, bias: Tensor | None, given: tuple[Any, ...], plain: bool) -> _Call:
    """Checks the arguments and chooses what serves them; without `plain`, the kernels do not."""
    stride, padding, dilation, groups, mode, eps, correction, activation, slope, backend, moments = given
    if mode not in PADDING_MODES:
        raise ValueError(f"padding_mode {mode!r}: choose one of {', '.join(PADDING_MODES)}")
    pairs = _pair(stride), _pair(padding), _pair(dilation)
    compute = result_dtype(x)
    tf32 = compute == torch.float32 and uses_tf32(x.device)
    reflect = mode == "reflect" and max(pairs[1]) > 0
    conv = ConvParams(*pairs, groups, eps, correction, activation, slope, compute, tf32, reflect)
    _validate(x, weight, bias, conv, backend)
    autocast = autocast_dtype(x.device.type) is not None
    if not autocast and weight.dtype != x.dtype:
        raise ValueError(f"x is {x.dtype} but weight is {weight.dtype}; cast one or use autocast")
    chosen = choose(backend, x, weight, conv, plain)
    if chosen == "cuda":  # its convolutions run in autocast's dtype as they are
        return _Call(cuda.normalized_conv2d, cuda.make_plan(x, weight, conv, moments), "")
    function = reference if chosen == "reference" else direct.normalized_conv2d
    return _Call(function, conv, x.device.type if autocast else "")


def reference(x: Tensor, weight: Tensor, bias: Tensor | None, conv: ConvParams) -> Outputs:
    """Algorithm 1 as it stands: unfold, standardise, matmul. The oracle; stores K copies of the input."""
    wide = direct.statistics_dtype(x)
    base, padding = x.to(wide), conv.padding
    if conv.reflect:
        base, padding = direct.with_border(base, conv), (0, 0)
    rows = F.unfold(base, weight.shape[2:], conv.dilation, padding, conv.stride)  # (N, C*K, L)
    # one patch a row, (G, N*L, C/G*K)
    rows = rows.unflatten(1, (conv.groups, -1)).permute(1, 0, 3, 2).flatten(1, 2).contiguous()
    mean = rows.mean(2, keepdim=True)
    std = (rows.var(2, correction=conv.correction, keepdim=True) + conv.eps).sqrt()
    rows = (rows - mean) / std
    filters = weight.to(wide).flatten(1)  # (O, C/G*K)
    if conv.groups == 1:
        y = F.linear(rows.squeeze(0), filters).unsqueeze(0)  # the fastest product where the map is tiny
    else:
        y = rows @ filters.unflatten(0, (conv.groups, -1)).transpose(1, 2)  # (G, N*L, O/G)
    n, out = x.shape[0], conv.output_size(x.shape, weight.shape)
    y, mean, std = (t.unflatten(1, (n, -1)).permute(1, 0, 3, 2).reshape(n, -1, *out) for t in (y, mean, std))
    if bias is not None:
        y = y + bias.to(wide).view(-1, 1, 1)
    y = activate(y, conv.activation, conv.negative_slope)
    return y.to(conv.compute), mean, std


def choose(backend: str, x: Tensor, weight: Tensor, conv: ConvParams, plain: bool = True) -> str:
    """The backend that serves these tensors; for `auto` the fastest that works. Without `plain` never the kernels."""
    if plain and (backend == "cuda" or (backend == "auto" and x.device.type in LAUNCHERS)):
        reason = cuda.why_not(x, weight, conv, warn=backend == "auto")
        if reason is None:
            return "cuda"
        if backend == "cuda":
            raise RuntimeError(f'backend="cuda" is not available here: {reason}')
    if backend == "cuda" or x.shape[0] == 0:  # of an empty batch there is nothing to unfold
        return "direct"
    if backend != "auto":
        return backend
    height, width = conv.output_size(x.shape, weight.shape)
    # On a tiny map, centring the weights costs more than copying the patches.
    tiny = conv.groups == 1 and 16 * x.shape[0] * height * width <= weight.shape[0]
    return "reference" if tiny and x.device.type == "cpu" else "direct"


def result_dtype(x: Tensor) -> torch.dtype:
    """The dtype a convolution of `x` would have here: autocast's where it is on (float64 stays), else x's."""
    return x.dtype if x.dtype == torch.float64 else autocast_dtype(x.device.type) or x.dtype


def autocast_dtype(device: str) -> torch.dtype | None:
    """What autocast computes convolutions in on devices of this type; None where it is off."""
    on = device != "meta" and torch.is_autocast_enabled(device)  # of meta tensors it knows nothing
    return torch.get_autocast_dtype(device) if on else None


@torch.compiler.assume_constant_result
def uses_tf32(device: torch.device) -> bool:
    """Whether cuDNN may round the float32 inputs of a convolution on this device to TF32."""
    # what torch.backends.cudnn.conv.fp32_precision reads, in a tenth of the time
    on = device.type == "cuda" and torch._C._get_fp32_precision_getter("cuda", "conv") == "tf32"
    return on and torch._C._get_cudnn_enabled() and _has_tf32(device)


@cache
def _has_tf32(device: torch.device) -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_capability(device) >= (8, 0)


def _pair(value: int | IntPair) -> IntPair:
    first, second = (value, value) if isinstance(value, int) else value
    return int(first), int(second)


def _validate(x: Tensor, weight: Tensor, bias: Tensor | None, conv: ConvParams, backend: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r}: choose one of {', '.join(BACKENDS)}")
    if conv.activation not in ACTIVATIONS:
        raise ValueError(f"activation {conv.activation!r}: choose one of {', '.join(ACTIVATIONS)}")
    if conv.negative_slope < 0:  # the sign of y must tell which side of the activation was taken
        raise ValueError(f"negative_slope must be >= 0, not {conv.negative_slope}")
    if x.dim() != 4 or weight.dim() != 4:
        raise ValueError(f"x and weight must be 4-D, not {tuple(x.shape)} and {tuple(weight.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"x must be floating point, not {x.dtype}")
    if conv.groups < 1 or x.shape[1] != weight.shape[1] * conv.groups or weight.shape[0] % conv.groups:
        what = f"weight {tuple(weight.shape)} with groups={conv.groups}"
        raise ValueError(f"{what} does not fit x {tuple(x.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias {tuple(bias.shape)} does not fit {weight.shape[0]} output channels")
    if bias is not None and bias.device != x.device:
        raise ValueError(f"bias is on {bias.device} and x on {x.device}")
    if min(conv.stride) < 1 or min(conv.dilation) < 1 or min(conv.padding) < 0:
        what = f"stride {conv.stride} and dilation {conv.dilation} must be >= 1"
        raise ValueError(f"{what}, padding {conv.padding} >= 0")
    if conv.reflect and (conv.padding[0] >= x.shape[2] or conv.padding[1] >= x.shape[3]):
        raise ValueError(
            f"reflected padding {conv.padding} must be smaller than the input {tuple(x.shape[2:])}"
        )
    entries = weight.shape[1] * weight.shape[2] * weight.shape[3]
    if entries <= conv.correction:
        raise ValueError(f"a patch of {entries} value(s) has no variance with correction={conv.correction}")
    if min(conv.output_size(x.shape, weight.shape)) < 1:
        padded = conv.padded_size(x.shape)
        raise ValueError(f"kernel {tuple(weight.shape[2:])} is larger than the padded input {padded}")
