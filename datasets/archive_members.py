"""The members of a tar, tar.gz or zip archive, one after another, as plain data; nothing is ever written here."""

import contextlib
import functools
import gzip
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from datasets.errors import UserError

LONGEST_READ = 16 << 20  # bytes: no honest tar header is longer, and file contents are read in smaller blocks


@dataclass(frozen=True)
class Member:
    """A file or folder in an archive. `problem` says why it must not be unpacked, "" if nothing is wrong."""

    name: str
    is_folder: bool
    size: int  # bytes, as the archive claims
    problem: str
    open: Callable[[], IO[bytes]]


def kind(archive: Path) -> str:
    """zip, tar.gz or tar, told by the first bytes. Raises UserError for anything else."""
    with archive.open("rb") as file:
        head = file.read(512)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if head.startswith(b"\x1f\x8b"):
        return "tar.gz"
    if head[257:262] == b"ustar":
        return "tar"
    if not head:
        raise UserError(archive, "is empty (zero bytes)", "get it again")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise UserError(archive, "is not an archive but looks like an HTML page", "check the address")
    raise UserError(archive, "is not a tar, tar.gz or zip archive", "check where it comes from")


@contextlib.contextmanager
def members(archive: Path, most: int) -> Iterator[Iterator[Member]]:
    """The members in their order; each can be opened while it is the current one.

    most: a zip's table of contents that is long enough for many more members is refused before it is read.
    """
    with contextlib.ExitStack() as stack:
        if kind(archive) == "zip":
            _refuse_long_directory(archive, most)
            yield _zip_members(stack.enter_context(zipfile.ZipFile(archive)))
        else:
            stream: IO[bytes] = stack.enter_context(archive.open("rb"))
            if kind(archive) == "tar.gz":
                stream = cast(IO[bytes], stack.enter_context(gzip.GzipFile(fileobj=stream)))
            yield _tar_members(stream)


class _Watched:
    """A stream that remembers its last read and gives no huge ones: a header may claim any length."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.last = stream, b""
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= LONGEST_READ:
            raise tarfile.ReadError("a header of absurd length")
        self.last = self.stream.read(size)
        return self.last


def _tar_members(stream: IO[bytes]) -> Iterator[Member]:
    """Raises tarfile.ReadError where the archive ends without its end mark; Python's reader stops silently."""
    watched = _Watched(stream)
    with tarfile.open(fileobj=cast(IO[bytes], watched), mode="r:") as tar:
        while (entry := tar.next()) is not None:
            content = functools.partial(_opened, tar, entry)
            yield Member(entry.name, entry.isdir(), entry.size, _tar_problem(entry), content)
        if watched.last != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("ends in the middle")
        while stream.read(1 << 20):  # to the end, where gzip keeps its checksum
            pass


def _opened(tar: tarfile.TarFile, entry: tarfile.TarInfo) -> IO[bytes]:
    file = tar.extractfile(entry)
    if file is None:
        raise tarfile.ReadError(f"{entry.name} has no content")
    return file


def _tar_problem(entry: tarfile.TarInfo) -> str:
    if entry.issym() or entry.islnk():
        return "is a link"
    if entry.issparse():
        return "is a sparse file"
    if not entry.isreg() and not entry.isdir():
        return "is a device or pipe"
    return _mode_problem(stat.S_IFREG | entry.mode) if entry.isreg() else ""


def _zip_members(archive: zipfile.ZipFile) -> Iterator[Member]:
    for entry in archive.infolist():
        mode = entry.external_attr >> 16  # 0 where the archive was not made on Unix
        problem = "is encrypted" if entry.flag_bits & 1 else _mode_problem(mode)
        content = functools.partial(archive.open, entry)
        yield Member(entry.orig_filename, entry.is_dir(), entry.file_size, problem, content)


def _mode_problem(mode: int) -> str:
    """What a Unix mode says against a member. Folders with the set-group-id bit are common and harmless."""
    file_type = stat.S_IFMT(mode)
    if file_type == stat.S_IFLNK:
        return "is a link"
    if file_type not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a device or pipe"
    if file_type != stat.S_IFDIR and mode & (stat.S_ISUID | stat.S_ISGID):
        return "is a set-user-id file"
    return ""


def _refuse_long_directory(archive: Path, most: int) -> None:
    """Look at a zip's end record: how many members, and how many bytes their table takes (zipfile reads all)."""
    with archive.open("rb") as file:
        end = file.seek(0, 2)
        start = max(0, end - (22 + 56 + 20 + 0xFFFF))
        file.seek(start)
        tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) < at + 22:
        raise zipfile.BadZipFile("no end record")
    count, length = struct.unpack_from("<HI", tail, at + 10)
    wide = at - 20 - 56  # where the 64-bit end record stands, if there is one
    if wide >= 0 and tail[wide : wide + 4] == b"PK\x06\x06":
        count, length = struct.unpack_from("<QQ", tail, wide + 32)
    if count > most or length > most * 128:
        raise UserError(archive, f"holds more than {most} members", "not unpacked")
