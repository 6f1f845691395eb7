"""Reflection inside the NC layer against reflection before it: values, gradients, what is kept and what is launched."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cuda_ops import cuda, normalized_conv, normalized_conv2d
from cuda_ops.layer import NormalizedConv2d
from cuda_ops.padding import fold_reflection

NAMES = ("y", "mean", "std", "dx", "dweight", "dbias")
LAST = torch.channels_last

pytestmark = pytest.mark.usefixtures("kernels_on_cpu")
backends = pytest.mark.parametrize("backend", ["reference", "direct", "cuda"])


def inside(x: Tensor, *weights: Tensor, padding: int, **options: object) -> object:
    return normalized_conv2d(x, *weights, padding=padding, padding_mode="reflect", **options)


def before(x: Tensor, *weights: Tensor, padding: int, **options: object) -> object:
    return normalized_conv2d(F.pad(x, [padding] * 4, mode="reflect"), *weights, **options)


def everything(
    form: Callable[..., object], x: Tensor, w: Tensor, b: Tensor, padding: int, backend: str
) -> dict[str, Tensor]:
    inputs = [v.detach().requires_grad_() for v in (x, w, b)]
    y, moments = form(*inputs, padding=padding, backend=backend, return_moments=True)
    draw = torch.Generator().manual_seed(7)
    upstream = [torch.randn(v.shape, generator=draw).bfloat16().to(v.dtype) for v in (y, *moments)]
    gradients = torch.autograd.grad((y, *moments), inputs, upstream)
    return {name: v.detach() for name, v in zip(NAMES, (y, *moments, *gradients), strict=True)}


def drawn(dtype: torch.dtype, last: bool, offset: float, kernel: int = 3) -> list[Tensor]:
    draw = torch.Generator().manual_seed(kernel)
    shapes = (2, 16, 24, 20), (12, 16, kernel, kernel), (12,)
    x, w, b = (torch.randn(s, generator=draw, dtype=torch.float64) for s in shapes)
    x, w, b = ((x + offset).to(dtype), (w * 0.1).to(dtype), b.to(dtype))
    return [x.contiguous(memory_format=LAST) if last else x, w, b]


@backends
@pytest.mark.parametrize("offset", [0.3, 10.0])  # without and with a pivot
@pytest.mark.parametrize("last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_errs_no_more_than_padding_first(dtype: torch.dtype, last: bool, offset: float, backend: str) -> None:
    for kernel, padding in ((3, 1), (7, 3)):
        inputs = drawn(dtype, last, offset, kernel)
        truth = everything(before, *(v.double() for v in inputs), padding, "reference")
        ours, theirs = (everything(form, *inputs, padding, backend) for form in (inside, before))
        assert ours["y"].stride() == theirs["y"].stride()
        assert ours["dx"].stride() == inputs[0].stride()
        for name in NAMES:
            a, b = ((v[name].double() - truth[name]).norm() / truth[name].norm() for v in (ours, theirs))
            # float32 moments: two roundings of the last bit, since the pivot is another
            least = 2e-7 if name in ("mean", "std") and dtype != torch.float64 else 2e-16
            assert a <= max(1.1 * b, least), (name, a, b)


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_direct_form_is_padding_first_to_two_units_in_the_last_place(
    dtype: torch.dtype, last: bool
) -> None:
    """Of the largest value: the channel sums of a map without its border are vectorised elsewhere."""
    inputs = drawn(dtype, last, 0.3)
    ours, theirs = (everything(form, *inputs, 1, "direct") for form in (inside, before))
    for name in NAMES:
        limit = 2 * torch.finfo(dtype).eps * theirs[name].abs().max()
        assert (ours[name] - theirs[name]).abs().max() <= limit, name


@pytest.mark.parametrize("backend", ["direct", "cuda"])
@pytest.mark.parametrize("offset", [0.0, 50.0])
def test_gradients_of_first_and_second_order(offset: float, backend: str) -> None:
    torch.manual_seed(2)
    x = (torch.randn(2, 4, 3, 4, dtype=torch.float64) + offset).requires_grad_()
    w = torch.randn(4, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    b = torch.randn(4, dtype=torch.float64, requires_grad=True)

    def function(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, moments = normalized_conv2d(
            x, w, b, (2, 1), (2, 1), groups=2, padding_mode="reflect", return_moments=True, backend=backend
        )
        return y, moments.mean, moments.std

    assert torch.autograd.gradcheck(function, (x, w, b))
    assert torch.autograd.gradgradcheck(function, (x, w, b), fast_mode=True)


class Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.names.append(operation.name())
        return operation(*args, **(kwargs or {}))


def test_the_kernels_pad_and_fold_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is launched for the border: torch pads, fills with zeros and scatters."""
    monkeypatch.setattr(normalized_conv, "_is_plain", lambda *tensors: True)  # a mode is on, to count
    names = {}
    for form in (inside, before):
        inputs = [v.requires_grad_() for v in drawn(torch.float32, False, 0.3)]
        with Operations() as seen:
            torch.autograd.grad(form(*inputs, padding=1, backend="cuda").sum(), inputs)
        names[form] = [name for name in seen.names if "empty" not in name and "detach" not in name]
    assert not [name for name in names[inside] if "pad" in name]
    assert len(names[inside]) <= len(names[before]) - 2, names


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_kernels_copy_of_a_half_type_is_not_rounded_again(dtype: torch.dtype, last: bool) -> None:
    x, weight, _ = drawn(dtype, last, 0.3)
    numbers = ((1, 1), (3, 2), (1, 1), 1, 1e-5, 1, "none", 0.2, dtype)
    conv = normalized_conv.ConvParams(*numbers, reflect=True)
    *_, copy = cuda._forward(x, weight, None, cuda.make_plan(x, weight, conv, False))
    assert torch.equal(copy, F.pad(x, (2, 2, 3, 3), mode="reflect"))


@pytest.mark.parametrize("offset", [0.3, 10.0])
def test_the_direct_form_keeps_no_padded_copy(offset: float) -> None:
    x, w, b = (v.requires_grad_() for v in drawn(torch.float32, False, offset))
    kept: list[torch.Size] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda v: kept.append(v.shape) or v, lambda v: v):
        inside(x, w, b, padding=1, backend="direct")
    assert x.shape in kept
    assert [shape for shape in kept if shape[2:] == (26, 22)] == []


@pytest.mark.parametrize(("size", "padding"), [((5, 7), (1, 2)), ((4, 3), (3, 2)), ((2, 2), (1, 1))])
def test_folding_is_the_gradient_of_torchs_reflection(
    size: tuple[int, int], padding: tuple[int, int]
) -> None:
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    (ph, pw) = padding
    y = F.pad(x, (pw, pw, ph, ph), mode="reflect")
    upstream = torch.randn_like(y)
    (wanted,) = torch.autograd.grad(y, x, upstream)
    torch.testing.assert_close(fold_reflection(upstream, padding), wanted, rtol=1e-14, atol=1e-14)


@backends
def test_a_layer_reflects_as_torch_does(backend: str) -> None:
    """With its own padding where that is even, and joined slices where it is not."""
    x = torch.randn(2, 4, 6, 7, dtype=torch.float64)
    for padding, kernel, pads in ((1, 3, [1] * 4), ((2, 0), 3, [0, 0, 2, 2]), ("same", 4, [1, 2, 1, 2])):
        sizes = (4, 6, kernel, 1, padding)
        layer = NormalizedConv2d(*sizes, padding_mode="reflect", backend=backend, dtype=torch.float64)
        wanted = normalized_conv2d(
            F.pad(x, pads, mode="reflect"), layer.weight, layer.bias, backend="reference"
        )
        torch.testing.assert_close(layer(x), wanted, rtol=1e-12, atol=1e-12)


def test_reflection_wider_than_the_map_is_refused() -> None:
    layer = NormalizedConv2d(3, 4, 7, padding=3, padding_mode="reflect")
    with pytest.raises(
        ValueError, match=r"reflected padding \(3, 3\) must be smaller than the input \(8, 3\)"
    ):
        layer(torch.randn(1, 3, 8, 3))
    assert layer(torch.randn(1, 3, 4, 4)).shape == (1, 4, 4, 4)
