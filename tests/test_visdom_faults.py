"""Whatever happens to the Visdom server, the training does not notice: same weights, few lines, an exit in time.

Also what `--visdom on` starts: a server that only this machine reaches, and that is gone with the training.
Time-outs and pauses are shortened here; the slow test at the end uses the real ones.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from visdom_support import ROOT, FakeRun, RealServer, ask, needs_visdom, real_server, unused_port, wait_until
from visdom_training import (
    STEPS,
    STUBS,
    Timed,
    answer,
    endless,
    give_up_soon,
    quicken,
    stub,
    watch_training,
)

from gan.viewers import visdom, visdom_server
from gan.viewers.visdom import Visdom
from gan.viewers.visdom_server import Address, LocalServer, Refused, Unreachable, exchange, log_in


@pytest.fixture
def watch(tmp_path, capsys, monkeypatch) -> Callable[..., list[str]]:
    """Train under a viewer, check what must hold in every fault, return the printed lines."""
    quicken(monkeypatch)

    def go(
        viewer: Timed, at: dict[int, Callable[[], None]] | None = None, name: str = "watched"
    ) -> list[str]:
        watch_training(viewer, FakeRun(tmp_path, name), at)
        return capsys.readouterr().err.splitlines()

    return go


@pytest.mark.parametrize("fault", STUBS)
def test_not_a_visdom_server(fault, watch, monkeypatch):
    behave, reason = STUBS[fault]
    if reason == "no answer within":
        give_up_soon(monkeypatch)
    with stub(behave) as port:
        lines = watch(Timed("auto", "http://127.0.0.1", port))
    assert len(lines) == 1 and reason in lines[0] and "index.html shows the same" in lines[0]


def test_an_answer_without_end_is_cut_off(monkeypatch):
    monkeypatch.setattr(visdom_server, "ANSWER_LIMIT", 5_000_000)
    with stub(endless) as port, pytest.raises(Unreachable, match="does not end"):
        exchange(Address("127.0.0.1", port), "GET", "/")


def test_no_server(watch):
    lines = watch(Timed("auto", "http://127.0.0.1", unused_port()))
    assert len(lines) == 1 and "no server at" in lines[0] and "refused" in lines[0]


def test_no_such_host(watch):
    lines = watch(Timed("auto", "http://host.invalid", 8097))
    assert len(lines) <= 1, "none if the name service does not answer"


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[RealServer]:
    """One that the tests leave as they found it."""
    with real_server(tmp_path_factory.mktemp("server")) as started:
        yield started


@needs_visdom
def test_the_server_appears_later(tmp_path, watch):
    server = RealServer(tmp_path / "server")
    try:
        viewer = Timed("auto", "http://127.0.0.1", server.port)
        found = lambda: viewer._connected_since is not None
        lines = watch(viewer, {30: server.start, 55: lambda: wait_until(found)})
        assert len(lines) == 2 and "no server at" in lines[0] and lines[1].endswith("/env/watched")
        assert list(server.curve("watched", "losses_adversarial", "G_GAN")) == list(range(1, STEPS + 1))
        assert len(server.panes("watched")["history"]["content"]) == 3
    finally:
        server.kill()


@needs_visdom
def test_the_server_is_killed_and_started_again_with_nothing_of_ours(tmp_path, watch):
    server = RealServer(tmp_path / "server")
    server.start()
    known = lambda: viewer._reports._introduced and server.curve("watched", "losses_adversarial", "G_GAN")

    def kill() -> None:
        server.kill()
        (server.folder / "watched.json").unlink(missing_ok=True)  # it had been saved at the end of an epoch

    viewer = Timed("auto", "http://127.0.0.1", server.port)
    noticed = lambda: viewer._connected_since is None
    back = lambda: viewer._connected_since is not None
    at = {20: lambda: wait_until(known), 25: kill, 30: lambda: wait_until(noticed)}
    try:
        lines = watch(viewer, at | {40: server.start, 55: lambda: wait_until(back)})
        assert len(lines) == 3 and lines[0].endswith("/env/watched"), (
            "where to look, and then two about the fault"
        )
        assert "lost the connection" in lines[1] and "is back, nothing is missing" in lines[2]
        assert list(server.curve("watched", "losses_adversarial", "G_GAN")) == list(range(1, STEPS + 1))
        assert len(server.panes("watched")["history"]["content"]) == 3
    finally:
        server.kill()


@needs_visdom
def test_a_server_that_forgot_is_noticed_without_a_connection_that_breaks(server, watch, monkeypatch):
    """Behind a proxy that knows no WebSocket there are no clicks, but a restart still shows."""
    from gan.viewers.visdom_client import VisdomClient

    monkeypatch.setattr(VisdomClient, "listen", lambda self: setattr(self, "use_socket", True))
    curve = lambda: list(server.curve("forgot", "losses_adversarial", "G_GAN"))

    def forget() -> None:
        wait_until(lambda: len(server.curve("forgot", "data_wait", "data wait")) == 30)
        wait_until(lambda: server.shows("forgot", "history") and (server.folder / "forgot.json").is_file())
        server.ask("delete_env", eid="forgot")  # nothing is under way that would make it anew

    at = {31: forget, 40: lambda: wait_until(lambda: curve()[:30] == list(range(1, 31)))}
    assert len(watch(Timed("auto", "http://127.0.0.1", server.port), at, "forgot")) == 1
    assert not server.shows("forgot", "controls"), "no buttons that do nothing"


@needs_visdom
def test_the_slider_is_continued_after_an_outage_without_a_restart(server, watch):
    """A page that shows the last of many moments would go blank if there was only one again."""
    sizes = []

    def cut() -> None:
        wait_until(lambda: server.shows("outage", "history"))
        wait_until(lambda: len(server.panes("outage")["history"]["content"]) == 2)
        viewer._lost(Unreachable("the network is down"))

    def look() -> None:
        wait_until(lambda: len(server.curve("outage", "losses_adversarial", "G_GAN")) >= 45)
        sizes.append(len(server.panes("outage")["history"]["content"]))

    viewer = Timed("auto", "http://127.0.0.1", server.port)
    watch(viewer, {45: cut, 55: look}, "outage")
    assert sizes == [2] and len(server.panes("outage")["history"]["content"]) == 3


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
def test_the_server_is_stopped_for_a_while(server, watch, monkeypatch):
    curve = lambda: list(server.curve("stopped", "losses_adversarial", "G_GAN"))
    viewer = Timed("auto", "http://127.0.0.1", server.port)
    stop = stopped(server, 1.5, "stopped")

    def stop_and_give_up_soon() -> None:
        stop()
        monkeypatch.setattr(visdom_server, "REQUEST_TIMEOUT", 0.5)

    def wait() -> None:
        monkeypatch.setattr(visdom_server, "REQUEST_TIMEOUT", 60.0)
        wait_until(lambda: len(curve()) >= 50)

    found = lambda: viewer._reports._introduced
    at = {15: lambda: wait_until(found), 20: stop_and_give_up_soon, 55: wait}
    lines = watch(viewer, at, "stopped")
    assert lines[0].endswith("/env/stopped") and len(lines) <= 3
    assert curve() == list(range(1, STEPS + 1))


@needs_visdom
def test_the_server_is_stopped_at_the_end(server, watch, monkeypatch, capsys):
    monkeypatch.setattr(visdom, "FLUSH_SECONDS", 3.0)
    at = {STEPS: stopped(server, 20, "at_end")}
    before = set(threading.enumerate())
    try:
        lines = watch(Timed("auto", "http://127.0.0.1", server.port), at, "at_end")
        assert len(lines) == 1
    finally:
        os.kill(server.process.pid, signal.SIGCONT)
    late = [thread for thread in set(threading.enumerate()) - before if thread.name == "visdom"]
    for thread in late:
        thread.join()
    assert len(late) == 1 and capsys.readouterr().err == "", "what comes too late is not spoken of"


@needs_visdom
def test_login(tmp_path, watch, monkeypatch):
    monkeypatch.delenv("VISDOM_PASSWORD", raising=False)
    with real_server(tmp_path / "server", login=("ada", "hunter2")) as server:
        place = {"server": "http://127.0.0.1", "port": server.port}
        viewer = Timed("auto", **place, username="ada", password="wrong-one")
        lines = watch(viewer, {30: lambda: wait_until(lambda: viewer._given_up)}, "wrong")
        assert len(lines) == 1 and "the login of 'ada' is refused (not tried again" in lines[0]
        assert "wrong-one" not in lines[0]
        viewer = Timed("auto", **place)
        lines = watch(viewer, {30: lambda: wait_until(lambda: viewer._given_up)}, "none")
        assert len(lines) == 1 and "--visdom_username" in lines[0]
        monkeypatch.setenv("VISDOM_PASSWORD", "hunter2")
        viewer = Timed("auto", **place, username="ada")
        lines = watch(viewer, {30: lambda: wait_until(lambda: viewer._reports._introduced)}, "right")
        assert lines == [f"visdom: {server.address.page('right')}"]
        assert list(server.curve("right", "losses_adversarial", "G_GAN")) == list(range(1, STEPS + 1))
        written = b"".join(path.read_bytes() for path in (tmp_path / "right").rglob("*") if path.is_file())
        assert b"hunter2" not in written
        with pytest.raises(Refused):
            log_in(server.address, "ada", "wrong")


def test_attempts_become_rare(monkeypatch, tmp_path, capsys):
    """1, 2, 4, ... 60 seconds between attempts, seen through a clock that runs fast."""
    monkeypatch.setattr(threading.Thread, "start", lambda self: None)
    viewer = Visdom()
    viewer.start(FakeRun(tmp_path).info, [])
    now = [0.0]
    monkeypatch.setattr(visdom.time, "monotonic", lambda: now[0])
    waits = []
    for _ in range(9):
        viewer._lost(Unreachable("gone"))
        waits.append(viewer._next_try - now[0])
        now[0] = viewer._next_try
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_fault_of_our_own_is_one_line_too(watch, monkeypatch):
    monkeypatch.setattr(visdom, "log_in", lambda *_: 1 / 0)
    lines = watch(Timed("auto"))
    assert len(lines) == 1 and "visdom: stopped: ZeroDivisionError" in lines[0]


def listens_at(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port)).close()
    except ConnectionRefusedError:
        return False
    return True


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


@needs_visdom
@pytest.mark.parametrize("held", [False, True], ids=["port free", "port held by another program"])
def test_on_starts_a_server_that_only_this_machine_reaches_and_stops_it(held, tmp_path, watch):
    seen: dict[str, object] = {}

    def look() -> None:
        server = viewer._server
        wait_until(lambda: viewer._reports._introduced)
        port = server.address.port
        seen.update(port=port, pid=server._process.pid)
        seen["addresses"] = [listens_at(address, port) for address in ("127.0.0.1", "127.0.0.2")]
        wait_until(lambda: "losses_adversarial" in ask(server.address, "win_data", win=None, eid="watched"))

    with contextlib.ExitStack() as stack:
        port = stack.enter_context(stub(answer("200 OK", b"hello"))) if held else unused_port()
        viewer = Timed("on", "http://localhost", port)
        lines = watch(viewer, {40: look})
    assert seen["addresses"] == [True, False], "127.0.0.1 and nothing else"
    assert (seen["port"] != port) == held
    assert len(lines) == 1 + held and lines[-1] == f"visdom: http://localhost:{seen['port']}/env/watched"
    assert not is_alive(seen["pid"]), "no orphan"
    assert (tmp_path / "watched" / "visdom" / "server.log").is_file()
    assert (tmp_path / "watched" / "visdom" / "state" / "watched.json").is_file()


@needs_visdom
def test_on_starts_a_server_when_the_one_it_used_is_gone(tmp_path, watch):
    """As when two trainings share the server of one of them, and that one ends."""
    other = RealServer(tmp_path / "server")
    other.start()
    curve = lambda: list(other.curve("watched", "losses_adversarial", "G_GAN"))
    viewer = Timed("on", "http://localhost", other.port)

    try:
        lines = watch(
            viewer,
            {
                20: lambda: wait_until(lambda: viewer._reports._introduced and curve()),
                25: other.kill,
                50: lambda: wait_until(lambda: len(curve()) > 24),
            },
        )
    finally:
        other.kill()
    assert len(lines) == 3 and "lost the connection" in lines[1] and "is back" in lines[2]


@needs_visdom
def test_a_server_of_ours_ends_with_a_training_that_is_killed(tmp_path):
    code = f"""
import sys, time; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from pathlib import Path
from gan.viewers.visdom_server import Address, LocalServer
server = LocalServer(Path({str(tmp_path)!r}), Address(port={unused_port()}), keep=False)
server.start()
print(server._process.pid, flush=True)
time.sleep(600)
"""
    training = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    pid = int(training.stdout.readline())
    assert is_alive(pid)
    training.kill()
    training.wait()
    training.stdout.close()
    wait_until(lambda: not is_alive(pid))


@needs_visdom
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc to see descriptors")
def test_a_worker_forked_at_the_worst_moment_holds_nothing_up(tmp_path, monkeypatch):
    """Its copy of a pipe would keep Popen waiting until the worker ends, which may be an epoch later."""
    workers, pipe = [], os.pipe

    def pipe_and_fork() -> tuple[int, int]:
        ends = pipe()
        workers.append(os.fork())
        if workers[-1] == 0:
            signal.pause()
        return ends

    monkeypatch.setattr(os, "pipe", pipe_and_fork)
    server = LocalServer(tmp_path, Address(port=unused_port()), keep=False)
    started: list[subprocess.Popen[bytes]] = []
    thread = threading.Thread(target=lambda: started.append(server._launch()), daemon=True)
    try:
        with (tmp_path / "held").open("w"):
            thread.start()
            thread.join(60)
            assert workers and started, "the start waits for a worker"
            held = set()
            for place in Path(f"/proc/{started[0].pid}/fd").iterdir():
                with contextlib.suppress(FileNotFoundError):  # the server closes files of its own meanwhile
                    held.add(place.readlink())
        assert tmp_path / "held" not in held, "a descriptor of the training went along"
    finally:
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for process in started:
            process.kill()
            process.communicate()


@needs_visdom
def test_a_page_that_stays_blank_is_announced(tmp_path, watch, server, monkeypatch):
    """Also on a server that was there before: it is asked for its scripts."""
    monkeypatch.setattr(visdom, "is_blank", visdom_server.is_blank)
    monkeypatch.setattr(visdom_server, "PAGE_FILES", ("js/no-such-script.js", "css/style.css"))
    lines = watch(Timed("auto", "http://127.0.0.1", server.port))
    assert len(lines) == 2 and lines[0].endswith("/env/watched") and "stays blank" in lines[1]
    monkeypatch.setattr(visdom_server, "PAGE_FILES", ("js/main.js",))
    assert not visdom_server.is_blank(server.address)


@needs_visdom
def test_a_server_of_ours_that_dies_is_told_with_its_reason(watch, monkeypatch):
    """Another program takes the port between our look at it and the server's start."""
    monkeypatch.setattr(visdom, "GOODBYE_SECONDS", 0.1)
    with stub(answer("200 OK", b"hello")) as port:
        monkeypatch.setattr(visdom_server, "free_port", lambda wanted: port)
        viewer = Timed("on", "http://localhost", port)
        lines = watch(viewer, {40: lambda: wait_until(lambda: viewer._reports._reported is not None)})
    assert "ended: error: [Errno" in lines[0] and "Address already in use" in lines[0]
    assert len(lines) <= 2 and all("ended" in line for line in lines)


def test_a_run_that_ends_before_its_server_answers_says_so_and_does_not_wait(watch, monkeypatch):
    monkeypatch.setattr(visdom, "GOODBYE_SECONDS", 0.1)
    monkeypatch.setattr(LocalServer, "start", lambda self: threading.Event().wait())
    [line] = watch(Timed("on", "http://localhost", unused_port()))
    assert "ended before" in line and "nothing was sent" in line and "python -m gan.viewers" in line


def test_who_has_not_asked_for_visdom_is_shown_the_page(tmp_path, capsys):
    reports = visdom.Reports(tmp_path, is_asked_for=False)
    reports.lost(Address(), Unreachable("Connection refused"), False)
    reports.ended(Address())
    [line] = capsys.readouterr().err.splitlines()
    assert line == f"watch this training in {tmp_path / 'index.html'}"


def test_without_the_visdom_package_there_is_one_line(watch, monkeypatch):
    monkeypatch.setattr("gan.viewers.visdom_server.importlib.util.find_spec", lambda name: None)
    lines = watch(Timed("on", "http://localhost", unused_port()))
    assert len(lines) == 1 and "visdom package is not installed" in lines[0]


@pytest.mark.slow
@needs_visdom
def test_a_minute_of_standstill_with_the_real_times(tmp_path, capsys):
    with real_server(tmp_path / "server") as server:
        complete = lambda: len(server.curve("watched", "losses_adversarial", "G_GAN")) >= 50
        at = {20: stopped(server, 60), 55: lambda: wait_until(complete)}
        watch_training(Timed("auto", "http://127.0.0.1", server.port), FakeRun(tmp_path, "watched"), at)
        assert len(capsys.readouterr().err.splitlines()) <= 3
