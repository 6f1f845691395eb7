"""The CUDA kernels' own source, compiled for this machine's CPU and launched by the same code, against `reference`."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from cuda_shim.launcher import HostLauncher, build, host_launchers
from cuda_support import (
    CASES,
    NAMES,
    TOLERANCE,
    Case,
    allowance,
    assert_matches,
    devices,
    distances,
    dtypes,
    expected,
    layouts,
    make_inputs,
    run_backend,
)

import cuda_ops
from cuda_ops import cuda, normalized_conv, nvrtc
from cuda_ops.nvrtc import SOURCE

pytestmark = [
    pytest.mark.usefixtures("kernels_on_cpu", "exact_convolutions"),
    pytest.mark.filterwarnings("error:normalized_conv2d falls back:UserWarning"),
]


@devices
@layouts
@dtypes
@pytest.mark.parametrize("name", CASES)
def test_output_moments_and_gradients(name: str, dtype: torch.dtype, last: bool, device: str) -> None:
    case = CASES[name]
    inputs = make_inputs(case, dtype, last, device)
    assert_matches(case, inputs, run_backend(case, inputs), dtype)


@devices
@layouts
@pytest.mark.parametrize("offset", [0.0, 1.0, 10.0, 100.0, 1000.0])
def test_float32_is_exact_at_every_offset(offset: float, last: bool, device: str) -> None:
    case = Case(images=3, channels=64, size=(24, 24), outputs=32, offset=offset)
    inputs = make_inputs(case, torch.float32, last, device)
    actual = run_backend(case, inputs)
    errors = distances(actual, expected(case, inputs, torch.float32))
    more = allowance(case, inputs, torch.float32)
    assert max(errors["mean"], errors["std"]) <= 5e-7, errors
    assert errors["y"] <= 2e-6 * more, (errors, more)
    assert max(errors[name] for name in ("dx", "dweight", "dbias")) <= 5e-6 * more, (errors, more)


@layouts
@pytest.mark.parametrize("offset", [0.7, 10.0, 100.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_keep_the_mean_of_a_patch_out(dtype: torch.dtype, offset: float, last: bool) -> None:
    """The centred weight must sum to zero as rounded: plainly rounded, y errs by more than 1 at offset 100."""
    case = Case(channels=64, size=(16, 16), outputs=16, offset=offset)
    inputs = make_inputs(case, dtype, last)
    actual = run_backend(case, inputs)
    errors = distances(actual, expected(case, inputs, dtype, actual["y"]))
    assert max(errors["y"], errors["dx"]) <= TOLERANCE[dtype][0], errors


def to_tf32(x: torch.Tensor) -> torch.Tensor:
    """To 11 significant bits."""
    mantissa, exponent = torch.frexp(x.double())
    return torch.ldexp((mantissa * 2**11).round(), exponent - 11).float()


@pytest.mark.parametrize("backend", ["cuda", "direct"])
@layouts
def test_tf32_keeps_the_mean_of_a_flat_patch_out(
    backend: str, last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cuDNN rounds what it reads to TF32, as the stand-ins do here. A flat patch multiplies the sum of W~ by 316."""
    x = torch.randn(2, 3, 40, 40)
    x[..., :16] = 1.0
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    weight = torch.randn(16, 3, 7, 7) * 0.02
    for module, name in ((torch, "convolution"), (F, "conv2d")):
        exact = getattr(module, name)
        rounding = lambda x, w, *rest, exact=exact: exact(to_tf32(x), to_tf32(w), *rest)
        monkeypatch.setattr(module, name, rounding)
    errors = {}
    for tf32 in (False, True):
        monkeypatch.setattr(normalized_conv, "uses_tf32", lambda device, tf32=tf32: tf32)
        monkeypatch.setattr(normalized_conv, "_calls", {})
        y = cuda_ops.normalized_conv2d(x, weight, backend=backend)
        errors[tf32] = y[..., :10].square().mean().sqrt()  # the true value is 0
        truth = cuda_ops.normalized_conv2d(x.double(), weight.double(), backend="reference")
        assert distances({"y": y[..., 10:]}, {"y": truth[..., 10:]})["y"] < 2e-3
    assert errors[True] < errors[False] / 5, errors


@devices
@layouts
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
def test_autocast(x_dtype: torch.dtype, last: bool, device: str) -> None:
    case = Case(activation="relu")
    inputs = make_inputs(case, x_dtype, last, device, weight_dtype=torch.float32)
    with torch.autocast(device, torch.bfloat16):
        actual = run_backend(case, inputs)
    assert actual["y"].dtype == torch.bfloat16
    assert actual["mean"].dtype == actual["std"].dtype == torch.float32
    assert [actual[name].dtype for name in NAMES[3:]] == [x_dtype, torch.float32, torch.float32]
    assert_matches(case, inputs, actual, torch.bfloat16)


@layouts
def test_layouts_stay_and_need_no_copy(last: bool) -> None:
    inputs = make_inputs(Case(), torch.float32, last)
    actual = run_backend(Case(), inputs)
    layout = torch.channels_last if last else torch.contiguous_format
    for name in ("y", "dx"):
        assert actual[name].is_contiguous(memory_format=layout), name


@layouts
def test_weight_in_the_other_layout(last: bool) -> None:
    case = Case(channels=5, kernel=(3, 2))
    inputs = make_inputs(case, torch.float32, last)
    other = torch.contiguous_format if last else torch.channels_last
    inputs = inputs._replace(weight=inputs.weight.contiguous(memory_format=other))
    actual = run_backend(case, inputs)
    assert actual["dweight"].stride() == inputs.weight.stride()
    assert_matches(case, inputs, actual, torch.float32)


def test_strided_input_and_upstream() -> None:
    case = Case(size=(7, 6))
    inputs = make_inputs(case, torch.float32, False)
    wide = torch.zeros(2, 6, 9, 12)
    wide[:, :, 1:8, ::2] = inputs.x
    dy = inputs.upstream[0][:1, :1].expand(2, 4, -1, -1)
    inputs = inputs._replace(x=wide[:, :, 1:8, ::2], upstream=(dy, *inputs.upstream[1:]))
    assert not inputs.x.is_contiguous()
    assert_matches(case, inputs, run_backend(case, inputs), torch.float32)


def test_each_gradient_alone() -> None:
    case = Case(activation="leaky_relu")
    inputs = make_inputs(case, torch.float64, False)
    wanted = expected(case, inputs, torch.float64)
    for which, name in enumerate(("dx", "dweight", "dbias")):
        tensors = [v.detach().requires_grad_(i == which) for i, v in enumerate(inputs[:3])]  # type: ignore[union-attr]
        y, (mean, std) = cuda_ops.normalized_conv2d(
            *tensors, padding=1, activation="leaky_relu", backend="cuda", return_moments=True
        )
        outputs = [y, mean, std] if name == "dx" else [y]
        (gradient,) = torch.autograd.grad(outputs, tensors[which], inputs.upstream[: len(outputs)])
        torch.testing.assert_close(gradient, wanted[name])


@pytest.mark.parametrize("output", ["mean", "std"])
def test_gradient_of_the_moments_alone(output: str) -> None:
    inputs = make_inputs(Case(), torch.float64, False)
    gradients = []
    for backend in ("cuda", "reference"):
        x = inputs.x.clone().requires_grad_()
        _, moments = cuda_ops.normalized_conv2d(
            x, inputs.weight, padding=1, return_moments=True, backend=backend
        )
        gradients += torch.autograd.grad(getattr(moments, output), x, inputs.upstream[1])
    torch.testing.assert_close(*gradients)


@devices
@pytest.mark.parametrize("name", ["leaky", "groups", "3x3 stride 2, odd"])
def test_gradcheck(name: str, device: str) -> None:
    case = CASES[name]._replace(images=1, size=(5, 4))
    x, weight, bias, _ = make_inputs(case, torch.float64, False, device)
    assert bias is not None

    def function(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y, moments = cuda_ops.normalized_conv2d(
            *tensors, case.stride, case.padding, groups=case.groups, activation="leaky_relu",
            return_moments=True, backend="cuda",
        )  # fmt: skip
        return y, *moments

    tensors = tuple(v.requires_grad_() for v in (x, weight, bias))
    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


def test_constant_patch() -> None:
    """No variance: y is the bias, and the gradient is finite."""
    x = torch.full((1, 3, 6, 6), 7.0, requires_grad=True)
    weight, bias = torch.randn(4, 3, 3, 3), torch.arange(4.0)
    y = cuda_ops.normalized_conv2d(x, weight, bias, backend="cuda")
    torch.testing.assert_close(y, bias.view(1, 4, 1, 1).expand_as(y), atol=1e-4, rtol=0)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_an_infinite_pixel_spoils_its_own_patches_only() -> None:
    x, weight = torch.randn(1, 2, 9, 9), torch.randn(3, 2, 3, 3)
    clean = cuda_ops.normalized_conv2d(x, weight, padding=1, backend="cuda")
    x[0, 0, 0, 0] = torch.inf
    spoilt = cuda_ops.normalized_conv2d(x, weight, padding=1, backend="cuda")
    torch.testing.assert_close(spoilt[:, :, 2:, 2:], clean[:, :, 2:, 2:])


@layouts
@pytest.mark.parametrize("order", [(255, 255), (3, 5), (100, 77)])
def test_threads_of_a_block_may_come_in_any_order(
    order: tuple[int, int], last: bool, libraries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing barrier would show: with 256 threads as on a GPU, any order gives the same bits."""
    case = Case(images=3, channels=150, outputs=140, size=(7, 5), activation="relu")
    inputs = make_inputs(case, torch.float32, last)
    results = []
    for first in ((0, 1), order):
        monkeypatch.setitem(
            nvrtc.LAUNCHERS,
            "cpu",
            lambda _, unit, first=first: HostLauncher(build(unit, libraries), 256, first),
        )
        results.append(run_backend(case, inputs))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    assert_matches(case, inputs, results[0], torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_round_to_nearest(dtype: torch.dtype) -> None:
    """The bias gradient is a float32 sum: of one value that value again, of several torch's own rounding of the sum."""
    bits = torch.arange(-(2**15), 2**15, 7, dtype=torch.int32).to(torch.int16)
    values = bits.view(dtype).view(1, -1, 1, 1)  # subnormals, infinities and NaN among them
    for size in (1, 3):
        x = torch.randn(1, 2, size, 1).to(dtype)
        weight = torch.randn(len(bits), 2, 1, 1).to(dtype)
        bias = torch.zeros(len(bits), dtype=dtype, requires_grad=True)
        y = cuda_ops.normalized_conv2d(x, weight, bias, backend="cuda")
        dy = torch.cat([values, values.roll(1, 1) * 0.37, values.roll(2, 1) * 0.011][:size], 2)
        (gradient,) = torch.autograd.grad(y, bias, dy)
        wanted = (
            (dy[0, :, 0, 0].float() + dy[0, :, 1:, 0].float().sum(1)).to(dtype)
            if size > 1
            else values.flatten()
        )
        assert torch.equal(gradient.isnan(), wanted.isnan())
        assert (gradient == wanted)[~wanted.isnan()].float().mean() > (0.999 if size > 1 else 0.99999)


# What the tests above must notice: a term left out, a wrong index, a missing barrier.
FAULTS = {
    "between the pixels": ("squares += one[1] +", "squares += one[1] + 0 *"),
    "merge of two chunks": ("gap * gap * count * weight", "0 * gap * count * weight"),
    "padding row": ("top = row - a.ph, left", "top = row - a.pw, left"),
    "bias gradient": ("*to = tile == blockIdx.x ? sum : *to + sum;", "*to = sum;"),
    "mean's gradient": ("- (a.dmean ? a.dmean[patch]", "- (a.dmean ? 0 * a.dmean[patch]"),
    "padding value": ("? widen(*from) : (wide)0", "? widen(*from) : pivot"),
    "a barrier": ("__syncthreads();  // the last call's readers are done", ""),
    "the barrier of the bias gradient": ("__syncthreads();\n        }\n        dot", "}\n        dot"),
    "reflection: the edge is not repeated": ("2 * (size - 1) - i;\n}", "2 * size - 1 - i;\n}"),
    "reflection: what lies before the map": ("? at < 0 && at >= -pad :", "? false :"),
    "reflection: both borders": ("which < 9", "which < 8"),
    "reflection: a and b": ("border = true, add_patches(y, x);", "border = true;"),
    "reflection: the convolution's gradient": ("if (a.dinput && border)", "if (false)"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_kernel_is_noticed(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, libraries: Path
) -> None:
    text = SOURCE.read_text()
    assert text.count(FAULTS[fault][0]) == 1
    broken = tmp_path / "broken.cu"
    broken.write_text(text.replace(*FAULTS[fault]))
    monkeypatch.setattr("cuda_ops.cuda._MOST_BLOCKS", 2)
    dtype = torch.float32
    case = Case(images=3, channels=150, outputs=140, size=(5, 4), padding=(2, 1))
    case = case._replace(reflect=fault.startswith("reflection"))
    inputs = make_inputs(case, dtype, False)
    noticed = False
    for order in ((0, 1), (255, 255)):
        made = partial(HostLauncher, threads=256, order=order)
        for source, must_fail in ((SOURCE, False), (broken, True)):
            monkeypatch.setitem(
                nvrtc.LAUNCHERS, "cpu", lambda _, unit, s=source, m=made: m(build(unit, libraries, s))
            )
            cuda._plan.cache_clear()
            try:
                assert_matches(case, inputs, run_backend(case, inputs), dtype)
            except (AssertionError, RuntimeError):
                assert must_fail
                noticed = True
    cuda._plan.cache_clear()
    assert noticed


def test_a_retained_graph_serves_twice() -> None:
    x, weight = torch.randn(1, 2, 7, 7, requires_grad=True), torch.randn(3, 2, 3, 3)
    y = cuda_ops.normalized_conv2d(x, weight, backend="cuda", activation="relu")
    first, second = (torch.autograd.grad(y.sum(), x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_changing_y_in_place_is_noticed() -> None:
    """y is kept for the backward pass, as by torch's own relu or sigmoid."""
    x, weight = torch.randn(1, 2, 7, 7, requires_grad=True), torch.randn(3, 2, 3, 3)
    y = cuda_ops.normalized_conv2d(x, weight, backend="cuda")
    assert isinstance(y, torch.Tensor)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.mul_(2).sum().backward()


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a GPU's memory allocator hands out is not zero. Here every uninitialised tensor starts as NaN."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_nothing_is_read_before_it_is_written(dtype: torch.dtype, last: bool, poisoned: None) -> None:
    assert torch.empty(3).isnan().all()
    for case in CASES.values():
        inputs = make_inputs(case, dtype, last)
        assert_matches(case, inputs, run_backend(case, inputs), dtype)


def test_a_value_left_out_is_noticed(
    poisoned: None, libraries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, case = SOURCE.read_text(), CASES["relu"]
    before = "if (live && t.c == 0) {\n        wide* out"
    assert text.count(before) == 1
    broken = tmp_path / "broken.cu"
    broken.write_text(text.replace(before, "if (live && t.c == 0 && at > 0) {\n        wide* out"))
    monkeypatch.setitem(nvrtc.LAUNCHERS, "cpu", host_launchers(libraries, broken))
    inputs = make_inputs(case, torch.float32, False)
    assert run_backend(case, inputs)["mean"].isnan().any()
