"""The grid that the CUDA kernels are tested on, on a GPU and (compiled for the host) without one."""

from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cuda_ops.direct import ConvParams
from cuda_ops.normalized_conv import normalized_conv2d, reference

NAMES = ("y", "mean", "std", "dx", "dweight", "dbias")

# Relative L2 distance to the float64 reference on the same inputs: (output and gradients, statistics).
TOLERANCE = {
    torch.float64: (1e-14, 2e-15),
    torch.float32: (2e-6, 5e-7),
    torch.float16: (2e-3, 5e-7),
    torch.bfloat16: (1e-2, 5e-7),
}
dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d).removeprefix("torch."))
layouts = pytest.mark.parametrize("last", [False, True], ids=["nchw", "channels_last"])
devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])


class Case(NamedTuple):
    images: int = 2
    channels: int = 6
    size: tuple[int, int] = (9, 7)
    outputs: int = 4
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    activation: str = "none"
    bias: bool = True
    correction: int = 1
    offset: float = 0.3
    slack: float = 1.0  # on the tolerances
    reflect: bool = False  # the border mirrors x


CASES = {
    "3x3": Case(),
    "relu": Case(activation="relu"),
    "leaky": Case(activation="leaky_relu"),
    "4x4 stride 2": Case(kernel=(4, 4), stride=(2, 2), size=(12, 10), activation="relu"),
    "3x3 stride 2, odd": Case(stride=(2, 2), size=(11, 7)),
    "stem 7x7": Case(channels=3, outputs=5, kernel=(7, 7), padding=(3, 3), size=(8, 9), activation="relu"),
    "no padding": Case(padding=(0, 0)),
    "1x1": Case(kernel=(1, 1), padding=(0, 0)),
    "everything uneven": Case(
        kernel=(3, 2), stride=(2, 3), padding=(2, 1), dilation=(2, 1), size=(13, 11), channels=5, outputs=3
    ),
    "stride beyond kernel": Case(kernel=(2, 2), stride=(3, 3), padding=(0, 0), size=(10, 11)),
    # Patches of padding alone have no variance: 1 / s = 316 multiplies the rounding of sum(W~), as in `direct`.
    "padding beyond kernel": Case(kernel=(2, 2), padding=(3, 2), size=(3, 4), slack=100),
    "groups": Case(groups=2, outputs=6, activation="leaky_relu"),
    "depthwise": Case(groups=6, outputs=12),
    "no bias": Case(bias=False, activation="relu"),
    "one output position": Case(size=(3, 3), padding=(0, 0)),
    "many channels": Case(images=1, channels=150, outputs=140, size=(5, 3)),
    "one channel": Case(channels=1, outputs=1, size=(6, 6)),
    "population variance": Case(correction=0),
    "many images": Case(images=5, channels=3, size=(17, 19)),
    "reflect": Case(reflect=True, activation="relu"),
    "reflect, stem 7x7": Case(
        channels=3, outputs=5, kernel=(7, 7), padding=(3, 3), size=(8, 9), reflect=True
    ),
    "reflect, smallest map": Case(kernel=(5, 3), padding=(2, 1), size=(3, 2), images=3, reflect=True),
    "reflect, uneven": Case(
        kernel=(3, 2),
        stride=(2, 3),
        padding=(4, 1),
        dilation=(2, 1),
        size=(13, 11),
        channels=5,
        outputs=3,
        reflect=True,
    ),
    "reflect, rows alone": Case(padding=(1, 0), groups=2, activation="leaky_relu", reflect=True),
    "reflect, many channels": Case(images=1, channels=150, outputs=140, size=(5, 3), reflect=True),
}


class Inputs(NamedTuple):
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    upstream: tuple[Tensor, Tensor, Tensor]  # of y, mean and std, in float64


def make_inputs(
    case: Case,
    dtype: torch.dtype,
    channels_last: bool,
    device: str = "cpu",
    weight_dtype: torch.dtype | None = None,
) -> Inputs:
    g = torch.Generator().manual_seed(7)
    wide: dict[str, Any] = {"generator": g, "dtype": torch.float64}
    x = torch.randn(case.images, case.channels, *case.size, **wide) + case.offset
    weight = torch.randn(case.outputs, case.channels // case.groups, *case.kernel, **wide)
    bias = torch.randn(case.outputs, **wide) if case.bias else None
    sizes = zip(case.size, case.padding, case.dilation, case.kernel, case.stride, strict=True)
    out = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in sizes]
    dy = torch.randn(case.images, case.outputs, *out, **wide)
    dmean, dstd = (torch.randn(case.images, case.groups, *out, **wide) for _ in range(2))
    x = x.to(device, dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    weight = weight.to(device, weight_dtype or dtype)
    bias = None if bias is None else bias.to(device, weight_dtype or dtype)
    return Inputs(x, weight, bias, (dy.to(device), dmean.to(device), dstd.to(device)))


def arguments(case: Case, x: Tensor, weight: Tensor, bias: Tensor | None) -> dict[str, Any]:
    """Keyword arguments of the public function."""
    return {
        "x": x, "weight": weight, "bias": bias, "stride": case.stride, "padding": case.padding,
        "dilation": case.dilation, "groups": case.groups, "correction": case.correction,
        "activation": case.activation, "return_moments": True,
        "padding_mode": "reflect" if case.reflect else "zeros",
    }  # fmt: skip


def run_backend(
    case: Case, inputs: Inputs, backend: str = "cuda", upstream: bool = True
) -> dict[str, Tensor]:
    """Outputs and gradients by name, of the public function."""
    tensors = [v for v in inputs[:3] if v is not None]
    x, weight, *rest = [v.detach().requires_grad_() for v in tensors]
    bias = rest[0] if rest else None
    y, (mean, std) = normalized_conv2d(**arguments(case, x, weight, bias), backend=backend)
    results = {"y": y.detach(), "mean": mean.detach(), "std": std.detach()}
    if upstream:
        outputs = (y, mean, std)
        upstreams = [v.to(out.dtype) for v, out in zip(inputs.upstream, outputs, strict=True)]
        gradients = torch.autograd.grad(outputs, [x, weight, *rest], upstreams)
        results |= dict(zip(NAMES[3:], gradients, strict=False))
    return results


def expected(
    case: Case, inputs: Inputs, compute: torch.dtype, mask: Tensor | None = None
) -> dict[str, Tensor]:
    """The definition (`reference`) and autograd through it, in float64; `compute` rounds the gradient of y alone.

    The activation is differentiated on the side that `mask` (the tested y) took: next to zero, rounding decides.
    """
    tensors = [v.double().requires_grad_() for v in inputs[:3] if v is not None]
    x, weight, *rest = tensors
    sizes = (case.stride, case.padding, case.dilation, case.groups)
    conv = ConvParams(*sizes, 1e-5, case.correction, "none", 0.2, torch.float64)
    padded = x
    if case.reflect:
        ph, pw = case.padding
        padded, conv = F.pad(x, (pw, pw, ph, ph), mode="reflect"), conv._replace(padding=(0, 0))
    plain = reference(padded, weight, rest[0] if rest else None, conv)
    y = plain[0]
    slope = {"none": 1.0, "relu": 0.0, "leaky_relu": 0.2}[case.activation]
    y = torch.where((y if mask is None else mask) > 0, y, y * slope)
    dy, dmean, dstd = inputs.upstream
    wide = torch.float64 if inputs.x.dtype == torch.float64 else torch.float32
    gradients = torch.autograd.grad(
        (y, *plain[1:]),
        tensors,
        (dy.to(compute).double(), dmean.to(wide).double(), dstd.to(wide).double()),
    )
    results = {"y": y, "mean": plain[1], "std": plain[2], **dict(zip(NAMES[3:], gradients, strict=False))}
    return {name: v.detach() for name, v in results.items()}


def distances(actual: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, float]:
    """Relative L2 distance of every tensor."""
    assert actual.keys() <= wanted.keys()
    return {
        name: float((v.double() - wanted[name]).norm() / wanted[name].norm().clamp_min(1e-300))
        for name, v in actual.items()
    }


def allowance(case: Case, inputs: Inputs, dtype: torch.dtype) -> float:
    """By how much tolerances grow on a GPU: cuDNN's own error on centred inputs, where it exceeds a third of them.

    Its algorithm is not ours to choose, and some (Winograd in float32) err more than a plain sum.
    """
    numbers = (None, case.stride, case.padding, case.dilation, case.groups)

    def convolution(precision: torch.dtype) -> list[Tensor]:
        tensors = (v.to(dtype).to(precision) for v in (inputs.x - case.offset, inputs.weight))
        x, weight = (v.requires_grad_() for v in tensors)
        y = torch.conv2d(x, weight, *numbers)
        return [y, *torch.autograd.grad(y, (x, weight), inputs.upstream[0].to(dtype).to(precision))]

    if not inputs.x.is_cuda:
        return 1.0
    pairs = zip(convolution(dtype), convolution(torch.float64), strict=True)
    error = max(float((a.double() - b).norm() / b.norm().clamp_min(1e-300)) for a, b in pairs)
    return max(1.0, 3 * error / TOLERANCE[dtype][0])


def assert_matches(case: Case, inputs: Inputs, actual: dict[str, Tensor], compute: torch.dtype) -> None:
    """Against the float64 reference. The statistics do not pass through cuDNN and get no allowance."""
    wanted = expected(case, inputs, compute, actual["y"])
    error, statistics_error = TOLERANCE[compute]
    if inputs.x.dtype == torch.float64:
        statistics_error = TOLERANCE[torch.float64][1]
    limits = dict.fromkeys(NAMES, case.slack * error * allowance(case, inputs, compute))
    limits |= dict.fromkeys(("mean", "std"), case.slack * statistics_error)
    far = {name: v for name, v in distances(actual, wanted).items() if not v <= limits[name]}
    assert not far, f"relative L2 distance to the reference: {far}"
