"""`python -m gan.serve` as a real process: what it answers to programs, to a real Chromium, and to pages elsewhere."""

import base64
import http.client
import io
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from browser_support import PATIENCE, chromium, screenshot
from PIL import Image
from training_support import ROOT, call, environment, picture, translate, untrained_run

from gan.translate import Translator
from gan.translation_server import UPLOAD_LIMIT, _Site


class Server(NamedTuple):
    process: "subprocess.Popen[str]"
    port: int
    said: list[str]  # on stderr

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def ask(
        self, path: str = "/", body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE / 1000)
        connection.request("GET" if body is None else "POST", path, body, headers or {})
        answer = connection.getresponse()
        received = answer.status, answer.headers, answer.read()
        connection.close()
        return received


def started(runs: Path, *flags: object) -> Server:
    command = [
        sys.executable,
        "-m",
        "gan.serve",
        "r",
        "--checkpoints_dir",
        runs,
        "--port",
        0,
        "--device",
        "cpu",
    ]
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [*map(str, command), *map(str, flags)],
        cwd=ROOT, env=environment(), stdout=pipe, stderr=pipe, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    line = process.stdout.readline()
    found = re.match(r"http://[^ ]+:(\d+) ", line)
    assert found, line + process.stderr.read()
    said: list[str] = []
    threading.Thread(
        target=said.extend, args=[process.stderr], daemon=True
    ).start()  # a full pipe would stop it
    return Server(process, int(found[1]), said)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on pictures of 40 x 40 at 20 x 20: half the size is the default."""
    folder = tmp_path_factory.mktemp("runs")
    untrained_run(folder, "--init_gain", 0.3, "--value_range_A", "10,200", sizes={"A": (40.0, 40.0)})
    return folder


@pytest.fixture(scope="module")
def server(runs: Path) -> Iterator[Server]:
    server = started(runs)
    yield server
    server.process.kill()
    server.process.wait()


def expected(runs: Path, file: Path) -> np.ndarray:
    """What test.py writes."""
    output = file.with_name("expected") / "of.png"
    done = translate(
        "--name", "r", "--checkpoints_dir", runs, "--device", "cpu", "--input", file, "--output", output
    )
    assert done.code == 0, done.err
    with Image.open(output) as image:
        return np.asarray(image)


def write_pictures(folder: Path) -> list[Path]:
    """RGB, grey with transparency, 16-bit grey TIFF, a photo that lies on its side."""
    picture(61, 43, 3).save(folder / "rgb.png")
    grey = picture(50, 33, 4, "L")
    Image.merge("LA", (grey, picture(50, 33, 5, "L"))).save(folder / "alpha.png")
    Image.fromarray(np.asarray(grey).astype(np.uint16) * 201).save(folder / "deep.tif")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(45, 30, 6).save(folder / "turned.jpg", exif=exif)
    return sorted(folder.iterdir())


def test_a_program_gets_what_test_py_writes(server: Server, runs: Path, tmp_path: Path) -> None:
    before = sorted(path for path in runs.rglob("*") if path.is_file())
    for file in write_pictures(tmp_path):
        status, headers, answer = server.ask(f"/translate?name={file.name}", file.read_bytes())
        assert status == 200, answer
        cut = int(headers["Input-Length"])
        shown, made = (np.asarray(Image.open(io.BytesIO(part))) for part in (answer[:cut], answer[cut:]))
        assert np.array_equal(made, expected(runs, file)) and made.std() > 10, file.name
        assert shown.shape == made.shape
    assert before == sorted(path for path in runs.rglob("*") if path.is_file())  # nothing is written


def test_four_channels(tmp_path: Path) -> None:
    untrained_run(tmp_path, "--input_nc", 4, "--output_nc", 4, "--init_gain", 0.3)
    file = tmp_path / "four.png"
    transparent = picture(31, 22, 7)
    transparent.putalpha(picture(31, 22, 8, "L"))
    transparent.save(file)
    site = _Site(Translator.load(tmp_path / "r", device="cpu"), frozenset())
    parts = site.translate("four.png", file.read_bytes())
    shown, made = (np.asarray(Image.open(io.BytesIO(part))) for part in parts)
    assert made.shape == (22, 31, 4) and np.array_equal(made, expected(tmp_path, file))
    assert np.array_equal(shown, np.asarray(transparent))


def test_pictures_wait_for_each_other(server: Server, tmp_path: Path) -> None:
    bodies = [file.read_bytes() for file in write_pictures(tmp_path)]
    alone = [server.ask("/translate", body)[2] for body in bodies]
    with ThreadPoolExecutor(8) as together:
        answers = list(together.map(lambda k: server.ask("/translate", bodies[k % 4]), range(16)))
    assert [answer[0] for answer in answers] == [200] * 16
    assert all(answer[2] == alone[k % 4] for k, answer in enumerate(answers))


def test_what_is_wrong_is_one_line_and_a_status(server: Server, tmp_path: Path) -> None:
    data = io.BytesIO()
    picture(60, 60).save(data, "PNG")
    whole = data.getvalue()
    cut, wide = whole[: len(whole) // 2], bytearray(whole)
    wide[16:24] = (60_000).to_bytes(4, "big") * 2
    tiff = tmp_path / "x.tif"
    picture(60, 60).save(tiff)
    for name, body, words in (
        ("notes.txt", b"no picture", "is not an image but looks like text"),
        ("cut.png", cut, "truncated or damaged"),
        ("empty.png", b"", "is empty"),
        ("wide.png", bytes(wide), "damaged"),  # its checksum; Pillow looks at that first
        ("huge.pgm", b"P5 60000 60000 255\n", "claims far too many pixels"),
        ("large.pgm", b"P5 9000 9000 255\n", "claims 81 megapixels, at most 64"),
        ("long.pgm", b"P5 70000 2 255\n", "claims 70000x2 pixels"),
        ("cut.tif", tiff.read_bytes()[:3000], "truncated or damaged"),
        ("a%0Ab/../%3Cb%3E.png", b"no", "looks like text"),
    ):
        status, headers, answer = server.ask(f"/translate?name={name}", body)
        line = answer.decode()
        assert status == 400 and words in line and "\n" not in line and len(line) < 300, (name, line)
        assert headers["Content-Type"].startswith("text/plain")
    assert server.ask("/translate", whole)[0] == 200  # it goes on


def test_a_body_that_is_too_large_is_refused_and_not_kept(server: Server) -> None:
    status, _, line = server.ask("/translate?name=x.png", bytes(UPLOAD_LIMIT + 1))
    assert (status, line) == (413, b"x.png: is larger than 128 MB")
    headers = {"Transfer-Encoding": "chunked"}
    assert server.ask("/translate", b"1\r\nx\r\n0\r\n\r\n", headers)[0] == 411


@pytest.mark.parametrize("path", ["/", "/translate"])
def test_pages_elsewhere_are_refused(server: Server, path: str) -> None:
    here, body = f"localhost:{server.port}", b"no picture" if path == "/translate" else None
    fine = 400 if body else 200
    for host in ("evil.example", f"evil.example:{server.port}", "127.0.0.2", "0.0.0.0", "["):
        assert server.ask(path, body, {"Host": host})[0] in (400, 403), host
        assert b"picture" not in server.ask(path, body, {"Host": host})[2]
    for origin in ("http://evil.example", "null", "", "http://localhost", "file://"):
        assert server.ask(path, body, {"Host": here, "Origin": origin})[0] == 403, origin
    assert server.ask(path, body, {"Host": here, "Origin": f"http://{here}"})[0] == fine
    assert server.ask(path, body, {"Host": f"[::1]:{server.port}"})[0] == fine


def test_the_policy_lets_nothing_in(server: Server) -> None:
    status, headers, page = server.ask()
    policy = headers["Content-Security-Policy"]
    assert status == 200 and "default-src 'none'" in policy and "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert re.findall(rb"(?:src|href)=\"(?!data:)[^\"]*\"", page) == []


def test_ctrl_c_ends_it_with_0(runs: Path) -> None:
    server = started(runs)
    taken = call("gan.serve", "r", "--checkpoints_dir", runs, "--port", server.port)
    assert taken.code == 2 and "cannot be served: Address already in use" in taken.error
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as half:
        half.sendall(b"POST /translate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nx")
        assert server.ask()[0] == 200  # meanwhile
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(60) == 0
    assert server.said == []


def test_another_address_is_served_with_a_warning_until_sigterm(runs: Path) -> None:
    try:
        socket.create_server(("127.0.0.2", 0)).close()
    except OSError as error:
        pytest.skip(f"no second address of this machine: {error}")
    server = started(runs, "--host", "127.0.0.2")
    with socket.create_connection(("127.0.0.2", server.port), timeout=60) as connection:
        connection.sendall(f"GET / HTTP/1.0\r\nHost: 127.0.0.2:{server.port}\r\n\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
    server.process.terminate()
    assert server.process.wait(60) == 0
    assert len(server.said) == 1 and server.said[0].startswith("warning: --host: "), server.said


def test_wrong_usage(runs: Path) -> None:
    assert "RUN: is required" in call("gan.serve").error
    assert "--port: is 99999" in call("gan.serve", "r", "--port", 99999).error
    assert "--host: is no single address" in call("gan.serve", "r", "--host", "0.0.0.0").error
    gone = call("gan.serve", runs / "gone", "--port", 0)
    assert gone.code == 2 and "gone" in gone.error
    far = call("gan.serve", "r", "--checkpoints_dir", runs, "--port", 0, "--host", "192.0.2.1")
    assert far.code == 2 and "cannot be served" in far.error


def test_help_needs_no_torch() -> None:
    script = "import sys, gan.serve; print({'torch', 'tornado', 'numpy', 'PIL'} & {*sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "set()", done.stderr


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1100, "height": 900}, color_scheme="dark")
    context.set_default_timeout(PATIENCE)
    yield context.new_page()
    context.close()


def pixels(page: Any, canvas: str) -> np.ndarray:
    address = page.evaluate(f"document.getElementById('{canvas}').toDataURL()")
    with Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))) as image:
        return np.asarray(image.convert("RGB"))


def drop(page: Any, file: Path) -> None:
    """Drop a file onto the page."""
    transfer = page.evaluate_handle(
        """([data, name]) => {
          const transfer = new DataTransfer(), bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
          transfer.items.add(new File([bytes], name));
          return transfer;
        }""",
        [base64.b64encode(file.read_bytes()).decode(), file.name],
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})


@pytest.mark.browser
def test_a_dropped_picture_is_shown_beside_what_test_py_makes_of_it(
    server: Server, page: Any, runs: Path, tmp_path: Path
) -> None:
    requests: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(server.address)
    page.wait_for_selector("#status[data-status=ready]")
    for file in write_pictures(tmp_path):
        drop(page, file)
        page.wait_for_selector(f"#save[download='{file.stem}.png'][href]")
        page.wait_for_selector("#status[data-status=done]")
        wanted = expected(runs, file)
        assert np.array_equal(pixels(page, "after"), wanted), file.name
        assert pixels(page, "before").shape == wanted.shape
        assert page.inner_text("#told").startswith(
            "as test.py: translated at the scale of training, 0.5 x 0.5"
        )
        with page.expect_download() as download:
            page.click("#save")
        assert np.array_equal(np.asarray(Image.open(download.value.path())), wanted)
    assert not page.is_visible("#scale")
    page.fill(".split", "20")
    assert page.evaluate("document.querySelector('.stage').style.getPropertyValue('--split')") == "20%"
    assert (
        page.evaluate(
            "getComputedStyle(document.querySelector('.stage')).getPropertyValue('--columns')"
        ).strip()
        == "1"
    )
    screenshot(page, "serve", full_page=True)
    assert complaints == []
    assert all(url.startswith((server.address, "blob:", "data:")) for url in requests), requests


@pytest.mark.browser
def test_the_page_shows_what_is_wrong_in_one_line(server: Server, page: Any, tmp_path: Path) -> None:
    page.goto(server.address)
    good = io.BytesIO()
    picture(60, 60).save(good, "PNG")
    for name, content, words in (
        ("notes.png", b"no picture", "notes.png: is not an image but looks like text (replace or remove it)"),
        ("cut.png", good.getvalue()[:3000], "cut.png: truncated or damaged"),
        ("large.png", None, "large.png: is larger than 128 MB, the most that is taken"),
    ):
        file = tmp_path / name
        file.write_bytes(content or b"")
        if content is None:
            with file.open("r+b") as sparse:
                sparse.truncate(UPLOAD_LIMIT + 1)
        page.set_input_files("#file", file)
        page.wait_for_selector(f"#error:not([hidden]):has-text('{name}')")
        line = page.inner_text("#error")
        assert line.startswith(words) and "\n" not in line
        assert page.get_attribute("#status", "data-status") == "failed"
    (tmp_path / "good.png").write_bytes(good.getvalue())
    page.set_input_files("#file", tmp_path / "good.png")
    page.wait_for_selector("#status[data-status=done]")
    assert not page.is_visible("#error")
