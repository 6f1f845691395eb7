"""Whatever happens to the Visdom server, the training does not notice: same weights, few lines, an exit in time.

Time-outs and pauses are shortened here; the slow test at the end uses the real ones.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

import pytest
from visdom_stubs import STUBS, endless, silence, stub
from visdom_support import (
    FakeRun,
    RealServer,
    real_server,
    unused_port,
    visdom_static,
    wait_until,
)
from visdom_training import STEPS, Timed, give_up_soon, quicken, watch_training

from gan.viewers import visdom as visdom_module
from gan.viewers import visdom_http, visdom_sender
from gan.viewers.visdom_http import Address, Client, LoginRefused, Unreachable, WrongAnswer

needs_visdom = pytest.mark.skipif(visdom_static() is None, reason="visdom is not installed")


@pytest.fixture
def watch(tmp_path, capsys, monkeypatch) -> Callable[..., list[str]]:
    """Train under a viewer, check what must hold in every fault, return the printed lines."""
    quicken(monkeypatch)

    def go(
        viewer: Timed, at: dict[int, Callable[[], None]] | None = None, run: FakeRun | None = None
    ) -> list[str]:
        watch_training(viewer, run or FakeRun(tmp_path, "watched"), at)
        return capsys.readouterr().err.splitlines()

    return go


@pytest.mark.parametrize("fault", STUBS)
def test_a_server_that_is_none(fault, watch, monkeypatch):
    behave, reason = STUBS[fault]
    if reason == "no answer within":
        give_up_soon(monkeypatch)
    with stub(behave) as port:
        lines = watch(Timed("auto", "http://127.0.0.1", port))
    assert len(lines) == 1 and reason in lines[0] and "index.html shows the same" in lines[0]


def test_an_answer_without_end_is_cut_off(monkeypatch):
    monkeypatch.setattr(visdom_http, "ANSWER_LIMIT", 5_000_000)
    monkeypatch.setattr(visdom_http, "REQUEST_TIMEOUT", 20.0)
    with stub(endless) as port, pytest.raises(Unreachable, match="does not end"):
        Client(Address("127.0.0.1", port)).probe()


def test_no_server(watch):
    lines = watch(Timed("auto", "http://127.0.0.1", unused_port()))
    assert len(lines) == 1 and "no server at" in lines[0] and "refused" in lines[0]


def test_no_such_host(watch):
    assert len(watch(Timed("auto", "http://host.invalid", 8097))) <= 1, (
        "none if the name service does not answer"
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[RealServer]:
    """One that the tests leave as they found it."""
    with real_server(tmp_path_factory.mktemp("server")) as started:
        yield started


@needs_visdom
def test_the_server_appears_later(tmp_path, watch):
    server = RealServer(tmp_path / "server")
    try:
        lines = watch(Timed("auto", "http://127.0.0.1", server.port), {30: server.start})
        assert len(lines) == 2 and "no server at" in lines[0] and lines[1].endswith("/env/watched")
        assert list(server.curve("watched", "losses_adversarial", "G_GAN")) == list(range(1, STEPS + 1))
        assert len(server.panes("watched")["history"]["content"]) == 3
    finally:
        server.kill()


@needs_visdom
def test_the_server_is_killed_and_started_again_with_nothing_of_ours(tmp_path, watch):
    server = RealServer(tmp_path / "server")
    server.start()
    known = lambda: bool(server.curve("watched", "losses_adversarial", "G_GAN"))

    def kill() -> None:
        server.kill()
        (server.folder / "watched.json").unlink(missing_ok=True)  # it had been saved at the end of an epoch

    viewer = Timed("auto", "http://127.0.0.1", server.port)
    noticed = lambda: not viewer._sender._connected
    try:
        lines = watch(
            viewer,
            {20: lambda: wait_until(known), 25: kill, 30: lambda: wait_until(noticed), 40: server.start},
        )
        assert len(lines) == 3 and lines[0].endswith("/env/watched"), (
            "where to look, and then two about the fault"
        )
        assert "lost the connection" in lines[1] and "is back, nothing is missing" in lines[2]
        assert list(server.curve("watched", "losses_adversarial", "G_GAN")) == list(range(1, STEPS + 1))
        assert len(server.panes("watched")["history"]["content"]) == 3
    finally:
        server.kill()


@needs_visdom
def test_a_server_that_forgot_is_noticed_without_a_connection_that_breaks(
    tmp_path, server, watch, monkeypatch
):
    """Behind a proxy that knows no WebSocket there are no clicks, but a restart still shows."""

    def refused(client: Client) -> None:
        raise WrongAnswer("no WebSocket")

    monkeypatch.setattr(visdom_sender, "Events", refused)
    curve = lambda: list(server.curve("forgot", "losses_adversarial", "G_GAN"))

    def forget() -> None:
        wait_until(lambda: bool(curve()))
        server.client.post("close", {"win": None, "eid": "forgot"})

    at = {31: forget, 40: lambda: wait_until(lambda: curve()[:30] == list(range(1, 31)))}
    assert len(watch(Timed("auto", "http://127.0.0.1", server.port), at, FakeRun(tmp_path, "forgot"))) == 1
    assert not server.shows("forgot", "controls"), "no buttons that do nothing"


def stopped(server: RealServer, seconds: float, env: str = "watched") -> Callable[[], None]:
    """Stop the server for so long, once it has shown something."""

    def act() -> None:
        wait_until(lambda: bool(server.curve(env, "losses_adversarial", "G_GAN")))
        pid = server.process.pid

        def go_on() -> None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

        os.kill(pid, signal.SIGSTOP)
        threading.Timer(seconds, go_on).start()

    return act


@needs_visdom
def test_the_server_is_stopped_for_a_while(tmp_path, server, watch):
    curve = lambda: list(server.curve("stopped", "losses_adversarial", "G_GAN"))
    viewer = Timed("auto", "http://127.0.0.1", server.port)
    stop = stopped(server, 1.5, "stopped")

    def stop_and_give_up_soon() -> None:
        stop()
        viewer._sender._client.timeout = 0.5

    at = {20: stop_and_give_up_soon, 55: lambda: wait_until(lambda: len(curve()) >= 50)}
    lines = watch(viewer, at, FakeRun(tmp_path, "stopped"))
    assert lines[0].endswith("/env/stopped") and len(lines) <= 3
    assert curve() == list(range(1, STEPS + 1))


@needs_visdom
def test_the_server_is_stopped_at_the_end(tmp_path, server, watch, monkeypatch):
    monkeypatch.setattr(visdom_module, "FLUSH_SECONDS", 3.0)
    at = {STEPS: stopped(server, 20, "at_end")}
    try:
        lines = watch(Timed("auto", "http://127.0.0.1", server.port), at, FakeRun(tmp_path, "at_end"))
        assert len(lines) == 1
    finally:
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
def test_an_inbox_that_overflows_is_filled_up_from_the_log(tmp_path, server, watch, monkeypatch):
    monkeypatch.setattr(visdom_sender, "INBOX_LIMIT", 5)
    lines = watch(Timed("auto", "http://127.0.0.1", server.port), run=FakeRun(tmp_path, "overflow"))
    assert len(lines) == 1
    assert list(server.curve("overflow", "losses_adversarial", "G_GAN")) == list(range(1, STEPS + 1))
    assert len(server.panes("overflow")["history"]["content"]) == 3


def test_an_overflow_with_a_server_that_never_answers(watch, monkeypatch):
    monkeypatch.setattr(visdom_sender, "INBOX_LIMIT", 5)
    give_up_soon(monkeypatch)
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


def test_a_fault_of_our_own_is_one_line_too(watch, monkeypatch):
    monkeypatch.setattr(visdom_sender, "send_news", lambda *_: 1 / 0)
    monkeypatch.setattr(Client, "probe", lambda self: None)
    monkeypatch.setattr(Client, "post", lambda self, endpoint, message: b"{}")
    monkeypatch.setattr(visdom_sender, "Events", lambda client: None)
    lines = watch(Timed("auto"))
    assert len(lines) == 1 and "visdom stopped: ZeroDivisionError" in lines[0]


@pytest.mark.slow
@needs_visdom
def test_a_minute_of_standstill_with_the_real_times(tmp_path, capsys):
    with real_server(tmp_path / "server") as server:
        complete = lambda: len(server.curve("watched", "losses_adversarial", "G_GAN")) >= 50
        at = {20: stopped(server, 60), 55: lambda: wait_until(complete)}
        watch_training(Timed("auto", "http://127.0.0.1", server.port), FakeRun(tmp_path, "watched"), at)
        assert len(capsys.readouterr().err.splitlines()) <= 3
