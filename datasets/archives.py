"""Safe unpacking of tar, tar.gz and zip archives from strangers.

`examine` reads the whole listing before the first byte is written. It refuses members that break one of `RULES`, names
that clash, more members or bytes than the limits below allow, and archives that are incomplete. `unpack` then counts
the bytes that really arrive, whatever the archive claims.

Pictures (IMAGE_EXTENSIONS) and plain text (TEXT_EXTENSIONS, TEXT_NAMES) are kept; other files, hidden files and
`__MACOSX` are left out. Files get the permissions of any new file; owners, times and modes are ignored.
"""

import contextlib
import functools
import gzip
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import IO, cast
from unicodedata import category, normalize

from tqdm import tqdm

from datasets.decoding import IMAGE_EXTENSIONS, foreign_content
from datasets.errors import UserError
from datasets.files import as_mib, free_space

TEXT_EXTENSIONS = frozenset((".txt", ".md", ".csv", ".json"))
TEXT_NAMES = frozenset(("README", "LICENSE", "LICENCE"))
BLOCK = 1 << 20  # bytes copied at once
LONGEST_READ = 40 << 20  # bytes; a zip of 300,000 members has a shorter table of contents
MOST_MEMBERS = 300_000
MOST_RATIO = 100  # unpacked bytes per byte of the archive; pictures stay below 2, raw label maps below 100
SLACK = 16 << 20  # bytes allowed beyond the ratio, for tiny archives
RESERVE = 64 << 20  # bytes of the disk that stay free


@dataclass(frozen=True)
class Member:
    """A file or folder in a tar or a zip."""

    path: PurePosixPath
    is_folder: bool
    size: int  # bytes, as the archive claims
    mode: int  # Unix type and permissions, see `stat`; a type of 0 means that the archive does not say
    is_plain: bool  # neither encrypted nor sparse
    open: Callable[[], IO[bytes]]  # while it is the current member


RULES: tuple[tuple[str, Callable[[Member], bool]], ...] = (
    ("is an absolute path", lambda member: member.path.is_absolute()),
    ("leads out of the folder", lambda member: ".." in member.path.parts),
    ("is a Windows path", lambda member: "\\" in str(member.path) or str(member.path)[1:2] == ":"),
    ("has control characters in its name", lambda member: "Cc" in map(category, str(member.path))),
    ("has no name", lambda member: not member.path.parts and not member.is_folder),
    ("is a link", lambda member: stat.S_ISLNK(member.mode)),
    ("is a device or pipe", lambda member: stat.S_IFMT(member.mode) not in (0, stat.S_IFREG, stat.S_IFDIR)),
    (  # folders with the set-group-id bit are common and harmless
        "is a set-user-id file",
        lambda member: not stat.S_ISDIR(member.mode) and bool(member.mode & (stat.S_ISUID | stat.S_ISGID)),
    ),
    ("is encrypted or sparse", lambda member: not member.is_plain),
)
"""(Reason, test): a member that meets one of the tests makes the whole archive unsafe."""


@dataclass(frozen=True)
class ArchiveListing:
    """What will be unpacked: for every member in order its path, or None if it is left out."""

    archive: Path
    paths: tuple[PurePosixPath | None, ...]
    bytes: int  # of all members, as the archive claims

    @property
    def files(self) -> list[PurePosixPath]:
        return [path for path in self.paths if path is not None]


def examine(archive: Path, keep_tops: Sequence[str] = ()) -> ArchiveListing:
    """List an archive's members and check each; writes nothing.

    A top folder that holds everything is dropped from the paths, unless it is one of `keep_tops`. Raises UserError for
    a file that is no complete archive and for everything that this module refuses.
    """
    seen: dict[str, tuple[PurePosixPath, bool]] = {}
    paths: list[PurePosixPath | None] = []
    size, allowed = 0, most_bytes(archive)
    with _members(archive) as members:
        for member in members:
            reason = next((reason for reason, holds in RULES if holds(member)), "") or _clash(member, seen)
            if reason:
                reason = f"member {member.path} {reason}"
                raise UserError(archive, reason, "an unsafe archive, nothing was unpacked")
            if len(paths) == MOST_MEMBERS:
                raise UserError(archive, f"holds more than {MOST_MEMBERS} members", "not unpacked")
            size += member.size
            if size > allowed:
                raise _bomb(archive, allowed)
            paths.append(None if member.is_folder or not _is_wanted(member.path) else member.path)
    kept = [path for path in paths if path is not None]
    tops = {path.parts[0] for path in kept}
    if len(tops) == 1 and all(len(path.parts) > 1 for path in kept) and not tops & set(keep_tops):
        paths = [path and path.relative_to(path.parts[0]) for path in paths]
    return ArchiveListing(archive, tuple(paths), size)


def unpack(listing: ArchiveListing, folder: Path) -> None:
    """Write the listed files into an existing folder that nobody else uses; shows a progress bar.

    Raises UserError if more arrives than is allowed, if the disk has too little room, or if the archive is damaged;
    files written before that stay.
    """
    archive = listing.archive
    free = max(0, free_space(folder) - RESERVE)
    if listing.bytes > free:
        reason = f"no space: need {as_mib(listing.bytes)}, free {as_mib(free)}"
        raise UserError(folder.parent, reason, "free some space")
    allowed = min(most_bytes(archive), free)
    written = 0
    bar = tqdm(total=len(listing.files), unit="file", disable=None)
    with _members(archive) as members, bar:
        for path, member in zip(listing.paths, members, strict=True):
            if path is None:
                continue
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            with member.open() as source, target.open("xb") as file:
                while block := source.read(BLOCK):
                    written += len(block)
                    if written > allowed:
                        raise _bomb(archive, allowed)
                    file.write(block)
            bar.update()


def most_bytes(archive: Path) -> int:
    """Unpacked bytes that this archive may hold."""
    return archive.stat().st_size * MOST_RATIO + SLACK


def archive_kind(archive: Path) -> str:
    """zip, tar.gz or tar, told by the first bytes. Raises UserError for anything else."""
    with archive.open("rb") as file:
        head = file.read(512)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if head.startswith(b"\x1f\x8b"):
        return "tar.gz"
    if head[257:262] == b"ustar":
        return "tar"
    reason = foreign_content(head, "an archive") or "is not a tar, tar.gz or zip archive"
    raise UserError(archive, reason, "check where it comes from")


def _is_wanted(path: PurePosixPath) -> bool:
    """Whether a file is a picture or plain text, and not hidden."""
    if any(part.startswith(".") or part == "__MACOSX" for part in path.parts):
        return False
    return path.suffix.lower() in IMAGE_EXTENSIONS | TEXT_EXTENSIONS or path.name in TEXT_NAMES


def _clash(member: Member, seen: dict[str, tuple[PurePosixPath, bool]]) -> str:
    """Why a member cannot stand beside those in `seen`, which it joins; "" if it can.

    seen: folded path -> (path as written, whether it is a folder), of all members and the folders above them.
    """
    for path in (member.path, *member.path.parents):
        entry = (path, member.is_folder or path != member.path)
        earlier = seen.setdefault(normalize("NFC", str(path)).casefold(), entry)
        if earlier is entry:
            continue
        if earlier[0] != path:
            return f"and {earlier[0]} are one name where case does not count"
        if earlier[1] != entry[1]:
            return "is needed both as a file and as a folder"
        if not entry[1]:
            return "stands in it twice"
    return ""


# What Python's readers raise for damaged or hostile bytes.
_DAMAGED = (
    tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError, struct.error,
    EOFError, ValueError, IndexError, OverflowError, NotImplementedError, RuntimeError,
)  # fmt: skip


@contextlib.contextmanager
def _members(archive: Path) -> Iterator[Iterator[Member]]:
    """The members in order. Whatever is raised about a damaged archive, also in the body, becomes a UserError."""
    kind = archive_kind(archive)
    try:
        with archive.open("rb") as file, contextlib.ExitStack() as stack:
            if kind == "tar.gz":
                file = cast(BufferedReader, stack.enter_context(gzip.GzipFile(fileobj=file)))
            bounded = _BoundedReader(archive, file)
            yield _zip_members(bounded) if kind == "zip" else _tar_members(bounded)
    except _DAMAGED as error:
        raise UserError(archive, f"truncated or damaged: {error}", "get it again") from error


class _BoundedReader:
    """What `tarfile` and `zipfile` read from: refuses huge reads, since a header may claim any length.

    A zip's table of contents is read at once, so this bounds the number of its members too.
    """

    def __init__(self, archive: Path, stream: IO[bytes]) -> None:
        self.archive, self.stream, self.last = archive, stream, b""
        self.seek, self.tell, self.seekable = stream.seek, stream.tell, stream.seekable

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes; -1 reads to the end, which only zipfile does, near the end."""
        if not -1 <= size <= LONGEST_READ:
            raise UserError(
                self.archive, "has a header of absurd length or far too many members", "not unpacked"
            )
        self.last = self.stream.read(LONGEST_READ if size < 0 else size)
        return self.last


def _tar_members(stream: _BoundedReader) -> Iterator[Member]:
    """Raises tarfile.ReadError where the archive ends without its end mark; Python's reader stops silently."""
    with tarfile.open(fileobj=cast(IO[bytes], stream), mode="r:") as tar:
        while (entry := tar.next()) is not None:
            if entry.isdir():
                mode = stat.S_IFDIR
            elif entry.isreg():
                mode = stat.S_IFREG | entry.mode
            else:
                mode = stat.S_IFLNK if entry.issym() or entry.islnk() else stat.S_IFIFO
            content = cast(Callable[[], IO[bytes]], functools.partial(tar.extractfile, entry))
            path = PurePosixPath(entry.name)
            yield Member(path, entry.isdir(), entry.size, mode, not entry.issparse(), content)
        if stream.last != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("ends in the middle")
        while stream.read(BLOCK):  # to the end, where gzip keeps its checksum
            pass


def _zip_members(stream: _BoundedReader) -> Iterator[Member]:
    with zipfile.ZipFile(cast(IO[bytes], stream)) as opened:
        for entry in opened.infolist():
            mode = entry.external_attr >> 16  # 0 if the archive was not made on Unix
            content = functools.partial(opened.open, entry)
            path, is_plain = PurePosixPath(entry.orig_filename), not entry.flag_bits & 1
            yield Member(path, entry.is_dir(), entry.file_size, mode, is_plain, content)


def _bomb(archive: Path, allowed: int) -> UserError:
    return UserError(archive, f"unpacks to more than {allowed >> 20} MiB, an archive bomb", "not unpacked")
