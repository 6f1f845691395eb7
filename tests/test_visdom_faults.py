"""Whatever happens to the Visdom server, the training does not notice: same weights, few lines, an exit in time.

Time-outs and pauses are shortened here; the slow test at the end uses the real ones.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from visdom_support import (
    FakeRun,
    RealServer,
    real_server,
    train_record,
    unused_port,
    visdom_static,
    wait_until,
)

from gan.viewers import Viewers, visdom_http, visdom_sender
from gan.viewers import visdom as visdom_module
from gan.viewers.visdom import Visdom
from gan.viewers.visdom_http import Address, Client, LoginRefused, Unreachable, WrongAnswer

ROOT = Path(__file__).resolve().parents[1]
STEPS = 60
LONGEST_CALL = 0.3  # seconds any call of a viewer may take in the training thread, on a busy machine
needs_visdom = pytest.mark.skipif(visdom_static() is None, reason="visdom is not installed")


@pytest.fixture
def quick(monkeypatch) -> None:
    """Waits of a few tenths of a second instead of seconds and minutes."""
    monkeypatch.setattr(visdom_http, "CONNECT_TIMEOUT", 0.5)
    monkeypatch.setattr(visdom_http, "REQUEST_TIMEOUT", 0.5)
    monkeypatch.setattr(visdom_sender, "FIRST_WAIT", 0.05)
    monkeypatch.setattr(visdom_sender, "LONGEST_WAIT", 0.2)
    monkeypatch.setattr(visdom_sender, "LISTEN_EVERY", 0.1)
    monkeypatch.setattr(visdom_sender, "PAUSE", 0.05)
    monkeypatch.setattr(visdom_sender, "LONGEST_PAUSE", 0.1)
    monkeypatch.setattr(visdom_module, "FLUSH_SECONDS", 3.0)


class Timed(Visdom):
    """Visdom, with the longest time that one of its calls took."""

    longest = 0.0

    def _timed(self, call: Callable[[], object]) -> object:
        begin = time.perf_counter()
        result = call()
        self.longest = max(self.longest, time.perf_counter() - begin)
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


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> torch.Tensor:
    """The weights of a training that nobody watches."""
    return train(FakeRun(tmp_path_factory.mktemp("alone")), Viewers([]))


@pytest.fixture
def watch(tmp_path, expected, capsys, quick) -> Callable[..., list[str]]:
    """Train under `viewer`, check what must hold in every fault, return the printed lines."""

    def go(
        viewer: Timed, at: dict[int, Callable[[], None]] | None = None, run: FakeRun | None = None
    ) -> list[str]:
        viewers = Viewers([viewer])
        weights = train(run or FakeRun(tmp_path, "watched"), viewers, at)
        begin = time.monotonic()
        viewers.close()
        assert time.monotonic() - begin < 10, "the process ends in time"
        assert torch.equal(weights, expected), "not one bit differs"
        assert viewer.longest < LONGEST_CALL, "the training thread waits for nothing"
        return capsys.readouterr().err.splitlines()

    return go


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


@pytest.mark.parametrize("fault", STUBS)
def test_a_server_that_is_none(fault, watch):
    behave, reason = STUBS[fault]
    with stub(behave) as port:
        lines = watch(Timed("auto", "http://127.0.0.1", port))
    assert len(lines) == 1 and reason in lines[0] and "index.html shows the same" in lines[0]


def test_an_answer_without_end_is_cut_off(quick, monkeypatch):
    monkeypatch.setattr(visdom_http, "ANSWER_LIMIT", 5_000_000)
    monkeypatch.setattr(visdom_http, "REQUEST_TIMEOUT", 20.0)
    with stub(endless) as port, pytest.raises(Unreachable, match="does not end"):
        Client(Address("127.0.0.1", port)).probe()


def test_no_server(watch):
    lines = watch(Timed("auto", "http://127.0.0.1", unused_port()))
    assert len(lines) == 1 and "no server at" in lines[0] and "refused" in lines[0]


def test_no_such_host(watch):
    assert len(watch(Timed("auto", "http://host.invalid", 8097))) == 1


@needs_visdom
def test_the_server_appears_later(tmp_path, watch):
    server = RealServer(tmp_path / "server")
    try:
        lines = watch(Timed("auto", "http://127.0.0.1", server.port), {30: server.start})
        assert len(lines) == 2 and "no server at" in lines[0] and lines[1].endswith("/env/watched")
        assert list(server.curve("watched", "losses_adversarial", "G_GAN")) == list(range(1, STEPS + 1))
        assert len(server.panes("watched")["samples"]["content"]) == 3
    finally:
        server.kill()


@needs_visdom
def test_the_server_is_killed_and_started_again_with_nothing_of_ours(tmp_path, watch):
    server = RealServer(tmp_path / "server")
    server.start()
    known = lambda: bool(server.curve("watched", "losses_adversarial", "G_GAN"))
    try:
        lines = watch(
            Timed("auto", "http://127.0.0.1", server.port),
            {20: lambda: wait_until(known), 25: server.kill, 30: lambda: time.sleep(0.3), 40: server.start},
        )
        assert len(lines) == 3 and lines[0].endswith("/env/watched"), (
            "where to look, and then two about the fault"
        )
        assert "lost the connection" in lines[1] and "is back, nothing is missing" in lines[2]
        assert list(server.curve("watched", "losses_adversarial", "G_GAN")) == list(range(1, STEPS + 1))
        assert len(server.panes("watched")["samples"]["content"]) == 3
    finally:
        server.kill()


@needs_visdom
def test_a_server_that_forgot_is_noticed_without_a_connection_that_breaks(tmp_path, watch, monkeypatch):
    """Behind a proxy that knows no WebSocket there are no clicks, but a restart still shows."""

    def refused(client: Client) -> None:
        raise WrongAnswer("no WebSocket")

    monkeypatch.setattr(visdom_sender, "Events", refused)
    server = RealServer(tmp_path / "server")
    server.start()
    known = lambda: bool(server.curve("watched", "losses_adversarial", "G_GAN"))

    def forget() -> None:
        wait_until(known)
        server.client.post("close", {"win": None, "eid": "watched"})

    try:
        whole = lambda: (
            list(server.curve("watched", "losses_adversarial", "G_GAN"))[:30] == list(range(1, 31))
        )
        at = {31: forget, 40: lambda: wait_until(whole)}
        assert len(watch(Timed("auto", "http://127.0.0.1", server.port), at)) == 1
        assert "controls" not in server.panes("watched"), "no buttons that do nothing"
    finally:
        server.kill()


def stopped(server: RealServer, seconds: float) -> Callable[[], None]:
    """Stop the server for so long."""

    def act() -> None:
        wait_until(lambda: bool(server.curve("watched", "losses_adversarial", "G_GAN")))
        pid = server.process.pid

        def go_on() -> None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

        os.kill(pid, signal.SIGSTOP)
        threading.Timer(seconds, go_on).start()

    return act


@needs_visdom
def test_the_server_is_stopped_for_a_while(tmp_path, watch):
    with real_server(tmp_path / "server") as server:
        complete = lambda: len(server.curve("watched", "losses_adversarial", "G_GAN")) >= 50
        lines = watch(
            Timed("auto", "http://127.0.0.1", server.port),
            {20: stopped(server, 1.5), 55: lambda: wait_until(complete)},
        )
        assert lines[0].endswith("/env/watched") and len(lines) <= 3
        assert list(server.curve("watched", "losses_adversarial", "G_GAN")) == list(range(1, STEPS + 1))


@needs_visdom
def test_the_server_is_stopped_at_the_end(tmp_path, watch):
    with real_server(tmp_path / "server") as server:
        lines = watch(Timed("auto", "http://127.0.0.1", server.port), {STEPS: stopped(server, 20)})
        assert len(lines) == 1
        os.kill(server.process.pid, signal.SIGCONT)


@needs_visdom
def test_login(tmp_path, watch, monkeypatch):
    monkeypatch.delenv("VISDOM_PASSWORD", raising=False)
    with real_server(tmp_path / "server", login=("ada", "hunter2")) as server:
        place = {"server": "http://127.0.0.1", "port": server.port}
        lines = watch(
            Timed("auto", **place, username="ada", password="wrong-one"), run=FakeRun(tmp_path, "wrong")
        )
        assert len(lines) == 1 and "the login of 'ada' is refused (not tried again" in lines[0]
        assert "wrong-one" not in lines[0]
        lines = watch(Timed("auto", **place), run=FakeRun(tmp_path, "none"))
        assert len(lines) == 1 and "--visdom_username" in lines[0]
        monkeypatch.setenv("VISDOM_PASSWORD", "hunter2")
        run = FakeRun(tmp_path, "right")
        lines = watch(Timed("auto", **place, username="ada"), run=run)
        assert lines == [f"visdom: {server.client.address.page('right')}"]
        assert list(server.curve("right", "losses_adversarial", "G_GAN")) == list(range(1, STEPS + 1))
        written = b"".join(path.read_bytes() for path in run.folder.rglob("*") if path.is_file())
        assert b"hunter2" not in written
        with pytest.raises(LoginRefused):
            Client(server.client.address, "ada", "wrong").probe()


@needs_visdom
def test_an_inbox_that_overflows_is_filled_up_from_the_log(tmp_path, watch, monkeypatch):
    monkeypatch.setattr(visdom_sender, "INBOX_LIMIT", 5)
    with real_server(tmp_path / "server") as server:
        lines = watch(Timed("auto", "http://127.0.0.1", server.port))
        assert len(lines) == 1
        assert list(server.curve("watched", "losses_adversarial", "G_GAN")) == list(range(1, STEPS + 1))
        assert len(server.panes("watched")["samples"]["content"]) == 3


def test_an_overflow_with_a_server_that_never_answers(watch, monkeypatch):
    monkeypatch.setattr(visdom_sender, "INBOX_LIMIT", 5)
    with stub(silence) as port:
        assert len(watch(Timed("auto", "http://127.0.0.1", port))) == 1


def test_attempts_become_rare(monkeypatch, tmp_path, capsys):
    """1, 2, 4, ... 60 seconds between attempts, seen through a clock that runs fast."""
    sender = visdom_sender.Sender(FakeRun(tmp_path).info, "e", Client(Address()), None, [], list)
    now = [0.0]
    monkeypatch.setattr(visdom_sender.time, "monotonic", lambda: now[0])
    waits = []
    for _ in range(9):
        sender._lost(Unreachable("gone"))
        waits.append(sender._next_try - now[0])
        now[0] = sender._next_try
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert len(capsys.readouterr().err.splitlines()) == 1


def listening_addresses(port: int) -> list[str]:
    """Addresses in state LISTEN on a port, from /proc/net."""
    found = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(FileNotFoundError):
            for line in Path(table).read_text().splitlines()[1:]:
                address, state = line.split()[1], line.split()[3]
                if state == "0A" and int(address.rpartition(":")[2], 16) == port:
                    found.append(address.rpartition(":")[0])
    return found


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


@needs_visdom
@pytest.mark.parametrize("held", [False, True], ids=["port free", "port held by another program"])
def test_on_starts_a_server_that_only_this_machine_reaches_and_stops_it(held, tmp_path, watch, monkeypatch):
    monkeypatch.setattr(visdom_http, "REQUEST_TIMEOUT", 5.0)
    monkeypatch.setattr(visdom_module, "FLUSH_SECONDS", 9.0)
    monkeypatch.setattr("gan.viewers.visdom_launch.DOWNLOAD_SECONDS", 1)
    seen: dict[str, object] = {}

    def look() -> None:
        server = viewer._sender._server
        wait_until(lambda: viewer._sender._introduced, 40)
        port = server.address.port
        seen.update(port=port, pid=server._process.pid, addresses=listening_addresses(port))
        page = Client(server.address)
        wait_until(lambda: b"G_GAN" in page.post("win_data", {"win": None, "eid": "watched"}))

    with contextlib.ExitStack() as stack:
        port = stack.enter_context(stub(answer("200 OK", b"hello"))) if held else unused_port()
        viewer = Timed("on", "http://localhost", port)
        lines = watch(viewer, {40: look})
    assert seen["addresses"] == ["0100007F"], "127.0.0.1 and nothing else"
    assert (seen["port"] != port) == held
    assert len(lines) == 1 + held and lines[-1] == f"visdom: http://localhost:{seen['port']}/env/watched"
    assert not is_alive(seen["pid"]), "no orphan"
    assert (tmp_path / "watched" / "visdom" / "server.log").is_file()
    assert (tmp_path / "watched" / "visdom" / "state" / "watched.json").is_file()


@needs_visdom
def test_a_server_of_ours_ends_with_a_training_that_is_killed(tmp_path):
    code = f"""
import sys, time; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from pathlib import Path
from gan.viewers.visdom_http import Address
from gan.viewers.visdom_server import LocalServer
server = LocalServer(Path({str(tmp_path)!r}), Address(port={unused_port()}), keep=False)
server.start()
print(server._process.pid, flush=True)
time.sleep(60)
"""
    training = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    pid = int(training.stdout.readline())
    assert is_alive(pid)
    training.kill()
    training.wait()
    training.stdout.close()
    wait_until(lambda: not is_alive(pid), 20)


def test_without_the_visdom_package_there_is_one_line(watch, monkeypatch):
    monkeypatch.setattr("gan.viewers.visdom_server.importlib.util.find_spec", lambda name: None)
    lines = watch(Timed("on", "http://localhost", unused_port()))
    assert len(lines) == 1 and "visdom package is not installed" in lines[0]


@pytest.mark.slow
@needs_visdom
def test_a_minute_of_standstill_with_the_real_times(tmp_path, expected, capsys):
    with real_server(tmp_path / "server") as server:
        viewer = Timed("auto", "http://127.0.0.1", server.port)
        viewers = Viewers([viewer])
        complete = lambda: len(server.curve("watched", "losses_adversarial", "G_GAN")) >= 50
        at = {20: stopped(server, 60), 55: lambda: wait_until(complete, 200)}
        weights = train(FakeRun(tmp_path, "watched"), viewers, at)
        begin = time.monotonic()
        viewers.close()
        assert time.monotonic() - begin < 10
        assert torch.equal(weights, expected) and viewer.longest < LONGEST_CALL
        assert len(capsys.readouterr().err.splitlines()) <= 3
