"""Visdom without faults: curves, panes, the inbox, addresses, and what a real server then holds."""

import base64
import io
import json
import math
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from visdom_support import FakeRun, real_server, train_record, visdom_static, wait_until

from datasets.errors import UserError
from gan.viewers import SAMPLE, SAVE, STOP, RunInfo, Viewers
from gan.viewers.visdom import Visdom, environment_name, make_client
from gan.viewers.visdom_http import Address
from gan.viewers.visdom_inbox import Inbox
from gan.viewers.visdom_panes import HISTORY, POINTS, Board, Curve, about_message, command_of, loss_pane
from gan.viewers.visdom_sender import tunnel_command

ROOT = Path(__file__).resolve().parents[1]
needs_visdom = pytest.mark.skipif(visdom_static() is None, reason="visdom is not installed")


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


def test_history_stays_short_and_holds_first_and_last():
    board = Board()
    for step in range(1, 501):
        board.add(
            {"kind": "samples", "step": step, "epoch": step, "folder": "f", "pictures": {"grid": "g.png"}}
        )
        steps = [moment["step"] for moment in board.moments]
        assert len(steps) <= HISTORY and steps[0] == 1 and steps[-1] == step and steps == sorted(set(steps))


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
    assert tunnel_command(8097, True) == ""
    monkeypatch.setenv("SSH_CONNECTION", "10.0.0.9 51234 10.0.0.7 22")
    monkeypatch.setattr("getpass.getuser", lambda: "ada")
    assert tunnel_command(8097, True) == "ssh -L 8097:localhost:8097 ada@10.0.0.7"
    assert tunnel_command(8097, False) == ""


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
    assert len(inbox.take(begin + 0.2, begin + 5).records) == 1
    assert 0.2 <= time.monotonic() - begin < 2
    inbox.put(train_record(2))
    threading.Timer(0.1, inbox.close).start()
    begin = time.monotonic()
    batch = inbox.take(begin + 30, begin + 60)
    assert batch.closing and len(batch.records) == 1 and time.monotonic() - begin < 5


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


def picture_of(content: dict) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content["src"].partition(",")[2]))))


@needs_visdom
def test_a_real_server_holds_what_was_logged(tmp_path, capsys):
    run = FakeRun(tmp_path)
    with real_server(tmp_path / "server") as server:
        with Viewers([Visdom("auto", "http://127.0.0.1", server.port, env="my env")]) as viewers:
            viewers.start(run.info)
            for step in range(1, 101):
                epoch = (step - 1) // 50 + 1
                viewers.record(run.keep(train_record(step, epoch)))
                if step % 50 == 0:
                    record, files = run.samples(step, epoch)
                    viewers.record(record)
                    viewers.samples(record, files)
                    viewers.record(
                        run.keep(
                            {"kind": "metrics", "step": step, "epoch": epoch, "metrics": {"val_l1": 0.5}}
                        )
                    )
        panes = server.panes("my_env")
        logged = {step: 1 / step for step in range(1, 101)}
        assert server.curve("my_env", "losses_adversarial", "G_GAN") == logged
        assert server.curve("my_env", "metric_val_l1", "val_l1") == {50: 0.5, 100: 0.5}
        assert set(server.curve("my_env", "throughput", "images/s").values()) == {3.0}
        assert set(server.curve("my_env", "data_wait", "data wait").values()) == {0.1}
        assert set(server.curve("my_env", "learning_rate", "lr").values()) == {2e-4}
        assert panes["samples"]["type"] == "image_history" and len(panes["samples"]["content"]) == 2
        sent, drawn = picture_of(panes["samples"]["content"][-1]), np.asarray(Image.open(files["grid"]))
        assert sent.shape == drawn.shape and sent.dtype == np.uint8
        assert np.abs(sent.astype(int) - drawn).mean() < 3, "JPEG, no wrapped values"
        assert panes["samples"]["content"][-1]["caption"].startswith("epoch 2, step 100")
        assert panes["about"]["type"] == "text" and "test host" in panes["about"]["content"]
        assert panes["controls"]["type"] == "properties"
        assert (tmp_path / "server" / "my_env.json").is_file(), "the environment was saved"
        everything = "".join(
            path.read_text(errors="replace") for path in (tmp_path / "server").rglob("*") if path.is_file()
        )
        assert "pa55word" not in everything
    assert capsys.readouterr().err.splitlines() == [f"visdom: {server.client.address.page('my_env')}"]


@needs_visdom
def test_resume_continues_the_same_curves(tmp_path):
    run = FakeRun(tmp_path)
    with real_server(tmp_path / "server") as server:
        for first, last in ((1, 40), (31, 60)):  # the second training goes on from the checkpoint of step 30
            known = [record for record in run.records if record["step"] < first]
            with Viewers([Visdom("auto", "http://127.0.0.1", server.port)]) as viewers:
                viewers.start(run.info, known)
                for step in range(first, last + 1):
                    viewers.record(run.keep(train_record(step, loss=first + step / 100)))
        curve = server.curve("fake", "losses_adversarial", "G_GAN")
        steps = list(curve)
        assert steps == list(range(1, 61)), "no line back to the start, nothing twice"
        assert curve[30] == 1.3 and curve[31] == 31.31
        assert len([name for name in server.panes("fake") if name.startswith("losses")]) == 1


@needs_visdom
def test_clicks_in_the_controls_pane_reach_the_loop(tmp_path, monkeypatch):
    monkeypatch.setattr("gan.viewers.visdom_sender.LISTEN_EVERY", 0.1)
    run = FakeRun(tmp_path)
    with (
        real_server(tmp_path / "server") as server,
        Viewers([Visdom("auto", "http://127.0.0.1", server.port)]) as viewers,
    ):
        viewers.start(run.info)
        wait_until(lambda: "controls" in _panes(server))
        browser = json.loads(server.client._exchange("GET", "/socket_wrap")[2])["sid"]
        asked: set[str] = set()

        def click_until_heard(button: int, command: str) -> bool:
            event = {
                "event_type": "PropertyUpdate",
                "target": "controls",
                "eid": "fake",
                "propertyId": button,
            }
            message = json.dumps({"cmd": "forward_to_vis", "data": {**event, "value": "clicked"}})
            server.client.post("socket_wrap", {"message_type": "send", "sid": browser, "message": message})
            asked.update(viewers.commands())
            return command in asked

        for button, command in enumerate((SAVE, SAMPLE, STOP)):
            wait_until(lambda button=button, command=command: click_until_heard(button, command))


def _panes(server) -> dict:
    try:
        return server.panes("fake")
    except Exception:
        return {}


def replay(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gan.viewers", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


@needs_visdom
def test_replay_shows_a_finished_run(tmp_path):
    run = FakeRun(tmp_path)
    for step in range(1, 31):
        run.keep(train_record(step))
        if step % 10 == 0:
            run.samples(step)
    with real_server(tmp_path / "server") as server:
        port = ["--visdom_server", "http://127.0.0.1", "--visdom_port", str(server.port)]
        done = replay("fake", "--checkpoints_dir", str(tmp_path), *port)
        assert (done.returncode, done.stdout) == (0, server.client.address.page("fake") + "\n"), done.stderr
        assert server.curve("fake", "losses_adversarial", "G_GAN") == {
            step: 1 / step for step in range(1, 31)
        }
        assert len(server.panes("fake")["samples"]["content"]) == 3


def test_replay_says_in_one_line_what_is_wrong(tmp_path):
    done = replay(str(tmp_path))
    assert (
        done.returncode == 2
        and done.stderr.startswith(f"error: {tmp_path}: is no run")
        and done.stderr.count("\n") == 1
    )
    run = FakeRun(tmp_path)
    run.keep(train_record(1))
    done = replay(str(run.folder), "--visdom_server", "http://127.0.0.1", "--visdom_port", "1")
    assert done.returncode == 1 and "no Visdom server" in done.stderr and done.stderr.count("\n") == 1
    done = replay(str(run.folder), "--page")
    assert done.returncode == 0 and (run.folder / "index.html").is_file()
