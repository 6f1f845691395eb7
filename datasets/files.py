"""Files that are either whole or not there; folders that are proven writable; work done ahead in threads."""

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from datasets.errors import UserError, file_error, warn

Item = TypeVar("Item")
Result = TypeVar("Result")

LARGEST_SMALL = 2**22  # bytes of a file that is read at once; JSON takes up to 25 times its size in memory
TEMPORARY_NAME = re.compile(r"\.(.+)\.[0-9a-f]{12}\.tmp")
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)  # Windows has no such flag


@contextlib.contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[Callable[[bytes | memoryview], None]]:
    """Write a file that takes the place of `path` when the block ends, and leaves no trace when it fails.

    Gives the function that appends bytes to it. durable: flush it to the disk, so that it survives a power cut; False
    is faster, for what is easily made again.
    Raises OSError of any step; `path` is then what it was before (or, if only the last flush of the folder
    failed, the new file).
    """
    with _replacing(path, durable) as (descriptor, _):
        yield lambda data: write_all(descriptor, data)


@contextlib.contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """As `replacing`, for a library that opens the file itself: gives its name. Not durable."""
    with _replacing(path, durable=False) as (_, temporary):
        yield temporary


@contextlib.contextmanager
def _replacing(path: Path, durable: bool) -> Iterator[tuple[int, Path]]:
    temporary = _temporary(path)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            try_lock(descriptor)  # held while the writer lives: see remove_leftovers
            yield descriptor, temporary
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)  # noqa: PTH105 - one visible system call
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if durable:
        sync_folder(path.parent)


def write_atomically(path: Path, data: bytes | memoryview, durable: bool = True) -> None:
    """Replace the content of a file, whole or not at all; OSError if it cannot be done."""
    with replacing(path, durable) as write:
        write(data)


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write bytes to an open file, however many calls that needs. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def sync_folder(folder: Path) -> None:
    """Flush a folder to the disk, so that a rename in it survives a power cut."""
    if os.name == "nt":  # a folder cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # file systems that cannot flush a folder say EINVAL
            raise
    finally:
        os.close(descriptor)


def _temporary(path: Path) -> Path:
    """A name beside a path that no file of somebody else has."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")


def remove_leftovers(folder: Path, name: str = "") -> bool:
    """Remove temporary files and folders that a killed process left in a folder. False if one is being written.

    name: only what was to become the entry of that name. A writer holds a lock on its temporary file, and the system
    drops it when the process dies, so this needs neither process ids (which are reused) nor clocks.
    """
    all_gone = True
    for entry in folder.iterdir() if folder.is_dir() else ():
        match = TEMPORARY_NAME.fullmatch(entry.name)
        if not match or (name and match[1] != name) or not (entry.is_file() or entry.is_dir()):
            continue
        with contextlib.suppress(OSError):  # vanished or not ours to remove: the next save tries again
            descriptor = os.open(entry, os.O_RDONLY | NO_FOLLOW)
            try:
                if not try_lock(descriptor):
                    all_gone = False
                elif entry.is_dir():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()
            finally:
                os.close(descriptor)
    return all_gone


def try_lock(descriptor: int) -> bool:
    """Take the lock of an open file; False where another process (or thread) holds it.

    The system drops the lock with the last copy of the descriptor. Where locks do not work (some network file systems),
    there is one warning for the whole process, and the answer is True.
    """
    import filelock  # a help page needs no lock

    try:
        return filelock.lock_descriptor(descriptor, blocking=False)
    except OSError as error:
        _warn_of_missing_locks(error.strerror or str(error))
        return True


@cache
def _warn_of_missing_locks(reason: str) -> None:
    warn("file locks", f"do not work here ({reason}); do not start a command twice on the same folder")


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[bool]:
    """Hold the lock of a file for this process, or give False if another one has it.

    The file is made where there is none; what it holds is never changed, and links are not followed. Raises OSError
    where it cannot be opened.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | NO_FOLLOW, 0o666)
    owner = os.getpid()
    try:
        _held.add(descriptor)
        yield try_lock(descriptor)
    finally:
        if os.getpid() == owner:  # a forked child has closed its copy already
            _held.discard(descriptor)
            os.close(descriptor)


# A lock lives as long as any copy of its descriptor. Forked children may outlive this process by seconds, so they drop
# theirs at once.
_held: set[int] = set()


def _drop_locks() -> None:
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_locks)


def as_mib(size: int) -> str:
    """A number of bytes as text: `324 MiB`."""
    return f"{size / 2**20:.0f} MiB" if size >= 10 * 2**20 else f"{size / 2**20:.1f} MiB"


def free_space(folder: Path) -> int:
    """Bytes free for this user where a folder is or, before it is made, where its nearest parent is."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """Make a folder with those above it; after an error inside, remove those that were made and are empty.

    Raises UserError, before anything else is done, where it cannot be written to.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        require_writable(folder)
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # the first that is not empty ends it
            for place in made:
                place.rmdir()
        raise


@contextlib.contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` to fill; it takes the target's name when the block ends without an error.

    After an error or Ctrl-C it is removed, after `kill -9` by the next call for the same target. Raises UserError if
    the target is a file or a folder with something in it, cannot be made, or is being filled by another process.
    """
    refuse_occupied(target)
    place = target.resolve()  # an empty folder behind a link is filled where it really is
    try:
        with _partial_folder(target, place) as partial:
            yield partial
            partial.replace(place)
    except OSError as error:
        raise file_error(error, error.filename or target, "written") from error


@contextlib.contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """A path to write a file at, which takes the target's place when the block ends without an error.

    For writers that need a path of their own; `replacing` is simpler. After an error or Ctrl-C nothing is left, after
    `kill -9` until the next call for the same target. Raises UserError if there is something already, or if it cannot
    be written.
    """
    if target.exists() or target.is_symlink():
        raise UserError(target, "exists, and nothing is overwritten", "choose another --output")
    try:
        with _partial_folder(target, target.absolute()) as partial:
            file = partial / target.name
            yield file
            file.replace(target)
    except OSError as error:
        raise file_error(error, error.filename or target, "written") from error


@contextlib.contextmanager
def _partial_folder(target: Path, place: Path) -> Iterator[Path]:
    """A temporary folder beside `place`, removed at the end if it is still there. `target`: its name in messages."""
    with new_folder(place.parent), contextlib.ExitStack() as cleanup:
        if not remove_leftovers(place.parent, place.name):
            raise UserError(target, "another process is writing it", "wait or choose another place")
        partial = _temporary(place)
        partial.mkdir()
        cleanup.callback(shutil.rmtree, partial, ignore_errors=True)
        if os.name != "nt":  # a folder cannot be opened there
            descriptor = os.open(partial, os.O_RDONLY)
            cleanup.callback(os.close, descriptor)
            try_lock(descriptor)  # held while the writer lives: see remove_leftovers
        yield partial


def refuse_occupied(target: Path) -> None:
    """Raise UserError if `target` is a file or a folder with something in it."""
    try:
        if target.is_dir():
            if any(target.iterdir()):
                raise UserError(target, "is not empty, and nothing is overwritten", "choose another --output")
        elif target.exists() or target.is_symlink():
            raise UserError(target, "is a file, a new folder is needed", "choose another --output")
    except OSError as error:
        raise file_error(error, target, "written") from error


def require_writable(folder: Path) -> None:
    """Make a folder and write a file in it (mode bits say little: root ignores them); UserError if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{secrets.token_hex(6)}.probe"  # no name that a file of somebody could have
        write_atomically(probe, b"probe")
        probe.unlink()
    except OSError as error:
        reason = f"cannot be written to: {file_error(error, folder, 'written to').reason}"
        raise UserError(folder, reason, "choose another place") from error


def require_file(path: Path) -> None:
    """Raise UserError unless a path leads to a regular file. Opening anything else could wait for ever."""
    try:
        kind = path.stat().st_mode
    except FileNotFoundError:
        if path.is_symlink():
            reason = f"is a link to {path.readlink()}, which does not exist"
            raise UserError(path, reason, "remove it") from None
        raise UserError(path, "no such file") from None
    except OSError as error:
        raise file_error(error, path, "read") from error
    if stat.S_ISDIR(kind):
        raise UserError(path, "is a folder, a file is needed", "rename or remove it")
    if not stat.S_ISREG(kind):
        raise UserError(path, "is not a regular file", "remove it")


def read_small(path: Path, limit: int = LARGEST_SMALL) -> bytes:
    """The content of a regular file of at most `limit` bytes. Raises UserError for anything else."""
    require_file(path)
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise file_error(error, path, "read") from error
    if len(data) > limit:
        raise UserError(
            path, f"is larger than {limit:,} bytes, the most that is read", "correct or remove it"
        )
    return data


def read_json(path: Path, limit: int = LARGEST_SMALL) -> Any:
    """The value in a JSON file of at most `limit` bytes. Raises UserError for anything else."""
    try:
        return json.loads(read_small(path, limit))
    except (ValueError, RecursionError):  # of too many digits, nested too deep
        raise UserError(path, "is damaged: not JSON", "correct or remove it") from None


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, 64 hexadecimal digits. Raises UserError for something else than a file; OSError."""
    require_file(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ahead(
    function: Callable[[Item], Result], items: Iterable[Item], depth: int = 8, threads: int = 4
) -> Generator[Result, None, None]:
    """`function` of each item, in order, up to `depth` of them worked out in threads before they are asked for.

    At most `threads` threads, and no more than there are cores.
    """
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(max_workers=min(threads, cores())) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


@contextlib.contextmanager
def behind(depth: int = 8, threads: int = 4) -> Iterator[Callable[[Callable[[], None]], None]]:
    """Gives a function that has work done in threads, and waits while `depth` pieces are not done; 0: does it itself.

    The block ends when all is done, also after an error in it. The error of a piece is raised by a later call, or at
    the end.
    """
    waiting: deque[Future[None]] = deque()
    with ThreadPoolExecutor(max_workers=min(threads, cores())) as pool:

        def later(work: Callable[[], None]) -> None:
            if not depth:
                work()
                return
            if len(waiting) >= depth:
                waiting.popleft().result()
            waiting.append(pool.submit(work))

        yield later
        while waiting:
            waiting.popleft().result()
