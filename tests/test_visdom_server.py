"""What a real Visdom server holds after a training, a resumed training, clicks, and a replay."""

import base64
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from PIL import Image
from visdom_support import ROOT, FakeRun, RealServer, needs_visdom, real_server, train_record, wait_until

from gan.viewers import SAMPLE, SAVE, STOP, Viewers
from gan.viewers.visdom import Visdom
from gan.viewers.visdom_server import exchange

pytestmark = needs_visdom


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[RealServer]:
    with real_server(tmp_path_factory.mktemp("server")) as started:
        yield started


@pytest.fixture
def act(server) -> Callable[..., None]:
    """Do what a person does on the page: send a command over a connection of its own."""
    browser = json.loads(exchange(server.address, "GET", "/socket_wrap").body)["sid"]

    def go(**command) -> None:
        server.ask("socket_wrap", message_type="send", sid=browser, message=json.dumps(command))

    return go


def click(env: str, button: int) -> dict[str, object]:
    """The event of a press on a button of the controls pane."""
    pane = {"event_type": "PropertyUpdate", "target": "controls", "eid": env, "value": "clicked"}
    return {**pane, "propertyId": button}


def watching(server: RealServer, env: str = "") -> Viewers:
    return Viewers([Visdom("auto", "http://127.0.0.1", server.port, env=env, controls=True)])


def picture_of(content: dict[str, str]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content["src"].partition(",")[2]))))


def test_it_holds_what_was_logged(tmp_path, server, capsys):
    run = FakeRun(tmp_path)
    with watching(server, env="my env") as viewers:
        viewers.start(run.info)
        for step in range(1, 101):
            epoch = (step - 1) // 50 + 1
            viewers.record(run.keep(train_record(step, epoch)))
            if step % 50 == 0:
                viewers.record(run.samples(step, epoch))
                metrics = {"kind": "metrics", "step": step, "epoch": epoch, "metrics": {"val_l1": 0.5}}
                viewers.record(run.keep(metrics))
    panes = server.panes("my_env")
    assert server.curve("my_env", "losses_adversarial", "G_GAN") == {step: 1 / step for step in range(1, 101)}
    assert server.curve("my_env", "metric_val_l1", "val_l1") == {50: 0.5, 100: 0.5}
    assert set(server.curve("my_env", "throughput", "images/s").values()) == {3.0}
    assert set(server.curve("my_env", "data_wait", "data wait").values()) == {0.1}
    assert set(server.curve("my_env", "learning_rate", "lr").values()) == {2e-4}
    assert panes["samples"]["type"] == "image" and panes["history"]["type"] == "image_history"
    newest = panes["samples"]["content"]
    assert [moment["caption"] for moment in panes["history"]["content"]] == [
        "epoch 1, step 50",
        "epoch 2, step 100",
    ]
    assert panes["history"]["content"][-1]["src"] == newest["src"]
    assert panes["samples"]["title"] == "newest samples: epoch 2, step 100"
    sent, drawn = picture_of(newest), np.asarray(Image.open(run.folder / "samples/step-00000100/grid.png"))
    assert sent.shape == drawn.shape and sent.dtype == np.uint8
    assert np.abs(sent.astype(int) - drawn).mean() < 3, "a JPEG without wrapped values"
    assert panes["about"]["type"] == "text" and "test host" in panes["about"]["content"]
    assert panes["controls"]["type"] == "properties"
    assert (server.folder / "my_env.json").is_file(), "the environment was saved"
    written = b"".join(path.read_bytes() for path in server.folder.rglob("*") if path.is_file())
    assert b"pa55word" not in written
    assert capsys.readouterr().err.splitlines() == [f"visdom: {server.address.page('my_env')}"]


def test_resume_continues_the_same_curves(tmp_path, server):
    run = FakeRun(tmp_path, "resumed")
    for first, last in ((1, 40), (31, 60)):  # the second training continues from the checkpoint of step 30
        known = [record for record in run.records if record["step"] < first]
        with watching(server) as viewers:
            viewers.start(run.info, known)
            for step in range(first, last + 1):
                viewers.record(run.keep(train_record(step, loss=first + step / 100)))
    curve = server.curve("resumed", "losses_adversarial", "G_GAN")
    assert list(curve) == list(range(1, 61)), "no line back to the start, nothing twice"
    assert curve[30] == 1.3 and curve[31] == 31.31
    assert len([name for name in server.panes("resumed") if name.startswith("losses")]) == 1


def test_clicks_in_the_controls_pane_reach_the_loop(tmp_path, server, act):
    with watching(server) as viewers:
        viewers.start(FakeRun(tmp_path, "clicked").info)
        wait_until(lambda: server.shows("clicked", "controls"))
        asked: set[str] = set()

        def heard(command: str) -> bool:
            asked.update(viewers.commands())
            return command in asked

        for button, command in enumerate((SAVE, SAMPLE, STOP)):
            act(cmd="forward_to_vis", data=click("clicked", button))
            wait_until(lambda command=command: heard(command))
            assert asked == {command}
            asked.clear()
        assert viewers.commands() == set(), "every click is heard once"


def test_a_server_that_was_there_before_steers_only_where_asked(tmp_path, server, act):
    with Viewers([Visdom("auto", "http://127.0.0.1", server.port)]) as viewers:
        viewers.start(FakeRun(tmp_path, "watched").info)
        wait_until(lambda: "watched" in server.ask("env_state") and server.shows("watched", "about"))
        assert not server.shows("watched", "controls")
        buttons = [{"type": "button", "name": name, "value": name} for name in "abc"]  # made by somebody else
        server.ask(
            "events",
            win="controls",
            eid="watched",
            data=[{"type": "properties", "content": buttons}],
            opts={},
        )
        for button in range(3):
            act(cmd="forward_to_vis", data=click("watched", button))
        viewers.record(train_record(1))
        wait_until(lambda: server.shows("watched", "losses_adversarial"))
        assert viewers.commands() == set()


def test_a_pane_that_somebody_closes_comes_back_whole(tmp_path, server, act, monkeypatch):
    monkeypatch.setattr("gan.viewers.visdom.PAUSE", 0.1)
    monkeypatch.setattr("gan.viewers.visdom.LONGEST_PAUSE", 0.1)
    run = FakeRun(tmp_path, "closed")
    panes = ("losses_adversarial", "samples", "history")
    with watching(server) as viewers:
        viewers.start(run.info)
        for step in (1, 2):
            viewers.record(run.keep(train_record(step)))
        viewers.record(run.samples(2))
        wait_until(lambda: all(server.shows("closed", pane) for pane in panes))
        for pane in panes:
            act(cmd="close", data=pane, eid="closed")
            assert not server.shows("closed", pane)
        for step in range(3, 60):
            viewers.record(run.keep(train_record(step)))
        wait_until(lambda: server.shows("closed", "losses_adversarial"))  # by then it has heard of all
        viewers.record(run.samples(59))
    panes = server.panes("closed")
    assert panes["samples"]["title"] == "newest samples: epoch 1, step 59"
    assert [moment["caption"][:16] for moment in panes["history"]["content"]] == ["epoch 1, step 59"]
    assert list(server.curve("closed", "losses_adversarial", "G_GAN")) == list(range(1, 60))


def replay(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gan.viewers", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_replay_shows_a_finished_run(tmp_path, server):
    run = FakeRun(tmp_path, "played")
    for step in range(1, 31):
        run.keep(train_record(step))
        if step % 10 == 0:
            run.samples(step)
    port = ["--visdom_server", "http://127.0.0.1", "--visdom_port", str(server.port)]
    done = replay("played", "--checkpoints_dir", str(tmp_path), *port)
    assert (done.returncode, done.stdout) == (0, server.address.page("played") + "\n"), done.stderr
    assert server.curve("played", "losses_adversarial", "G_GAN") == {step: 1 / step for step in range(1, 31)}
    assert len(server.panes("played")["history"]["content"]) == 3


def test_replay_says_in_one_line_what_is_wrong(tmp_path):
    done = replay(str(tmp_path))
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: {tmp_path}: is no run")
    run = FakeRun(tmp_path)
    run.keep(train_record(1))
    done = replay(str(run.folder), "--visdom_server", "http://127.0.0.1", "--visdom_port", "1")
    assert done.returncode == 1 and "no Visdom server" in done.stderr and done.stderr.count("\n") == 1
    (run.folder / "options.yaml").write_text("n_epochs: 1\nn_epochs_decay: 1\n")
    for step, status in ((2, "stopped"), (4, "ended")):
        run.keep(train_record(step, step // 2))
        done = replay(str(run.folder), "--page")
        assert done.returncode == 0 and (run.folder / "index.html").is_file()
        assert f'"status": "{status}"' in (run.folder / "page/state.js").read_text()
