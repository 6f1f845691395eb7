"""The CUDA backend on a real GPU, beside the tests of test_cuda_kernels.py that run on both: `pytest -m cuda`."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cuda_support import (
    Case,
    assert_matches,
    dtypes,
    layouts,
    make_inputs,
    run_backend,
)
from torch.utils import benchmark

import cuda_ops
from cuda_ops.nvrtc import SOURCE

# cuDNN may warn of a plan that it gave up; that the kernels cannot be built stays an error.
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.usefixtures("exact_convolutions"),
    pytest.mark.filterwarnings("default::UserWarning:cuda_ops"),
    pytest.mark.filterwarnings("error:normalized_conv2d falls back:UserWarning"),
]


@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_is_read_before_it_is_written(
    dtype: torch.dtype, last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch fills new memory with NaN where it is asked for deterministic algorithms."""
    case = Case(images=3, channels=40, size=(13, 11), outputs=24, stride=(2, 1), activation="relu")
    inputs = make_inputs(case, dtype, last, "cuda")
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.empty(9, device="cuda").isnan().all()
        actual = run_backend(case, inputs)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_matches(case, inputs, actual, dtype)


@layouts
@dtypes
def test_a_generators_layer(dtype: torch.dtype, last: bool) -> None:
    case = Case(images=2, channels=64, size=(32, 32), outputs=128, stride=(2, 2), activation="relu")
    inputs = make_inputs(case, dtype, last, "cuda")
    assert_matches(case, inputs, run_backend(case, inputs, "auto"), dtype)


@layouts
@dtypes
def test_deterministic(dtype: torch.dtype, last: bool) -> None:
    case = Case(images=8, channels=64, size=(64, 64), outputs=64, activation="relu")
    inputs = make_inputs(case, dtype, last, "cuda")
    first, second = (run_backend(case, inputs) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


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
    for got, name in zip((y, mean, std, *gradients), plain, strict=True):  # compiled is the torch form
        torch.testing.assert_close(got, plain[name], rtol=1e-4, atol=1e-4)


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
    side.wait_stream(torch.cuda.current_stream())
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
        [sys.executable, "-c", program], cwd=SOURCE.parents[1], capture_output=True, text=True
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
    """64-bit indices: the last image of a tensor beyond 2^31 elements is as right as the first.

    torch hands cuDNN such a batch in parts, for which it may choose different algorithms.
    """
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    if free < 24 * 2**30:
        pytest.skip("needs 24 GiB of free GPU memory")
    image = torch.randn(1, 2, 1024, 1024, dtype=torch.float16, device="cuda")
    x = image.expand(1100, -1, -1, -1).contiguous().requires_grad_()
    weight = torch.randn(1, 2, 3, 3, dtype=torch.float16, device="cuda")
    y, moments = cuda_ops.normalized_conv2d(x, weight, stride=4, backend="cuda", return_moments=True)
    assert torch.equal(moments.mean[0], moments.mean[-1])
    assert torch.equal(moments.std[0], moments.std[-1])
    torch.testing.assert_close(y[0], y[-1])
    dy = torch.randn_like(y[:1]).expand_as(y)
    (dx,) = torch.autograd.grad(y, x, dy)
    torch.testing.assert_close(dx[0], dx[-1])
    assert dx[-1].abs().sum() > 0
    del x, y, moments, dx
    torch.cuda.empty_cache()


def test_another_device_than_the_current_one() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    case = Case(activation="relu")
    inputs = make_inputs(case, torch.float32, False, "cuda:1")
    assert torch.cuda.current_device() == 0
    assert_matches(case, inputs, run_backend(case, inputs), torch.float32)


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

    timers = [benchmark.Timer("f()", globals={"f": f}) for f in (nc, baseline)]
    times = [timer.blocked_autorange(min_run_time=1).median for timer in timers]
    assert times[0] <= 2 * times[1], f"{times[0] * 1e6:.0f} us against {times[1] * 1e6:.0f} us"


def compute_sanitizer() -> str | None:
    """On PATH, or from the package nvidia-cuda-sanitizer-api beside torch's CUDA packages."""
    beside = [folder for entry in sys.path for folder in Path(entry).glob("nvidia/*/bin")]
    return shutil.which("compute-sanitizer", path=os.pathsep.join([os.environ["PATH"], *map(str, beside)]))


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck"])
def test_compute_sanitizer(tool: str) -> None:
    program_path = compute_sanitizer()
    if program_path is None:
        pytest.skip("no compute-sanitizer (CUDA toolkit, or `pip install nvidia-cuda-sanitizer-api`)")
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
        "print('through')\n"
    )
    command = [program_path, f"--tool={tool}", "--kernel-name=kns=nc_", "--report-api-errors=no"]
    done = subprocess.run(
        [*command, "--error-exitcode=9", sys.executable, "-c", program],
        cwd=SOURCE.parents[1], capture_output=True, text=True,
        env=os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},  # tensors side by side in one block hide overruns
    )  # fmt: skip
    text = done.stdout + done.stderr
    for words in ("Device not supported", "before first instrumented API call"):
        if words in text:
            pytest.skip(f"compute-sanitizer does not run here: {words}")
    assert done.returncode == 0, text[-3000:]
    assert "through" in done.stdout
