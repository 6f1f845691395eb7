"""The terminal: a progress bar an epoch with losses, speed and the time left for the whole run.

Where stderr is no terminal (a log file, a pipe) it prints plain lines, one a train record, never a `\\r`.
"""

import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from tqdm import tqdm

from gan.viewers import Record, Viewer


class Console(Viewer):
    """Progress on `stream` (default stderr) of `epochs` epochs of `steps_per_epoch` steps each.

    more_steps: how many more steps were made in the epochs so far, which had other data.
    """

    def __init__(
        self, epochs: int, steps_per_epoch: int, stream: TextIO | None = None, more_steps: int = 0
    ) -> None:
        self._epochs = epochs
        self._steps_per_epoch = steps_per_epoch
        self._stream = stream or sys.stderr
        self._interactive = self._stream.isatty()
        self._more_steps = more_steps
        self._clock = TimeLeft(epochs * steps_per_epoch + more_steps)
        self._bar: tqdm[Any] | None = None
        self._epoch = 0
        self._text = ""

    def progress(self, step: int, epoch: int) -> None:
        self._clock.update(step)
        if not self._interactive:
            return
        if epoch != self._epoch or self._bar is None:
            self._open_bar(epoch)
        assert self._bar is not None
        done = step - self._more_steps - (epoch - 1) * self._steps_per_epoch
        self._bar.update(done - self._bar.n)

    def record(self, record: Record) -> None:
        if record["kind"] == "train":
            self._clock.update(record["step"])
            speed = record.get("time", {}).get("images_per_s")
            self._text = losses_text(record["losses"])
            if speed is not None:
                self._text += f"  {speed:.3g} images/s"
            if self._bar is not None:
                self._bar.set_postfix_str(f"{self._text}  {self._left()}")
            elif not self._interactive:
                where = f"epoch {record['epoch']}/{self._epochs}  step {record['step']}"
                self._line(f"{where}  {self._text}  {self._left()}".rstrip())
        elif record["kind"] == "metrics":
            counts = f"  (n_fake {record['n_fake']}, n_real {record['n_real']})" if "n_fake" in record else ""
            self._line(f"epoch {record['epoch']}/{self._epochs}  {losses_text(record['metrics'])}{counts}")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _open_bar(self, epoch: int) -> None:
        self.close()
        self._epoch = epoch
        self._bar = tqdm(
            total=self._steps_per_epoch,
            desc=f"epoch {epoch}/{self._epochs}",
            file=self._stream,
            dynamic_ncols=True,
            bar_format="{desc} {percentage:3.0f}% |{bar:12}| {n}/{total} {postfix}",
        )
        self._bar.set_postfix_str(f"{self._text}  {self._left()}".strip(), refresh=False)

    def _left(self) -> str:
        seconds = self._clock.left()
        return f"{duration(seconds)} left" if seconds else ""

    def _line(self, text: str) -> None:
        if self._bar is not None:
            tqdm.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)


class TimeLeft:
    """Seconds left of a run of `total` steps, from the mean pace of this process (saves and samples included)."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._first: int | None = None
        self._step = 0
        self._begin = 0.0

    def update(self, step: int) -> None:
        if self._first is None:  # the first step warms up caches and compilers: the clock starts behind it
            self._first, self._begin = step, time.monotonic()
        self._step = step

    def left(self) -> float | None:
        """Seconds, or None while fewer than two steps are known and when none is left."""
        if self._first is None or not self._first < self._step < self._total:
            return None
        pace = (time.monotonic() - self._begin) / (self._step - self._first)
        return pace * (self._total - self._step)


def losses_text(values: Mapping[str, float]) -> str:
    """`G_A 0.312  D_A 0.25`: names and values with three digits."""
    return "  ".join(f"{name} {value:.3g}" for name, value in values.items())


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> duration(42), duration(125), duration(7384), duration(200000)
    ('42 s', '2 min', '2 h 03 min', '2 d 7 h')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = int(seconds // 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24} h"
