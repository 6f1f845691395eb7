"""A bounded reader of the zip files that `torch.save` writes: our checkpoints before version 2.0, foreign `.pth` files.

`torch.load(weights_only=True)` executes no code, but it believes what a file declares: it reads past the end of a
record, gives 10 GB to `bytearray(10**10)`, and unpacks what is compressed. So the zip directory and the pickle are
inspected first, with stand-ins in place of tensors.
"""

import io
import math
import os
import pickle
import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from gan.checkpoint_format import damaged, not_plain

ITEM_SIZE = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8,
    "IntStorage": 4, "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1,
}  # fmt: skip
"""What torch.save calls the storage of a type -> bytes of an element."""

OPERATIONS = re.compile(
    "PROTO|STOP|MARK|NONE|NEWTRUE|NEWFALSE|BININT[12]?|LONG1|BINFLOAT|BINUNICODE|EMPTY_(LIST|DICT|TUPLE)|APPENDS?"
    "|SETITEMS?|TUPLE[123]?|(LONG_)?BIN(PUT|GET)|GLOBAL|REDUCE|BUILD|BINPERSID"
)
"""All that `torch.save` (pickle protocol 2) needs for containers, numbers, texts and tensors."""

MOST_OPERATIONS = 1_000_000  # of the pickle; a CycleGAN with both Adam states has about 50,000
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
            _check_pickle(archive.read(records["data.pkl"]), records)
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


def _check_pickle(data: bytes, records: dict[str, zipfile.ZipInfo]) -> None:
    """Raise ValueError unless the pickle is a dictionary of plain values and of tensors that lie in the records."""
    for number, (operation, argument, _) in enumerate(pickletools.genops(data)):
        places = int(argument) if operation.name == "LONG_BINPUT" and argument else 0
        if max(number, places) > MOST_OPERATIONS:
            raise ValueError(f"more than {MOST_OPERATIONS} values")
        if not OPERATIONS.fullmatch(operation.name):
            raise ValueError(f"pickle operation {operation.name}")
    content = _Inspector(data, records).load()
    if not isinstance(content, dict):
        raise ValueError("not a dictionary")
    _count(content, {})


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


class _Known:
    """Stands for a name in the pickle or for a storage."""

    def __init__(self, meaning: Any) -> None:
        self.meaning = meaning

    def __call__(self, *arguments: Any) -> Any:
        return self.meaning(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise ValueError("broken pickle")  # else a pickle could set any attribute


class _OrderedDict(dict[Any, Any]):
    def __setstate__(self, state: Any) -> None:
        """`_metadata` of a state_dict, which nobody needs."""


class _Inspector(pickle.Unpickler):
    """Follows the pickle with stand-ins: nothing is imported, and nothing but the methods below is called."""

    def __init__(self, data: bytes, records: dict[str, zipfile.ZipInfo]) -> None:
        super().__init__(io.BytesIO(data))
        self._records = records
        self._types: dict[str, str] = {}  # of the storages
        self._budget = 2 * sum(record.file_size for record in records.values())  # bytes that all tensors show

    def find_class(self, module: str, name: str) -> _Known:
        known = {
            "collections OrderedDict": _OrderedDict,
            "torch._utils _rebuild_tensor_v2": self._tensor,
            "torch._utils _rebuild_parameter": lambda tensor, requires_grad, hooks: tensor,
            **{f"torch {storage}": storage for storage in ITEM_SIZE},
        }
        if f"{module} {name}" not in known:
            raise ValueError(f"names {module}.{name}")
        return _Known(known[f"{module} {name}"])

    def persistent_load(self, identity: Any) -> _Known:
        """("storage", type, key, location, elements): the record must hold exactly that many elements."""
        kind, storage, key, _, elements = identity
        item_size = ITEM_SIZE[self._types.setdefault(str(key), storage.meaning)]
        held = self._records[f"data/{key}"].file_size
        if kind != "storage" or storage.meaning != self._types[str(key)]:
            raise ValueError("broken pickle")
        if type(elements) is not int or held != elements * item_size:
            raise ValueError(f"storage {key} declares {elements} elements and holds {held} bytes")
        return _Known((elements, item_size))

    def _tensor(self, storage: _Known, offset: int, size: Any, stride: Any, grad: Any, hooks: Any) -> None:
        held, item_size = storage.meaning
        if any(type(n) is not int or n < 0 for n in (offset, *size, *stride)):
            raise ValueError("impossible tensor")
        elements = math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        # a stride of 0 shows one element many times: harmless to map, a bomb once it is copied
        if elements > held or (elements and last >= held):
            raise ValueError(f"a tensor of {elements} elements in a storage of {held}")
        self._budget -= elements * item_size
        if self._budget < 0:
            raise ValueError("tensors that show more than twice what the file holds")
