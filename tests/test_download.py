"""The downloader against a real web server on the loopback interface, which misbehaves in every way asked for."""

import http.server
import socket
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.message import Message
from pathlib import Path

import pytest
from conftest import serving

from datasets.download import NoDowngrade, fetch
from datasets.errors import UserError
from datasets.files import sha256_of

DATA = bytes(range(256)) * 4000  # 1 MB


class Server(http.server.ThreadingHTTPServer):
    """What it does is set by the test; what it was asked is kept in `requests`."""

    daemon_threads = True
    etag = '"one"'
    data = DATA
    cut: int | None = None  # bytes after which the connection is closed
    stall = False  # ... or after which nothing more comes
    ranges = True
    kind = "application/octet-stream"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[dict[str, str]] = []
        self.sent, self.ended = threading.Event(), threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/set.tar.gz"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        """Be quiet."""

    def do_GET(self) -> None:
        server = self.server
        server.requests.append(dict(self.headers))
        if self.path == "/missing":
            self.send_error(404, "Not Found")
            return
        if self.path == "/away":
            self.send_response(302)
            self.send_header("Location", server.url)
            self.end_headers()
            return
        start = 0
        wanted = self.headers.get("Range")
        if wanted and server.ranges and self.headers.get("If-Range") == server.etag:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(server.data) - 1}/{len(server.data)}")
        else:
            self.send_response(200)
        self.send_header("Content-Type", server.kind)
        self.send_header("Content-Length", str(len(server.data) - start))
        if server.etag:
            self.send_header("ETag", server.etag)
        self.end_headers()
        self.wfile.write(server.data[start : server.cut])
        server.sent.set()
        if server.stall:
            self.wfile.flush()
            server.ended.wait()
        self.close_connection = True


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    with serving(running):
        yield running
        running.ended.set()


@pytest.fixture
def cut_at_300_000(server: Server, target: Path) -> Server:
    """A server that has broken off once and is well again."""
    server.cut = 300_000
    assert f"300000 of {len(DATA)} bytes" in failure(server.url, target).reason
    assert part(target).stat().st_size == 300_000 and not target.exists()
    server.cut = None
    return server


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "new" / "set"


def part(target: Path) -> Path:
    return target.with_name("set.part")


def failure(url: str, target: Path, idle_seconds: float = 5.0) -> UserError:
    with pytest.raises(UserError) as caught:
        fetch(url, target, idle_seconds)
    assert caught.value.exit_code == 2
    assert len(f"error: {caught.value}") <= 300 and "\n" not in str(caught.value)
    return caught.value


def leaves_nothing(url: str, target: Path, reason: str, idle_seconds: float = 5.0) -> bool:
    """Whether it fails for this reason and no file is there afterwards."""
    assert reason in failure(url, target, idle_seconds).reason
    return not any(path.is_file() for path in target.parent.parent.rglob("*"))


def test_whole_file(server: Server, target: Path) -> None:
    fetch(server.url, target)
    assert target.read_bytes() == DATA
    assert not part(target).exists()
    # hashlib.sha256(bytes(range(256)) * 4000), by the coreutils' sha256sum
    assert sha256_of(target) == "062af9ccd890ba3d067ca7150278bcc420069bd82f6e41161029303dfd6d661e"
    fetch(server.url, target)
    assert len(server.requests) == 1  # it is there already


def test_redirect_is_followed(server: Server, target: Path) -> None:
    fetch(server.url.replace("set.tar.gz", "away"), target)
    assert target.read_bytes() == DATA


def test_resume_after_a_broken_connection(cut_at_300_000: Server, target: Path) -> None:
    fetch(cut_at_300_000.url, target)
    assert target.read_bytes() == DATA
    request = cut_at_300_000.requests[1]
    assert (request["Range"], request["If-Range"]) == ("bytes=300000-", '"one"')


@pytest.mark.parametrize("change", ["version", "no ranges", "other address", "no note"])
def test_no_resume_with_bytes_of_something_else(cut_at_300_000: Server, target: Path, change: str) -> None:
    server = cut_at_300_000
    server.data = DATA[::-1]
    if change == "version":
        server.etag = '"two"'
    elif change == "no ranges":
        server.ranges = False
    elif change == "no note":
        target.with_name("set.json").write_text("{broken")
    fetch(server.url + "?" * (change == "other address"), target)
    assert target.read_bytes() == DATA[::-1]


def test_no_resume_from_a_server_that_names_no_version(server: Server, target: Path) -> None:
    server.cut, server.etag = 300_000, ""
    failure(server.url, target)
    server.cut, server.data = None, DATA[::-1]
    fetch(server.url, target)
    assert target.read_bytes() == DATA[::-1]


@pytest.mark.parametrize(("more", "requests"), [(b"", 1), (b"more", 2)])
def test_partial_file_that_is_already_whole(
    cut_at_300_000: Server, target: Path, more: bytes, requests: int
) -> None:
    """Killed between the last byte and the rename: nothing is asked. One that is too long is fetched anew."""
    part(target).write_bytes(DATA + more)
    fetch(cut_at_300_000.url, target)
    assert target.read_bytes() == DATA
    assert len(cut_at_300_000.requests) == requests


def test_stall_ends_by_the_idle_timeout_and_resumes(server: Server, target: Path) -> None:
    server.cut, server.stall = 300_000, True
    assert "no data for 1 s" in failure(server.url, target, idle_seconds=1).reason
    server.cut, server.stall = None, False
    fetch(server.url, target)
    assert target.read_bytes() == DATA
    assert "Range" in server.requests[1]


def test_server_that_accepts_and_never_answers(target: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/set"
        assert leaves_nothing(url, target, "1 s", idle_seconds=1)


def test_pages_instead_of_a_file(server: Server, target: Path) -> None:
    assert leaves_nothing(server.url.replace("set.tar.gz", "missing"), target, "404")
    server.kind, server.data = "text/html; charset=utf-8", b"<html>sign in</html>"
    assert leaves_nothing(server.url, target, "HTML page")


def test_nobody_listens_or_no_such_host(target: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as briefly:
        port = briefly.getsockname()[1]
    assert leaves_nothing(f"http://127.0.0.1:{port}/set", target, "cannot be reached")
    assert leaves_nothing("http://no-such-host.invalid/set", target, "cannot be reached")


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://127.0.0.1/set", "set.tar.gz", ""])
def test_other_addresses_are_refused(target: Path, url: str) -> None:
    assert leaves_nothing(url, target, "not an http or https address")


@pytest.mark.parametrize(
    ("old", "new", "allowed"),
    [
        ("https://a.example/x", "https://b.example/x", True),
        ("http://a.example/x", "https://a.example/x", True),
        ("http://a.example/x", "http://b.example/x", True),
        ("https://a.example/x", "http://a.example/x", False),
        ("https://a.example/x", "HTTP://a.example/x", False),
        ("https://a.example/x", "ftp://a.example/x", False),
        ("http://a.example/x", "file:///etc/passwd", False),
    ],
)
def test_redirects_never_weaken_the_connection(old: str, new: str, allowed: bool) -> None:
    def redirect() -> urllib.request.Request | None:
        return NoDowngrade().redirect_request(urllib.request.Request(old), None, 302, "Found", Message(), new)

    if allowed:
        assert redirect().full_url == new
    else:
        with pytest.raises(UserError, match="not followed"):
            redirect()


def test_second_download_of_one_file_is_refused(server: Server, target: Path) -> None:
    """While the first one waits for a stalled server."""
    server.cut, server.stall = 300_000, True
    with ThreadPoolExecutor() as pool:
        first = pool.submit(failure, server.url, target, 600.0)
        server.sent.wait()
        assert "another process" in failure(server.url, target).reason
        server.ended.set()
        assert "300000" in first.result().reason


def test_unwritable_place(server: Server) -> None:
    assert failure(server.url, Path("/proc/none/set")).subject == "/proc/none/set"
