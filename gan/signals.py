"""Signals become a flag that the loop reads between two steps; a closed terminal or pipe stops nothing."""

import contextlib
import io
import os
import signal
import sys
from types import FrameType, TracebackType
from typing import Any, Self

STOP_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)
]
"""Windows has the first two. The last one is a batch system's warning that the time is nearly up (Slurm's
`--signal=USR1`)."""


class StopRequest:
    """While the block runs, Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 ask for a stop instead of making one.

    `requested` is the number of the first such signal, or None: the loop finishes its step, saves, and exits
    with 128 + number. A Ctrl-C after that raises KeyboardInterrupt at once. The old handlers return with the
    end of the block. Only in the main thread (ValueError elsewhere).

    shared: the processes of a training under torchrun stop together. Then a signal only becomes `latest`, without a
    word; the loop sets `requested` when all know of it. A second Ctrl-C changes nothing.

    >>> with StopRequest() as stop:
    ...     stop.requested is None
    True
    """

    latest: int | None = None
    """The signal that this process has received last."""

    def __init__(self, shared: bool = False) -> None:
        self.shared = shared
        self.requested: int | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in STOP_SIGNALS:
            if signal.getsignal(number) == signal.SIG_IGN and number != signal.SIGINT:
                continue  # nohup: a SIGHUP that was to be ignored still is
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, or 0 without one."""
        return 0 if self.requested is None else 128 + self.requested

    def _handle(self, number: int, frame: FrameType | None) -> None:
        StopRequest.latest = number
        if self.shared or self.requested is not None:
            return
        self.requested = number
        signal.signal(signal.SIGINT, signal.default_int_handler)
        again = " again" if number == signal.SIGINT else ""
        line = f"stopping after this step; press Ctrl-C{again} to leave at once\n"
        start = "\n" if os.isatty(2) else ""  # a progress bar may be on this line
        with contextlib.suppress(OSError):  # os.write: print must not be entered twice from a handler
            os.write(2, (start + line).encode())


def tolerate_closed_stdout() -> None:
    """From now on, output that nobody can take (closed pipe or terminal, full disk) is dropped, on stdout and
    stderr.

    Python would raise BrokenPipeError in the middle of a step. Streams that were replaced (by a test, a
    notebook) are left as they are.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # closed from the start: the next file opened would become the terminal
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and stream is getattr(sys, f"__{name}__"):
            with contextlib.suppress(OSError):
                stream.flush()
            raw = _TolerantFile(stream.fileno(), "w", closefd=False)
            tolerant = io.TextIOWrapper(
                io.BufferedWriter(raw),
                encoding=stream.encoding,
                errors=stream.errors,
                line_buffering=stream.line_buffering or name == "stderr",
                write_through=stream.write_through,
            )
            setattr(sys, name, tolerant)


class _TolerantFile(io.FileIO):
    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        try:
            written = super().write(data)
        except OSError:
            with contextlib.suppress(OSError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.fileno())
                os.close(nowhere)
            return size
        return size if written is None else written  # None: a full non-blocking pipe
