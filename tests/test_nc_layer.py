"""The NC layer against its definition: outputs, moments, every gradient; float32 against float64; flat inputs."""

from collections.abc import Callable
from contextlib import nullcontext
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacrev, jvp, vmap

from cuda_ops import direct, normalized_conv2d

Layer = Callable[[Tensor, Tensor, Tensor], Tensor]

OUTPUTS = ("y", "mean", "std", "dx", "dw", "db")


def everything(backend: str, x: Tensor, w: Tensor, b: Tensor, **geometry: object) -> tuple[Tensor, ...]:
    """y, both moments, and the gradients of a random functional of all three."""
    inputs = [t.detach().requires_grad_() for t in (x, w, b)]
    y, moments = normalized_conv2d(*inputs, return_moments=True, backend=backend, **geometry)
    draw = torch.Generator().manual_seed(7)
    total = torch.zeros((), dtype=y.dtype)
    for output in (y, moments.mean, moments.std):
        weights = torch.randn(output.shape, generator=draw, dtype=torch.float64)
        total = total + (output * weights.to(output.dtype)).sum()
    return y, moments.mean, moments.std, *torch.autograd.grad(total, inputs)


def relative(ours: Tensor, truth: Tensor) -> float:
    return float((ours.double() - truth.double()).detach().norm() / truth.double().detach().norm())


def assert_all_close(ours: tuple[Tensor, ...], truth: tuple[Tensor, ...], tolerance: float) -> None:
    for name, a, b in zip(OUTPUTS, ours, truth, strict=True):
        assert a.shape == b.shape
        assert relative(a, b) <= tolerance, f"{name}: {relative(a, b):.2e}"


def by_hand(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """One output position at a time, in plain loops over a padded map: the definition once more."""
    padded = F.pad(x, (1, 1, 1, 1))
    y = torch.empty(x.shape[0], w.shape[0], x.shape[2], x.shape[3], dtype=x.dtype)
    for n, i, j in product(range(x.shape[0]), range(x.shape[2]), range(x.shape[3])):
        patch = padded[n, :, i : i + 3, j : j + 3].flatten()
        mean = patch.sum() / patch.numel()
        std = ((patch - mean).square().sum() / (patch.numel() - 1) + 1e-5).sqrt()
        for o in range(w.shape[0]):
            y[n, o, i, j] = (w[o].flatten() * (patch - mean) / std).sum() + b[o]
    return y


@pytest.mark.parametrize("backend", ["reference", "direct", "auto"])
def test_follows_the_definition_position_by_position(backend: str) -> None:
    torch.manual_seed(0)
    x, w, b = (torch.randn(s, dtype=torch.float64) for s in ((2, 3, 5, 4), (4, 3, 3, 3), (4,)))
    torch.testing.assert_close(
        normalized_conv2d(x, w, b, padding=1, backend=backend), by_hand(x, w, b), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3, 4, 5, 7])
@pytest.mark.parametrize("padding", [0, 1, 3])
@pytest.mark.parametrize("dilation", [1, 2])
def test_direct_equals_reference_in_float64(stride: int, kernel: int, padding: int, dilation: int) -> None:
    torch.manual_seed(kernel)
    for groups, batch in product((1, 2, 4), (1, 4)):  # 4 of 4 channels: depthwise
        if 4 // groups * kernel**2 <= 1:
            continue
        x = torch.randn(batch, 4, 17, 15, dtype=torch.float64)
        w, b = (
            torch.randn(8, 4 // groups, kernel, kernel, dtype=torch.float64),
            torch.randn(8, dtype=torch.float64),
        )
        geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        truth = everything("reference", x, w, b, **geometry)
        assert_all_close(everything("direct", x, w, b, **geometry), truth, 1e-12)


@pytest.mark.parametrize("offset", [0.0, 100.0])  # without and with a pivot
@pytest.mark.parametrize("layout", ["sliced", "channels_last", "expanded"])
def test_memory_layout_does_not_matter(layout: str, offset: float) -> None:
    torch.manual_seed(1)
    w, b = torch.randn(6, 4, 3, 3, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    x = {
        "sliced": torch.randn(2, 8, 22, 18, dtype=torch.float64)[:, ::2, ::2, 1::2],
        "channels_last": torch.randn(2, 4, 11, 9, dtype=torch.float64).to(memory_format=torch.channels_last),
        "expanded": torch.randn(1, 4, 11, 9, dtype=torch.float64).expand(2, 4, 11, 9),
    }[layout] + offset
    truth = everything("reference", x.contiguous(), w, b, padding=1)
    assert_all_close(everything("direct", x, w, b, padding=1), truth, 1e-11 if offset else 1e-12)


@pytest.mark.parametrize("padding,offset", [(0, 0.0), (1, 0.0), (1, 50.0)])
def test_gradients_of_first_and_second_order(padding: int, offset: float) -> None:
    torch.manual_seed(2)
    x = (torch.randn(2, 4, 5, 4, dtype=torch.float64) + offset).requires_grad_()
    w = torch.randn(4, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    b = torch.randn(4, dtype=torch.float64, requires_grad=True)

    def function(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, moments = normalized_conv2d(x, w, b, 2, padding, groups=2, return_moments=True, backend="direct")
        return y, moments.mean, moments.std

    assert torch.autograd.gradcheck(function, (x, w, b))
    assert torch.autograd.gradgradcheck(function, (x, w, b))


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
@pytest.mark.parametrize("backend", ["reference", "direct"])
def test_fused_activation_equals_the_activation_afterwards(activation: str, backend: str) -> None:
    torch.manual_seed(3)
    x, w, b = (torch.randn(s, dtype=torch.float64) for s in ((2, 3, 9, 8), (5, 3, 3, 3), (5,)))
    fused = everything(backend, x, w, b, padding=1, activation=activation, negative_slope=0.1)
    inputs = [t.requires_grad_() for t in (x, w, b)]
    y, moments = normalized_conv2d(*inputs, padding=1, return_moments=True, backend="reference")
    y = F.relu(y) if activation == "relu" else F.leaky_relu(y, 0.1)
    draw = torch.Generator().manual_seed(7)
    total = sum(
        (o * torch.randn(o.shape, generator=draw, dtype=torch.float64)).sum()
        for o in (y, moments.mean, moments.std)
    )
    assert_all_close(fused, (y, moments.mean, moments.std, *torch.autograd.grad(total, inputs)), 1e-12)


@pytest.mark.parametrize("channels", [1, 3, 200])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_keep_the_mean_of_a_flat_patch_out(dtype: torch.dtype, channels: int) -> None:
    """A flat patch multiplies what the rounded filter sums to by 316; its true value is 0."""
    torch.manual_seed(3)
    x = torch.randn(1, channels, 32, 32) * 0.5
    x[..., :16] = 1.0
    w = torch.randn(16, channels, 7, 7) * 0.02
    y = normalized_conv2d(x.to(dtype), w.to(dtype), backend="direct")
    truth = normalized_conv2d(x.to(dtype).double(), w.to(dtype).double(), backend="reference")
    assert isinstance(y, Tensor) and isinstance(truth, Tensor)
    assert y[..., :10].float().square().mean().sqrt() < 2e-3 * truth[..., 16:].square().mean().sqrt()
    assert relative(y[..., 16:], truth[..., 16:]) < 1e-2
    w.requires_grad_()  # what is rounded has the gradient of what it was
    ours, theirs = (
        torch.autograd.grad(normalized_conv2d(*inputs, backend=backend).float().square().sum(), w)[0]  # type: ignore
        for backend, inputs in (
            ("direct", (x.to(dtype), w.to(dtype))),
            ("reference", (x.to(dtype).double(), w.to(dtype).double())),
        )
    )
    assert relative(ours, theirs) < 3e-2


def test_an_input_that_depends_on_another_is_differentiated_once() -> None:
    """Weight from x, bias from weight: also with create_graph, as gradient penalties and hypernetworks ask for."""
    torch.manual_seed(5)
    x0, w0 = torch.randn(2, 3, 6, 6, dtype=torch.float64), torch.randn(4, 3, 3, 3, dtype=torch.float64)
    found: dict[tuple[str, object], tuple[Tensor, ...]] = {}
    for backend, again in product(("reference", "direct"), (False, True)):
        x, base = x0.clone().requires_grad_(), w0.clone().requires_grad_()
        w = base * (1 + x.mean()) ** 2
        y = normalized_conv2d(x, w, w.sum((1, 2, 3)), backend=backend)  # type: ignore[arg-type]
        assert isinstance(y, Tensor)
        found[backend, again] = torch.autograd.grad(y.pow(3).sum(), (x, base), create_graph=again)
        if again:
            first, second = found[backend, again]
            found[backend, "second"] = torch.autograd.grad(
                first.square().sum() + second.square().sum(), (x, base)
            )
    for kind in (False, True, "second"):
        torch.testing.assert_close(found["direct", kind], found["reference", kind], rtol=1e-9, atol=1e-9)


def test_moments_in_a_loss_beside_a_frozen_input_can_be_differentiated_again() -> None:
    x, w = torch.randn(1, 3, 6, 6), torch.randn(4, 3, 3, 3, requires_grad=True)
    found = []
    for backend in ("direct", "reference"):
        y, moments = normalized_conv2d(x, w, return_moments=True, backend=backend)  # type: ignore[arg-type]
        found.append(torch.autograd.grad(y.square().sum() + moments.std.sum(), w, create_graph=True)[0])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [3, 64])
@pytest.mark.parametrize("offset", [0.0, 0.5, 1.0, 1.9, 2.1, 10.0, 100.0, 1000.0])
def test_float32_keeps_its_digits_at_every_offset(channels: int, offset: float) -> None:
    torch.manual_seed(4)
    x = torch.randn(2, channels, 32, 32) + offset
    w, b = torch.randn(16, channels, 3, 3) * 0.02, torch.randn(16)
    truth = everything("reference", x.double(), w.double(), b.double(), padding=1)
    ours = everything("direct", x, w, b, padding=1)
    for name, a, t in zip(OUTPUTS, ours, truth, strict=True):
        limit = 2e-6 if name in ("y", "mean", "std") else 5e-6
        assert relative(a, t) <= limit, f"{name} at offset {offset}: {relative(a, t):.1e}"


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_weight_much_larger_than_x_is_not_centred(
    dtype: torch.dtype, mode: str, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its product is. Not where the filters' sums outweigh all else in it, nor with a pivot."""
    torch.manual_seed(6)
    x = (torch.randn(2, 32, 5, 4) + 0.5).to(dtype)
    w, b = torch.randn(64, 32 // groups, 3, 4).to(dtype), torch.randn(64).to(dtype)
    geometry = {"stride": (1, 2), "padding": (2, 1), "groups": groups, "padding_mode": mode}
    centred: list[Tensor] = []
    centre = direct._centre
    monkeypatch.setattr(direct, "_centre", lambda w, tf32: centred.append(w) or centre(w, tf32))
    for offset, more, times in ((0.0, 0.0, 0), (0.0, 5.0, 2), (10.0, 0.0, 2)):
        centred.clear()
        ours = everything("direct", x + offset, w + more, b, **geometry)
        assert len(centred) == times
        truth = everything("reference", (x + offset).double(), (w + more).double(), b.double(), **geometry)
        assert_all_close(ours, truth, 5e-6 if dtype == torch.float32 else 1e-13)


def degenerate(kind: str) -> Tensor:
    x = torch.zeros(2, 4, 12, 12)
    if kind == "constant":
        return x + 0.7
    if kind == "half":
        x[..., 6:] = 1000.0
        return x
    if kind == "labels":  # few flat colours in blocks
        return torch.randint(0, 3, (2, 4, 3, 3)).float().repeat_interleave(4, 2).repeat_interleave(4, 3) - 1
    return x


@pytest.mark.parametrize("kind", ["zero", "constant", "half", "labels"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_degenerate_inputs_stay_finite_and_give_the_bias_on_flat_patches(
    kind: str, dtype: torch.dtype
) -> None:
    torch.manual_seed(5)
    x, w, b = degenerate(kind).to(dtype), torch.randn(6, 4, 3, 3, dtype=dtype), torch.randn(6, dtype=dtype)
    results = everything("direct", x, w, b)
    assert all(torch.isfinite(t).all() for t in results)
    y, _, std = results[:3]
    flat = (6 - 2 - 1, 2)  # a patch inside the left half
    if kind != "labels":
        torch.testing.assert_close(y[0, :, flat[0], flat[1]], b, rtol=0, atol=1e-4)
        torch.testing.assert_close(std[0, 0, flat[0], flat[1]], torch.tensor(1e-5, dtype=dtype).sqrt())


def test_autocast_keeps_statistics_in_float32() -> None:
    torch.manual_seed(6)
    x, w, b = torch.randn(2, 8, 16, 16), torch.randn(8, 8, 3, 3), torch.randn(8)
    exact, moments = normalized_conv2d(x, w, b, padding=1, return_moments=True, backend="reference")
    for source in (x, x.bfloat16()):  # a layer deep in a network meets half inputs and float32 weights
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y, ours = normalized_conv2d(source, w, b, padding=1, return_moments=True, backend="direct")
        assert y.dtype == torch.bfloat16
        assert ours.mean.dtype == ours.std.dtype == torch.float32
        assert relative(y, exact) < 1e-2
        assert relative(ours.std, moments.std) < (1e-6 if source is x else 1e-3)


def test_low_precision_inputs_without_autocast() -> None:
    torch.manual_seed(8)
    x, w, b = (torch.randn(s, dtype=torch.bfloat16) for s in ((1, 4, 8, 8), (4, 4, 3, 3), (4,)))
    y, moments = normalized_conv2d(x, w, b, return_moments=True, backend="direct")
    exact = normalized_conv2d(x.double(), w.double(), b.double(), backend="reference")
    assert y.dtype == torch.bfloat16 and moments.std.dtype == torch.float32
    assert relative(y, exact) < 1e-2


def test_compiled_without_a_graph_break_and_channels_last() -> None:
    torch.manual_seed(9)
    x = torch.randn(2, 8, 16, 16).to(memory_format=torch.channels_last)
    w, b = torch.randn(8, 8, 3, 3), torch.randn(8)

    def function(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        y, moments = normalized_conv2d(x, w, b, 2, 1, return_moments=True, backend="direct")
        return y.square().sum() + (moments.mean * moments.std).sum()

    inputs = [t.requires_grad_() for t in (x, w, b)]
    eager = torch.autograd.grad(function(*inputs), inputs)
    compiled = torch.autograd.grad(torch.compile(function, fullgraph=True)(*inputs), inputs)
    for a, c in zip(eager, compiled, strict=True):
        torch.testing.assert_close(a, c, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["reference", "direct", "auto"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_an_empty_batch_gives_an_empty_batch(mode: str, backend: str, groups: int) -> None:
    x, b = torch.randn(0, 4, 9, 7), torch.randn(6)
    w = torch.randn(6, 4 // groups, 3, 3)
    y, mean, std, dx, dw, db = everything(backend, x, w, b, padding=1, groups=groups, padding_mode=mode)
    assert (y.shape, mean.shape, std.shape, dx.shape) == ((0, 6, 9, 7), *[(0, groups, 9, 7)] * 2, x.shape)
    assert not dw.any() and not db.any()


def test_adding_a_constant_to_the_input_or_the_weights_changes_nothing() -> None:
    torch.manual_seed(10)
    x, w = torch.randn(1, 4, 9, 9, dtype=torch.float64), torch.randn(3, 4, 3, 3, dtype=torch.float64)
    y = normalized_conv2d(x, w, backend="direct")
    torch.testing.assert_close(normalized_conv2d(x + 3.0, w, backend="direct"), y, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(normalized_conv2d(x, w + 3.0, backend="direct"), y, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "change,words",
    [
        ({"weight": torch.randn(2, 1, 1, 1), "x": torch.randn(1, 1, 4, 4)}, "no variance"),
        ({"weight": torch.randn(2, 3, 3, 3)}, "does not fit"),
        ({"weight": torch.randn(2, 4, 7, 7)}, "larger than"),
        ({"backend": "fast"}, "choose one of"),
        ({"activation": "gelu"}, "choose one of"),
        ({"bias": torch.randn(3)}, "output channels"),
        ({"x": torch.randn(4, 4, 4)}, "4-D"),
        ({"x": torch.zeros(1, 4, 4, 4, dtype=torch.int64)}, "floating point"),
        ({"x": torch.randn(1, 4, 4, 4, dtype=torch.float64)}, "cast one"),
        ({"stride": 0}, ">= 1"),
        ({"padding_mode": "circular"}, "padding_mode 'circular': choose one of zeros, reflect"),
        ({"padding": (1, 4), "padding_mode": "reflect"}, "must be smaller than the input"),
        ({"negative_slope": -0.1, "activation": "leaky_relu"}, "negative_slope must be >= 0, not -0.1"),
    ],
)
def test_what_cannot_be_computed_is_refused_in_one_sentence(change: dict[str, object], words: str) -> None:
    arguments: dict[str, object] = {"x": torch.randn(1, 4, 4, 4), "weight": torch.randn(2, 4, 3, 3)} | change
    with pytest.raises(ValueError, match=words) as refusal:
        normalized_conv2d(**arguments)  # type: ignore[arg-type]
    assert "\n" not in str(refusal.value)


def dual(layer: Layer, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    with forward_ad.dual_level():
        y = layer(forward_ad.make_dual(x, x.cos()), forward_ad.make_dual(w, w.sin()), b)
        return forward_ad.unpack_dual(y).tangent


def batched_gradients(layer: Layer, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    y = layer(x, w, b)
    return torch.autograd.grad(y, x, torch.stack([y.detach().cos(), y.detach()]), is_grads_batched=True)[0]


def vmap_of_grad(layer: Layer, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    y = layer(x.requires_grad_(), w, b)
    return vmap(lambda dy: torch.autograd.grad(y, x, dy, retain_graph=True)[0])(
        torch.stack([y.cos(), y]).detach()
    )


TRANSFORMS: dict[str, Callable[[Layer, Tensor, Tensor, Tensor], Tensor]] = {
    "grad of x": lambda f, x, w, b: grad(lambda v: f(v, w, b).square().sum())(x),
    "grad of the weight": lambda f, x, w, b: grad(lambda v: f(x, v, b).square().sum())(w),
    "vmap over x": lambda f, x, w, b: vmap(lambda v: f(v, w, b))(torch.stack([x, x + 1])),
    "vmap over the weight": lambda f, x, w, b: vmap(lambda v: f(x, v, b))(torch.stack([w, w.cos()])),
    "a gradient per sample": lambda f, x, w, b: vmap(
        grad(lambda v, one: f(one[None], v, b).square().sum()), (None, 0)
    )(w, x),
    "jvp": lambda f, x, w, b: jvp(lambda v: f(v, w, b), (x,), (x.cos(),))[1],
    "hessian": lambda f, x, w, b: hessian(lambda v: f(x[:1], w, v).pow(3).sum())(b),
    "jacobian": lambda f, x, w, b: jacrev(lambda v: f(x[:1], v, b))(w),
    "forward mode": dual,
    "batched gradients": batched_gradients,
    "vmap around the backward pass": vmap_of_grad,
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize(
    ("backend", "mode"),
    [("direct", "zeros"), ("auto", "zeros"), ("cuda", "zeros"), ("direct", "reflect"), ("cuda", "reflect")],
)
def test_function_transforms(backend: str, mode: str, transform: str, kernels_on_cpu: None) -> None:
    """All that torch.func and forward-mode AD do with a plain convolution; the kernels step aside for it."""
    torch.manual_seed(11)
    inputs = [torch.randn(s, dtype=torch.float64) for s in ((2, 4, 6, 5), (3, 4, 3, 3), (3,))]
    got, want = (
        TRANSFORMS[transform](
            lambda x, w, b, name=name: normalized_conv2d(
                x, w, b, 1, 1, padding_mode=mode, activation="leaky_relu", backend=name
            ),
            *(v.clone() for v in inputs),
        )
        for name in (backend, "reference")
    )
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("inside", [True, False])
def test_fake_tensors(inside: bool) -> None:
    mode = FakeTensorMode()
    x, w, b = (mode.from_tensor(torch.randn(s)) for s in ((2, 4, 6, 5), (3, 4, 3, 3), (3,)))
    with mode if inside else nullcontext():
        y, moments = normalized_conv2d(x.requires_grad_(), w, b, padding=1, return_moments=True)
    assert (y.shape, moments.std.shape) == ((2, 3, 6, 5), (2, 1, 6, 5))
    assert torch.autograd.grad(y, x, torch.empty_like(y))[0].shape == x.shape
