"""The bytes of a checkpoint: one safetensors file that describes and verifies itself.

Each tensor has its path in the state as its name, for example `networks.G.model.0.weight`. All other values are
JSON in the header, with the format, the version of the program, the step, the epoch, and a SHA-256 over all of
this and over the names, types, shapes and data of the tensors.

The library reads and checks the files. They are written here, tensor by tensor, because the library's `save`
needs twice the file in memory and ends the process (or hangs) where it cannot get that much.
"""

import hashlib
import json
import math
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from datasets.errors import UserError
from datasets.files import require_file
from gan import __version__

FORMAT = 2
"""Number of the layout below; 1 were zip files of a pickle (`ckpt-00000412.pt`)."""

TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
LONGEST_TEXT = 4096  # characters that stand in the header; longer texts become tensors of bytes
LARGEST_HEADER = 2**21  # bytes; reading JSON takes up to 70 times its size, so this bounds the memory


def not_plain(path: Path, found: str) -> UserError:
    """What is not a checkpoint, or holds more than plain values and tensors."""
    reason = f"not a plain-tensor checkpoint, refused: {found}"
    return UserError(path, reason, "use a checkpoint made by train.py")


def damaged(path: Path, what: str) -> UserError:
    """What was a checkpoint and has been cut or changed."""
    return UserError(path, what, "copy it again or use another checkpoint")


def encode(state: dict[str, Any], *, step: int, epoch: int) -> tuple[bytes, list[Tensor]]:
    """The header of a checkpoint file, and the tensors whose `raw_bytes` follow it, on the CPU.

    state: dicts with str or int keys, lists, tuples, str, int, float, bool, None, and tensors of the types above
    (TypeError for anything else, UserError for too many). Equal tensors in one memory are stored once.
    """
    packer = _Packer()
    content = packer.pack(state, "")
    metadata = {
        "format": str(FORMAT), "version": __version__, "step": str(step), "epoch": str(epoch),
        "state": json.dumps([content, packer.strides], separators=(",", ":"), allow_nan=False),
    }  # fmt: skip
    return signed_header(metadata, packer.tensors)


def signed_header(metadata: dict[str, str], tensors: Mapping[str, Tensor]) -> tuple[bytes, list[Tensor]]:
    """The header of a safetensors file with the SHA-256 of everything, and the tensors whose `raw_bytes` follow it.

    tensors: on the CPU, of the types above. Raises UserError for a header that is too large.
    """
    # elements are aligned to their size if the largest come first
    tensors = dict(sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])))
    header: dict[str, Any] = {"__metadata__": metadata | {"sha256": _sha256(metadata, tensors)}}
    end = 0
    for name, tensor in tensors.items():
        offsets = [end, end := end + tensor.numel() * tensor.element_size()]
        header[name] = {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > LARGEST_HEADER:
        reason = f"would hold {len(text):,} bytes besides its numbers, at most {LARGEST_HEADER:,} can be read"
        raise UserError("checkpoint", reason, "lower --pool_size, or train with pictures of one size")
    return len(text).to_bytes(8, "little") + text, list(tensors.values())


def raw_bytes(tensor: Tensor) -> memoryview:
    """The elements of a CPU tensor in row-major order."""
    return tensor.contiguous().flatten().view(torch.uint8).numpy().data


def read_metadata(path: Path) -> tuple[dict[str, str], int]:
    """The texts in the header of a safetensors file, and the size in bytes that the file should have.

    Raises UserError for a header that is incomplete, too large or makes no sense; OSError.
    """
    require_file(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size > 8 and file.read(1) != b"{":
            raise not_plain(path, "neither a safetensors nor a zip file")
        if size > 8 and length > LARGEST_HEADER:
            raise not_plain(path, f"a header of {length} bytes in a file of {size} bytes")
        if size < 8 + length or size <= 8:
            raise damaged(path, f"incomplete: {size} of more than {8 + length} bytes")
        file.seek(8)
        text = file.read(length)
    try:
        header = json.loads(text)
        metadata: dict[str, str] = header.pop("__metadata__", {})
        whole = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        metadata.keys()
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        raise _senseless(path) from None
    return metadata, whole


def read_header(path: Path) -> tuple[dict[str, str], int]:
    """What the header of a checkpoint says: format, version, sha256, step, epoch and state; the size it should have.

    Raises UserError for a header that is incomplete, of a newer version, or not of a checkpoint; OSError.
    """
    metadata, whole = read_metadata(path)
    if not metadata.keys() >= {"format", "version", "sha256", "step", "epoch", "state"}:
        raise not_plain(path, "a safetensors file of another program")
    try:
        if int(metadata["format"]) > FORMAT:
            reason = f"made by {metadata['version']}, this is {__version__}"
            raise UserError(path, reason, "update this program")
        _ = int(metadata["step"]), int(metadata["epoch"])
    except (ValueError, TypeError):
        raise _senseless(path) from None
    return metadata, whole


def _senseless(path: Path) -> UserError:
    return damaged(path, "damaged: its header makes no sense")


def read_tensors(path: Path, metadata: Mapping[str, str], whole: int) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU, after its size and SHA-256 were compared. Raises UserError; OSError.

    metadata, whole: see `read_metadata`.
    """
    if (size := path.stat().st_size) != whole:
        raise damaged(path, f"{'incomplete' if size < whole else 'wrong size'}: {size} of {whole} bytes")
    try:
        with safe_open(path, framework="pt", backend="pread") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        found = _sha256({key: value for key, value in metadata.items() if key != "sha256"}, tensors)
    except (SafetensorError, KeyError, TypeError) as error:
        raise damaged(path, f"damaged: {error}") from None
    if found != metadata.get("sha256"):
        raise damaged(path, "checksum mismatch: the file has changed")
    return tensors


def decode(path: Path) -> dict[str, Any]:
    """The state in a file, on the CPU, after its SHA-256 was compared. Raises UserError; OSError."""
    metadata, whole = read_header(path)
    tensors = read_tensors(path, metadata, whole)
    try:
        content, strides = json.loads(metadata["state"])
        for name, stride in strides.items():
            tensors[name] = _with_stride(tensors[name], stride)
        state = _unpack(content, tensors)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise not_plain(path, f"malformed state ({type(error).__name__})") from None
    if not isinstance(state, dict):
        raise not_plain(path, "not a dictionary")
    return state


def _sha256(metadata: dict[str, str], tensors: dict[str, Tensor]) -> str:
    described = [[name, TYPES[tensors[name].dtype], list(tensors[name].shape)] for name in sorted(tensors)]
    digest = hashlib.sha256(json.dumps([metadata, described], sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(raw_bytes(tensors[name]))
    return digest.hexdigest()


class _Packer:
    """Turns a state into JSON values and tensors. In JSON an object always has one key, which says what it is."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.strides: dict[str, list[int]] = {}  # of the tensors that are dense but not row-major
        self._names: dict[Any, str] = {}

    def pack(self, value: Any, path: str) -> Any:
        kind = type(value)
        if kind in (dict, OrderedDict):
            if wrong := [key for key in value if type(key) not in (str, int)]:
                raise TypeError(f"{path}: the key {wrong[0]!r} cannot be saved, use str or int")
            prefix = path and path + "."
            return {"dict": [[key, self.pack(entry, f"{prefix}{key}")] for key, entry in value.items()]}
        if kind in (list, tuple):
            values = [self.pack(entry, f"{path}.{i}") for i, entry in enumerate(value)]
            return values if kind is list else {"tuple": values}
        if kind in (Tensor, nn.Parameter):
            return {"tensor": self._add(value, path)}
        if kind is str and len(value) > LONGEST_TEXT:
            data = bytearray(value.encode("utf-8", "surrogatepass"))
            return {"text": self._add(torch.frombuffer(data, dtype=torch.uint8), path)}
        if kind is float and not math.isfinite(value):
            return {"float": repr(value)}
        if value is None or kind in (str, int, float, bool):
            return value
        raise TypeError(f"{path}: {kind.__module__}.{kind.__qualname__} cannot be saved")

    def _add(self, tensor: Tensor, path: str) -> str:
        if tensor.layout != torch.strided or tensor.dtype not in TYPES or tensor.is_meta:
            kind = f"a {tensor.layout} tensor of {tensor.dtype} on {tensor.device}"
            raise TypeError(f"{path}: {kind} cannot be saved")
        seen = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and seen in self._names:
            return self._names[seen]
        name = path.encode("ascii", "backslashreplace").decode()
        while name in self.tensors or name == "__metadata__":
            name += "'"
        self._names[seen], self.tensors[name] = name, tensor.detach().cpu()
        if tensor.stride() != torch.empty(tensor.shape, device="meta").stride() and _is_dense(tensor):
            self.strides[name] = list(tensor.stride())
        return name


def _is_dense(tensor: Tensor) -> bool:
    """Whether a tensor fills its memory without gaps and overlaps, as channels_last does: torch copies such strides."""
    return torch.empty_like(tensor, device="meta").stride() == tensor.stride()


def _with_stride(tensor: Tensor, stride: list[int]) -> Tensor:
    if not _is_dense(torch.empty_strided(tensor.shape, stride, device="meta")):
        raise ValueError(f"strides {stride} of a tensor of shape {list(tensor.shape)}")
    return torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype).copy_(tensor)


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Inverse of `_Packer.pack`. Raises ValueError, TypeError or KeyError for what it never gives."""
    if isinstance(value, list):
        return [_unpack(entry, tensors) for entry in value]
    if not isinstance(value, dict):
        return value
    [(kind, content)] = value.items()
    if kind == "dict":
        return {key: _unpack(entry, tensors) for key, entry in content}
    if kind == "tuple":
        return tuple(_unpack(entry, tensors) for entry in content)
    if kind == "tensor":
        return tensors[content]
    if kind == "text":  # each once: a text must not grow by being named often
        return bytes(raw_bytes(tensors.pop(content))).decode("utf-8", "surrogatepass")
    if kind == "float":
        return float(content)
    raise ValueError(kind)
