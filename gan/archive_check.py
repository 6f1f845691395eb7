"""A look into a checkpoint file before it is loaded: nothing is built, imported, executed or allocated.

`torch.load(weights_only=True)` alone still allocates what a file declares (a `bytearray(10**12)` is allowed to
it), so the zip directory and the pickle are read first, as data.
"""

import os
import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any

# what torch.save calls the storage of a data type, and bytes per element
STORAGES = {
    "torch FloatStorage": 4, "torch DoubleStorage": 8, "torch HalfStorage": 2, "torch BFloat16Storage": 2,
    "torch LongStorage": 8, "torch IntStorage": 4, "torch ShortStorage": 2, "torch CharStorage": 1,
    "torch ByteStorage": 1, "torch BoolStorage": 1,
}  # fmt: skip
REBUILD = "torch._utils _rebuild_tensor_v2"
REBUILD_PARAMETER = "torch._utils _rebuild_parameter"
ORDERED_DICT = "collections OrderedDict"

RECORD_NAME = re.compile(
    r"[^/]+/(data\.pkl|byteorder|version|\.format_version|\.storage_alignment|\.data/serialization_id|data/\d+)"
)
MOST_OPERATIONS = 1_000_000  # of the pickle; a CycleGAN with both Adam states has about 50,000
MOST_DIMENSIONS = 64
USUAL_FLAGS = 0x808  # names in UTF-8, sizes after the data
DOS_ATTRIBUTES = 0xFFFF
END_RECORD = 22  # bytes of a zip file's end record without a comment


class NotPlainError(ValueError):
    """The file is not a checkpoint of plain tensors; the text says what was found."""


class NotCompleteError(ValueError):
    """The file is only a part of a checkpoint, or its bytes have changed."""


def inspect(path: Path, *, checksums: bool = True) -> None:
    """Read the zip directory and the pickle of a checkpoint as data and check that both are harmless.

    Every record must be stored uncompressed and inside the file, every storage exactly as large as the pickle
    declares, every tensor inside its storage, and the pickle must name nothing but tensors and containers.
    checksums: also compare the CRC-32 of every record. Raises NotPlainError, NotCompleteError, OSError.
    """
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            file.seek(-END_RECORD, os.SEEK_END)
            if file.read(4) != b"PK\x05\x06":  # readers disagree about what follows an end record
                raise NotPlainError("a zip file with something after its end")
            records = _check_directory(archive, path.stat().st_size)
            _check_pickle(archive.read(records["data.pkl"]), records)
            damaged = archive.testzip() if checksums else None
    except zipfile.BadZipFile as error:
        raise NotCompleteError(f"not a complete checkpoint: {error}") from None
    except (NotImplementedError, RuntimeError, EOFError) as error:  # zip features that no checkpoint uses
        raise NotPlainError(str(error)) from None
    if damaged is not None:
        raise NotCompleteError(f"checksum mismatch in {damaged}")


def _check_directory(archive: zipfile.ZipFile, file_size: int) -> dict[str, zipfile.ZipInfo]:
    """The records by their name without the top folder."""
    entries = archive.infolist()
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise NotPlainError(f"compressed record {entry.filename}")
        if entry.flag_bits & ~USUAL_FLAGS or entry.external_attr & DOS_ATTRIBUTES:
            # torch's zip reader gives uninitialised memory for a record that is marked as a folder
            raise NotPlainError(f"unusual record {entry.filename}")
        if not RECORD_NAME.fullmatch(entry.filename):
            raise NotPlainError(f"unexpected record {entry.filename}")
    records = {entry.filename.split("/", 1)[1]: entry for entry in entries}
    if len(records) != len(entries) or len({entry.filename.split("/")[0] for entry in entries}) > 1:
        raise NotPlainError("two records of one name, or more than one top folder")
    if "data.pkl" not in records:
        raise NotPlainError("a zip file without data.pkl")
    if sum(entry.file_size for entry in entries) > file_size:
        raise NotPlainError("records larger than the file")
    return records


class _Container:
    """Stands for any list, dict or OrderedDict: what is inside has been checked on its own."""


class _Mark:
    """The pickle's own mark on the stack."""


class _Name(str):
    """A global the pickle names."""


class _Storage(tuple[int, int]):
    """(elements, bytes per element) of a storage."""


class _Tensor:
    """Stands for a checked tensor."""


_VALUES = {"NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _check_pickle(data: bytes, records: dict[str, zipfile.ZipInfo]) -> None:
    """Follow the pickle's operations with stand-ins; only the kinds plain state needs are known."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def pop_to_mark() -> list[Any]:
        for i in range(len(stack) - 1, -1, -1):
            if stack[i] is _Mark:
                values = stack[i + 1 :]
                del stack[i:]
                return values
        raise NotPlainError("broken pickle")

    def pop(count: int) -> list[Any]:
        if count > len(stack):
            raise NotPlainError("broken pickle")
        values = stack[len(stack) - count :]
        del stack[len(stack) - count :]
        return values

    try:
        argument: Any
        for number, (operation, argument, _) in enumerate(pickletools.genops(data)):
            if number > MOST_OPERATIONS:
                raise NotPlainError(f"more than {MOST_OPERATIONS} values")
            name = operation.name
            if name in _VALUES:
                stack.append({"NEWTRUE": True, "NEWFALSE": False}.get(name, argument))
            elif name in ("BINPUT", "LONG_BINPUT"):
                memo[argument] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            elif name == "MARK":
                stack.append(_Mark)
            elif name in ("EMPTY_DICT", "EMPTY_LIST"):
                stack.append(_Container())
            elif name == "EMPTY_TUPLE":
                stack.append(())
            elif name == "TUPLE":
                stack.append(tuple(pop_to_mark()))
            elif name in _TUPLES:
                stack.append(tuple(pop(_TUPLES[name])))
            elif name in ("APPENDS", "SETITEMS"):
                pop_to_mark()
                _expect(stack[-1], _Container)
            elif name in ("APPEND", "SETITEM", "BUILD"):  # BUILD: attributes of an OrderedDict (`_metadata`)
                pop(2 if name == "SETITEM" else 1)
                _expect(stack[-1], _Container)
            elif name == "GLOBAL":
                if argument not in (REBUILD, REBUILD_PARAMETER, ORDERED_DICT, *STORAGES):
                    raise NotPlainError(f"names {argument.replace(' ', '.')}")
                stack.append(_Name(argument))
            elif name == "BINPERSID":
                stack.append(_check_storage(stack.pop(), records))
            elif name == "REDUCE":
                function, arguments = pop(2)
                stack.append(_check_call(function, arguments))
            elif name == "STOP":
                if len(stack) != 1 or not isinstance(stack[0], _Container):
                    raise NotPlainError("not a dictionary")
            elif name != "PROTO":
                raise NotPlainError(f"pickle operation {name}")
    except NotPlainError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise NotPlainError(f"broken pickle: {error}") from None


def _expect(value: Any, *kinds: type) -> None:
    if not isinstance(value, kinds):
        raise NotPlainError("broken pickle")


def _check_storage(identity: Any, records: dict[str, zipfile.ZipInfo]) -> _Storage:
    """("storage", type, key, location, elements): the record must hold exactly that many bytes."""
    kind, storage, key, location, elements = identity
    _expect(storage, _Name)
    if (
        kind != "storage"
        or storage not in STORAGES
        or type(elements) is not int
        or not isinstance(location, str)
    ):
        raise NotPlainError("not a storage")
    record = records.get(f"data/{key}")
    if record is None:
        raise NotCompleteError(f"not a complete checkpoint: storage {key} is missing")
    if record.file_size != elements * STORAGES[storage]:
        raise NotPlainError(f"storage {key} declares {elements} elements and holds {record.file_size} bytes")
    return _Storage((elements, STORAGES[storage]))


def _check_call(function: Any, arguments: Any) -> Any:
    """A call of the pickle: an empty OrderedDict, a tensor inside its storage, or a parameter around one."""
    _expect(function, _Name)
    _expect(arguments, tuple)
    if function == ORDERED_DICT and arguments == ():
        return _Container()
    if function == REBUILD_PARAMETER:
        tensor, requires_grad, hooks = arguments
        _expect(tensor, _Tensor)
        _expect(requires_grad, bool)
        _expect(hooks, _Container)
        return tensor
    if function != REBUILD:
        raise NotPlainError(f"calls {function}")
    storage, offset, size, stride, requires_grad, hooks = arguments
    _expect(storage, _Storage)
    _expect(requires_grad, bool)
    _expect(hooks, _Container)
    _expect(size, tuple)
    if len(size) > MOST_DIMENSIONS or len(size) != len(stride):
        raise NotPlainError("impossible tensor")
    if any(type(n) is not int or n < 0 for n in (offset, *size, *stride)):
        raise NotPlainError("impossible tensor")
    elements, last = 1, offset
    for n, step in zip(size, stride, strict=True):
        elements *= n
        last += (n - 1) * step
    # a stride of 0 shows one element many times: harmless to map, a bomb once it is copied
    if elements > storage[0] or (elements and last >= storage[0]):
        raise NotPlainError(f"a tensor of {elements} elements in a storage of {storage[0]}")
    return _Tensor()
