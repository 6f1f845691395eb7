"""Unpacking of tar, tar.gz and zip archives from strangers: all is looked at before the first byte is written.

Refused, with nothing written: members outside the folder (`../`, absolute, drive letters, backslashes), links,
pipes and devices, set-user-id files, sparse files, a name twice, names that differ in case only, a file where
another name needs a folder, encrypted members, more than `Limits.entries` members, and more bytes than an archive
of that size can honestly hold (pictures hardly compress) or than the disk has free. While writing, the bytes that
really arrive are counted, whatever the archive claims.

Kept are pictures (IMAGE_EXTENSIONS) and plain text (TEXT_EXTENSIONS); other files, hidden files and `__MACOSX`
are left out and counted. Files get the permissions of any new file; owners, times and modes are ignored.
"""

import contextlib
import gzip
import lzma
import shutil
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from datasets.archive_members import Member, members
from datasets.errors import UserError
from datasets.images import IMAGE_EXTENSIONS

TEXT_EXTENSIONS = frozenset((".txt", ".md", ".csv", ".json"))
TEXT_NAMES = frozenset(("README", "LICENSE", "LICENCE"))
BLOCK = 1 << 20  # bytes copied at once


@dataclass(frozen=True)
class Limits:
    """What an archive may hold."""

    entries: int = 300_000
    ratio: int = 100  # bytes in all per byte of the archive; pictures stay below 2, raw label maps below 100
    slack: int = 16 << 20  # bytes allowed beyond the ratio, for tiny archives
    reserve: int = 64 << 20  # bytes of the disk that stay free


@dataclass(frozen=True)
class Plan:
    """What will be unpacked: for every member in order its path, or None where it is left out."""

    archive: Path
    paths: tuple[PurePosixPath | None, ...]
    left_out: int
    bytes: int

    @property
    def files(self) -> list[PurePosixPath]:
        return [path for path in self.paths if path is not None]


def plan(archive: Path, keep_tops: Sequence[str] = (), limits: Limits = Limits()) -> Plan:
    """Look at every member of an archive and decide; writes nothing.

    A folder that everything lies in is dropped from the paths, unless it is one of `keep_tops`.
    Raises UserError for a file that is no complete archive and for everything this module refuses.
    """
    seen: dict[str, tuple[str, bool]] = {}
    paths: list[PurePosixPath | None] = []
    left_out = size = 0
    allowed = archive.stat().st_size * limits.ratio + limits.slack
    with _readable(archive), members(archive, limits.entries) as listing:
        for member in listing:
            if len(paths) == limits.entries:
                raise UserError(archive, f"holds more than {limits.entries} members", "not unpacked")
            path = _checked_path(archive, member, seen)
            size += member.size
            if size > allowed:
                raise _bomb(archive, allowed)
            keep = not member.is_folder and is_wanted(path)
            left_out += not member.is_folder and not keep
            paths.append(path if keep else None)
    kept = [path for path in paths if path is not None]
    tops = {path.parts[0] for path in kept}
    if len(tops) == 1 and all(len(path.parts) > 1 for path in kept) and not tops & set(keep_tops):
        paths = [path and path.relative_to(path.parts[0]) for path in paths]
    return Plan(archive, tuple(paths), left_out, size)


def write(
    wanted: Plan,
    folder: Path,
    limits: Limits = Limits(),
    progress: Callable[[int], object] = lambda files: None,
) -> int:
    """Write the planned files into an existing folder that nobody else uses; returns the bytes written.

    progress is called with 1 after each file. Raises UserError if more arrives than was allowed, if the disk
    has too little room, or if the archive turns out to be damaged; what is written by then stays.
    """
    archive = wanted.archive
    allowed = archive.stat().st_size * limits.ratio + limits.slack
    free = shutil.disk_usage(folder).free - limits.reserve
    if wanted.bytes > free:
        need, have = wanted.bytes >> 20, max(free, 0) >> 20
        raise UserError(folder.parent, f"no space: need {need} MiB, free {have}", "free some space")
    written = 0
    with _readable(archive), members(archive, limits.entries) as listing:
        for path, member in zip(wanted.paths, listing, strict=True):
            if path is None:
                continue
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            with member.open() as source, target.open("xb") as file:
                for block in _blocks(source):
                    written += len(block)
                    if written > min(allowed, free):
                        raise _bomb(archive, min(allowed, free))
                    file.write(block)
            progress(1)
    return written


def is_wanted(path: PurePosixPath) -> bool:
    """Whether a member is a picture or plain text, not hidden."""
    if any(part.startswith(".") or part == "__MACOSX" for part in path.parts):
        return False
    return path.suffix.lower() in IMAGE_EXTENSIONS | TEXT_EXTENSIONS or path.name in TEXT_NAMES


def _blocks(source: IO[bytes]) -> Iterator[bytes]:
    while block := source.read(BLOCK):
        yield block


def _checked_path(archive: Path, member: Member, seen: dict[str, tuple[str, bool]]) -> PurePosixPath:
    """The member's path below the folder. `seen`: folded path -> (path as written, is it a folder)."""
    reason = _problem(member) or member.problem
    if reason:
        raise _refused(archive, member, reason)
    parts = PurePosixPath(member.name).parts
    for depth in range(1, len(parts) + 1):
        here, is_folder = "/".join(parts[:depth]), depth < len(parts) or member.is_folder
        key = _folded(here)
        if key not in seen:
            seen[key] = (here, is_folder)
            continue
        written, was_folder = seen[key]
        if written != here:
            raise _refused(archive, member, f"and {written} are one name where case does not count")
        if was_folder != is_folder:
            raise _refused(archive, member, "is needed both as a file and as a folder")
        if not is_folder:
            raise _refused(archive, member, "stands in it twice")
    return PurePosixPath(*parts)


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", path).casefold()


def _problem(member: Member) -> str:
    """What is wrong with a member's name, "" for nothing."""
    name, path = member.name, PurePosixPath(member.name)
    if path.is_absolute():
        return "is an absolute path"
    if ".." in path.parts:
        return "leads out of the folder"
    if "\\" in name or name[1:2] == ":":
        return "is a Windows path"
    if any(unicodedata.category(c) == "Cc" for c in name):
        return "has control characters in its name"
    return "has no name" if not path.parts and not member.is_folder else ""


# What the readers of Python's library raise when they meet damaged or hostile bytes.
_DAMAGED = (
    tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError, struct.error,
    EOFError, ValueError, IndexError, OverflowError, NotImplementedError, RuntimeError,
)  # fmt: skip


@contextlib.contextmanager
def _readable(archive: Path) -> Iterator[None]:
    """Whatever is raised about a damaged archive becomes one UserError."""
    try:
        yield
    except _DAMAGED as error:
        raise UserError(archive, f"truncated or damaged: {error}", "get it again") from error


def _bomb(archive: Path, allowed: int) -> UserError:
    return UserError(archive, f"unpacks to more than {allowed >> 20} MiB, an archive bomb", "not unpacked")


def _refused(archive: Path, member: Member, reason: str) -> UserError:
    return UserError(archive, f"member {member.name} {reason}", "an unsafe archive, nothing was unpacked")
