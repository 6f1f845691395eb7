"""A function applied to a list in worker processes that can neither hang a run nor outlive it.

Around torch's DataLoader, for what it leaves open: an exception that cannot be pickled, a worker that hangs
or is killed, a worker that outlives its parent. Results travel through pipes as NumPy arrays, so neither
the size of /dev/shm nor the number of open files matters.
"""

import atexit
import contextlib
import ctypes
import functools
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from datasets.errors import RunError, UserError, as_user_error
from datasets.files import cores

TIMEOUT = 120.0  # seconds without a result after which a worker counts as hanging
_LOOK_EVERY = 2  # seconds between looks whether the workers are still alive
_PR_SET_PDEATHSIG = 1  # Linux's prctl: the signal a process gets when its parent ends


@dataclass(frozen=True)
class _Failure:
    """An exception of a worker as plain data."""

    error: UserError
    trace: str


class _Calls(Dataset[Any]):
    """Item i is the result of the i-th call, or its _Failure."""

    def __init__(self, function: Callable[[Any], dict[str, Any]], arguments: Sequence[Any]) -> None:
        self.function, self.arguments = function, arguments

    def __getitem__(self, i: int) -> Any:
        try:
            result = self.function(self.arguments[i])
        except Exception as error:
            known = as_user_error(error) or RunError(
                "data loading", f"{type(error).__name__}: {error}", "please report it"
            )
            return _Failure(known, traceback.format_exc())
        return {
            key: value.numpy() if isinstance(value, torch.Tensor) else value for key, value in result.items()
        }


def map_in_workers(
    function: Callable[[Any], Any], arguments: Sequence[Any], num_workers: int, timeout: float = TIMEOUT
) -> Iterator[Any]:
    """The results of function(argument), dicts with tensors, in order, made ahead by num_workers processes.

    Raises what function raised where it is a UserError, else a RunError; RunError too where a worker is
    lost, or no result comes for timeout seconds. All workers have ended when the iterator has, also when it
    is abandoned.
    """
    num_workers = min(num_workers, len(arguments), cores())
    if num_workers == 0:
        return
    iterator, processes = _start(_Calls(function, arguments), num_workers)
    stop = functools.partial(_stop, processes)
    atexit.register(stop)  # multiprocessing's own exit would wait for workers, which ignore its SIGTERM
    try:
        for _ in arguments:
            result = _next(iterator, processes, timeout)
            if isinstance(result, _Failure):
                raise result.error from RuntimeError(f"in a worker:\n{result.trace}")
            yield {key: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for key, v in result.items()}
    finally:
        stop()
        atexit.unregister(stop)


def _start(calls: _Calls, num_workers: int) -> tuple[Iterator[Any], list[BaseProcess]]:
    before = multiprocessing.active_children()
    loader = DataLoader(
        calls,
        batch_size=None,
        sampler=range(len(calls.arguments)),
        collate_fn=_unchanged,
        num_workers=num_workers,
        timeout=_LOOK_EVERY,
        worker_init_fn=functools.partial(_prepare_worker, os.getpid()),
        multiprocessing_context="fork" if sys.platform == "linux" else None,
        generator=torch.Generator(),  # or it would draw a number from the global one
    )
    handler = signal.getsignal(signal.SIGCHLD)
    iterator = iter(loader)
    if threading.current_thread() is threading.main_thread():
        # torch's handler would raise for a dead worker in the middle of a training step or of a save
        signal.signal(signal.SIGCHLD, handler)
    return iterator, [process for process in multiprocessing.active_children() if process not in before]


def _unchanged(result: Any) -> Any:
    return result


def _prepare_worker(parent: int, _worker: int) -> None:
    """Leave signals to the parent, which ends the workers when it ends itself, and never outlive it."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(name, signal.SIG_IGN)  # a terminal or a scheduler sends them to the whole process group
    if sys.platform == "linux":  # a worker keeps the parent's lock files open, so every second counts
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _next(iterator: Iterator[Any], processes: list[BaseProcess], timeout: float) -> Any:
    deadline = time.monotonic() + timeout
    while True:
        try:
            return next(iterator)
        except RuntimeError as error:
            lost = [process for process in processes if process.exitcode is not None]
            if lost:
                raise RunError(
                    "data loading", f"a worker process {_cause(lost[0].exitcode or 0)}", _FIX
                ) from error
            if "timed out" not in str(error):
                raise RunError("data loading", str(error), _FIX) from error
            if time.monotonic() >= deadline:
                raise RunError(
                    "data loading", f"no data for {timeout:g} seconds, a worker hangs", _FIX
                ) from error


_FIX = "--num_threads 0 loads without workers"


def _cause(exit_code: int) -> str:
    if exit_code >= 0:
        return f"ended with exit code {exit_code}"
    name = signal.Signals(-exit_code).name
    return f"was killed by {name}" + (", as by a system out of memory" if name == "SIGKILL" else "")


def _stop(processes: list[BaseProcess]) -> None:
    for process in processes:
        if process.is_alive():
            process.kill()
    for process in processes:
        process.join()
