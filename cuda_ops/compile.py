"""From the CUDA source to code for one GPU architecture: NVRTC, and a cache on disk.

NVRTC comes with torch's own CUDA packages, so neither nvcc nor a host compiler nor a GPU is needed. The cache lies in
`$NORMALIZED_CONV_CACHE`, else `$XDG_CACHE_HOME/normalized_conv`, else `~/.cache/normalized_conv`; it may be deleted at
any time, and a cache that cannot be written costs a few tenths of a second per process and nothing else.
"""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

SOURCE = Path(__file__).with_name("kernels.cu")
_DIGEST_BYTES = 32
_CTYPES = {torch.float64: "double", torch.float32: "float", torch.float16: "f16", torch.bfloat16: "bf16"}
DTYPES = frozenset(_CTYPES)


class BuildError(RuntimeError):
    """The kernels cannot be built or loaded here; the text is the compiler's, or what is missing.

    passing: only now, because a CUDA graph is being captured.
    """

    def __init__(self, text: str, passing: bool = False) -> None:
        super().__init__(text)
        self.passing = passing


def definitions(
    x: torch.dtype, compute: torch.dtype, weight: torch.dtype, channels_last: bool, argument_bytes: int
) -> tuple[str, ...]:
    """What the source must know: the C types of x, the convolution, the weight and the statistics, and the layout."""
    values = {
        "X_T": _CTYPES[x],
        "C_T": _CTYPES[compute],
        "W_T": _CTYPES[weight],
        "WIDE": "double" if x == torch.float64 else "float",
        "CHANNELS_LAST": int(channels_last),
        "ARGS_BYTES": argument_bytes,
    }
    return tuple(f"-D{name}={value}" for name, value in values.items())


def compiled(defines: Sequence[str], architecture: str) -> bytes:
    """Code for `architecture` ("sm_90": binary; "compute_90": PTX), from the cache or from the compiler.

    Raises BuildError with the compiler's words.
    """
    source = SOURCE.read_bytes()
    path = cache_folder() / f"{_key(source, defines, architecture)}.bin"
    code = _read(path)
    if code is None:
        code = build(source, defines, architecture)
        _write(path, code)
    return code


def build(source: bytes, defines: Sequence[str], architecture: str) -> bytes:
    """Compiles `source` with NVRTC. Raises BuildError."""
    nvrtc = _nvrtc()
    options = [b"--std=c++17", b"-default-device", f"--gpu-architecture={architecture}".encode()]
    options += [define.encode() for define in defines]
    program = _ask(nvrtc, nvrtc.nvrtcCreateProgram(source, SOURCE.name.encode(), 0, [], []))
    try:
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            log = b" " * _ask(nvrtc, nvrtc.nvrtcGetProgramLogSize(program))
            _ask(nvrtc, nvrtc.nvrtcGetProgramLog(program, log))
            words = log.rstrip(b"\0 \n").decode(errors="replace") or status.name
            raise BuildError(f"NVRTC {architecture}: {words}")
        binary = architecture.startswith("sm_")
        size, get = (
            (nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN)
            if binary
            else (nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX)
        )
        code = b" " * _ask(nvrtc, size(program))
        _ask(nvrtc, get(program, code))
        return code
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def architecture_for(capability: tuple[int, int]) -> str:
    """The device's own architecture where this NVRTC knows it, else PTX of the newest it knows, for the driver."""
    nvrtc = _nvrtc()
    known = _ask(nvrtc, nvrtc.nvrtcGetSupportedArchs())
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
    nvrtc = _nvrtc()
    _, major, minor = nvrtc.nvrtcVersion()
    return f"{major}.{minor}"


def cache_folder() -> Path:
    named = os.environ.get("NORMALIZED_CONV_CACHE")
    if named:
        return Path(named)
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "normalized_conv"


def _nvrtc() -> Any:
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()  # loads the library: a missing one shows here
    except Exception as error:  # whatever the loader raises: its text is the reason
        raise BuildError(f"NVRTC is not available: {type(error).__name__}: {error}") from error
    return nvrtc


def _ask(nvrtc: Any, answer: tuple[Any, ...]) -> Any:
    status, *values = answer
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise BuildError(f"NVRTC: {status.name}")
    return values[0] if values else None


def _key(source: bytes, defines: Sequence[str], architecture: str) -> str:
    text = "\n".join([*defines, architecture, nvrtc_version()]).encode()
    return hashlib.sha256(source + b"\0" + text).hexdigest()


def _read(path: Path) -> bytes | None:
    """The code, or None where there is none or its checksum does not fit."""
    try:
        stored = path.read_bytes()
    except OSError:
        return None
    code = stored[_DIGEST_BYTES:]
    return code if code and hashlib.sha256(code).digest() == stored[:_DIGEST_BYTES] else None


def _write(path: Path, code: bytes) -> None:
    """Atomic: two processes that build the same code both leave a whole file."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            temporary = Path(file.name)
            file.write(hashlib.sha256(code).digest() + code)
        temporary.replace(path)
    except OSError:  # a read-only home or a full disk: the code in memory serves this process
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
