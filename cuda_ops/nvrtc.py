"""The CUDA kernels from source to launch: compiled with NVRTC, cached on disk, launched through the driver.

NVRTC comes with torch's own CUDA packages, so neither nvcc nor a host compiler nor a GPU is needed to compile. The
cache lies in `$NORMALIZED_CONV_CACHE`, else `$XDG_CACHE_HOME/normalized_conv`, else `~/.cache/normalized_conv`. It may
be deleted at any time. It is used only if it belongs to this user (or root) and nobody else may write to it. A cache
that cannot be used costs a few tenths of a second per process and nothing else.
"""

import contextlib
import ctypes
import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

SOURCE = Path(__file__).with_name("kernels.cu")
KERNELS = ("prepare", "pixels", "scale", "project", "collect", "finish")
_DIGEST_BYTES = 32
_CTYPES = {torch.float64: "double", torch.float32: "float", torch.float16: "f16", torch.bfloat16: "bf16"}
DTYPES = frozenset(_CTYPES)

_POINTERS = (
    "x weight bias filters pivot padded pixels y mu mean std dy dmean dstd dz spread partial dinput dx dfilters "
    "dweight dbias"
)
_INTEGERS = (
    "images channels height width outputs groups kh kw sh sw ph pw dh dw out_height out_width weight_last "
    "filters_last activation blocks tf32 reflect"
)
_REALS = "slope eps entries degrees"


class Arguments(ctypes.Structure):
    """Mirror of `struct Args` in kernels.cu: every field eight bytes, pointers as addresses (0 where absent)."""

    _fields_ = (
        *((name, ctypes.c_uint64) for name in _POINTERS.split()),
        *((name, ctypes.c_int64) for name in _INTEGERS.split()),
        *((name, ctypes.c_double) for name in _REALS.split()),
    )


class Unit(NamedTuple):
    """What the kernels are compiled for: the dtypes of x, of the convolution and of the weight, and the layout."""

    x: torch.dtype
    compute: torch.dtype
    weight: torch.dtype
    channels_last: bool

    def definitions(self) -> tuple[str, ...]:
        """Compiler options that tell the source its C types, the layout and the size of `Arguments`."""
        values = {
            "X_T": _CTYPES[self.x],
            "C_T": _CTYPES[self.compute],
            "W_T": _CTYPES[self.weight],
            "WIDE": "double" if self.x == torch.float64 else "float",
            "CHANNELS_LAST": int(self.channels_last),
            "ARGS_BYTES": ctypes.sizeof(Arguments),
        }
        return tuple(f"-D{name}={value}" for name, value in values.items())


FLOAT32 = Unit(torch.float32, torch.float32, torch.float32, channels_last=False)


class BuildError(RuntimeError):
    """The kernels cannot be built or loaded here; the text is the compiler's, or what is missing.

    passing: only now, because a CUDA graph is being captured or the memory is full. A later try may succeed.
    """

    def __init__(self, text: str, passing: bool = False) -> None:
        super().__init__(text)
        self.passing = passing


_OnePointer = ctypes.c_void_p * 1
Dims = tuple[int, int]
LaunchKernel = Callable[[str, Dims, Dims], None]  # kernel, grid, block


class Launcher(Protocol):
    """Launches the kernels of one unit on one device. The suite puts a CPU launcher in the place of the CUDA one."""

    threads: int  # per block, a power of two

    def bind(self, arguments: Arguments) -> LaunchKernel:
        """The launches of one pass: they share the arguments, the device and its current stream."""
        ...

    def __hash__(self) -> int: ...  # plans are remembered per launcher


class CudaLauncher:
    """Launches on the current stream of one device. Compiles and loads at construction; raises BuildError."""

    threads = 256

    def __init__(self, index: int, unit: Unit) -> None:
        self._index = index
        try:
            from cuda.bindings import driver

            if torch.cuda.is_current_stream_capturing():
                raise BuildError(
                    "the normalized-convolution kernels would be compiled inside a CUDA graph capture; run the layer "
                    "once with these dtypes and this memory format before the capture",
                    passing=True,
                )
            if os.environ.get("CUDA_PYTHON_CUDA_PER_THREAD_DEFAULT_STREAM", "0") != "0":
                raise BuildError(
                    "CUDA_PYTHON_CUDA_PER_THREAD_DEFAULT_STREAM is set, so the kernels would not run on torch's "
                    "stream; unset it"
                )
            with torch.cuda.device(index):
                code = compiled(unit.definitions(), architecture_for(torch.cuda.get_device_capability(index)))
                self._driver = driver
                self._start, self._success = driver.cuLaunchKernel, driver.CUresult.CUDA_SUCCESS
                # torch's context. Waiting for the device to ask for it would break another thread's capture.
                device = self._ask(driver.cuDeviceGet(index))
                self._context = self._ask(driver.cuDevicePrimaryCtxRetain(device))
                self._ask(driver.cuCtxSetCurrent(self._context))
                self._module = self._ask(driver.cuModuleLoadData(code))
                self._functions = {
                    name: self._ask(driver.cuModuleGetFunction(self._module, f"nc_{name}".encode()))
                    for name in KERNELS
                }
        except BuildError:
            raise
        except Exception as error:  # a missing package or library: the text of whatever its loader raises
            passing = isinstance(error, MemoryError | torch.OutOfMemoryError)
            raise BuildError(f"{type(error).__name__}: {error}", passing) from error

    def bind(self, arguments: Arguments) -> LaunchKernel:
        index, functions, start, success = self._index, self._functions, self._start, self._success
        pointers = _OnePointer(ctypes.addressof(arguments))
        parameters = ctypes.addressof(pointers)
        # makes no Stream object; torch's generated code asks so
        stream = torch._C._cuda_getCurrentRawStream(index)

        def launch(kernel: str, grid: Dims, block: Dims, alive: object = (arguments, pointers)) -> None:
            (status,) = start(
                functions[kernel], grid[0], grid[1], 1, block[0], block[1], 1, 0, stream, parameters, 0
            )
            if status != success:
                self._launch_again(kernel, grid, block, stream, parameters, status)

        if torch.accelerator.current_device_index() == index:
            return launch

        def launch_elsewhere(kernel: str, grid: Dims, block: Dims) -> None:
            with torch.cuda.device(index):
                launch(kernel, grid, block)

        return launch_elsewhere

    def _launch_again(
        self, kernel: str, grid: Dims, block: Dims, stream: int, parameters: int, status: Any
    ) -> None:
        """Launch after giving this thread the right context, if it had none or another device's. Else RuntimeError."""
        results = self._driver.CUresult
        if status in (
            results.CUDA_ERROR_INVALID_CONTEXT,
            results.CUDA_ERROR_CONTEXT_IS_DESTROYED,
            results.CUDA_ERROR_INVALID_HANDLE,
        ):
            self._ask(self._driver.cuCtxSetCurrent(self._context))
            (status,) = self._start(self._functions[kernel], *grid, 1, *block, 1, 0, stream, parameters, 0)
        if status != self._success:
            raise RuntimeError(
                f"launch of the kernel {kernel} failed: {status.name} (grid {grid}, block {block})"
            )

    def _ask(self, answer: tuple[Any, ...]) -> Any:
        status, *values = answer
        if status != self._driver.CUresult.CUDA_SUCCESS:
            raise BuildError(f"the CUDA driver answered {status.name}", _is_passing(status.name))
        return values[0] if values else None


def _is_passing(status: str) -> bool:
    return "CAPTURE" in status or "OUT_OF_MEMORY" in status


@cache
def cuda_launcher(index: int, unit: Unit) -> CudaLauncher:
    return CudaLauncher(index, unit)


# Device type -> the launcher of a device index and a unit. CUDA is the only entry; the suite adds a CPU launcher.
LAUNCHERS: dict[str, Callable[[int, Unit], Launcher]] = {"cuda": cuda_launcher}


def compiled(defines: Sequence[str], architecture: str) -> bytes:
    """Code for `architecture` ("sm_90": binary; "compute_90": PTX), from the cache or from the compiler.

    Raises BuildError with the compiler's message.
    """
    source = SOURCE.read_bytes()
    options = "\n".join([*defines, architecture, nvrtc_version()]).encode()
    key = hashlib.sha256(source + b"\0" + options).hexdigest()
    folder = cache_folder()
    code = _read(folder / f"{key}.bin") if folder else None
    if code is None:
        code = build(source, defines, architecture)
        if folder:
            _write(folder / f"{key}.bin", code)
    return code


def build(source: bytes, defines: Sequence[str], architecture: str) -> bytes:
    """Compiles `source` with NVRTC. Raises BuildError."""
    nvrtc = _nvrtc()
    options = [b"--std=c++17", b"-default-device", f"--gpu-architecture={architecture}".encode()]
    options += [define.encode() for define in defines]
    program = _ask(nvrtc.nvrtcCreateProgram(source, SOURCE.name.encode(), 0, [], []))
    try:
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if status.value:
            log = bytearray(_ask(nvrtc.nvrtcGetProgramLogSize(program)))
            _ask(nvrtc.nvrtcGetProgramLog(program, log))
            message = log.rstrip(b"\0 \n").decode(errors="replace") or status.name
            raise BuildError(f"NVRTC {architecture}: {message}", _is_passing(status.name))
        kind = "CUBIN" if architecture.startswith("sm_") else "PTX"
        code = bytearray(_ask(getattr(nvrtc, f"nvrtcGet{kind}Size")(program)))
        _ask(getattr(nvrtc, f"nvrtcGet{kind}")(program, code))
        return bytes(code)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def architecture_for(capability: tuple[int, int]) -> str:
    """The device's own architecture where this NVRTC knows it, else PTX of the newest it knows, for the driver."""
    known = _ask(_nvrtc().nvrtcGetSupportedArchs())
    wanted = capability[0] * 10 + capability[1]
    if wanted in known:
        return f"sm_{wanted}"
    older = [number for number in known if number < wanted]
    if not older:
        raise BuildError(
            f"compute capability {capability[0]}.{capability[1]} is older than this CUDA supports ({min(known)})"
        )
    return f"compute_{max(older)}"


def nvrtc_version() -> str:
    _, major, minor = _nvrtc().nvrtcVersion()
    return f"{major}.{minor}"


def cache_folder() -> Path | None:
    """None where nothing names one: no home folder is known either."""
    named = os.environ.get("NORMALIZED_CONV_CACHE")
    if named:
        return Path(named)
    try:
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # no HOME, and a user id without an entry among the users
        return None
    return Path(caches) / "normalized_conv"


def _nvrtc() -> Any:
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()  # loads the library: a missing one shows here
    except Exception as error:  # whatever the loader raises: its text is the reason
        raise BuildError(f"NVRTC is not available: {type(error).__name__}: {error}") from error
    return nvrtc


def _ask(answer: tuple[Any, ...]) -> Any:
    status, *values = answer
    if status.value:  # 0 is success
        raise BuildError(f"NVRTC: {status.name}", _is_passing(status.name))
    return values[0] if values else None


def _read(path: Path) -> bytes | None:
    """The code, or None where there is none, its checksum does not fit, or others may have written it."""
    try:
        if _others_may_write(path.parent.stat()) or _others_may_write(path.lstat()):
            return None
        stored = path.read_bytes()
    except OSError:
        return None
    code = stored[_DIGEST_BYTES:]
    return code if code and hashlib.sha256(code).digest() == stored[:_DIGEST_BYTES] else None


def _others_may_write(entry: os.stat_result) -> bool:
    """Whether a file or folder belongs to another user than this one and root, or lets others write, as links do."""
    if not hasattr(os, "geteuid"):  # Windows has no such numbers
        return False
    return entry.st_uid not in (0, os.geteuid()) or bool(entry.st_mode & 0o022)


def _write(path: Path, code: bytes) -> None:
    """Atomic: two processes that build the same code both leave a whole file."""
    temporary = None
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            temporary = Path(file.name)
            file.write(hashlib.sha256(code).digest() + code)
        temporary.replace(path)
    except OSError:  # a read-only home or a full disk: the code in memory serves this process
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
