"""The kernels' argument block, and the launcher of a CUDA device.

A launch is a plain call `launch(kernel, grid, block)`; the suite puts a CPU launcher in the place of the CUDA one.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, Protocol

import torch

from cuda_ops.compile import BuildError, architecture_for, compiled, definitions

_POINTERS = (
    "x weight bias filters pivot padded pixels y mu mean std dy dmean dstd dz spread partial dinput dx dfilters "
    "dweight dbias"
)
_INTEGERS = (
    "images channels height width outputs groups kh kw sh sw ph pw dh dw out_height out_width weight_last "
    "filters_last activation blocks"
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
    """What one compiled unit is made for."""

    x: torch.dtype
    compute: torch.dtype
    weight: torch.dtype
    channels_last: bool

    def definitions(self) -> tuple[str, ...]:
        return definitions(*self, ctypes.sizeof(Arguments))


Dims = tuple[int, int]
_OnePointer = ctypes.c_void_p * 1
KERNELS = ("prepare", "pixels", "scale", "project", "collect", "finish")


Launch = Callable[[str, Dims, Dims], None]  # kernel, grid, block


class Launcher(Protocol):
    threads: int  # per block, a power of two

    def bind(self, arguments: Arguments) -> Launch:
        """The launches of one pass: they share the arguments, the device and its current stream."""
        ...


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
            with torch.cuda.device(index):
                code = compiled(unit.definitions(), architecture_for(torch.cuda.get_device_capability(index)))
                self._driver = driver
                self._start, self._success = driver.cuLaunchKernel, driver.CUresult.CUDA_SUCCESS
                # torch's context; asked for without waiting for the device, which would break another thread's capture
                self._context = self._ask(
                    driver.cuDevicePrimaryCtxRetain(self._ask(driver.cuDeviceGet(index)))
                )
                self._ask(driver.cuCtxSetCurrent(self._context))
                self._module = self._ask(driver.cuModuleLoadData(code))
                self._functions = {
                    name: self._ask(driver.cuModuleGetFunction(self._module, f"nc_{name}".encode()))
                    for name in KERNELS
                }
        except BuildError:
            raise
        except Exception as error:  # a missing package or library: the text of whatever its loader raises
            raise BuildError(f"{type(error).__name__}: {error}") from error

    def bind(self, arguments: Arguments) -> Launch:
        index, functions, start, success = self._index, self._functions, self._start, self._success
        pointers = _OnePointer(ctypes.addressof(arguments))
        parameters = ctypes.addressof(pointers)
        stream = torch._C._cuda_getCurrentRawStream(
            index
        )  # as torch's generated code asks: makes no Stream object

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
        """A thread that has no context yet, or another device's, gets the right one. Else RuntimeError."""
        driver = self._driver
        if status in (
            driver.CUresult.CUDA_ERROR_INVALID_CONTEXT,
            driver.CUresult.CUDA_ERROR_CONTEXT_IS_DESTROYED,
            driver.CUresult.CUDA_ERROR_INVALID_HANDLE,
        ):
            self._ask(driver.cuCtxSetCurrent(self._context))
            (status,) = driver.cuLaunchKernel(
                self._functions[kernel], *grid, 1, *block, 1, 0, stream, parameters, 0
            )
        if status != driver.CUresult.CUDA_SUCCESS:
            raise RuntimeError(
                f"launch of the kernel {kernel} failed: {status.name} (grid {grid}, block {block})"
            )

    def _ask(self, answer: tuple[Any, ...]) -> Any:
        status, *values = answer
        if status != self._driver.CUresult.CUDA_SUCCESS:
            raise BuildError(f"the CUDA driver answered {status.name}", passing="CAPTURE" in status.name)
        return values[0] if values else None


@cache
def cuda_launcher(index: int, unit: Unit) -> CudaLauncher:
    return CudaLauncher(index, unit)


# Device type -> the launcher of a device index and a unit. CUDA is the only entry; the suite adds a CPU launcher.
LAUNCHERS: dict[str, Callable[[int, Unit], Launcher]] = {"cuda": cuda_launcher}
