"""A bounded reader of the files that `torch.save` writes: our checkpoints before version 2.0, foreign `.pth` files.

They are zip files of a pickle and its tensors' bytes; before torch 1.6 they were a row of pickles, the bytes after it.

`torch.load(weights_only=True)` executes no code, but it believes what a file declares: it reads past the end of a
record, gives 10 GB to `bytearray(10**10)`, and unpacks what is compressed. This reader follows the pickle by itself. It
knows the operations that `torch.save` (pickle protocol 2) needs for containers, numbers, texts and tensors. It imports
and calls nothing that a file names, and no operation takes long.
"""

import io
import math
import os
import pickletools
import zipfile
from pathlib import Path
from typing import IO, Any, BinaryIO

import torch
from torch import Tensor

from gan.checkpoint_format import damaged, not_plain

STORAGES = {
    "torch DoubleStorage": torch.float64, "torch FloatStorage": torch.float32, "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16, "torch LongStorage": torch.int64, "torch IntStorage": torch.int32,
    "torch ShortStorage": torch.int16, "torch CharStorage": torch.int8, "torch ByteStorage": torch.uint8,
    "torch BoolStorage": torch.bool,
}  # fmt: skip
"""What torch.save calls the storage of a type -> the type."""

ORDERED_DICT = "collections OrderedDict"
TENSOR, PARAMETER = "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"
FIRST_TENSOR = "torch._utils _rebuild_tensor"  # of torch 0.3
KNOWN = {ORDERED_DICT, TENSOR, FIRST_TENSOR, PARAMETER, *STORAGES}
"""All that a pickle may name."""

POPPED = {
    "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 1, "SETITEM": 2, "BINPERSID": 1, "REDUCE": 2, "BUILD": 1,
}  # fmt: skip
"""Operation -> values that it takes from the stack."""

MOST_OPERATIONS = 1_000_000  # of the pickle; a CycleGAN with both Adam states has about 50,000
MOST_DIMENSIONS = 64
LARGEST_PICKLE, LARGEST_DIRECTORY = 2**26, 2**23  # bytes
OLD_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""How a file from before torch 1.6 begins: a pickled number."""


def read_zip_pickle(path: Path) -> dict[str, Any]:
    """The dictionary in a file, its tensors on the CPU, after the CRC-32 of what is read was compared, if it has any.

    Every record must be stored uncompressed and inside the file, every storage be as large as declared, every tensor
    lie in its storage, and the pickle name nothing but tensors and containers. Raises UserError otherwise; OSError.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            if file.read(len(OLD_MAGIC)) == OLD_MAGIC:
                content = _OldFile(file, size).content()
            else:
                _check_end(file)
                content = _Archive(zipfile.ZipFile(file), size).content()
        if not isinstance(content, dict):
            raise ValueError("not a dictionary")
        _count(content, {})
    except zipfile.BadZipFile as error:
        raise damaged(path, f"not a complete checkpoint: {error}") from None
    except (OSError, MemoryError):
        raise
    except ValueError as error:
        raise not_plain(path, str(error)) from None
    except Exception as error:  # the pickle of a hostile file can do anything to the stack
        raise not_plain(path, f"broken pickle ({type(error).__name__})") from None
    return content


def _check_end(file: BinaryIO) -> None:
    """Raise ValueError for a directory of records that is very large, or that readers may look for elsewhere."""
    file.seek(max(-98, -file.seek(0, os.SEEK_END)), os.SEEK_END)
    tail = file.read()  # the end record of large files (56 bytes), its locator (20), the end record (22)
    size = int.from_bytes(tail[-10:-6], "little")
    if tail[-42:-38] == b"PK\x06\x07":
        size = int.from_bytes(tail[40:48], "little")
    if tail[-22:-18] != b"PK\x05\x06" or size > LARGEST_DIRECTORY:
        raise ValueError("a zip file with something after its end, or with very many records")


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


class _Follower:
    """Does what a pickle says. Any error means that the pickle is broken."""

    def __init__(self, file_size: int) -> None:
        self._storages: dict[str, Tensor] = {}
        self._budget = 2 * file_size  # bytes that all tensors show

    def _bytes(self, key: str, elements: int, size: int) -> bytearray:
        """The bytes of the storage `key`. ValueError, before they take memory, unless it has as many elements.

        size: bytes of an element.
        """
        raise KeyError(key)

    def follow(self, pickle: BinaryIO) -> Any:
        """What the next pickle makes. What it names, a class or a function, stays a text."""
        stack: list[Any] = []
        below: list[list[Any]] = []  # the stack under each open mark
        memo: dict[Any, Any] = {}
        for number, (operation, argument, _) in enumerate(pickletools.genops(pickle)):
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
                case "NONE":
                    stack.append(None)
                case "NEWTRUE" | "NEWFALSE":
                    stack.append(name == "NEWTRUE")
                case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE":
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
                    stack.append(argument)
                case "BINPERSID":
                    stack.append(self._storage(*values[0]))
                case "REDUCE":
                    stack.append(self._call(*values))
                case "BUILD":
                    stack[-1].keys()  # of an OrderedDict: `_metadata` of a state_dict, which nobody needs
                case _:
                    raise ValueError(f"pickle operation {name}")
        [content] = stack
        return content

    def _storage(
        self, kind: str, storage: str, key: str, location: str, elements: int, view: None = None
    ) -> Tensor:
        """A storage as a flat tensor: it must hold exactly that many elements, each time that it is named."""
        if kind != "storage" or type(key) is not str or type(elements) is not int or view is not None:
            raise ValueError("broken pickle")
        dtype = STORAGES[storage]
        if key not in self._storages:
            data = self._bytes(key, elements, dtype.itemsize)
            self._storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        if self._storages[key].dtype != dtype or len(self._storages[key]) != elements:
            raise ValueError(f"storage {key} has two types, or two sizes")
        return self._storages[key]

    def _call(self, called: str, arguments: tuple[Any, ...]) -> Any:
        if called == ORDERED_DICT and not arguments:
            return {}
        if called in (TENSOR, FIRST_TENSOR):
            return self._tensor(*arguments)
        if called == PARAMETER:
            return arguments[0]
        raise ValueError("broken pickle")

    def _tensor(
        self, storage: Tensor, offset: int, size: Any, stride: Any, grad: Any = None, hooks: Any = None
    ) -> Tensor:
        if len(size) > MOST_DIMENSIONS or any(type(n) is not int or n < 0 for n in (offset, *size, *stride)):
            raise ValueError("impossible tensor")
        elements = math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        # a stride of 0 shows one element many times: harmless to map, a bomb once it is copied
        if elements > storage.numel() or (elements and last >= storage.numel()):
            raise ValueError(f"a tensor of {elements} elements in a storage of {storage.numel()}")
        self._budget -= elements * storage.element_size()
        if self._budget < 0:
            raise ValueError("tensors that show more than twice what the file holds")
        return storage.as_strided(size, stride, offset)


class _Archive(_Follower):
    """The zip file of a pickle and of a record for each storage."""

    def __init__(self, archive: zipfile.ZipFile, file_size: int) -> None:
        super().__init__(file_size)
        entries = archive.infolist()
        for entry in entries:
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                raise ValueError(f"compressed record {entry.filename}")
        if sum(entry.file_size for entry in entries) > file_size:
            raise ValueError("records larger than the file")
        self._archive = archive
        # without the top folder
        self._records = {entry.filename.partition("/")[2]: entry for entry in entries}

    def content(self) -> Any:
        record = self._records.get("data.pkl")
        if record is None or record.file_size > LARGEST_PICKLE:
            raise ValueError("a zip file without data.pkl, or with a very large one")
        if (order := self._records.get("byteorder")) and self._archive.read(order) != b"little":
            raise ValueError("made on a big-endian machine")
        return self.follow(io.BytesIO(self._archive.read(record)))

    def _bytes(self, key: str, elements: int, size: int) -> bytearray:
        record = self._records[f"data/{key}"]
        if record.file_size != elements * size:
            raise ValueError(f"storage {key} declares {elements} elements and holds {record.file_size} bytes")
        data = bytearray(record.file_size)
        with self._archive.open(record) as file:
            _read_into(data, file)
        return data


class _OldFile(_Follower):
    """Pickles of a number, the format's version, the machine, the content, the storages' keys; then the storages."""

    def __init__(self, file: BinaryIO, file_size: int) -> None:
        super().__init__(file_size)
        self._file, self._left, self._data = file, file_size, dict[str, bytearray]()

    def content(self) -> Any:
        self._file.seek(0)
        pickles = io.BytesIO(
            self._file.read(LARGEST_PICKLE)
        )  # a file would be asked for all that a pickle declares
        _, version, machine = (self.follow(pickles) for _ in range(3))
        if version != 1001 or machine["little_endian"] is not True:
            raise ValueError("an unknown version of torch's old format, or made on a big-endian machine")
        content, keys = self.follow(pickles), self.follow(pickles)
        if sorted(keys) != sorted(self._data):
            raise ValueError("storages that no tensor uses, or none for a tensor")
        self._file.seek(pickles.tell())
        for key in keys:
            elements = int.from_bytes(self._file.read(8), "little")
            if elements != len(self._storages[key]) or _read_into(self._data[key], self._file):
                raise ValueError(f"storage {key} is not as large as declared, or incomplete")
        if self._file.read(1):
            raise ValueError("something after its end")
        return content

    def _bytes(self, key: str, elements: int, size: int) -> bytearray:
        """Empty: the bytes stand behind the pickles, and are read when these have been followed."""
        self._left -= elements * size
        if elements < 0 or self._left < 0:
            raise ValueError("storages larger than the file")
        self._data[key] = bytearray(elements * size)
        return self._data[key]


def _read_into(data: bytearray, file: IO[bytes]) -> int:
    """Fill `data` from a file, in blocks. Returns how many bytes were missing."""
    view = memoryview(data)
    while view and (block := file.read(min(len(view), 2**20))):
        view[: len(block)] = block
        view = view[len(block) :]
    return len(view)
