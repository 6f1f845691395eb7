"""The page of a run in a real browser: opened from a file and over HTTP, while training, with a thousand epochs."""

import dataclasses
import functools
import http.server
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlparse

import numpy as np
import pytest
from browser_support import PATIENCE, chromium, screenshot
from conftest import serving
from PIL import Image
from visdom_support import FakeRun, train_record, wait_until

from gan.viewers import RunInfo
from gan.viewers.__main__ import main as viewers_main
from gan.viewers.page import Page
from gan.viewers.report_page import Table, make_report_page

pytestmark = pytest.mark.browser
EPOCHS = 12


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


class Watched:
    """A page in a browser, what it asked for and complained about."""

    def __init__(self, browser, address: str, **context) -> None:
        self.requests, self.complaints = [], []
        self.context = browser.new_context(**context)
        self.context.set_default_timeout(PATIENCE)
        self.page = self.context.new_page()
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on(
            "console", lambda message: message.type == "error" and self.complaints.append(message.text)
        )
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(address)

    def wait(self, condition: str) -> None:
        self.page.wait_for_function(condition)

    def curve(self, name: str) -> dict[float, float]:
        """Step -> value of a curve, as the page draws it."""
        points = self.page.evaluate(
            "name => [...gan.view.board.charts.values()].flatMap(chart => [...chart.curves.values()])"
            ".filter(curve => curve.name === name).flatMap(curve => curve.x.map((x, i) => [x, curve.y[i]]))",
            name,
        )
        return dict(points)


def make_run(folder, epochs: int = EPOCHS, name: str = "fake") -> tuple[FakeRun, Page]:
    run = FakeRun(folder, name)
    options = {**run.info.options, "n_epochs": epochs, "n_epochs_decay": 0}
    run.info = RunInfo(name, run.folder, options, "test host")
    page = Page()
    page.start(run.info, [])
    for epoch in range(1, epochs + 1):
        log_epoch(run, page, epoch)
    return run, page


def log_epoch(run: FakeRun, page: Page, epoch: int) -> None:
    for step in range(epoch * 8 - 7, epoch * 8 + 1):
        page.record(run.keep(train_record(step, epoch)))
    page.record(run.samples(epoch * 8, epoch))
    page.record(
        run.keep({"kind": "metrics", "step": epoch * 8, "epoch": epoch, "metrics": {"val_l1": 1 / epoch}})
    )


@pytest.fixture
def run_and_page(tmp_path):
    return make_run(tmp_path)


@pytest.fixture
def open_file(browser):
    opened = []

    def go(run: FakeRun, address: str = "", **context) -> Watched:
        watched = Watched(browser, f"{address or run.folder.as_uri()}/index.html", **context)
        opened.append(watched)
        return watched

    yield go
    for watched in opened:
        assert watched.complaints == []
        watched.context.close()


def brightness(watched: Watched) -> float:
    """Mean red value of the translated picture that is shown, 0 to 255."""
    watched.wait("gan.view.samples.after.complete && gan.view.samples.after.naturalWidth > 0")
    wide, high, source = watched.page.evaluate(
        "(({naturalWidth, naturalHeight, src}) => [naturalWidth, naturalHeight, src])(gan.view.samples.after)"
    )
    assert (wide, high) == (64, 32), "two pictures of 32x32 side by side"
    with Image.open(unquote(urlparse(source).path)) as picture:
        return float(np.asarray(picture)[..., 0].mean())


def test_from_a_file_everything_is_there_and_nothing_comes_from_elsewhere(run_and_page, open_file):
    run, _ = run_and_page
    watched = open_file(run, viewport={"width": 1280, "height": 1400})
    watched.wait(f"gan.view.samples.moments.length === {EPOCHS}")
    logged = {step: 1 / step for step in range(1, EPOCHS * 8 + 1)}
    assert watched.curve("G_GAN") == logged
    assert watched.curve("val_l1") == {epoch * 8: 1 / epoch for epoch in range(1, EPOCHS + 1)}
    assert set(watched.curve("images/s").values()) == {3.0} and set(watched.curve("lr").values()) == {2e-4}
    inside = run.folder.as_uri()
    assert all(url.startswith((inside, "data:")) for url in watched.requests), watched.requests
    assert watched.page.inner_text("h1") == "fake" and "pix2pix" in watched.page.inner_text(".sub")
    newest = brightness(watched)
    watched.page.keyboard.press("Home")
    watched.wait("gan.view.samples.selected === 0 && gan.view.samples.after.complete")
    assert newest - brightness(watched) > 100, "the pixels change over the epochs"
    screenshot(watched.page, "page-light", full_page=True)


def test_arrow_keys_walk_through_the_epochs(run_and_page, open_file):
    watched = open_file(run_and_page[0])
    watched.wait(f"gan.view.samples.selected === {EPOCHS - 1}")
    for key, expected in (("ArrowLeft", EPOCHS - 2), ("ArrowLeft", EPOCHS - 3), ("ArrowRight", EPOCHS - 2), ("Home", 0),
                          ("ArrowLeft", 0), ("End", EPOCHS - 1), ("ArrowRight", EPOCHS - 1)):  # fmt: skip
        watched.page.keyboard.press(key)
        assert watched.page.evaluate("gan.view.samples.selected") == expected
        assert f"epoch {expected + 1} ·" in watched.page.inner_text(".scrub output")


def test_the_slider_uncovers_the_translated_picture(run_and_page, open_file, tmp_path):
    watched = open_file(run_and_page[0], viewport={"width": 800, "height": 900})
    watched.wait("gan.view.samples.after.complete && gan.view.samples.after.naturalWidth > 0")
    stage = watched.page.locator(".stage")
    seen = {}
    for split in (0, 50, 100):
        watched.page.locator(".stage .split").evaluate(
            "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }", split
        )
        path = tmp_path / f"{split}.png"
        stage.screenshot(path=path)
        with Image.open(path) as shot:
            row = np.asarray(shot.convert("L")).astype(float)[20]
        quarters = np.array_split(row, 4)  # two pictures, two halves each
        seen[split] = [float(np.median(quarter)) for quarter in quarters]
    dark, bright = seen[100][0], seen[0][0]
    assert bright - dark > 60, "the translated picture of the last epoch is the brighter one"
    assert max(np.abs(np.array(seen[0]) - bright)) < 12 and max(np.abs(np.array(seen[100]) - dark)) < 12
    assert np.abs(np.array(seen[50]) - [dark, bright, dark, bright]).max() < 12, (
        "every picture is cut in its middle"
    )


def test_hover_shows_the_logged_values_and_log_scale_works(run_and_page, open_file):
    watched = open_file(run_and_page[0], viewport={"width": 1280, "height": 1600})
    watched.wait("gan.view.board.charts.size >= 4")
    plot = watched.page.locator(".chart", has_text="Adversarial").locator(".plot")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    watched.page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 80)
    watched.wait("[...document.querySelectorAll('.tip')].some(tip => !tip.hidden)")
    text = plot.locator(".tip").inner_text()
    step = int(text.split("step")[1].split()[0].replace(",", ""))
    assert f"epoch {(step - 1) // 8 + 1}" in text
    assert math.isclose(float(text.split()[-1]), 1 / step, rel_tol=1e-3)
    assert 35 < step < 65
    watched.page.mouse.move(5, 5)
    watched.wait("[...document.querySelectorAll('.tip')].every(tip => tip.hidden)")
    before = plot.screenshot()
    watched.page.get_by_label("log scale").check()
    watched.wait("gan.view.board.log")
    wait_until(lambda: plot.screenshot() != before)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(params=["file", "http"])
def address(request, run_and_page) -> Iterator[str]:
    """Of the page's folder."""
    folder = run_and_page[0].folder
    if request.param == "file":
        yield folder.as_uri()
        return
    handler = functools.partial(Quiet, directory=str(folder))
    with serving(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)) as served:
        yield served


def test_it_updates_itself_while_training(run_and_page, open_file, address):
    run, page = run_and_page
    watched = open_file(run, address)
    watched.wait(f"gan.view.samples.selected === {EPOCHS - 1}")
    watched.page.evaluate("window.sameDocument = true")
    log_epoch(run, page, EPOCHS + 1)
    watched.wait(f"gan.view.samples.selected === {EPOCHS}")
    assert watched.page.inner_text("#status") == "training"
    watched.page.keyboard.press("Home")
    log_epoch(run, page, EPOCHS + 2)
    watched.wait(f"gan.view.samples.moments.length === {EPOCHS + 2}")
    assert watched.page.evaluate("gan.view.samples.selected") == 0, (
        "whoever looks at an old epoch stays there"
    )
    assert watched.page.evaluate("window.sameDocument"), "nothing was loaded anew"
    assert len(watched.curve("G_GAN")) == (EPOCHS + 2) * 8
    assert all(url.startswith((address + "/", "data:")) for url in watched.requests)
    page.close()
    watched.wait("document.getElementById('status').textContent === 'ended'")


def test_a_page_that_hears_nothing_says_so_and_one_of_a_stopped_run_how_to_resume(tmp_path, open_file):
    run = FakeRun(tmp_path)
    page = Page()
    page.start(dataclasses.replace(run.info, total_steps=20), [])
    page.progress(3, 1)
    watched = open_file(run)
    watched.wait("document.getElementById('status').textContent === 'training'")
    assert "Step\n3" in watched.page.inner_text(".tiles") and "Time left" in watched.page.inner_text(".tiles")
    assert "The first values come at step" in watched.page.inner_text("main")
    assert not watched.page.get_by_text("Resume with").is_visible()
    news = (run.folder / "page" / "state.js").read_text()
    state = json.loads(news.removeprefix("gan.state(").removesuffix(");\n"))
    state["updated"] -= 2000
    (run.folder / "page" / "state.js").write_text(f"gan.state({json.dumps(state)});\n")
    watched.wait("document.getElementById('status').textContent === 'no news for 33 min'")
    page.close()
    watched.wait("document.getElementById('status').textContent === 'stopped'")
    assert "--continue_train" in watched.page.get_by_text("Resume with").inner_text()


def test_pictures_are_legible_on_a_phone(tmp_path, open_file):
    """Eight pictures: two of four columns fit beside each other, the others are a swipe away."""
    run = FakeRun(tmp_path)
    page = Page()
    page.start(run.info, [])
    page.record(run.samples(1, count=8))
    phone = {"has_touch": True, "is_mobile": True, "device_scale_factor": 2}
    watched = open_file(run, viewport={"width": 390, "height": 800}, **phone)
    watched.wait("gan.view.samples.after.naturalWidth === 128")
    for view in watched.page.locator(".chip").all():
        view.click()
        if view.inner_text() == "everything":  # a column for each kind, at the same width
            continue
        assert watched.page.evaluate("gan.view.samples.stage.clientWidth / gan.view.samples.columns") >= 160
    wide = watched.page.evaluate("Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)")
    assert wide <= 390, "the page itself does not scroll sideways"
    screenshot(watched.page, "page-phone", full_page=True)


def test_two_runs_side_by_side(tmp_path, browser, monkeypatch, capsys):
    for name in ("one", "two"):
        make_run(tmp_path, 2, name)
    monkeypatch.setattr("sys.argv", ["viewers", "compare", "one", "two", "--checkpoints_dir", str(tmp_path)])
    viewers_main()
    output = Path(capsys.readouterr().out.strip())
    assert output == tmp_path / "compare-one-two.html"
    watched = Watched(browser, output.as_uri(), viewport={"width": 1400, "height": 1000})
    watched.wait("[...document.querySelectorAll('.stage img')].every(image => image.naturalWidth === 64)")
    for part in ("section.run", ".stage", ".charts"):
        first, second = (place.bounding_box() for place in watched.page.locator(part).all())
        assert first["y"] == second["y"] and first["x"] + first["width"] <= second["x"], part
    assert watched.complaints == []
    screenshot(watched.page, "compare", full_page=True)
    watched.context.close()


def test_a_resumed_run_makes_an_open_page_start_over(run_and_page, open_file):
    run, _ = run_and_page
    watched = open_file(run)
    watched.wait(f"gan.view.samples.moments.length === {EPOCHS}")
    again = Page()
    again.start(run.info, [record for record in run.records if record["epoch"] <= 4])
    watched.wait("gan.view.samples.moments.length === 4")
    assert max(watched.curve("G_GAN")) == 32


def test_a_thousand_epochs(tmp_path, open_file):
    run, page = make_run(tmp_path, epochs=1)
    first = run.folder / "samples/step-00000008"
    for epoch in range(2, 1001):
        folder = f"samples/step-{epoch * 8:08d}"
        (run.folder / folder).mkdir()
        pictures = {}
        for file in first.iterdir():
            (run.folder / folder / file.name).hardlink_to(file)
            pictures[file.stem] = file.name
        page.record(train_record(epoch * 8, epoch))
        page.record(
            {"kind": "samples", "step": epoch * 8, "epoch": epoch, "folder": folder, "pictures": pictures}
        )
    watched = open_file(run, viewport={"width": 1280, "height": 1000})
    watched.wait("gan.view.samples.moments.length === 1000")
    watched.wait("gan.view.samples.after.complete && gan.view.samples.after.naturalWidth > 0")
    loaded = {url for url in watched.requests if url.endswith(".png")}
    assert len(loaded) < 80, f"{len(loaded)} pictures loaded for the few that can be seen"
    devtools = watched.context.new_cdp_session(watched.page)
    devtools.send("Performance.enable")

    def milliseconds_on_core() -> float:
        """Of the page's main thread: no measure of how busy the machine is."""
        metrics = {
            entry["name"]: entry["value"] for entry in devtools.send("Performance.getMetrics")["metrics"]
        }
        return metrics["ThreadTime"] * 1e3

    def add(first: int, count: int) -> None:
        watched.page.evaluate(
            """([first, count]) => {
                const view = gan.view;
                for (let epoch = first; epoch < first + count; epoch++) {
                    view.add({kind: "train", step: epoch * 8, epoch, losses: {G_GAN: 1}, lr: 1e-4, time: {}});
                    view.add({kind: "samples", step: epoch * 8, epoch, folder: "samples/step-00000008",
                              pictures: {input: "input.png", fake: "fake.png"}});
                    view.samples.strip.offsetWidth;
                }
            }""",
            [first, count],
        )

    add(1001, 20)
    begin = milliseconds_on_core()
    add(1021, 100)
    cost = (milliseconds_on_core() - begin) / 100
    assert 0 < cost < 10, f"{cost:.2f} ms for an epoch's news after a thousand epochs"
    watched.page.keyboard.press("Home")
    watched.wait("gan.view.samples.selected === 0")


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (320, "dark"), (1280, "dark")])
def test_it_fits_the_screen_and_follows_the_colour_scheme(width, scheme, run_and_page, open_file):
    phone = {"has_touch": True, "is_mobile": True, "device_scale_factor": 2} if width < 500 else {}
    watched = open_file(
        run_and_page[0], viewport={"width": width, "height": 800}, color_scheme=scheme, **phone
    )
    watched.wait(f"gan.view.samples.moments.length === {EPOCHS}")
    watched.page.get_by_text("Options and host").click()
    watched.wait("document.querySelector('details[open]')")
    wide = watched.page.evaluate("Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)")
    assert wide <= width, "no horizontal scrolling"
    ground = watched.page.evaluate("getComputedStyle(document.body).backgroundColor")
    level = int(ground.removeprefix("rgb(").split(",")[0])
    assert level > 200 if scheme == "light" else level < 60
    screenshot(watched.page, f"page-{scheme}-{width}", full_page=True)


def test_a_hostile_name_is_only_text(tmp_path, open_file):
    name = "<img src=x onerror=window.hacked=1>'\"&#"
    run, _ = make_run(tmp_path, 2, name)
    watched = open_file(run)
    watched.wait("gan.view.samples.moments.length === 2 && gan.view.samples.after.complete")
    assert watched.page.inner_text("h1") == name and watched.page.evaluate("window.hacked") is None
    assert watched.page.evaluate("gan.view.samples.after.naturalWidth") == 64, (
        "a picture is found in any folder"
    )


def test_the_report_works_without_its_runs(run_and_page, browser, tmp_path):
    run, _ = run_and_page
    table = Table("Results", ["run", "PSNR"], [["fake", 19.5]])
    path = make_report_page(tmp_path / "report.html", "Report", [run.folder], [table])
    shutil.rmtree(run.folder)
    watched = Watched(browser, path.as_uri(), viewport={"width": 1280, "height": 1000})
    watched.wait("document.querySelectorAll('.thumb').length === 10")
    watched.wait("[...document.querySelectorAll('.stage img')].every(image => image.naturalWidth === 64)")
    assert len(watched.page.query_selector_all(".chart")) == 5
    assert all(url == path.as_uri() or url.startswith("data:") for url in watched.requests)
    assert watched.complaints == []
    screenshot(watched.page, "report", full_page=True)
    watched.context.close()
