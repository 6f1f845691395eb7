"""A login in an address never reaches a file; a name without a password never stops a training."""

import shlex

import pytest
from visdom_support import FakeRun, train_record

from datasets.errors import UserError
from gan.command_line import parse_train
from gan.viewers import Viewers, public_options
from gan.viewers.visdom import Visdom


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


@pytest.mark.parametrize(("mode", "warnings"), [("off", 0), ("offline", 0), ("auto", 1)])
def test_a_name_without_a_password_is_a_warning(mode, warnings, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VISDOM_USERNAME", "ada")
    monkeypatch.delenv("VISDOM_PASSWORD", raising=False)
    with Viewers([Visdom(mode, "http://127.0.0.1", 1)]) as viewers:
        viewers.start(FakeRun(tmp_path).info)
        viewers.record(train_record(1))
    lines = [line for line in capsys.readouterr().err.splitlines() if "VISDOM_PASSWORD" in line]
    assert len(lines) == warnings
    assert all(line.startswith("warning: ") and "'ada'" in line for line in lines)


def test_the_offline_hint_can_be_pasted_into_a_shell(tmp_path, capsys):
    folder = tmp_path / "my runs; $(x)"
    run = FakeRun(folder)
    with Viewers([Visdom("offline")]) as viewers:
        viewers.start(run.info)
    command = capsys.readouterr().err.split("with: ")[1]
    assert shlex.split(command) == ["python", "-m", "gan.viewers", str(run.folder)]
