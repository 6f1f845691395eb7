"""What test_loader.py lets workers do. A worker imports this module, so it is small."""

import os
import signal
from pathlib import Path
from typing import Any


def pids(i: int) -> dict[str, Any]:
    return {"i": i, "pid": os.getpid()}


def descriptors(_: int) -> dict[str, Any]:
    """What this process holds open, by the names that the system gives it."""
    entries = list(Path("/proc/self/fd").iterdir())
    return {"held": [str(entry.readlink()) for entry in entries if entry.is_symlink()]}


def local_exception(_: int) -> None:
    class Unpicklable(Exception):
        def __init__(self) -> None:
            super().__init__(lambda: None)

    raise Unpicklable


def killed(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def segfault(_: int) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def exits(_: int) -> None:
    os._exit(0)


def hangs(_: int) -> None:
    signal.pause()


def told(argument: tuple[str, int]) -> bytes:
    """200 kB, as of a pair of pictures; a byte into the named pipe tells that they are made."""
    fifo, number = argument
    with Path(fifo).open("wb", buffering=0) as pipe:
        pipe.write(bytes([number]))
    return bytes(200_000)
