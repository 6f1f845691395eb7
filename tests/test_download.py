"""The downloader against a real web server on the loopback interface, which misbehaves in every way asked for."""

import http.server
import socket
import threading
import urllib.request
from collections.abc import Iterator
from email.message import Message
from pathlib import Path

import pytest

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

    def url(self, path: str = "/set.tar.gz") -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


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
            self.send_header("Location", server.url())
            self.end_headers()
            return
        start = 0
        wanted = self.headers.get("Range")
        if wanted and server.ranges and self.headers.get("If-Range") == server.etag:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(server.data):
                self.send_error(416)
                return
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
            server.ended.wait(20)
        self.close_connection = True


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running
        running.ended.set()
        running.shutdown()
        thread.join()


def failure(url: str, target: Path, idle_seconds: float = 5.0) -> UserError:
    with pytest.raises(UserError) as caught:
        fetch(url, target, idle_seconds)
    assert caught.value.exit_code == 2
    assert len(f"error: {caught.value}") <= 300 and "\n" not in str(caught.value)
    return caught.value


def test_whole_file(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "new" / "set"
    fetch(server.url(), target)
    assert target.read_bytes() == DATA
    assert not (tmp_path / "new/set.part").exists()
    # hashlib.sha256(bytes(range(256)) * 4000), by the coreutils' sha256sum
    assert sha256_of(target) == "062af9ccd890ba3d067ca7150278bcc420069bd82f6e41161029303dfd6d661e"
    fetch(server.url(), target)
    assert len(server.requests) == 1  # it is there already


def test_redirect_is_followed(server: Server, tmp_path: Path) -> None:
    fetch(server.url("/away"), tmp_path / "set")
    assert (tmp_path / "set").read_bytes() == DATA


def test_resume_after_a_broken_connection(server: Server, tmp_path: Path) -> None:
    server.cut = 300_000
    error = failure(server.url(), tmp_path / "set")
    assert f"300000 of {len(DATA)} bytes" in error.reason
    assert (tmp_path / "set.part").stat().st_size == 300_000
    assert not (tmp_path / "set").exists()
    server.cut = None
    fetch(server.url(), tmp_path / "set")
    assert (tmp_path / "set").read_bytes() == DATA
    assert server.requests[1]["Range"] == "bytes=300000-"
    assert server.requests[1]["If-Range"] == '"one"'


@pytest.mark.parametrize("change", ["version", "no ranges", "other address", "no note", "no tag"])
def test_no_resume_with_bytes_of_something_else(server: Server, tmp_path: Path, change: str) -> None:
    server.cut = 300_000
    if change == "no tag":
        server.etag = ""
    failure(server.url(), tmp_path / "set")
    server.cut = None
    server.data = DATA[::-1]
    path = "/set.tar.gz"
    if change == "version":
        server.etag = '"two"'
    elif change == "no ranges":
        server.ranges = False
    elif change == "other address":
        path = "/other.tar.gz"
    elif change == "no note":
        (tmp_path / "set.json").write_text("{broken")
    fetch(server.url(path), tmp_path / "set")
    assert (tmp_path / "set").read_bytes() == DATA[::-1]


def test_partial_file_that_is_already_whole(server: Server, tmp_path: Path) -> None:
    """Killed between the last byte and the rename: the server has no more bytes and says 416."""
    server.cut = 300_000
    failure(server.url(), tmp_path / "set")
    server.cut = None
    (tmp_path / "set.part").write_bytes(DATA)
    fetch(server.url(), tmp_path / "set")
    assert (tmp_path / "set").read_bytes() == DATA
    assert len(server.requests) == 2


def test_partial_file_that_is_too_long_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    server.cut = 300_000
    failure(server.url(), tmp_path / "set")
    server.cut = None
    (tmp_path / "set.part").write_bytes(DATA + b"more")
    fetch(server.url(), tmp_path / "set")
    assert (tmp_path / "set").read_bytes() == DATA


def test_stall_ends_by_the_idle_timeout_and_resumes(server: Server, tmp_path: Path) -> None:
    server.cut, server.stall = 300_000, True
    error = failure(server.url(), tmp_path / "set", idle_seconds=0.3)
    assert "no data for 0.3 s" in error.reason
    server.cut, server.stall = None, False
    fetch(server.url(), tmp_path / "set")
    assert (tmp_path / "set").read_bytes() == DATA
    assert "Range" in server.requests[1]


def test_server_that_accepts_and_never_answers(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        error = failure(f"http://127.0.0.1:{silent.getsockname()[1]}/set", tmp_path / "set", idle_seconds=0.3)
    assert "0.3 s" in error.reason
    assert list(tmp_path.iterdir()) == []


def test_error_page(server: Server, tmp_path: Path) -> None:
    assert "404" in failure(server.url("/missing"), tmp_path / "set").reason
    assert list(tmp_path.iterdir()) == []


def test_html_instead_of_a_file(server: Server, tmp_path: Path) -> None:
    server.kind, server.data = "text/html; charset=utf-8", b"<html>sign in</html>"
    assert "HTML page" in failure(server.url(), tmp_path / "set").reason
    assert list(tmp_path.iterdir()) == []


def test_nobody_listens_or_no_such_host(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as briefly:
        port = briefly.getsockname()[1]
    for url in (f"http://127.0.0.1:{port}/set", "http://no-such-host.invalid/set"):
        assert "cannot be reached" in failure(url, tmp_path / "set").reason
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://127.0.0.1/set", "set.tar.gz", ""])
def test_other_addresses_are_refused(tmp_path: Path, url: str) -> None:
    assert "not an http or https address" in failure(url, tmp_path / "set").reason
    assert list(tmp_path.iterdir()) == []


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


def test_second_download_of_one_file_is_refused(server: Server, tmp_path: Path) -> None:
    """While the first one waits for a stalled server."""
    server.cut, server.stall = 300_000, True
    errors: list[UserError] = []

    def run() -> None:
        try:
            fetch(server.url(), tmp_path / "set", 20.0)
        except UserError as error:
            errors.append(error)

    first = threading.Thread(target=run)
    first.start()
    assert server.sent.wait(10)
    assert "another process" in failure(server.url(), tmp_path / "set").reason
    server.ended.set()
    first.join()
    assert "300000" in errors[0].reason


def test_unwritable_place(server: Server) -> None:
    assert failure(server.url(), Path("/proc/none/set")).subject == "/proc/none/set"
