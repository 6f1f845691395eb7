"""What a real Visdom server holds after a training, a resumed training, clicks, and a replay."""

import base64
import io
import json
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from visdom_support import ROOT, FakeRun, RealServer, real_server, train_record, visdom_static, wait_until

from gan.viewers import SAMPLE, SAVE, STOP, Viewers
from gan.viewers.visdom import Visdom

pytestmark = pytest.mark.skipif(visdom_static() is None, reason="visdom is not installed")


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[RealServer]:
    with real_server(tmp_path_factory.mktemp("server")) as started:
        yield started


def watching(server: RealServer, env: str = "") -> Viewers:
    return Viewers([Visdom("auto", "http://127.0.0.1", server.port, env=env)])


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
                record, files = run.samples(step, epoch)
                viewers.record(record)  # the loop hands samples to both
                viewers.samples(record, files)
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
    assert len(panes["history"]["content"]) == 2 and panes["history"]["content"][-1] == newest
    sent, drawn = picture_of(newest), np.asarray(Image.open(files["grid"]))
    assert sent.shape == drawn.shape and sent.dtype == np.uint8
    assert np.abs(sent.astype(int) - drawn).mean() < 3, "a JPEG without wrapped values"
    assert newest["caption"].startswith("epoch 2, step 100")
    assert panes["about"]["type"] == "text" and "test host" in panes["about"]["content"]
    assert panes["controls"]["type"] == "properties"
    assert (server.folder / "my_env.json").is_file(), "the environment was saved"
    written = b"".join(path.read_bytes() for path in server.folder.rglob("*") if path.is_file())
    assert b"pa55word" not in written
    assert capsys.readouterr().err.splitlines() == [f"visdom: {server.client.address.page('my_env')}"]


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


def test_clicks_in_the_controls_pane_reach_the_loop(tmp_path, server, monkeypatch):
    monkeypatch.setattr("gan.viewers.visdom_sender.LISTEN_EVERY", 0.1)
    run = FakeRun(tmp_path, "clicked")
    with watching(server) as viewers:
        viewers.start(run.info)
        wait_until(lambda: server.shows("clicked", "controls"))
        browser = json.loads(server.client._exchange("GET", "/socket_wrap")[2])["sid"]
        asked: set[str] = set()

        def click(button: int, env: str = "clicked") -> None:
            event = {"event_type": "PropertyUpdate", "target": "controls", "eid": env, "propertyId": button}
            message = json.dumps({"cmd": "forward_to_vis", "data": {**event, "value": "clicked"}})
            server.client.post("socket_wrap", {"message_type": "send", "sid": browser, "message": message})

        def heard(command: str) -> bool:
            asked.update(viewers.commands())
            return command in asked

        for button, command in enumerate((SAVE, SAMPLE, STOP)):
            click(button)
            wait_until(lambda command=command: heard(command))
            assert asked == {command}
            asked.clear()
        assert viewers.commands() == set(), "every click is heard once"


def test_a_pane_that_somebody_closes_comes_back_whole(tmp_path, server, monkeypatch):
    monkeypatch.setattr("gan.viewers.visdom_sender.LISTEN_EVERY", 0.05)
    monkeypatch.setattr("gan.viewers.visdom_sender.LONGEST_PAUSE", 0.1)
    run = FakeRun(tmp_path, "closed")
    with watching(server) as viewers:
        viewers.start(run.info)
        viewers.record(run.keep(train_record(1)))
        viewers.record(run.keep(train_record(2)))
        viewers.samples(*run.samples(2))
        wait_until(lambda: server.shows("closed", "about"))
        browser = json.loads(server.client._exchange("GET", "/socket_wrap")[2])["sid"]
        for pane in ("losses_adversarial", "samples", "history"):
            message = json.dumps({"cmd": "close", "data": pane, "eid": "closed"})
            server.client.post("socket_wrap", {"message_type": "send", "sid": browser, "message": message})
            assert not server.shows("closed", pane)
        for step in range(3, 60):
            viewers.record(run.keep(train_record(step)))
        wait_until(lambda: server.shows("closed", "losses_adversarial"))  # by then it has heard of both
        viewers.samples(*run.samples(59))
    assert server.panes("closed")["samples"]["content"]["caption"].startswith("epoch 1, step 59")
    assert [moment["caption"][:17] for moment in server.panes("closed")["history"]["content"]] == [
        "epoch 1, step 59:"
    ]
    assert server.curve("closed", "losses_adversarial", "G_GAN").get(59) == 1 / 59


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
    assert (done.returncode, done.stdout) == (0, server.client.address.page("played") + "\n"), done.stderr
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
    done = replay(str(run.folder), "--page")
    assert done.returncode == 0 and (run.folder / "index.html").is_file()
