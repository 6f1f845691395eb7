"""A tiny training in the order of the real loop, for tests that watch it under every fault of the server."""

import functools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from visdom_support import FakeRun, train_record

from gan.viewers import Viewers, visdom_http, visdom_sender
from gan.viewers import visdom as visdom_module
from gan.viewers.visdom import Visdom

STEPS = 60
LONGEST_CALL = 0.4  # seconds the training thread may sleep in a call of a viewer


def quicken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of a few tenths of a second instead of seconds and minutes; a busy server is waited for."""
    monkeypatch.setattr(visdom_http, "CONNECT_TIMEOUT", 0.5)
    monkeypatch.setattr(visdom_http, "REQUEST_TIMEOUT", 60.0)
    monkeypatch.setattr(visdom_sender, "FIRST_WAIT", 0.05)
    monkeypatch.setattr(visdom_sender, "LONGEST_WAIT", 0.2)
    monkeypatch.setattr(visdom_sender, "LISTEN_EVERY", 0.1)
    monkeypatch.setattr(visdom_sender, "PAUSE", 0.05)
    monkeypatch.setattr(visdom_sender, "LONGEST_PAUSE", 0.1)
    monkeypatch.setattr(visdom_module, "FLUSH_SECONDS", 60.0)


def give_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a server that never answers."""
    monkeypatch.setattr(visdom_http, "REQUEST_TIMEOUT", 0.5)
    monkeypatch.setattr(visdom_module, "FLUSH_SECONDS", 3.0)


def seconds_asleep() -> float:
    """Seconds this thread has slept, since some moment: on no core, and (told by Linux only) not in line for one.

    Differences tell how long a call waited for something, however busy the machine is.
    """
    try:
        on_core, in_line, _ = Path("/proc/thread-self/schedstat").read_text().split()
    except OSError:
        return time.monotonic() - time.thread_time()
    return time.monotonic() - (int(on_core) + int(in_line)) / 1e9


class Timed(Visdom):
    """Visdom, with the longest time that the training thread slept in one of its calls."""

    longest = 0.0

    def _timed(self, call: Callable[[], object]) -> object:
        begin = seconds_asleep()
        result = call()
        self.longest = max(self.longest, seconds_asleep() - begin)
        return result

    def record(self, record):
        self._timed(lambda: super(Timed, self).record(record))

    def samples(self, record, pictures):
        self._timed(lambda: super(Timed, self).samples(record, pictures))

    def commands(self):
        return self._timed(lambda: super(Timed, self).commands())


def train(run: FakeRun, viewers: Viewers, at: dict[int, Callable[[], None]] | None = None) -> torch.Tensor:
    """A tiny training in the order of the real loop; `at` holds what happens to the server before a step."""
    torch.manual_seed(0)
    weights = torch.randn(8, 8, requires_grad=True)
    optimiser = torch.optim.Adam([weights], lr=1e-2)
    viewers.start(run.info)
    for step in range(1, STEPS + 1):
        if at and step in at:
            at[step]()
        loss = (weights @ torch.randn(8) - 1).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        epoch = (step - 1) // 20 + 1
        viewers.record(run.keep(train_record(step, epoch, float(loss.detach()))))
        if step % 20 == 0:
            record, files = run.samples(step, epoch)
            viewers.samples(record, files)
        viewers.commands()
        viewers.progress(step, epoch)
    return weights.detach()


@functools.cache
def weights_without_viewer() -> torch.Tensor:
    with tempfile.TemporaryDirectory() as folder:
        return train(FakeRun(Path(folder)), Viewers([]))


def watch_training(viewer: Timed, run: FakeRun, at: dict[int, Callable[[], None]] | None = None) -> None:
    """Train under `viewer` and assert what must hold in every fault."""
    viewers = Viewers([viewer])
    weights = train(run, viewers, at)
    begin = seconds_asleep()
    viewers.close()
    assert seconds_asleep() - begin < 10, "the process ends in time"
    assert torch.equal(weights, weights_without_viewer()), "not one bit differs"
    assert viewer.longest < LONGEST_CALL, "the training thread waits for nothing"
