"""The server that `--visdom on` starts: reachable from this machine only, and gone with the training."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from visdom_stubs import answer, stub
from visdom_support import ROOT, FakeRun, RealServer, unused_port, visdom_static, wait_until
from visdom_training import Timed, quicken, watch_training

from gan.viewers import visdom_sender
from gan.viewers.visdom import Visdom
from gan.viewers.visdom_http import Client

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
    monkeypatch.setattr(visdom_sender, "missing_scripts", list)  # the page is the browser test's concern
    seen: dict[str, object] = {}

    def look() -> None:
        server = viewer._sender._server
        wait_until(lambda: viewer._sender._reports.introduced)
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
def test_on_starts_a_server_when_the_one_it_used_is_gone(tmp_path, watch, monkeypatch):
    """As when two trainings share the server of one of them, and that one ends."""
    monkeypatch.setattr(visdom_sender, "missing_scripts", list)
    other = RealServer(tmp_path / "server")
    other.start()
    curve = lambda: list(other.curve("watched", "losses_adversarial", "G_GAN"))
    viewer = Timed("on", "http://localhost", other.port)

    def is_back() -> bool:
        viewer.commands()  # the training's own thread starts the server
        return len(curve()) > 24

    try:
        lines = watch(
            viewer,
            {
                20: lambda: wait_until(lambda: bool(curve())),
                25: other.kill,
                50: lambda: wait_until(is_back, 40),
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
    wait_until(lambda: not is_alive(pid))


@needs_visdom
def test_a_page_that_will_be_blank_is_announced(tmp_path, monkeypatch, capsys):
    quicken(monkeypatch)
    monkeypatch.setattr(visdom_sender, "missing_scripts", lambda: ["js/plotly-plotly.min.js"])
    viewer = Visdom("on", "http://localhost", unused_port())
    viewer.start(FakeRun(tmp_path).info, [])
    wait_until(lambda: viewer._sender._reports.introduced)
    viewer.close()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "blank" in lines[0] and lines[1].startswith("visdom: http://localhost:")


def test_without_the_visdom_package_there_is_one_line(watch, monkeypatch):
    monkeypatch.setattr("gan.viewers.visdom_server.importlib.util.find_spec", lambda name: None)
    lines = watch(Timed("on", "http://localhost", unused_port()))
    assert len(lines) == 1 and "visdom package is not installed" in lines[0]
