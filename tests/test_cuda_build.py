"""Compiling, caching and choosing the CUDA backend; nothing here needs a GPU."""

import ctypes
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from cuda_shim.launcher import FOLDER

import cuda_ops
from cuda_ops import __main__ as report
from cuda_ops import cuda, nvrtc
from cuda_ops.nvrtc import SOURCE, Arguments, BuildError, Unit, architecture_for, build, compiled
from gan.setup import require_cuda_kernels
from gan.step import Placement

try:
    nvrtc.nvrtc_version()
    MISSING = ""
except BuildError as error:
    MISSING = str(error)
needs_nvrtc = pytest.mark.skipif(bool(MISSING), reason=MISSING or "NVRTC is there")

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
UNITS = {
    "float64": Unit(F64, F64, F64, False),
    "float32": Unit(F32, F32, F32, True),
    "float16": Unit(F16, F16, F16, False),
    "bfloat16": Unit(BF16, BF16, BF16, True),
    "autocast": Unit(F32, F16, F32, False),
    "bfloat16 NCHW": Unit(BF16, BF16, BF16, False),
    "autocast inside": Unit(BF16, BF16, F32, True),
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NORMALIZED_CONV_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@needs_nvrtc
@pytest.mark.parametrize("architecture", ["75", "80", "86", "89", "90", "100", "120"])
def test_every_kernel_compiles_for(architecture: str) -> None:
    unit = UNITS["bfloat16" if architecture in ("75", "90") else "float32"]
    code = build(SOURCE.read_bytes(), unit.definitions(), f"sm_{architecture}")
    assert code[:4] == b"\x7fELF"
    for kernel in nvrtc.KERNELS:
        assert f"nc_{kernel}".encode() in code


def findings(ptx: str) -> set[str]:
    """What must not be in the compiled code. No run on a CPU can show it."""
    patterns = {
        "subnormal numbers flushed to zero": r"\.ftz\b",
        "an approximate division, root or reciprocal": r"\b(div|sqrt|rsqrt|rcp)\.(approx|full)",
        "loads that may miss what the same kernel has written": r"ld\.global\.nc",  # dx and dinput are one tensor
        "an array in local memory": r"\.local\b",
        "accesses of unknown memory": r"\b(ld|st)\.(u|s|f|b)\d+",  # generic: slower than global or shared ones
        "atomics, whose order changes the result": r"\b(atom|red)\.",
        "wider accesses than a slice is aligned for": r"(ld|st)\.global\.v\d",
    }
    return {name for name, pattern in patterns.items() if re.search(pattern, ptx)}


@needs_nvrtc
@pytest.mark.parametrize("name", UNITS)
def test_generated_code(name: str) -> None:
    ptx = build(SOURCE.read_bytes(), UNITS[name].definitions(), "compute_80").decode()
    assert ".entry nc_collect" in ptx
    assert not findings(ptx)
    size = ctypes.sizeof(Arguments)
    assert ptx.count(f".param .align 8 .b8 nc_scale_param_0[{size}]") == 1
    if BF16 in UNITS[name]:
        assert "cvt.rn.bf16.f32" in ptx
    if F16 in UNITS[name]:
        assert "cvt.rn.f16.f32" in ptx


@needs_nvrtc
@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        ("const wide std = sqrt(", "const wide std = __fsqrt_rn(0.0f) + __fdividef(1.0f, ", "approximate"),
        (
            "{ return v; }",
            '{ float r; asm("add.ftz.f32 %0, %1, %1;" : "=f"(r) : "f"(v)); return r; }',
            "subnormal",
        ),
        ("if (thread_index() == 0) a.pivot[which] = mean;", "atomicAdd(a.pivot + which, mean);", "atomics"),
        ("__builtin_assume(__isGlobal(at));", "", "unknown memory"),
        ("v[u] = inside ? widen(*from)", "v[u] = inside ? widen(__ldg(from))", "may miss"),
    ],
)
def test_a_planted_fault_is_found(before: str, after: str, found: str) -> None:
    text = SOURCE.read_text()
    assert text.count(before) == 1
    ptx = build(text.replace(before, after).encode(), UNITS["float32"].definitions(), "compute_80").decode()
    assert any(found in name for name in findings(ptx))


@needs_nvrtc
def test_the_compilers_words_are_passed_on() -> None:
    with pytest.raises(BuildError, match=r'kernels.cu\(1\): error: identifier "nonsense" is undefined'):
        build(b"int a = nonsense;", (), "sm_90")


@needs_nvrtc
def test_a_changed_argument_block_does_not_compile() -> None:
    defines = (*UNITS["float32"].definitions()[:-1], f"-DARGS_BYTES={ctypes.sizeof(Arguments) + 8}")
    with pytest.raises(BuildError, match="Args differs from its mirror"):
        build(SOURCE.read_bytes(), defines, "compute_80")


@needs_nvrtc
def test_architecture_is_the_devices_or_the_newest_below() -> None:
    assert architecture_for((9, 0)) == "sm_90"
    assert architecture_for((99, 0)).startswith("compute_")
    with pytest.raises(BuildError, match="older than this CUDA supports"):
        architecture_for((3, 0))


def counted_builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    built: list[str] = []

    def fake(source: bytes, defines: Any, architecture: str) -> bytes:
        built.append(architecture)
        return f"code for {architecture}".encode()

    monkeypatch.setattr(nvrtc, "build", fake)
    monkeypatch.setattr(nvrtc, "nvrtc_version", lambda: "13.0")
    return built


def test_cache_holds_what_was_built(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = counted_builds(monkeypatch)
    for _ in range(2):
        assert compiled(("-DX=1",), "sm_90") == b"code for sm_90"
    assert built == ["sm_90"]
    compiled(("-DX=1",), "sm_80")  # the key holds the architecture,
    compiled(("-DX=2",), "sm_90")  # the types,
    monkeypatch.setattr(nvrtc, "nvrtc_version", lambda: "13.1")
    compiled(("-DX=1",), "sm_90")  # the compiler's version
    changed = cache.parent / "kernels.cu"
    changed.write_text("// another source")
    monkeypatch.setattr(nvrtc, "SOURCE", changed)
    compiled(("-DX=1",), "sm_90")  # and the source
    assert len(built) == 5
    assert len(list(cache.iterdir())) == 5


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "text"])
def test_a_corrupt_entry_is_built_again(damage: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = counted_builds(monkeypatch)
    compiled((), "sm_90")
    (entry,) = cache.iterdir()
    good = entry.read_bytes()
    bad = bytearray(good)
    bad[40] ^= 1
    entry.write_bytes({"empty": b"", "cut": good[:-1], "flipped": bytes(bad), "text": b"<html>"}[damage])
    assert compiled((), "sm_90") == b"code for sm_90"
    assert built == ["sm_90"] * 2
    assert entry.read_bytes() == good


def test_a_cache_that_cannot_be_written_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = counted_builds(monkeypatch)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("NORMALIZED_CONV_CACHE", str(tmp_path / "file" / "cache"))
    assert compiled((), "sm_90") == b"code for sm_90"
    assert built == ["sm_90"]


def test_without_a_home_there_is_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs with a user id of its own."""
    built = counted_builds(monkeypatch)
    for name in ("NORMALIZED_CONV_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    assert nvrtc.cache_folder() is None
    assert compiled((), "sm_90") == b"code for sm_90"
    assert built == ["sm_90"]


@pytest.mark.parametrize("what", ["folder", "file"])
@pytest.mark.parametrize("change", ["mode", "owner", "link"])
def test_a_cache_that_others_may_write_is_not_used(
    what: str, change: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever writes there would choose what runs on the GPU."""
    built = counted_builds(monkeypatch)
    compiled((), "sm_90")
    (entry,) = cache.iterdir()
    assert (cache.stat().st_mode & 0o777, entry.stat().st_mode & 0o777) == (0o700, 0o600)
    target = cache if what == "folder" else entry
    if change == "mode":
        target.chmod(target.stat().st_mode | 0o020)
    elif change == "owner":
        uid = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
        if uid == 0:  # what root owns is trusted
            os.chown(target, 12345, -1)
    elif what == "folder":
        return  # a linked folder is looked at where it lies
    else:
        moved = cache.parent / "elsewhere"
        entry.rename(moved)
        entry.symlink_to(moved)
    assert compiled((), "sm_90") == b"code for sm_90"
    assert built == ["sm_90"] * 2


def _race(start: Any) -> bytes:
    start.wait()
    return compiled(UNITS["float16"].definitions(), "compute_80")


@needs_nvrtc
def test_processes_may_race_for_the_cache(cache: Path) -> None:
    context = multiprocessing.get_context("fork")
    with context.Manager() as manager, context.Pool(3) as racers:
        answers = racers.map(_race, [manager.Barrier(3)] * 3, chunksize=1)
    assert len(set(answers)) == 1
    assert [path.suffix for path in cache.iterdir()] == [".bin"]  # one entry, nothing left half done
    assert compiled(UNITS["float16"].definitions(), "compute_80") == answers[0]


def test_cache_folder_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NORMALIZED_CONV_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert nvrtc.cache_folder() == Path("/somewhere/normalized_conv")


def test_backend_cuda_on_cpu_tensors_is_one_sentence() -> None:
    with pytest.raises(RuntimeError, match="x is on the device cpu, the kernels are for cuda"):
        cuda_ops.normalized_conv2d(torch.randn(1, 2, 5, 5), torch.randn(3, 2, 3, 3), backend="cuda")


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that should serve CPU tensors but cannot be built."""

    def fail(index: int, unit: Unit) -> Any:
        raise BuildError("NVRTC sm_90: kernels.cu(7): error: no such luck")

    monkeypatch.setitem(nvrtc.LAUNCHERS, "cpu", fail)
    monkeypatch.setattr(cuda, "_outcomes", {})
    monkeypatch.setattr(cuda, "_warned", set())


def test_auto_falls_back_with_one_warning(failing: None) -> None:
    x, weight = torch.randn(1, 2, 9, 9), torch.randn(3, 2, 3, 3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results = [cuda_ops.normalized_conv2d(x, weight) for _ in range(3)]
        # another unit, the same reason: not said again
        cuda_ops.normalized_conv2d(x.double(), weight.double())
    assert [str(w.message) for w in caught] == [
        "normalized_conv2d falls back to its torch form: NVRTC sm_90: kernels.cu(7): error: no such luck"
    ]
    torch.testing.assert_close(results[0], cuda_ops.normalized_conv2d(x, weight, backend="reference"))


def test_an_accident_is_not_remembered_and_another_failure_is_reported(
    failing: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight = torch.randn(1, 2, 9, 9), torch.randn(3, 2, 3, 3)
    answers: list[BuildError] = [
        BuildError("the CUDA driver answered CUDA_ERROR_OUT_OF_MEMORY", passing=True),
        BuildError("no such luck"),
        BuildError("a missing library"),
    ]

    def fail(index: int, unit: Unit) -> Any:
        raise answers.pop(0)

    monkeypatch.setitem(nvrtc.LAUNCHERS, "cpu", fail)
    with pytest.raises(RuntimeError, match="OUT_OF_MEMORY"):
        cuda_ops.normalized_conv2d(x, weight)
    for dtype, words in ((torch.float32, "no such luck"), (torch.float64, "a missing library")):
        with pytest.warns(UserWarning, match=words):
            cuda_ops.normalized_conv2d(x.to(dtype), weight.to(dtype))
    assert not answers


def test_backend_cuda_raises_with_the_compilers_words(failing: None) -> None:
    with pytest.raises(RuntimeError, match=r"not available here: NVRTC sm_90: .* no such luck"):
        cuda_ops.normalized_conv2d(torch.randn(1, 2, 9, 9), torch.randn(3, 2, 3, 3), backend="cuda")


def test_auto_says_nothing_where_the_kernels_do_not_apply(failing: None) -> None:
    x, weight = torch.randn(0, 2, 9, 9), torch.randn(3, 2, 3, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cuda_ops.normalized_conv2d(x, weight).shape == (0, 3, 7, 7)
    with pytest.raises(RuntimeError, match="x is empty"):
        cuda_ops.normalized_conv2d(x, weight, backend="cuda")


class NoLaunch:
    """A launcher that runs nothing."""

    threads = 256

    def bind(self, arguments: Arguments) -> Any:
        return lambda kernel, grid, block: None


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_run_with_backend_cuda_builds_all_that_it_may_need(
    bf16: bool, channels_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: set[Unit] = set()
    monkeypatch.setitem(nvrtc.LAUNCHERS, "cpu", lambda index, unit: asked.add(unit) or NoLaunch())
    monkeypatch.setattr(cuda, "_outcomes", {})
    require_cuda_kernels(Placement(torch.device("cpu"), bf16, channels_last))
    layouts = (False, True) if channels_last else (False,)
    inputs = (F32, BF16) if bf16 else (F32,)
    assert asked == {Unit(x, BF16 if bf16 else F32, F32, last) for x in inputs for last in layouts}


def test_no_compilation_inside_a_graph_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(BuildError, match=r"run the layer once with these dtypes .* before the capture"):
        nvrtc.CudaLauncher(0, UNITS["float32"])


def test_a_default_stream_per_thread_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuda-bindings would launch on another stream than torch's."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setenv("CUDA_PYTHON_CUDA_PER_THREAD_DEFAULT_STREAM", "1")
    with pytest.raises(BuildError, match="CUDA_PYTHON_CUDA_PER_THREAD_DEFAULT_STREAM is set"):
        nvrtc.CudaLauncher(0, UNITS["float32"])


def test_a_missing_gpu_is_a_reason_not_a_crash() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(BuildError):
        nvrtc.CudaLauncher(0, UNITS["float32"])


@needs_nvrtc
@pytest.mark.skipif(
    shutil.which("cc") is None or sys.platform != "linux", reason="no C compiler for the stand-in"
)
@pytest.mark.skipif(
    torch.cuda.is_available(), reason="the real driver is there: `pytest -m cuda` launches for real"
)
def test_the_launcher_against_a_stand_in_driver(tmp_path: Path, cache: Path) -> None:
    """Grid, block, stream and the address of the arguments, as cuda-bindings hands them to the driver."""
    library = tmp_path / "libcuda.so.1"
    source = FOLDER / "driver.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-w", str(source), "-o", str(library), "-ldl"], check=True)
    environment = os.environ | {"LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": str(SOURCE.parents[1])}
    command = [sys.executable, str(FOLDER / "drive.py"), str(library)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second, third, fourth, fifth, captured, full, built = json.loads(done.stdout)
    assert first == [1, 5, 6, 1, 32, 8, 1, 1234, ord("s"), 0xABCDEF]
    assert second == [2, 206, 6, 1, 32, 8, 1, 1234, ord("s"), 0xABCDEF]  # launched again with a context
    assert third == [3, 405, 6, 1, 32, 8, 1, 1234, ord("s"), 0xABCDEF]
    assert (
        fourth == "launch of the kernel scale failed: CUDA_ERROR_INVALID_VALUE (grid (6, 6), block (32, 8))"
    )
    assert fifth == [4, 1, 2, 1, 3, 4, 1, 77, ord("c"), 5, 0]  # on its own device, and on the stream of now
    assert captured == "the CUDA driver answered CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"
    assert (full, built) == ("the CUDA driver answered CUDA_ERROR_OUT_OF_MEMORY", "built")


def test_report_of_what_is_available(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == [
        "torch", "reference", "direct", "cuda", "compiler", "cache",
    ]  # fmt: skip
    if not torch.cuda.is_available():
        assert any(line.startswith("cuda       not available: ") for line in lines)
    assert MISSING or any("works" in line for line in lines if line.startswith("compiler"))


def test_help_comes_without_torch_and_a_closed_pipe_is_no_traceback(cache: Path) -> None:
    code = (
        "import runpy, sys; sys.argv = ['cuda_ops', '--help']\n"
        "try: runpy.run_module('cuda_ops', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print('torch' in sys.modules)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=SOURCE.parents[1], capture_output=True, text=True
    )
    assert shown.stdout.startswith("usage: python -m cuda_ops") and shown.stdout.endswith("False\n")
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "cuda_ops"]
    cut = subprocess.run(command, cwd=SOURCE.parents[1], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (cut.returncode, cut.stderr) == (141, "")
