"""The proof in a real browser: train.py, a real Visdom server, Chromium; then the page of the same run."""

import base64
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from browser_support import PATIENCE, chromium, screenshot
from PIL import Image
from visdom_support import ROOT, FakeRun, install_page_files, real_server, train_record, wait_until

from gan.viewers import Viewers
from gan.viewers.visdom import Visdom

pytestmark = pytest.mark.browser

PLOTTED = """() => Object.fromEntries([...document.querySelectorAll('.js-plotly-plot')].flatMap(plot =>
    plot.data.map(curve => [curve.name, curve.x.map((x, i) => [x, curve.y[i]])])))"""
PLACES = """() => [...document.querySelectorAll('.react-grid-item')].map(pane => {
    const box = pane.getBoundingClientRect(), all = document.querySelectorAll('.react-grid-item');
    const left = Math.min(...[...all].map(other => other.getBoundingClientRect().left));
    const top = Math.min(...[...all].map(other => other.getBoundingClientRect().top));
    return {place: [box.top - top, box.left - left], text: pane.innerText, image: !!pane.querySelector('img')};
}).sort((one, other) => one.place[0] - other.place[0] || one.place[1] - other.place[1])"""
COVERED = """() => [...document.querySelectorAll('.react-grid-item')].filter(pane => pane.querySelector('img')).map(
    pane => pane.querySelector('img').getBoundingClientRect().bottom
        - pane.querySelector('.widgets').getBoundingClientRect().top)"""
AXES = """() => Object.fromEntries([...document.querySelectorAll('.js-plotly-plot')].map(
    plot => [plot.data[0].name, plot._fullLayout.yaxis.range]))"""
SLIDER = (
    """() => { const slider = document.querySelector('.widget input'); return [slider.value, slider.max]; }"""
)
ICONS = (
    """() => [...document.fonts].filter(font => /Glyphicons/.test(font.family)).map(font => font.status)"""
)
SHOWN = """() => {
    const image = document.querySelector('img[src^="data:image/jpeg"]');
    if (!image || !image.complete) return null;
    const text = image.closest('.react-grid-item, .window, body').innerText;
    const found = text.match(/epoch (\\d+), step (\\d+)/);
    return found && [Number(found[1]), image.naturalWidth, image.naturalHeight, image.src];
}"""


@pytest.fixture(scope="module")
def page_files():
    if missing := install_page_files():
        pytest.skip(f"no Visdom page: {missing}")


def run_python(*arguments: str, **options) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=environment, **pipes)


def pixels(source: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))).astype(int)


def logged_curves(run: Path) -> dict[str, dict[int, float]]:
    curves: dict[str, dict[int, float]] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        values = {"train": record.get("losses"), "metrics": record.get("metrics")}.get(record["kind"]) or {}
        if record["kind"] == "train":
            values = {**values, "lr": record["lr"], "images/s": record["time"]["images_per_s"]}
        for name, value in values.items():
            curves.setdefault(name, {})[record["step"]] = value
    return curves


def as_curves(points: dict[str, list]) -> dict[str, dict[int, float]]:
    return {name: dict(map(tuple, pairs)) for name, pairs in points.items() if name}


@pytest.mark.usefixtures("page_files")
def test_an_open_page_shows_the_newest_samples_first_for_as_long_as_the_training_goes(tmp_path, monkeypatch):
    """Its slider stands at the end, where a shorter list or another pane would turn the page blank.

    Nothing covers the pictures, the axes of what is never negative start at 0, and the icons are drawn.
    """
    monkeypatch.setattr("gan.viewers.visdom_panes.BLOCK", 4)
    monkeypatch.setattr("gan.viewers.visdom.PAUSE", 0.1)
    monkeypatch.setattr("gan.viewers.visdom.LONGEST_PAUSE", 0.1)
    run = FakeRun(tmp_path, "long")
    errors: list[str] = []
    with real_server(tmp_path / "server") as server, chromium() as browser:
        viewers = Viewers([Visdom("auto", "http://127.0.0.1", server.port, controls=True)])
        viewers.start(run.info)
        page = browser.new_page(viewport={"width": 1300, "height": 1000})
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: errors.append(str(error)))
        wait_until(lambda: server.shows("long", "controls"))
        page.goto(server.address.page("long"))
        for step in range(1, 31):
            viewers.record(run.keep(train_record(step)))
            viewers.record(run.samples(step, count=8))
            wait_until(lambda step=step: re.search(rf"step {step}\b", page.inner_text("body")) is not None)
        wait_until(lambda: page.locator("img[src^='data:image/jpeg']").count() == 2)
        places = page.evaluate(PLACES)
        assert max(page.evaluate(COVERED)) <= 0, "pixels of the last row under the caption"
        axes = page.evaluate(AXES)
        assert {"lr", "images/s", "data wait"} <= axes.keys() and axes["lr"] == pytest.approx(
            [0, 2.1e-4], rel=0.1
        )
        assert axes["images/s"][0] == axes["data wait"][0] == 0
        last, longest = page.evaluate(SLIDER)
        assert last == longest, "the newest moment"
        assert page.evaluate(ICONS) == ["loaded"]
        viewers.close()
        screenshot(page, "visdom-long", full_page=True)
    assert errors == []
    assert places[0]["place"] == [0, 0] and places[0]["image"] and "step 30" in places[0]["text"]


@pytest.mark.usefixtures("page_files")
def test_a_training_is_seen_in_visdom_and_on_its_page(tmp_path):
    data = tmp_path / "towns"
    made = run_python("-m", "datasets.synthetic", "--output", str(data), "--count", "12", "--size", "32")
    assert made.wait() == 0, made.stdout.read()
    made.stdout.close()
    small = "--model pix2pix --norm nc_ms --netG resnet_6blocks --ngf 4 --ndf 4 --load_size 32 --crop_size 32"
    often = "--n_epochs 400 --n_epochs_decay 0 --lr 2e-3 --print_freq 6 --num_threads 0 --val_count 2"
    with real_server(tmp_path / "server") as server, chromium() as browser:
        training = run_python(
            "train.py", "--dataroot", str(data), "--checkpoints_dir", str(tmp_path), "--name", "seen",
            "--device", "cpu", *small.split(), *often.split(), "--visdom", "auto",
            "--visdom_server", "http://127.0.0.1", "--visdom_port", str(server.port), "--visdom_controls",
        )  # fmt: skip
        try:
            wait_until(lambda: "seen" in server.ask("env_state") or training.poll() is not None)
            page = browser.new_page(viewport={"width": 1500, "height": 1300})
            page.set_default_timeout(PATIENCE)
            page.goto(server.address.page("seen"))
            seen: dict[int, list] = {}

            def three_epochs() -> bool:
                shown = page.evaluate(SHOWN)
                if shown:
                    seen.setdefault(shown[0], shown)
                return len(seen) >= 3

            wait_until(three_epochs)
            page.get_by_role("button", name="Stop after this epoch").click()
            printed, _ = training.communicate()
            assert training.returncode == 0 and "stopped after epoch" in printed, printed
        finally:
            training.kill()
            training.wait()
        run = tmp_path / "seen"
        grid = Image.open(next((run / "samples").glob("*/grid.png")))
        assert all((shown[1], shown[2]) == grid.size for shown in seen.values()), (
            "the picture has the grid's size"
        )
        first, last = (pixels(seen[epoch][3]) for epoch in (min(seen), max(seen)))
        assert np.abs(first - last).mean() > 1, "its pixels change over the epochs"
        logged = logged_curves(run)
        wait_until(lambda: as_curves(page.evaluate(PLOTTED)).items() >= logged.items())
        assert {"G_GAN", "G_L1", "D_real", "D_fake", "lr", "val_l1", "images/s"} <= set(logged)
        page.wait_for_timeout(500)
        screenshot(page, "visdom", full_page=True)

        page = browser.new_page(viewport={"width": 1280, "height": 1400})
        page.set_default_timeout(PATIENCE)
        page.goto((run / "index.html").as_uri())
        page.wait_for_function("typeof gan !== 'undefined' && gan.view.samples.moments.length >= 3")
        page.wait_for_function(
            "gan.view.samples.after.complete && gan.view.samples.after.naturalWidth === 64"
        )
        drawn = page.evaluate(
            "() => Object.fromEntries([...gan.view.board.charts.values()].flatMap(chart => "
            "[...chart.curves.values()].map(c => [c.name, c.x.map((x, i) => [x, c.y[i]])])))"
        )
        assert as_curves(drawn).items() >= logged.items()
        page.wait_for_timeout(300)
        screenshot(page, "page-of-a-training", full_page=True)
