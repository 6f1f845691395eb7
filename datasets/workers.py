"""A function applied to a list in worker processes that can neither hang a run nor outlive it.

A training has threads, locks and open files, and a process forked from it would inherit their state. So on Linux the
workers are forked from a server process of the standard library, which has none of these; elsewhere they are started
from nothing. Results travel through pipes. So no shared memory is needed.
"""

import atexit
import contextlib
import functools
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

from datasets.errors import RunError, UserError, as_user_error
from datasets.files import cores

TIMEOUT = 120.0  # seconds without a result after which a worker counts as hanging
SLICE = 2.0  # of that time
_HAS_SERVER = sys.platform == "linux"
_LEFT_TO_THE_PARENT = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)
)
"""Signals that a terminal or a scheduler sends to the whole process group. The parent ends the workers itself."""


class _Worker(NamedTuple):
    process: BaseProcess
    results: "Connection[Any, Any]"


@dataclass(frozen=True)
class _Failure:
    """An exception of a worker as plain data."""

    error: UserError
    trace: str


@functools.cache
def start_server() -> None:
    """Start the process that workers are forked from, once. It imports torch while the caller does.

    Without this call, the first epoch starts it and waits. Raises OSError.
    """
    if not _HAS_SERVER:
        return
    multiprocessing.set_forkserver_preload(["datasets.loader"])  # or every worker would import it
    # Older Pythons do not hand sys.path on to the server.
    path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONSAFEPATH": "1"}
    before = {name: os.environ.get(name) for name in path}
    os.environ.update(path)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_THE_PARENT)  # a new process inherits this
    try:
        resource_tracker.ensure_running()  # the server's start does this too, and it unblocks signals
        signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_THE_PARENT)
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for name, value in before.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value


def map_in_workers(
    function: Callable[[Any], Any], arguments: Sequence[Any], num_workers: int, timeout: float = TIMEOUT
) -> Iterator[Any]:
    """The results of function(argument), in order, made ahead by num_workers processes.

    Function, arguments and results must be picklable. Raises what function raised where it is a UserError, else a
    RunError; RunError too where a worker cannot be started or is lost, or no result comes for timeout seconds. All
    workers have ended when the iterator has, also when it is abandoned.
    """
    num_workers = min(num_workers, len(arguments), cores())
    workers: list[_Worker] = []
    stop = functools.partial(_stop, workers)
    atexit.register(stop)  # multiprocessing's own exit would wait for workers, which ignore its SIGTERM
    try:
        workers.extend(_start(function, arguments[k::num_workers]) for k in range(num_workers))
        for i in range(len(arguments)):
            result = _next(workers[i % num_workers], timeout)
            if isinstance(result, _Failure):
                raise result.error from RuntimeError(f"in a worker:\n{result.trace}")
            yield result
    finally:
        stop()
        atexit.unregister(stop)


def _start(function: Callable[[Any], Any], arguments: Sequence[Any]) -> _Worker:
    context = (
        multiprocessing.get_context("forkserver") if _HAS_SERVER else multiprocessing.get_context("spawn")
    )
    try:
        start_server()
        results, sending = context.Pipe(duplex=False)
        _widen(sending)
        process = context.Process(target=_work, args=(function, arguments, sending), daemon=True)
        process.start()
    except (OSError, EOFError) as error:
        reason = f"a worker process cannot be started: {error or 'its server has ended'}"
        raise RunError("data loading", reason, _FIX) from error
    sending.close()  # or the end of the worker would not be seen
    return _Worker(process, results)


def _widen(pipe: "Connection[Any, Any]") -> None:
    """Room for 1 MiB, where Linux allows it: a worker goes on to the next picture before this one is fetched."""
    if sys.platform == "linux":
        import fcntl

        with contextlib.suppress(OSError):  # a user's pipes may hold so much in all
            fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, 1 << 20)


def _work(function: Callable[[Any], Any], arguments: Sequence[Any], results: "Connection[Any, Any]") -> None:
    """The life of a worker: it ends after the last result is taken, or at once with its parent."""
    for number in _LEFT_TO_THE_PARENT:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch  # not at the top, so that `start_server` comes before the caller's own import

    torch.set_num_threads(1)
    for argument in arguments:
        results.send(_result(function, argument))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


def _result(function: Callable[[Any], Any], argument: Any) -> Any:
    try:
        return function(argument)
    except Exception as error:
        known = as_user_error(error) or RunError(
            "data loading", f"{type(error).__name__}: {error}", "please report it"
        )
        return _Failure(known, traceback.format_exc())


def _next(worker: _Worker, timeout: float) -> Any:
    left = timeout
    try:
        while left > 0:  # in slices: of the time for which all were stopped, as by Ctrl-Z, at most one counts
            if worker.results.poll(min(left, SLICE)):
                return worker.results.recv()
            left -= SLICE
    except (OSError, EOFError) as error:
        worker.process.join()
        cause = _cause(worker.process.exitcode or 0)
        raise RunError("data loading", f"a worker process {cause}", _FIX) from error
    raise RunError("data loading", f"no data for {timeout:g} seconds, a worker hangs", _FIX)


_FIX = "--num_threads 0 loads without workers"


def _cause(exit_code: int) -> str:
    if exit_code >= 0:
        return f"ended with exit code {exit_code}"
    name = signal.Signals(-exit_code).name
    return f"was killed by {name}" + (", as by a system out of memory" if name == "SIGKILL" else "")


def _stop(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.process.kill()
    for worker in workers:
        worker.process.join()
        worker.results.close()
