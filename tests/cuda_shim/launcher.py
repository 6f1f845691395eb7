"""Compiles the CUDA kernels with the host's C++ compiler and launches them on CPU tensors."""

import ctypes
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from cuda_ops.nvrtc import KERNELS, SOURCE, Arguments, Dims, Launcher, LaunchKernel, Unit

FOLDER = Path(__file__).parent
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")


class HostLauncher:
    """Runs a launch at once, in the calling thread. `order`: which thread of a block goes first, and the odd stride."""

    def __init__(self, library: Path, threads: int = 32, order: Dims = (0, 1)) -> None:
        self.threads, self.order = threads, order
        self._library = ctypes.CDLL(str(library))
        assert self._library.args_bytes() == ctypes.sizeof(Arguments)

    def bind(self, arguments: Arguments) -> LaunchKernel:
        def launch(kernel: str, grid: Dims, block: Dims) -> None:
            assert block[0] * block[1] <= 256
            assert grid[1] <= 65535
            pair = ctypes.c_int * 2
            status = self._library.run(
                KERNELS.index(kernel), pair(*grid), pair(*block), ctypes.byref(arguments), *self.order
            )
            if status:
                raise RuntimeError(f"{kernel}: some threads of a block missed a barrier")

        return launch


def build(unit: Unit, folder: Path, source: Path = SOURCE) -> Path:
    """The shared library of one unit; made once per source and compiler. Raises CalledProcessError."""
    assert COMPILER is not None
    parts = [source.read_bytes(), *(path.read_bytes() for path in sorted(FOLDER.glob("*.[hc]*")))]
    key = hashlib.sha256(b"\0".join([*parts, repr((COMPILER, unit)).encode()])).hexdigest()[:20]
    library = folder / f"{key}.so"
    if not library.exists():
        half_done = library.with_suffix(f".{os.getpid()}")
        command = [COMPILER, "-std=c++17", "-O1", "-U_FORTIFY_SOURCE", "-fPIC", "-shared", "-w"]
        command += [*unit.definitions(), f'-DKERNEL_SOURCE="{source}"', str(FOLDER / "run.cc")]
        subprocess.run([*command, "-o", str(half_done)], check=True, capture_output=True, text=True)
        half_done.replace(library)
    return library


def host_launchers(folder: Path, source: Path = SOURCE) -> Callable[[int, Unit], Launcher]:
    """The function that `cuda_ops.cuda.LAUNCHERS` holds per device type."""
    made: dict[Unit, Launcher] = {}

    def launcher(index: int, unit: Unit) -> Launcher:
        if unit not in made:
            made[unit] = HostLauncher(build(unit, folder, source))
        return made[unit]

    return launcher
