"""The parts of the Visdom viewer: curves, panes, addresses, logins, what is said on the terminal."""

import math
import shlex
from pathlib import Path

import numpy as np
import pytest
from visdom_support import FakeRun, train_record

from datasets.errors import UserError
from gan.command_line import parse_train
from gan.viewers import SAMPLE, SAVE, STOP, RunInfo, Viewers, public_options
from gan.viewers.visdom import Reports, Visdom, environment_name, tunnel_command
from gan.viewers.visdom_panes import POINTS, Board, CurvePane, about, command_of
from gan.viewers.visdom_server import Address, Unreachable


def test_a_long_curve_keeps_logged_values_over_its_whole_length():
    pane = CurvePane("pane", "title")
    for step in range(1, 50_001):
        pane.add(step, {"loss": step * 0.5})
    assert POINTS / 2 <= len(pane.steps) <= POINTS
    assert pane.steps[0] == 1 and pane.steps[-1] > 50_000 - 64
    assert pane.curves == {"loss": [step * 0.5 for step in pane.steps]}
    assert len(set(np.diff(pane.steps))) == 1, "thinned evenly"


def test_known_and_meaningless_points_are_left_out():
    pane = CurvePane("pane", "title")
    values = (1.0, math.nan, 2.0, 9.0, 9.0, None, math.inf, 3.0)
    for step, value in zip((1, 2, 2, 2, 1, 3, 4, 5), values, strict=True):
        pane.add(step, {"loss": value})
    assert dict(zip(pane.steps, pane.curves["loss"], strict=True)) == {1: 1.0, 2: 2.0, 5: 3.0}


class Lines:
    """Stands for the package's client: keeps what is drawn."""

    def __init__(self):
        self.drawn = []
        self.curves = set()

    def line(self, values, steps, win, opts, update):
        self.drawn.append((update, steps.tolist(), dict(zip(opts["legend"], values.T.tolist(), strict=True))))


def test_new_points_go_out_as_one_append_and_a_new_curve_draws_the_pane_anew():
    board, client = Board(train_record(step) for step in (1, 2)), Lines()

    def send() -> None:
        if news := board.panes["losses_adversarial"].news():
            news(client)

    send()
    send()
    board.add(train_record(3))
    board.add(train_record(4))
    send()
    board.add({**train_record(5), "losses": {"G_A": 7.0}})
    send()
    board.forget_sent()
    send()
    first, second, third, fourth = client.drawn
    assert first == (None, [1, 2], {"G_GAN": [1, 1 / 2]})
    assert second == ("append", [3, 4], {"G_GAN": [1 / 3, 1 / 4]})
    assert third[:2] == (None, [1, 2, 3, 4, 5]) and fourth[:2] == third[:2]
    np.testing.assert_equal(
        third[2], {"G_GAN": [1, 1 / 2, 1 / 3, 1 / 4, math.nan], "G_A": [math.nan] * 4 + [7.0]}
    )


def test_the_slider_only_grows_and_ever_more_slowly():
    board, sizes = Board(), []
    for step in range(1, 2001):
        before = list(board.history)
        board.add({"kind": "samples", "step": step, "epoch": step, "folder": "f", "pictures": {"grid": "g"}})
        assert board.newest["step"] == step
        assert board.history[: len(before)] == before, "nothing that a page shows goes away"
        sizes.append(len(board.history))
    assert sizes[:20] == list(range(1, 21)), "the first ones are all there"
    steps = [record["step"] for record in board.history]
    assert len(steps) < 150 and max(np.diff([*steps, 2000])) <= 128
    assert max(np.diff(steps) / steps[1:]) <= 0.5, "gaps grow no faster than the training"


def test_about_escapes_everything_and_knows_no_password():
    options = {"lr": "<b>", "visdom_password": "hunter2"}
    content = about(RunInfo("<img onerror=x>", Path(), options, "<host>"))
    assert "<img" not in content and "<b>" not in content and "<host>" not in content
    assert "hunter2" not in content and "&lt;b&gt;" in content


def test_only_our_own_buttons_are_commands():
    click = {"event_type": "PropertyUpdate", "target": "controls", "eid": "run", "value": "clicked"}
    asked = [command_of({**click, "propertyId": i}, "run") for i in (0, 1, 2, 3, -1, "0", None)]
    assert asked == [SAVE, SAMPLE, STOP, None, None, None, None]
    for other in ({"eid": "other"}, {"target": "about"}, {"event_type": "Click"}):
        assert command_of({**click, "propertyId": 0, **other}, "run") is None


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


def test_offline_opens_no_connection(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("socket.create_connection", lambda *a, **k: pytest.fail("a connection"))
    run = FakeRun(tmp_path, "my runs; $(x)")
    with Viewers([Visdom("offline")]) as viewers:
        viewers.start(run.info)
        viewers.record(train_record(1))
        assert viewers.commands() == set()
    [said] = capsys.readouterr().err.splitlines()  # its command can be pasted into a shell
    assert shlex.split(said.split("with: ")[1]) == ["python", "-m", "gan.viewers", str(run.folder)]


def test_what_is_said_about_a_connection_that_comes_and_goes(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("gan.viewers.visdom.time.monotonic", lambda: now[0])
    monkeypatch.setattr("gan.viewers.visdom.is_blank", lambda address: False)
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    reports = Reports(Path("run"), is_asked_for=True)

    def said(call, *arguments) -> str:
        call(*arguments)
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) <= 1
        return lines[0] if lines else ""

    gone = Unreachable("refused")
    assert said(reports.lost, Address(), gone, False).startswith(
        "visdom: no server at http://localhost:8097: refused"
    )
    assert said(reports.lost, Address(), gone, False) == ""
    assert said(reports.reached, Address(), "e") == "visdom: http://localhost:8097/env/e"
    assert said(reports.reached, Address(), "e") == ""
    assert said(reports.lost, Address(), gone, True).startswith("visdom: lost the connection")
    assert said(reports.lost, Address(), gone, False) == ""
    assert said(reports.reached, Address(), "e").endswith("is back, nothing is missing")
    assert said(reports.lost, Address(), gone, True) == "", "again within ten minutes"
    assert said(reports.reached, Address(), "e") == ""
    now[0] = 700.0
    assert said(reports.lost, Address(), gone, True).startswith("visdom: lost the connection")


@pytest.mark.parametrize(
    "server", ["https://ada:hunter2@host", "ada:hunter2@host", "https://ada@host", "http://a:b#c@host"]
)
def test_an_address_with_a_login_is_refused_and_not_repeated(server):
    with pytest.raises(UserError, match="holds a login") as caught:
        parse_train(["--dataroot", "d", "--visdom_server", server])
    assert caught.value.subject == "--visdom_server"
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("server", ["http://localhost", "https://[::1]", "host.example", "http://["])
def test_other_addresses_pass_as_they_are(server):
    assert parse_train(["--dataroot", "d", "--visdom_server", server])[0].viewer.visdom_server == server
    assert public_options({"visdom_server": server}) == {"visdom_server": server}


@pytest.mark.parametrize(
    ("server", "shown"),
    [
        ("https://ada:hunter2@host", "https://host"),
        ("ada:hunter2@host", "host"),
        ("http://ada:hun/t#er@2@host", "http://host"),
    ],
)
def test_the_login_of_an_address_is_not_public(server, shown):
    assert public_options({"visdom_server": server, "lr": 1}) == {"visdom_server": shown, "lr": 1}
    assert public_options({"dataroot": "data/a@b"}) == {"dataroot": "data/a@b"}


@pytest.mark.parametrize(("mode", "warnings"), [("offline", 0), ("auto", 1)])
def test_a_name_without_a_password_is_a_warning(mode, warnings, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VISDOM_USERNAME", "ada")
    monkeypatch.delenv("VISDOM_PASSWORD", raising=False)
    with Viewers([Visdom(mode, "http://127.0.0.1", 1)]) as viewers:
        viewers.start(FakeRun(tmp_path).info)
        viewers.record(train_record(1))
    lines = [line for line in capsys.readouterr().err.splitlines() if "VISDOM_PASSWORD" in line]
    assert len(lines) == warnings
    assert all(line.startswith("warning: ") and "'ada'" in line for line in lines)
