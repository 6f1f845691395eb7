"""For tests under every fault of a Visdom server: sick servers, and a tiny training in the order of the real loop."""

import contextlib
import functools
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from visdom_support import FakeRun, train_record

from gan.viewers import Viewers, visdom, visdom_server
from gan.viewers.visdom import Visdom

STEPS = 60
LONGEST_CALL = 0.4  # seconds the training thread may sleep in a call of a viewer


def answer(status: str, body: bytes = b"") -> Callable[[socket.socket], None]:
    def reply(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)

    return reply


def garbage(connection: socket.socket) -> None:
    connection.recv(1 << 16)
    connection.sendall(bytes(range(256)) * 40)


def drip(connection: socket.socket) -> None:
    """An answer that is right and never done: no single read ever waits long."""
    connection.recv(1 << 16)
    for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100000:
        connection.sendall(bytes([byte]))
        time.sleep(0.05)


def silence(connection: socket.socket) -> None:
    while connection.recv(1 << 16):
        pass


def endless(connection: socket.socket) -> None:
    connection.recv(1 << 16)
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(b"x" * (1 << 20))


@contextlib.contextmanager
def stub(behave: Callable[[socket.socket], None]) -> Iterator[int]:
    """The port of a server that does one thing with every connection."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve_one(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            behave(connection)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve_one, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


STUBS = {
    "403": (answer("403 Forbidden"), "tornado<6.6"),
    "500": (answer("500 Internal Server Error"), "answers 500"),
    "another program": (answer("200 OK", b"<html>hello</html>"), "not Visdom"),
    "a list that is none": (answer("200 OK", b'{"a": 1}'), "not Visdom"),
    "garbage": (garbage, "does not speak HTTP"),
    "a byte at a time": (drip, "no answer within"),
    "accepts and is silent": (silence, "no answer within"),
    "wants a login": (answer("400 Bad Request"), "wants a login"),
}


def quicken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of a few tenths of a second instead of seconds and minutes; a busy server is waited for."""
    monkeypatch.setattr(visdom_server, "REQUEST_TIMEOUT", 60.0)
    monkeypatch.setattr(visdom, "FIRST_WAIT", 0.05)
    monkeypatch.setattr(visdom, "LONGEST_WAIT", 0.2)
    monkeypatch.setattr(visdom, "PAUSE", 0.05)
    monkeypatch.setattr(visdom, "LONGEST_PAUSE", 0.1)
    monkeypatch.setattr(visdom, "FLUSH_SECONDS", 60.0)
    monkeypatch.setattr(visdom, "GOODBYE_SECONDS", 60.0)
    monkeypatch.setattr(visdom, "is_blank", lambda address: False)  # the page is the browser test's concern


def give_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a server that never answers."""
    monkeypatch.setattr(visdom_server, "REQUEST_TIMEOUT", 0.5)
    monkeypatch.setattr(visdom, "FLUSH_SECONDS", 3.0)
    monkeypatch.setattr(visdom, "GOODBYE_SECONDS", 1.0)


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
            viewers.record(run.samples(step, epoch))
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
