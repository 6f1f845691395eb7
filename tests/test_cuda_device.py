"""The CUDA backend on a real GPU: `pytest -m cuda`."""

import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from cuda_support import CASES, Case, assert_matches, distances, expected, make_inputs, run_backend
from torch.utils import benchmark

import cuda_ops
from cuda_ops.compile import SOURCE

pytestmark = pytest.mark.cuda
LAYOUTS = {"nchw": False, "channels_last": True}
layouts = pytest.mark.parametrize("last", LAYOUTS.values(), ids=LAYOUTS.keys())
dtypes = pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.float16, torch.bfloat16],
    ids=lambda d: str(d).removeprefix("torch."),
)


@pytest.fixture(autouse=True)
def exact_and_repeatable() -> Iterator[None]:
    """No TF32, and cuDNN's deterministic algorithms: what is left to differ is ours."""
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = False
        yield
        torch.backends.cuda.matmul.allow_tf32 = before


@layouts
@dtypes
@pytest.mark.parametrize("name", CASES)
def test_output_moments_and_gradients(name: str, dtype: torch.dtype, last: bool) -> None:
    case = CASES[name]
    inputs = make_inputs(case, dtype, last, "cuda")
    assert_matches(case, inputs, run_backend(case, inputs), dtype)


@layouts
@dtypes
def test_a_generators_layer(dtype: torch.dtype, last: bool) -> None:
    case = Case(images=2, channels=64, size=(32, 32), outputs=128, stride=(2, 2), activation="relu")
    inputs = make_inputs(case, dtype, last, "cuda")
    assert_matches(case, inputs, run_backend(case, inputs, "auto"), dtype)


@layouts
@pytest.mark.parametrize("offset", [0.0, 1.0, 10.0, 100.0, 1000.0])
def test_float32_is_exact_at_every_offset(offset: float, last: bool) -> None:
    case = Case(images=3, channels=64, size=(32, 32), outputs=64, offset=offset)
    inputs = make_inputs(case, torch.float32, last, "cuda")
    actual = run_backend(case, inputs)
    errors = distances(actual, expected(case, inputs, torch.float32))
    assert max(errors[name] for name in ("y", "mean", "std")) <= 2e-6, errors
    assert max(errors[name] for name in ("dx", "dweight", "dbias")) <= 5e-6, errors


@layouts
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
def test_autocast(x_dtype: torch.dtype, last: bool) -> None:
    case = Case(activation="relu")
    inputs = make_inputs(case, x_dtype, last, "cuda", weight_dtype=torch.float32)
    with torch.autocast("cuda", torch.bfloat16):
        actual = run_backend(case, inputs)
    assert actual["y"].dtype == torch.bfloat16
    assert actual["dx"].dtype == x_dtype
    assert_matches(case, inputs, actual, torch.bfloat16)


@layouts
@dtypes
def test_deterministic(dtype: torch.dtype, last: bool) -> None:
    case = Case(images=8, channels=64, size=(64, 64), outputs=64, activation="relu")
    inputs = make_inputs(case, dtype, last, "cuda")
    first, second = (run_backend(case, inputs) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_gradcheck() -> None:
    x, weight, bias, _ = make_inputs(Case(images=1, size=(5, 4)), torch.float64, False, "cuda")

    def function(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y, moments = cuda_ops.normalized_conv2d(
            *tensors, padding=1, activation="leaky_relu", return_moments=True, backend="cuda"
        )
        return y, *moments

    tensors = tuple(v.requires_grad_() for v in (x, weight, bias) if v is not None)
    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


@layouts
def test_opcheck(last: bool) -> None:
    x, weight, bias, _ = make_inputs(Case(), torch.float32, last, "cuda")
    tensors = tuple(v.requires_grad_() for v in (x, weight, bias) if v is not None)
    numbers = ((1, 1), (1, 1), (1, 1), 1, 1e-5, 1, "relu", 0.2, torch.float32)
    torch.library.opcheck(torch.ops.normalized_conv.forward.default, (*tensors, *numbers))


@layouts
@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compile_without_graph_break(compiler: str, last: bool) -> None:
    case = Case(activation="relu")
    inputs = make_inputs(case, torch.float32, last, "cuda")
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda *t: cuda_ops.normalized_conv2d(*t, padding=1, activation="relu", return_moments=True),
        fullgraph=True,
        backend=compiler,
    )
    tensors = [v.detach().requires_grad_() for v in inputs[:3] if v is not None]
    y, (mean, std) = compiled(*tensors)
    gradients = torch.autograd.grad((y, mean, std), tensors, [v.float() for v in inputs.upstream])
    plain = run_backend(case, inputs)
    for got, name in zip((y, mean, std, *gradients), plain, strict=True):
        torch.testing.assert_close(got, plain[name])


@layouts
@dtypes
def test_graph_capture(dtype: torch.dtype, last: bool) -> None:
    """Captured once, replayed on other data: the same as without a graph."""
    case = Case(images=2, channels=16, size=(20, 20), outputs=8, activation="relu")
    inputs = make_inputs(case, dtype, last, "cuda")
    x, weight, bias = (v.detach().requires_grad_() for v in inputs[:3] if v is not None)
    dy = inputs.upstream[0].to(dtype)

    def step() -> tuple[torch.Tensor, ...]:
        y = cuda_ops.normalized_conv2d(x, weight, bias, padding=1, activation="relu", backend="cuda")
        return (y, *torch.autograd.grad(y, (x, weight, bias), dy))

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        x.copy_(torch.randn_like(x) * 3 + 1)
    graph.replay()
    for got, wanted in zip(captured, step(), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)


def test_first_use_inside_a_capture_is_refused_with_the_cure() -> None:
    program = (
        "import torch, cuda_ops\n"
        "x, w = torch.randn(1, 2, 8, 8, device='cuda'), torch.randn(3, 2, 3, 3, device='cuda')\n"
        "torch.nn.functional.conv2d(x, w); torch.cuda.synchronize()\n"
        "try:\n"
        "    with torch.cuda.graph(torch.cuda.CUDAGraph()):\n"
        "        cuda_ops.normalized_conv2d(x, w)\n"
        "except RuntimeError as error: print(error)\n"
        "print(cuda_ops.normalized_conv2d(x, w, backend='cuda').shape)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=SOURCE.parents[1], capture_output=True, text=True, timeout=200
    )
    assert "before the capture" in done.stdout, done.stderr
    assert "torch.Size([1, 3, 6, 6])" in done.stdout, done.stderr


def test_runs_on_the_current_stream() -> None:
    case = Case(images=4, channels=64, size=(64, 64), outputs=64)
    inputs = make_inputs(case, torch.float32, False, "cuda")
    wanted = run_backend(case, inputs, upstream=False)["y"]
    x, side = torch.zeros_like(inputs.x), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(20_000_000)  # a kernel on another stream would read x before this is over
        x.copy_(inputs.x)
        y = cuda_ops.normalized_conv2d(x, inputs.weight, inputs.bias, padding=1, backend="cuda")
    torch.cuda.synchronize()
    torch.testing.assert_close(y, wanted, rtol=0, atol=0)


def test_more_than_two_to_the_31_elements() -> None:
    """64-bit indices: the last image of a tensor beyond 2^31 elements is as right as the first."""
    free, _ = torch.cuda.mem_get_info()
    if free < 20 * 2**30:
        pytest.skip("needs 20 GiB of free GPU memory")
    image = torch.randn(1, 2, 1024, 1024, dtype=torch.float16, device="cuda")
    x = image.expand(1100, -1, -1, -1).contiguous()
    weight = torch.randn(1, 2, 3, 3, dtype=torch.float16, device="cuda")
    y = cuda_ops.normalized_conv2d(x, weight, stride=4, backend="cuda")
    assert torch.equal(y[0], y[-1])


def test_host_time_has_not_gone_astray() -> None:
    """One pass at a size that the GPU finishes before the next call comes. The goal itself, at most the time of
    conv + InstanceNorm + ReLU, is what the benchmark measures: benchmarks/NOTES_nc_layer.md."""
    x = torch.randn(1, 16, 16, 16, device="cuda", requires_grad=True)
    conv = torch.nn.Conv2d(16, 16, 3, padding=1).cuda()
    parameters, dy = (x, conv.weight, conv.bias), torch.randn(1, 16, 16, 16, device="cuda")

    def nc() -> None:
        y = cuda_ops.normalized_conv2d(x, conv.weight, conv.bias, padding=1, activation="relu")
        torch.autograd.grad(y, parameters, dy)

    def baseline() -> None:
        y = torch.relu(torch.nn.functional.instance_norm(conv(x)))
        torch.autograd.grad(y, parameters, dy)

    times = [
        benchmark.Timer("f()", globals={"f": f}).blocked_autorange(min_run_time=1).median
        for f in (nc, baseline)
    ]
    assert times[0] <= 2 * times[1], f"{times[0] * 1e6:.0f} us against {times[1] * 1e6:.0f} us"


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_compute_sanitizer(tool: str) -> None:
    if shutil.which("compute-sanitizer") is None:
        pytest.skip("compute-sanitizer is not on PATH")
    program = (
        "import torch, cuda_ops\n"
        "torch.backends.cudnn.enabled = False\n"
        "for dtype in (torch.float32, torch.bfloat16):\n"
        "    for layout in (torch.contiguous_format, torch.channels_last):\n"
        "        x = torch.randn(2, 37, 9, 11, device='cuda', dtype=dtype).contiguous(memory_format=layout)\n"
        "        w = torch.randn(35, 37, 3, 3, device='cuda', dtype=dtype, requires_grad=True)\n"
        "        b = torch.randn(35, device='cuda', dtype=dtype, requires_grad=True)\n"
        "        y, moments = cuda_ops.normalized_conv2d(x.requires_grad_(), w, b, 2, 1, activation='relu',\n"
        "                                                return_moments=True, backend='cuda')\n"
        "        (y.float().sum() + moments.std.sum()).backward()\n"
        "torch.cuda.synchronize()\n"
    )
    command = ["compute-sanitizer", f"--tool={tool}", "--kernel-name=kns=nc_", "--error-exitcode=9"]
    done = subprocess.run(
        [*command, sys.executable, "-c", program],
        cwd=SOURCE.parents[1], capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    if "Device not supported" in done.stdout + done.stderr:
        pytest.skip("compute-sanitizer does not support this device or its driver")
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
