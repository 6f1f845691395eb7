"""The page of `python -m gan.export --format web` in a real Chromium, served as the README says, without a network."""

import base64
import io
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser_support import PATIENCE, chromium, screenshot
from PIL import Image
from training_support import call, picture, translate, untrained_run

from datasets.errors import UserError
from datasets.files import file_lock
from gan.export_web import PACKAGE, RUNTIME, find_runtime

pytestmark = pytest.mark.browser

RUNS = {
    "resnet": ["--norm", "nc_ms", "--value_range_A", "10,200"],
    "unet": [
        "--model", "pix2pix", "--netG", "unet_128", "--norm", "instance", "--crop_size=128", "--load_size=128",
        "--input_nc", 1, "--output_nc", 1,
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def ort(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runtime, fetched by npm as an export without --ort does, and kept from one run of the suite to the next."""
    cache = getattr(pytestconfig, "cache", None)
    folder = Path(cache.mkdir(PACKAGE.replace("@", "-"))) if cache else tmp_path_factory.mktemp("ort")
    with file_lock(folder / "lock") as mine:
        if not mine:  # another worker fetches it at this moment
            folder = tmp_path_factory.mktemp("ort")
        if not all((folder / name).is_file() for name in RUNTIME):
            try:
                with find_runtime("") as files:
                    for name, file in files.items():
                        shutil.copyfile(file, folder / name)
            except UserError as error:
                pytest.skip(f"no runtime for the page: {error}")
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module", params=RUNS)
def exported(request: pytest.FixtureRequest, ort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run `r` and its page in `page`."""
    folder = tmp_path_factory.mktemp("exports")
    run = untrained_run(folder, *RUNS[request.param], sizes={"A": (40.0, 40.0)})
    done = call("gan.export", run, "--format", "web", "--output", folder / "page", "--ort", ort)
    assert done.code == 0, done.err
    return folder


@pytest.fixture
def address(exported: Path) -> Iterator[str]:
    """`python -m http.server` in the folder."""
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"]
    with subprocess.Popen(
        command, cwd=exported / "page", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().split("(")[1].split(")")[0]
        finally:
            server.terminate()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1100, "height": 900}, color_scheme="dark")
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    yield page
    context.close()


def wait(page: Any, status: str) -> None:
    page.wait_for_selector(f"#status[data-status={status}], #status[data-status=failed]")
    assert page.get_attribute("#status", "data-status") == status, page.inner_text("body")


def shown(page: Any) -> np.ndarray:
    """The pixels of the canvas that holds the translation."""
    address = page.evaluate("document.getElementById('after').toDataURL()")
    with Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_a_dropped_picture_becomes_what_test_py_makes_of_it(
    exported: Path, address: str, page: Any, tmp_path: Path
) -> None:
    requests: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    picture(203, 150, 3).save(tmp_path / "rgb.png")
    transparent = picture(61, 90, 4, "RGBA")
    transparent.putalpha(
        Image.linear_gradient("L").resize(transparent.size).point(lambda value: 255 * (value > 99))
    )
    transparent.save(tmp_path / "alpha.png")
    page.goto(address)
    wait(page, "ready")
    for name in ("alpha", "rgb"):
        file = tmp_path / f"{name}.png"
        drop(page, file)
        page.select_option("#scale", label="the picture's size")
        page.wait_for_selector(f"#save[download='{name}.png'][href]")
        wait(page, "done")
        assert "pixels in" in page.inner_text("#told")
        done = translate(
            "--name", "r", "--checkpoints_dir", exported, "--device", "cpu", "--scale", "native",
            "--input", file, "--output", tmp_path / "out" / f"{name}.png",
        )  # fmt: skip
        assert done.code == 0, done.err
        expected = np.asarray(Image.open(tmp_path / "out" / f"{name}.png").convert("RGB")).astype(int)
        assert shown(page).shape == expected.shape
        assert np.abs(shown(page) - expected).max() <= 1
        with page.expect_download() as download:
            page.click("#save")
        assert download.value.suggested_filename == f"{name}.png"
        saved = np.asarray(Image.open(download.value.path()).convert("RGB")).astype(int)
        assert np.array_equal(saved, shown(page))
    screenshot(page, f"export-{page.inner_text('.sub').split()[0]}", full_page=True)
    assert complaints == []
    assert all(url.startswith((address, "blob:")) for url in requests), requests


def drop(page: Any, file: Path) -> None:
    """Drop a file onto the page."""
    data = base64.b64encode(file.read_bytes()).decode()
    transfer = page.evaluate_handle(
        """([data, name]) => {
          const transfer = new DataTransfer(), bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
          transfer.items.add(new File([bytes], name, { type: "image/png" }));
          return transfer;
        }""",
        [data, file.name],
    )
    page.dispatch_event("#drop", "dragover", {"dataTransfer": transfer})
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})


@pytest.mark.parametrize("exported", ["resnet"], indirect=True)
def test_what_is_wrong_is_one_line(exported: Path, address: str, page: Any, tmp_path: Path) -> None:
    text = tmp_path / "notes.png"
    text.write_text("no picture")
    page.goto(address)
    wait(page, "ready")
    page.set_input_files("#file", text)
    page.wait_for_selector("#error:not([hidden])")
    assert page.inner_text("#error") == "notes.png: is no picture that this browser can read"
    picture(40, 30).save(tmp_path / "good.png")
    page.set_input_files("#file", tmp_path / "good.png")  # the scale of training by default, as test.py
    wait(page, "done")
    assert page.inner_text("#told").startswith("20 × 15 pixels in")
    assert shown(page).shape == (30, 40, 3) and not page.is_visible("#error")
    page.goto((exported / "page" / "index.html").as_uri())
    page.wait_for_selector("#error:not([hidden])")
    assert "python -m http.server" in page.inner_text("#error")


@pytest.mark.parametrize("exported", ["resnet"], indirect=True)
def test_a_scale_that_is_chosen_while_a_picture_is_read_loses_no_picture(
    exported: Path, address: str, page: Any, tmp_path: Path
) -> None:
    page.add_init_script(
        """const read = window.createImageBitmap;
        let gate = Promise.resolve();
        window.createImageBitmap = async (...picture) => (await gate, read(...picture));
        window.closeGate = () => { gate = new Promise((resolve) => window.openGate = resolve); };"""
    )
    text = tmp_path / "notes.png"
    text.write_text("no picture")
    for name, size in {"first": (40, 30), "second": (30, 40)}.items():
        picture(*size).save(tmp_path / f"{name}.png")
    page.goto(address)
    wait(page, "ready")
    drop(page, tmp_path / "first.png")
    wait(page, "done")

    def drop_and_choose(scale: str, *files: Path) -> None:
        page.evaluate("closeGate()")
        for file in files:
            drop(page, file)
        page.select_option("#scale", label=scale)
        page.evaluate("openGate()")

    drop_and_choose("the picture's size", tmp_path / "second.png")
    page.wait_for_selector("#save[download='second.png'][href]")
    wait(page, "done")
    assert page.inner_text("#told").startswith("30 × 40 pixels in")
    drop_and_choose("a half of it", text, text)
    page.wait_for_selector("#error:not([hidden])")
    assert page.inner_text("#error") == "notes.png: is no picture that this browser can read"
    page.select_option("#scale", label="a quarter of it")  # of the picture that is still shown
    page.wait_for_selector("#save[download='second.png'][href]")
    wait(page, "done")
    assert page.inner_text("#told").startswith("8 × 10 pixels in") and not page.is_visible("#error")


@pytest.mark.parametrize("exported", ["resnet"], indirect=True)
def test_a_model_that_is_missing_is_told(exported: Path, address: str, page: Any) -> None:
    page.route("**/model.onnx", lambda route: route.fulfill(status=404))
    page.goto(address)
    page.wait_for_selector("#status[data-status=failed]")
    assert page.inner_text("#error").startswith("The model cannot be loaded")
