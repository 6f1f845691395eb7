"""What is remembered per call signature: nothing stale, whatever changes between two calls of the CUDA backend."""

import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from cuda_shim.launcher import host_launchers
from cuda_support import layouts
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from cuda_ops import normalized_conv, normalized_conv2d, nvrtc
from cuda_ops.nvrtc import SOURCE


class Serial:
    """A launcher whose launches take turns: the emulated GPU has one set of thread indices."""

    def __init__(self, launcher: nvrtc.Launcher, before: Callable[[str], None]) -> None:
        self.threads, self._launcher, self._before = launcher.threads, launcher, before

    def bind(self, arguments: nvrtc.Arguments) -> nvrtc.LaunchKernel:
        bound = self._launcher.bind(arguments)

        def start(kernel: str, grid: nvrtc.Dims, block: nvrtc.Dims) -> None:
            with _turn:
                self._before(kernel)
                bound(kernel, grid, block)

        return start


_turn = threading.Lock()
Made = Callable[[int, nvrtc.Unit], nvrtc.Launcher]


@pytest.fixture
def seen() -> list[str]:
    """The kernels launched so far."""
    return []


@pytest.fixture(scope="module")
def launchers(libraries: Path) -> Made:
    return host_launchers(libraries)


@pytest.fixture(autouse=True)
def host(launchers: Made, kernels_on_cpu: None, monkeypatch: pytest.MonkeyPatch, seen: list[str]) -> None:
    """CPU tensors are served by the kernels for the length of a test, which are noted."""
    monkeypatch.setitem(nvrtc.LAUNCHERS, "cpu", lambda i, unit: Serial(launchers(i, unit), seen.append))
    monkeypatch.setattr(normalized_conv, "_calls", {})


def tensors(dtype: torch.dtype = torch.float32, size: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    shapes = (2, 4, size, 7), (6, 4, 3, 3), (6,)
    x, weight, bias = (torch.randn(shape, generator=g).to(dtype) for shape in shapes)
    return x, weight, bias


def layer(*given: Any, **options: Any) -> Any:
    return normalized_conv2d(*given, **{"padding": 1, "backend": "cuda"} | options)


def run(x: Tensor, weight: Tensor, bias: Tensor | None, **options: Any) -> list[Tensor]:
    """y, the moments where they are asked for, and the gradients of x, weight and bias."""
    inputs = [v.detach().requires_grad_() for v in (x, weight, bias) if v is not None]
    given = (*inputs, None)[:3]
    outputs = layer(*given, **options)
    y, moments = outputs if isinstance(outputs, tuple) else (outputs, ())
    g = torch.Generator().manual_seed(5)
    dy = torch.randn(y.shape, generator=g).to(y.dtype)
    return [y.detach(), *(v.detach() for v in moments), *torch.autograd.grad(y, inputs, dy)]


def assert_same(got: list[Tensor], wanted: list[Tensor]) -> None:
    assert len(got) == len(wanted)
    for a, b in zip(got, wanted, strict=True):
        assert a.stride() == b.stride()
        torch.testing.assert_close(a, b, rtol=0, atol=0)


LAST = torch.channels_last
CHANGES: dict[str, Callable[[], list[Tensor]]] = {
    "as it was": lambda: run(*tensors()),
    "size": lambda: run(*tensors(size=10)),
    "type": lambda: run(*tensors(torch.bfloat16)),
    "layout of x": lambda: run(tensors()[0].contiguous(memory_format=LAST), *tensors()[1:]),
    "layout of the weight": lambda: run(
        tensors()[0], tensors()[1].contiguous(memory_format=LAST), tensors()[2]
    ),
    "x sliced": lambda: run(tensors(size=18)[0][:, :, ::2], *tensors()[1:]),
    "weight sliced": lambda: run(tensors()[0], tensors()[1].transpose(2, 3), tensors()[2]),
    "no bias": lambda: run(*tensors()[:2], None),
    "type of the bias": lambda: run(*tensors()[:2], tensors()[2].double()),
    "stride": lambda: run(*tensors(), stride=2),
    "stride as a list": lambda: run(*tensors(), stride=[2, 1]),
    "padding": lambda: run(*tensors(), padding=(2, 0)),
    "dilation": lambda: run(*tensors(), dilation=2),
    "groups": lambda: run(tensors()[0], tensors()[1][:, :2], tensors()[2], groups=2),
    "eps": lambda: run(*tensors(), eps=0.1),
    "correction": lambda: run(*tensors(), correction=0),
    "activation": lambda: run(*tensors(), activation="relu"),
    "leaky": lambda: run(*tensors(), activation="leaky_relu"),
    "slope": lambda: run(*tensors(), activation="leaky_relu", negative_slope=0.5),
    "moments": lambda: run(*tensors(), return_moments=True),
    "backend": lambda: run(*tensors(), backend="direct"),
    "autocast": lambda: under_autocast(torch.bfloat16),
    "autocast to another type": lambda: under_autocast(torch.float16),
}


def under_autocast(dtype: torch.dtype) -> list[Tensor]:
    with torch.autocast("cpu", dtype):
        return run(*tensors())


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_call_is_not_taken_for_the_one_before(change: str) -> None:
    wanted = CHANGES[change]()  # nothing is remembered yet
    normalized_conv._calls.clear()
    for other in CHANGES.values():
        other()
    for _ in range(2):
        assert_same(CHANGES[change](), wanted)
    assert len(normalized_conv._calls) == len(CHANGES) - 2  # a list is no key; the bias may have any type


def test_a_wrong_call_is_refused_after_a_right_one() -> None:
    x, weight, bias = tensors()
    normalized_conv2d(x, weight, bias)
    with pytest.raises(ValueError, match="does not fit"):
        normalized_conv2d(x, weight, bias, groups=2)
    with pytest.raises(ValueError, match="bias is on meta and x on cpu"):
        normalized_conv2d(x, weight, bias.to("meta"))


def test_the_records_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normalized_conv, "_MOST_CALLS", 3)
    _, weight, bias = tensors()
    for side in range(3, 13):
        normalized_conv2d(torch.randn(1, 4, side, side), weight, bias, backend="direct")
        assert 1 <= len(normalized_conv._calls) <= 3


def test_moments_are_no_other_function() -> None:
    y, mean, std, *gradients = run(*tensors(), return_moments=True, activation="relu")
    assert_same(run(*tensors(), activation="relu"), [y, *gradients])
    assert mean.shape == std.shape == (2, 1, 9, 7)


def test_several_threads_at_once() -> None:
    """Every thread runs other shapes; the interpreter switches between them as often as it can."""
    jobs = [lambda size=size: run(*tensors(size=size), activation="relu") for size in (5, 6, 7, 8)]
    wanted = [job() for job in jobs]
    normalized_conv._calls.clear()
    results: list[list[list[Tensor]]] = [[] for _ in jobs]

    def work(i: int) -> None:
        results[i] = [jobs[i]() for _ in range(20)]

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(jobs))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    for got, right in zip(results, wanted, strict=True):
        assert len(got) == 20
        for one in got:  # not bit for bit: how many cores a convolution gets depends on the other threads
            torch.testing.assert_close(one, right, rtol=1e-4, atol=1e-4)


@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hooks_on_saved_tensors_may_change_their_layout(dtype: torch.dtype, last: bool) -> None:
    """As torch.autograd.graph.save_on_cpu does: what comes back is contiguous."""
    x, weight, bias = tensors(dtype)
    x = x.contiguous(memory_format=LAST) if last else x
    other = torch.contiguous_format if last else LAST
    for moments in (False, True):
        wanted = run(x, weight, bias, activation="relu", return_moments=moments)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda v: v.clone(memory_format=other if v.dim() == 4 else torch.contiguous_format), lambda v: v
        ):
            got = run(x, weight, bias, activation="relu", return_moments=moments)
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast_around_the_backward_pass_alone(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU autocast would turn `torch.convolution` into another type's; here it leaves it alone."""
    x, weight, bias = (v.requires_grad_() for v in tensors(dtype))
    y = layer(x, weight, bias)
    dy = torch.randn_like(y)
    wanted = torch.autograd.grad(y, (x, weight, bias), dy, retain_graph=True)
    convolution, states = torch.convolution, []

    def noting(*arguments: Any) -> Tensor:
        states.append(torch.is_autocast_enabled("cpu"))
        return convolution(*arguments)

    monkeypatch.setattr(torch, "convolution", noting)
    with torch.autocast("cpu", torch.bfloat16):
        got = torch.autograd.grad(y, (x, weight, bias), dy)
    assert states == [False]
    assert_same(list(got), list(wanted))


def test_y_is_gone_before_the_big_gradients(launchers: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory of y serves the convolution's gradients: the peak of the backward pass depends on it."""
    stored: list[StorageWeakRef] = []
    gone: dict[str, bool] = {}

    def look(kernel: str) -> None:
        if stored:
            gone[kernel] = stored[0].expired()

    monkeypatch.setitem(nvrtc.LAUNCHERS, "cpu", lambda i, unit: Serial(launchers(i, unit), look))
    x, weight, bias = (v.requires_grad_() for v in tensors())
    y = layer(x, weight, bias)
    stored.append(StorageWeakRef(y.untyped_storage()))
    loss = y.mul(2).sum()
    del y
    loss.backward()
    assert gone == {"project": False, "prepare": True, "finish": True, "collect": True}


class Wrapper(torch.Tensor):
    """A tensor without memory of its own, as sharded and quantised ones are."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Wrapper":
        outer = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=inner.device
        )
        outer.inner = inner
        return outer

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        plain = tree_map(lambda v: v.inner if isinstance(v, cls) else v, (args, kwargs or {}))
        return tree_map(lambda v: cls(v) if isinstance(v, Tensor) else v, op(*plain[0], **plain[1]))


def test_a_wrapped_tensor_is_served_without_launches(seen: list[str]) -> None:
    x, weight, bias = tensors()
    wanted = run(x, weight, bias, activation="relu", backend="direct")
    x = Wrapper(x).requires_grad_()
    weight, bias = weight.requires_grad_(), bias.requires_grad_()
    y = layer(x, weight, bias, activation="relu")
    assert isinstance(y, Wrapper)
    g = torch.Generator().manual_seed(5)
    gradients = torch.autograd.grad(y, (x, weight, bias), Wrapper(torch.randn(y.shape, generator=g)))
    for got, right in zip((y.detach(), *gradients), wanted, strict=True):
        torch.testing.assert_close(got.inner, right)
    assert not seen


def test_fake_tensors_launch_nothing(seen: list[str]) -> None:
    x, weight, bias = tensors(torch.bfloat16)
    wanted = run(x, weight, bias)
    launched = len(seen)
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(v).requires_grad_() for v in (x, weight, bias)]
        y = layer(*fake)
        gradients = torch.autograd.grad(y, fake, torch.empty_like(y))
    for a, b in zip((y, *gradients), wanted, strict=True):
        assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)
    assert len(seen) == launched


def test_what_looks_at_every_operation_sees_the_layer(seen: list[str]) -> None:
    """Launches would pass it by: z, kept here, would be y by the time it is used again."""
    x, weight, bias = inputs = [v.requires_grad_() for v in tensors()]
    operations: list[str] = []

    def policy(context: object, op: object, *arguments: Any, **options: Any) -> CheckpointPolicy:
        operations.append(str(op))
        keep = "convolution" in str(op)
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

    wanted = torch.autograd.grad(layer(*inputs, activation="relu").square().sum(), inputs)
    launched = len(seen)
    y = checkpoint(
        lambda v: layer(v, weight, bias, activation="relu").square(),
        x,
        use_reentrant=False,
        context_fn=partial(create_selective_checkpoint_contexts, policy),
    )
    torch.testing.assert_close(torch.autograd.grad(y.sum(), inputs), wanted, rtol=1e-4, atol=1e-4)
    assert "aten.convolution.default" in operations
    assert len(seen) == launched


@layouts
def test_compiled_without_a_graph_break_and_without_launches(last: bool, seen: list[str]) -> None:
    x, weight, bias = tensors()
    x = x.contiguous(memory_format=LAST) if last else x
    options = {"activation": "relu", "return_moments": True}
    wanted = run(x, weight, bias, backend="direct", **options)
    torch._dynamo.reset()
    compiled = torch.compile(partial(layer, **options), fullgraph=True, backend="aot_eager")
    inputs = [v.requires_grad_() for v in (x, weight, bias)]
    y, moments = compiled(*inputs)
    gradients = torch.autograd.grad(
        y, inputs, torch.randn(y.shape, generator=torch.Generator().manual_seed(5))
    )
    torch.testing.assert_close([y, *moments, *gradients], wanted)
    assert not seen


def test_autocast_and_dynamic_shapes_under_the_compiler() -> None:
    """Without an activation: bf16 may put an entry near 0 on either side of its kink."""
    torch.manual_seed(0)
    weight = torch.randn(4, 6, 3, 3, requires_grad=True)

    def function(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return layer(x, weight, None, backend="direct")

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    for side in (8, 11):
        x = torch.randn(2, 6, side, side + 1, requires_grad=True)
        results = []
        for call in (compiled, function):
            y = call(x)
            results.append((y, *torch.autograd.grad(y.float().sum(), (x, weight))))
        for got, wanted in zip(*results, strict=True):
            assert (got - wanted).norm() <= 0.02 * wanted.norm()


def test_meta_tensors_need_no_kernels(seen: list[str]) -> None:
    x, weight, bias = (v.to("meta").requires_grad_() for v in tensors())
    y = layer(x, weight, bias, backend="auto")
    y.sum().backward()
    assert y.shape == (2, 6, 9, 7)
    assert x.grad is not None and x.grad.is_meta
    assert not seen


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="this machine has a GPU: the benchmark would measure that"
)
def test_the_benchmark_of_the_host_time_runs() -> None:
    command = [sys.executable, "benchmarks/nc_host_time.py", "--rounds", "1"]
    done = subprocess.run(command, cwd=SOURCE.parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("float32 ")]
    assert [row[10:39].strip() for row in rows] == [
        "conv + InstanceNorm2d + ReLU",
        "nc",
        "nc with its moments",
    ]
    assert "Not included: the launches themselves (6 a pass of nc" in done.stdout
