"""A new folder appears whole or not at all, and nothing that exists is touched."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from datasets.errors import UserError, error_from_os


@contextlib.contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` to fill; it takes the target's name when the body has ended well.

    After an error or Ctrl-C it is removed, after a `kill -9` the next call for the same target removes it.
    Raises UserError if the target is a file or a folder with something in it, if it cannot be made, or if
    another process is filling it right now.
    """
    refuse_occupied(target)
    place = target.resolve()  # an empty folder behind a link is filled where it really is
    try:
        made = _make_parents(place)
        with _taken(place.with_name(f".{place.name}.partial"), target) as partial:
            try:
                yield partial
                partial.replace(place)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                for folder in reversed(made):
                    with contextlib.suppress(OSError):  # somebody else put something into it
                        folder.rmdir()
                raise
    except OSError as error:
        raise _cannot_write(error, target) from error


def refuse_occupied(target: Path) -> None:
    """Raise UserError if `target` is a file or a folder with something in it."""
    try:
        if target.is_dir():
            if any(target.iterdir()):
                raise UserError(target, "is not empty, and nothing is overwritten", "choose another --output")
        elif target.exists() or target.is_symlink():
            raise UserError(target, "is a file, a new folder is needed", "choose another --output")
    except OSError as error:
        raise _cannot_write(error, target) from error


def _make_parents(place: Path) -> list[Path]:
    """Make the folders above `place`; returns those that were not there, from the top down."""
    missing = [folder for folder in place.parents if not folder.exists()][::-1]
    place.parent.mkdir(parents=True, exist_ok=True)
    return missing


@contextlib.contextmanager
def _taken(partial: Path, target: Path) -> Iterator[Path]:
    """An empty folder `partial` that this process alone works in; its lock dies with the process."""
    partial.mkdir(exist_ok=True)
    handle = os.open(partial, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                target, "another process is writing it", "wait or choose another place"
            ) from error
        for left in partial.iterdir():  # of a process that was killed
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        yield partial
    finally:
        os.close(handle)


def _cannot_write(error: OSError, target: Path) -> UserError:
    known = error_from_os(error, error.filename or target)
    return known or UserError(target, f"cannot be written: {error.strerror}", "choose another place")
