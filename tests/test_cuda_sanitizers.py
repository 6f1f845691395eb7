"""The CUDA kernels under the host's sanitizers, one thread of this machine per CUDA thread and two blocks at a time.

ThreadSanitizer stands in for compute-sanitizer's racecheck (and looks at global memory and other blocks too),
AddressSanitizer and UndefinedBehaviorSanitizer for memcheck. The launches are those of the real host code, written
down by a launcher that runs nothing; tests/cuda_shim/threads.cc makes up tensors of exactly the sizes they are due.
"""

import hashlib
import os
import platform
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
import torch
from cuda_shim.launcher import COMPILER, FOLDER
from cuda_support import CASES, Case, make_inputs, run_backend

from cuda_ops import cuda, nvrtc
from cuda_ops.nvrtc import KERNELS, SOURCE, Arguments, Dims, LaunchKernel, Unit

SANITIZERS = {"races": "thread", "memory": "address,undefined"}
sanitizers = pytest.mark.parametrize("sanitizer", SANITIZERS)
F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
UNITS = {
    "float32 nchw": Unit(F32, F32, F32, False),
    "bfloat16 channels_last": Unit(BF16, BF16, BF16, True),
    "autocast nchw": Unit(F32, F16, F32, False),
    "float64 channels_last": Unit(F64, F64, F64, True),
    "float32 channels_last": Unit(F32, F32, F32, True),
    "bfloat16 nchw": Unit(BF16, BF16, BF16, False),
}
MORE = {
    "two groups of many": Case(channels=40, outputs=70, size=(6, 5), groups=2, activation="relu"),
    "several parts of the channels": Case(images=1, channels=300, outputs=290, size=(4, 3), kernel=(2, 2)),
    "several tiles": Case(images=3, channels=96, outputs=17, size=(5, 5), padding=(2, 0)),
    "reflected": Case(images=3, channels=20, outputs=7, size=(3, 5), padding=(2, 1), reflect=True),
}


def executable(folder: Path, unit: Unit, sanitizer: str, source: Path = SOURCE) -> Path:
    """tests/cuda_shim/threads.cc with the kernels of one unit; made once per source."""
    if COMPILER is None or platform.system() != "Linux":
        pytest.skip("no C++ compiler for Linux (g++ or clang++) to run the kernels on the CPU")
    parts = [source.read_bytes(), *((FOLDER / name).read_bytes() for name in ("shim.h", "threads.cc"))]
    key = hashlib.sha256(b"\0".join([*parts, repr((COMPILER, unit, sanitizer)).encode()])).hexdigest()[:20]
    program = folder / f"{key}.{sanitizer}"
    if not program.exists():
        half_done = program.with_suffix(f".{os.getpid()}")
        options = [f"-fsanitize={SANITIZERS[sanitizer]}", "-fno-sanitize-recover=all"]
        options += ["-std=c++17", "-O1", "-g", "-w"]
        defines = [*unit.definitions(), f'-DKERNEL_SOURCE="{source}"']
        command = [COMPILER, *options, *defines, str(FOLDER / "threads.cc"), "-o", str(half_done), "-pthread"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode and "cannot find" in done.stderr:
            pytest.skip(f"{COMPILER} has no -fsanitize={SANITIZERS[sanitizer]} here")
        assert done.returncode == 0, done.stderr
        half_done.replace(program)
    return program


class Recorder:
    """A launcher that runs nothing: grid, block and arguments of the kernels of one forward and backward pass."""

    def __init__(self, threads: int) -> None:
        self.threads, self.shapes, self.arguments = threads, dict[str, tuple[int, ...]](), Arguments()

    def bind(self, arguments: Arguments) -> LaunchKernel:
        def note(kernel: str, grid: Dims, block: Dims) -> None:
            self.shapes.setdefault(kernel, (*grid, *block))
            if kernel == "pixels":
                self.arguments = Arguments.from_buffer_copy(arguments)

        return note

    def request(self) -> bytes:
        """What threads.cc reads."""
        shapes = [number for kernel in KERNELS for number in self.shapes[kernel]]
        flags = bool(self.arguments.bias), bool(self.arguments.padded)
        return struct.pack("24i2i", *shapes, *flags) + bytes(self.arguments)


def run(program: Path, case: Case, unit: Unit, threads: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the sanitizer has to say about all kernels at the launches of `case`; empty where nothing is wrong."""
    recorder = Recorder(threads)
    asked: list[Unit] = []
    monkeypatch.setitem(nvrtc.LAUNCHERS, "cpu", lambda index, unit: asked.append(unit) or recorder)
    monkeypatch.setattr(cuda, "_outcomes", {})
    inputs = make_inputs(case, unit.x, unit.channels_last, weight_dtype=unit.weight)
    with torch.autocast("cpu", unit.compute, enabled=unit.compute != unit.x):
        run_backend(case, inputs)
    if set(asked) != {unit}:
        return ""  # one channel: both layouts are the same, and the host code takes the other
    command = [str(program)]
    if shutil.which("setarch"):  # ThreadSanitizer cannot use every random layout of the address space
        command = ["setarch", "-R", *command]
    done = subprocess.run(command, input=recorder.request(), capture_output=True)
    text = done.stderr.decode(errors="replace")
    if "FATAL: ThreadSanitizer" in text or "personality" in text:
        pytest.skip(f"sanitizers do not run here: {text.splitlines()[0]}")
    return text if done.returncode else ""


@sanitizers
@pytest.mark.parametrize("name", ["float32 nchw", "bfloat16 channels_last"])
def test_nothing_is_found(
    name: str, sanitizer: str, libraries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = executable(libraries, UNITS[name], sanitizer)
    for case in MORE.values():
        assert not run(program, case, UNITS[name], 64, monkeypatch), case


@pytest.mark.slow
@sanitizers
@pytest.mark.parametrize("threads", [32, 256])
@pytest.mark.parametrize("name", UNITS)
def test_nothing_is_found_in_the_whole_grid(
    name: str, threads: int, sanitizer: str, libraries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = executable(libraries, UNITS[name], sanitizer)
    for case in (*CASES.values(), *MORE.values()):
        assert not run(program, case, UNITS[name], threads, monkeypatch), case


# Planted faults: what is there, what takes its place, who must notice, by which words.
FAULTS = {
    "readers of the last sum": ("__syncthreads();  // the last call's readers are done", "", "races", "data race"),
    "blocks share a row": ("a.partial + (i64)blockIdx.x * a.outputs", "a.partial", "races", "data race"),
    "beyond the last channel": (
        "c + (MOST - 1) * step < last;", "c + (MOST - 1) * step <= last;", "memory", "overflow",
    ),
    "a value left out": ("a.mean[out] = mu + a.pivot[n * a.groups + g];", "", "memory", "values are NaN"),
    "cells of the bias gradient": ("__syncthreads();\n        }\n        dot", "}\n        dot", "races", "data race"),
    "rounding errors": ("places[tid] = place;\n    __syncthreads();", "places[tid] = place;", "races", "data race"),
    "blocks share an output": ("if (t.c == 0 && chunk == 0) {", "if (t.c == 0) {", "races", "data race"),
    "beyond the last pixel": (
        "if (live && t.c == 0) {\n        wide* out", "if (t.c == 0) {\n        wide* out", "races", "data race",
    ),
}  # fmt: skip
ALWAYS = 4  # so many of them; the others with the slow tests


@pytest.mark.parametrize(
    "fault",
    [*list(FAULTS)[:ALWAYS], *(pytest.param(n, marks=pytest.mark.slow) for n in list(FAULTS)[ALWAYS:])],
)
def test_a_planted_fault_is_found(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after, sanitizer, words = FAULTS[fault]
    text = SOURCE.read_text()
    assert text.count(before) == 1
    broken = tmp_path / "broken.cu"
    broken.write_text(text.replace(before, after))
    unit = UNITS["bfloat16 channels_last" if "rounding" in fault else "float32 nchw"]
    program = executable(tmp_path, unit, sanitizer, broken)
    tries = 3 * list(MORE.values())  # ThreadSanitizer remembers a few accesses a cell
    assert any(words in run(program, case, unit, 64, monkeypatch) for case in tries)
