"""The parts of the Visdom viewer: curves, panes, the inbox, addresses, frames of a WebSocket."""

import json
import math
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from visdom_support import FakeRun, train_record

from datasets.errors import UserError
from gan.viewers import SAMPLE, SAVE, STOP, RunInfo, Viewers
from gan.viewers.visdom import Visdom, environment_name, make_client
from gan.viewers.visdom_events import Events, _take_frame
from gan.viewers.visdom_http import Address, Unreachable
from gan.viewers.visdom_inbox import Inbox
from gan.viewers.visdom_panes import POINTS, Board, Curve, about_message, command_of, loss_pane
from gan.viewers.visdom_reports import Reports, tunnel_command


def test_a_long_curve_keeps_logged_values_over_its_whole_length():
    curve = Curve()
    for step in range(1, 50_001):
        curve.add(step, step * 0.5)
    assert POINTS / 2 <= len(curve.x) <= POINTS
    assert curve.x[0] == 1 and curve.x[-1] > 50_000 - 64
    assert curve.y == [step * 0.5 for step in curve.x]
    assert len(set(np.diff(curve.x))) == 1, "thinned evenly"


def test_known_and_meaningless_points_are_left_out():
    curve = Curve()
    for step, value in (
        (1, 1.0),
        (2, math.nan),
        (2, 2.0),
        (2, 9.0),
        (1, 9.0),
        (3, None),
        (4, math.inf),
        (5, 3.0),
    ):
        curve.add(step, value)
    assert dict(zip(curve.x, curve.y, strict=True)) == {1: 1.0, 2: 2.0, 5: 3.0}


def test_points_of_a_curve_go_out_as_one_append():
    board = Board()
    for step in (1, 2, 3):
        board.add(train_record(step))
    pane = board.panes["losses_adversarial"]
    endpoint, message = pane.message("env")
    assert endpoint == "events" and message["data"][0]["x"] == [1, 2, 3]
    pane.was_sent()
    assert pane.message("env") is None
    for step in (4, 5, 6):
        board.add(train_record(step))
    endpoint, message = pane.message("env")
    assert endpoint == "update" and message["append"] is True
    assert message["data"][0]["x"] == [4, 5, 6] and message["data"][0]["y"] == [1 / 4, 1 / 5, 1 / 6]
    board.forget_sent()
    assert pane.message("env")[0] == "events"


@pytest.mark.parametrize(
    ("pane", "losses"),
    [
        ("losses_discriminator", ["D_A", "D_B", "D_real", "D_fake"]),
        ("losses_adversarial", ["G_A", "G_B", "G_GAN"]),
        ("losses_reconstruction", ["cycle_A", "idt_B", "G_L1"]),
        ("losses_other", ["perceptual"]),
    ],
)
def test_losses_of_one_size_share_a_pane(pane, losses):
    assert {loss_pane(loss)[0] for loss in losses} == {pane}


def test_the_slider_only_grows_and_ever_more_slowly():
    board, sizes = Board(), []
    for step in range(1, 2001):
        before = list(board.history)
        board.add(
            {"kind": "samples", "step": step, "epoch": step, "folder": "f", "pictures": {"grid": "g.png"}}
        )
        assert board.newest["step"] == step
        assert board.history[: len(before)] == before, "nothing that a page shows goes away"
        sizes.append(len(board.history))
    assert sizes[:20] == list(range(1, 21)), "the first ones are all there"
    steps = [record["step"] for record in board.history]
    assert len(steps) < 150 and max(np.diff([*steps, 2000])) <= 128
    assert max(np.diff(steps) / steps[1:]) <= 0.5, "gaps grow no faster than the training"


def test_about_escapes_everything_and_knows_no_password():
    options = {"lr": "<b>", "visdom_password": "hunter2"}
    _, message = about_message(RunInfo("<img onerror=x>", Path(), options, "<host>"), "env")
    content = message["data"][0]["content"]
    assert "<img" not in content and "<b>" not in content and "<host>" not in content
    assert "hunter2" not in json.dumps(message) and "&lt;b&gt;" in content


def test_only_our_own_buttons_are_commands():
    click = {
        "event_type": "PropertyUpdate",
        "target": "controls",
        "eid": "run",
        "propertyId": 0,
        "value": "clicked",
    }
    assert [command_of({**click, "propertyId": i}, "run") for i in (0, 1, 2, 3, -1, "0", None)] == [
        SAVE, SAMPLE, STOP, None, None, None, None,
    ]  # fmt: skip
    for other in ({"eid": "other"}, {"target": "about"}, {"event_type": "Click"}):
        assert command_of({**click, **other}, "run") is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("maps nc", "maps_nc"),
        ("../../x", "x"),
        ("a/b\\c", "a_b_c"),
        ("<img onerror=1>", "img_onerror_1"),
        ("..", "run"),
    ],
)
def test_environment_names_are_file_names(name, expected):
    assert environment_name(name) == expected


@pytest.mark.parametrize(
    ("address", "page", "loopback"),
    [
        (Address(), "http://localhost:8097/env/r", True),
        (Address("10.1.2.3", 80, "/vis/"), "http://10.1.2.3:80/vis/env/r", False),
        (Address("https://box.example", 443, "a"), "https://box.example:443/a/env/r", False),
        (Address("http://user:secret@box", 8097), "http://box:8097/env/r", False),
        (Address("http://[::1]", 8097), "http://[::1]:8097/env/r", True),
    ],
)
def test_addresses(address, page, loopback):
    assert address.page("r") == page and address.is_loopback == loopback


def test_the_tunnel_line_is_for_people_who_came_by_ssh(monkeypatch):
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    assert tunnel_command(Address()) == ""
    monkeypatch.setenv("SSH_CONNECTION", "10.0.0.9 51234 10.0.0.7 22")
    monkeypatch.setattr("getpass.getuser", lambda: "ada")
    assert tunnel_command(Address(port=8097)) == "ssh -L 8097:localhost:8097 ada@10.0.0.7"
    assert tunnel_command(Address("http://elsewhere")) == ""


def test_a_user_name_needs_a_password_which_may_come_from_the_environment(monkeypatch):
    monkeypatch.delenv("VISDOM_PASSWORD", raising=False)
    with pytest.raises(UserError, match="VISDOM_PASSWORD"):
        make_client(Address(), "ada", "")
    monkeypatch.setenv("VISDOM_PASSWORD", "hunter2")
    make_client(Address(), "ada", "")


def test_the_inbox_takes_what_it_can_and_says_when_it_could_not():
    inbox = Inbox(limit=10)
    for step in range(1, 26):
        inbox.put(train_record(step))
    batch = inbox.take(0.0, 0.0)
    assert batch.overflowed and len(batch.records) <= 10 and batch.records[-1]["step"] == 25
    assert not inbox.take(0.0, 0.0).overflowed


def test_the_inbox_waits_for_the_pause_but_not_when_closing():
    inbox = Inbox(limit=10)
    inbox.put(train_record(1))
    begin = time.monotonic()
    assert len(inbox.take(begin + 0.2, begin + 300).records) == 1
    assert 0.2 <= time.monotonic() - begin < 300
    inbox.put(train_record(2))
    threading.Timer(0.1, inbox.close).start()
    batch = inbox.take(begin + 300, begin + 600)
    assert batch.closing and len(batch.records) == 1 and time.monotonic() - begin < 300


@pytest.mark.parametrize("mode", ["off", "offline"])
def test_off_and_offline_open_no_connection(mode, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("socket.create_connection", lambda *a, **k: pytest.fail("a connection"))
    run = FakeRun(tmp_path)
    with Viewers([Visdom(mode)]) as viewers:
        viewers.start(run.info)
        viewers.record(train_record(1))
        assert viewers.commands() == set()
    lines = capsys.readouterr().err.splitlines()
    assert (lines == []) if mode == "off" else ("python -m gan.viewers" in lines[0] and len(lines) == 1)


def frame(data: bytes, kind: int = 1, final: bool = True) -> bytes:
    """A server's frame, made by another implementation of RFC 6455."""
    websocket = pytest.importorskip("websocket", reason="websocket-client comes with visdom")
    return websocket.ABNF(int(final), 0, 0, 0, kind, 0, data).format()


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 200_000])
def test_frames_of_every_length_are_read_whole(size):
    data = bytes(range(256)) * (size // 256 + 1)
    data = data[:size]
    raw = bytearray(frame(data) + b"\x81")
    for cut in {cut for cut in (0, 1, 2, 3, 9, len(raw) - 2) if cut < len(raw) - 1}:
        part = raw[:cut]
        assert _take_frame(part) is None and len(part) == cut, "an incomplete frame stays where it is"
    assert _take_frame(raw) == (True, 1, data) and raw == b"\x81"


def test_messages_in_parts_pings_and_the_end():
    here, there = socket.socketpair()
    events = object.__new__(Events)
    events._connection, events._raw, events._text = here, bytearray(), bytearray()
    here.setblocking(False)
    assert events.poll() == []
    there.sendall(frame(b'{"a":', final=False) + frame(b"ping", kind=9) + frame(b" 1}", kind=0))
    there.sendall(frame(b"no json") + frame(b"[1]") + frame(b'{"b": 2}')[:4])
    assert events.poll() == [{"a": 1}], "a list is no event, half a frame waits"
    assert there.recv(100)[:2] == bytes([0x8A, 0x84]), "a masked pong"
    there.sendall(frame(b'{"b": 2}')[4:])
    assert events.poll() == [{"b": 2}]
    there.sendall(frame(b"", kind=8))
    with pytest.raises(Unreachable):
        events.poll()
    there.close()
    with pytest.raises(Unreachable):
        events.poll()
    events.close()


def test_what_is_said_about_a_connection_that_comes_and_goes(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("gan.viewers.visdom_reports.time.monotonic", lambda: now[0])
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    reports = Reports(Path("run/index.html"))

    def said(call, *arguments) -> str:
        call(*arguments)
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) <= 1
        return lines[0] if lines else ""

    gone = Unreachable("refused")
    assert said(reports.lost, Address(), gone, False, False).startswith(
        "visdom: no server at http://localhost:8097: refused"
    )
    assert said(reports.lost, Address(), gone, False, False) == ""
    assert said(reports.reached, Address(), "e") == "visdom: http://localhost:8097/env/e"
    assert said(reports.reached, Address(), "e") == ""
    assert said(reports.lost, Address(), gone, True, False).startswith("visdom: lost the connection")
    assert said(reports.lost, Address(), gone, False, False) == ""
    assert said(reports.reached, Address(), "e").endswith("is back, nothing is missing")
    assert said(reports.lost, Address(), gone, True, False) == "", "again within ten minutes"
    assert said(reports.reached, Address(), "e") == ""
    now[0] = 700.0
    assert said(reports.lost, Address(), gone, True, True) == "", "the run is over anyway"
    assert said(reports.lost, Address(), gone, True, False).startswith("visdom: lost the connection")
