"""A bounded reader of the zip files that `torch.save` writes: our checkpoints before version 2.0, foreign `.pth` files.

`torch.load(weights_only=True)` executes no code, but it believes what a file declares: it reads past the end of a
record, gives 10 GB to `bytearray(10**10)`, and unpacks what is compressed. So the zip directory and the pickle are
inspected first.
"""

import math
import os
import pickletools
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from gan.checkpoint_format import damaged, not_plain

ITEM_SIZE = {
    "torch DoubleStorage": 8, "torch FloatStorage": 4, "torch HalfStorage": 2, "torch BFloat16Storage": 2,
    "torch LongStorage": 8, "torch IntStorage": 4, "torch ShortStorage": 2, "torch CharStorage": 1,
    "torch ByteStorage": 1, "torch BoolStorage": 1,
}  # fmt: skip
"""What torch.save calls the storage of a type -> bytes of an element."""

ORDERED_DICT = "collections OrderedDict"
TENSOR, PARAMETER = "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"
KNOWN = {ORDERED_DICT, TENSOR, PARAMETER, *ITEM_SIZE}
"""All that a pickle may name."""

CONSTANTS = {
    "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE",
}  # fmt: skip
"""Operations of a pickle that put one plain value on the stack."""

POPPED = {
    "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 1, "SETITEM": 2, "BINPERSID": 1, "REDUCE": 2, "BUILD": 1,
}  # fmt: skip
"""Operation -> values that it takes from the stack."""

MOST_OPERATIONS = 1_000_000  # of the pickle; a CycleGAN with both Adam states has about 50,000
MOST_DIMENSIONS = 64
LARGEST_PICKLE, LARGEST_DIRECTORY = 2**26, 2**23  # bytes
RECORD_NAME = re.compile(
    r"[^/]+/(data\.pkl|byteorder|version|\.format_version|\.storage_alignment|\.data/serialization_id|data/\d+)"
)
USUAL_FLAGS = 0x808  # of a zip record: names in UTF-8, sizes after the data


def read_zip_pickle(path: Path, *, checksums: bool) -> dict[str, Any]:
    """The dictionary in a file, its tensors on the CPU. checksums: compare the CRC-32 of every record.

    Every record must be stored uncompressed and inside the file, every storage be as large as declared, every tensor
    lie in its storage, and the pickle name nothing but tensors and containers. Raises UserError otherwise; OSError.
    """
    try:
        with path.open("rb") as file:
            _check_end(file)
            archive = zipfile.ZipFile(file)
            records = _check_directory(archive, path.stat().st_size)
            content = _Inspector(records).follow(archive.read(records["data.pkl"]))
            if not isinstance(content, dict):
                raise ValueError("not a dictionary")
            _count(content, {})
            if checksums and (bad := archive.testzip()):
                raise zipfile.BadZipFile(f"checksum mismatch in {bad}")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except zipfile.BadZipFile as error:
        raise damaged(path, f"not a complete checkpoint: {error}") from None
    except (OSError, MemoryError):
        raise
    except ValueError as error:
        raise not_plain(path, str(error)) from None
    except Exception as error:  # whatever torch says, its advice would be to switch the check off
        if "not enough memory" in str(error):
            raise MemoryError from None
        raise not_plain(path, f"broken pickle ({type(error).__name__})") from None
    return dict(state)


def _check_end(file: BinaryIO) -> None:
    """Raise ValueError for a directory of records that is very large, or that readers may look for elsewhere."""
    file.seek(max(-98, -file.seek(0, os.SEEK_END)), os.SEEK_END)
    tail = file.read()  # the end record of large files (56 bytes), its locator (20), the end record (22)
    sizes = [int.from_bytes(tail[-10:-6], "little")]
    if tail[-42:-38] == b"PK\x06\x07":
        sizes = [int.from_bytes(tail[40:48], "little")]
    if tail[-22:-18] != b"PK\x05\x06" or sizes[0] > LARGEST_DIRECTORY:
        raise ValueError("a zip file with something after its end, or with very many records")


def _check_directory(archive: zipfile.ZipFile, file_size: int) -> dict[str, zipfile.ZipInfo]:
    """The records by their name without the top folder. Raises ValueError."""
    entries = archive.infolist()
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise ValueError(f"compressed record {entry.filename}")
        # torch's zip reader gives uninitialised memory for a record that is marked as a folder
        marked = entry.flag_bits & ~USUAL_FLAGS or entry.external_attr & 0xFFFF
        if marked or not RECORD_NAME.fullmatch(entry.filename):
            raise ValueError(f"unusual record {entry.filename}")
    records = {entry.filename.split("/", 1)[1]: entry for entry in entries}
    if len(records) != len(entries) or sum(entry.file_size for entry in entries) > file_size:
        raise ValueError("two records of one name, or records larger than the file")
    if "data.pkl" not in records or records["data.pkl"].file_size > LARGEST_PICKLE:
        raise ValueError("a zip file without data.pkl, or with a very large one")
    return records


def _count(value: Any, counts: dict[int, int]) -> int:
    """Values in a container, those that stand in several places counted in each. Raises ValueError for too many."""
    if not isinstance(value, dict | list | tuple):
        return 1
    if id(value) not in counts:
        counts[id(value)] = MOST_OPERATIONS  # while it is open: a container inside itself
        inside = value.values() if isinstance(value, dict) else value
        counts[id(value)] = 1 + sum(_count(entry, counts) for entry in inside)
    if counts[id(value)] > MOST_OPERATIONS:
        raise ValueError(f"more than {MOST_OPERATIONS} values")
    return counts[id(value)]


@dataclass(frozen=True)
class _Global:
    name: str  # "module name"


@dataclass(frozen=True)
class _Storage:
    elements: int
    item_size: int  # bytes


class _Inspector:
    """Follows a pickle with stand-ins: nothing is imported or called, and no operation takes long.

    It knows the operations that `torch.save` (pickle protocol 2) needs for containers, numbers, texts and tensors.
    """

    def __init__(self, records: dict[str, zipfile.ZipInfo]) -> None:
        self._records = records
        self._types: dict[str, str] = {}  # of the storages
        self._budget = 2 * sum(record.file_size for record in records.values())  # bytes that all tensors show

    def follow(self, data: bytes) -> Any:
        """What the pickle makes; None for each tensor, bool and None. Any error means that it is broken."""
        stack: list[Any] = []
        below: list[list[Any]] = []  # the stack under each open mark
        memo: dict[Any, Any] = {}
        for number, (operation, argument, _) in enumerate(pickletools.genops(data)):
            if number > MOST_OPERATIONS:
                raise ValueError(f"more than {MOST_OPERATIONS} values")
            name = operation.name
            if name in ("TUPLE", "APPENDS", "SETITEMS"):
                values, stack = stack, below.pop()
            else:
                values = [stack.pop() for _ in range(POPPED.get(name, 0))][::-1]
            match name:
                case "PROTO" | "STOP":
                    pass
                case "MARK":
                    below.append(stack)
                    stack = []
                case _ if name in CONSTANTS:
                    stack.append(argument)
                case "EMPTY_LIST":
                    stack.append([])
                case "EMPTY_DICT":
                    stack.append({})
                case "EMPTY_TUPLE" | "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                    stack.append(tuple(values))
                case "APPEND" | "APPENDS":
                    stack[-1].extend(values)
                case "SETITEM" | "SETITEMS":
                    # a tuple may take for ever to hash
                    if any(type(key) not in (str, int) for key in values[::2]):
                        raise ValueError("a key that is neither a text nor a whole number")
                    stack[-1].update(zip(values[::2], values[1::2], strict=True))
                case "BINPUT" | "LONG_BINPUT":
                    memo[argument] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[argument])
                case "GLOBAL":
                    if argument not in KNOWN:
                        raise ValueError(f"names {str(argument).replace(' ', '.')}")
                    stack.append(_Global(argument))
                case "BINPERSID":
                    stack.append(self._storage(*values[0]))
                case "REDUCE":
                    stack.append(self._call(values[0], values[1]))
                case "BUILD":
                    stack[-1].keys()  # of an OrderedDict: `_metadata` of a state_dict, which nobody needs
                case _:
                    raise ValueError(f"pickle operation {name}")
        [content] = stack
        return content

    def _storage(self, kind: str, storage: _Global, key: str, location: str, elements: int) -> _Storage:
        """A storage: its record must hold exactly that many elements, each time that it is named."""
        if kind != "storage" or type(key) is not str:
            raise ValueError("broken pickle")
        if self._types.setdefault(key, storage.name) != storage.name:
            raise ValueError(f"storage {key} has two types")
        item_size = ITEM_SIZE[storage.name]
        held = self._records[f"data/{key}"].file_size
        if type(elements) is not int or held != elements * item_size:
            raise ValueError(f"storage {key} declares {elements} elements and holds {held} bytes")
        return _Storage(elements, item_size)

    def _call(self, called: _Global, arguments: tuple[Any, ...]) -> Any:
        if called.name == ORDERED_DICT and not arguments:
            return {}
        if called.name == TENSOR:
            return self._check_tensor(*arguments)
        if called.name == PARAMETER:
            return arguments[0]
        raise ValueError("broken pickle")

    def _check_tensor(
        self, storage: _Storage, offset: int, size: Any, stride: Any, grad: bool, hooks: Any
    ) -> None:
        if len(size) > MOST_DIMENSIONS or any(type(n) is not int or n < 0 for n in (offset, *size, *stride)):
            raise ValueError("impossible tensor")
        elements = math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        # a stride of 0 shows one element many times: harmless to map, a bomb once it is copied
        if elements > storage.elements or (elements and last >= storage.elements):
            raise ValueError(f"a tensor of {elements} elements in a storage of {storage.elements}")
        self._budget -= elements * storage.item_size
        if self._budget < 0:
            raise ValueError("tensors that show more than twice what the file holds")
