"""The server that a run starts answers this machine's own pages and programs, and no page of another origin."""

import asyncio
import http.client
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from browser_support import chromium
from conftest import serving
from visdom_support import needs_visdom, unused_port

from gan.viewers.visdom_server import Address, LocalServer

pytestmark = needs_visdom


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    server = LocalServer(tmp_path_factory.mktemp("visdom"), Address(port=unused_port()), keep=False)
    server.start()
    yield server.address.port
    server.stop()


def status(port: int, path: str, host: str, origin: str | None = None, body: str | None = None) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Host": host} | ({} if origin is None else {"Origin": origin})
    connection.request("GET" if body is None else "POST", path, body, headers)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


@pytest.mark.parametrize("path", ["/", "/env/main", "/static/css/style.css", "/no/such/page"])
def test_other_host_names_are_refused(port: int, path: str) -> None:
    """A name elsewhere can be made to lead here (DNS rebinding); the port may be that of an ssh tunnel."""
    for host in (
        "evil.example",
        f"evil.example:{port}",
        "localhost.evil.example",
        "127.0.0.2",
        "[::2]",
        "[",
        "",
    ):
        assert status(port, path, host) in (400, 403), host
    for host in ("localhost", f"localhost:{port}", "localhost:9999", f"127.0.0.1:{port}", f"[::1]:{port}"):
        assert status(port, path, host) not in (400, 403), host


def test_an_origin_must_be_the_host_that_was_asked(port: int) -> None:
    here = f"localhost:{port}"
    ask = lambda origin: status(port, "/env_state", here, origin, "{}")
    assert ask(None) == 200  # a program
    assert ask(f"http://{here}") == 200
    for origin in (
        "http://evil.example",
        f"http://evil.example:{port}",
        "null",
        "",
        "http://localhost",
        "file://",
    ):
        assert ask(origin) == 403, origin


def test_sockets_are_refused_too(port: int) -> None:
    from tornado.httpclient import HTTPClientError, HTTPRequest
    from tornado.websocket import websocket_connect

    async def connect(path: str, headers: dict[str, str]) -> bool:
        try:
            connection = await websocket_connect(HTTPRequest(f"ws://127.0.0.1:{port}{path}", headers=headers))
        except HTTPClientError as error:
            assert error.code == 403
            return False
        connection.close()
        return True

    for path in ("/socket", "/vis_socket"):
        assert asyncio.run(connect(path, {}))
        assert asyncio.run(connect(path, {"Origin": f"http://127.0.0.1:{port}"}))
        assert not asyncio.run(connect(path, {"Origin": "http://evil.example"}))
        assert not asyncio.run(connect(path, {"Host": "evil.example"}))


ATTACK = """<!doctype html><title>working</title><script>
const at = "http://localhost:PORT";
const send = (path, body) =>
  fetch(at + path, {method: "POST", mode: "no-cors", body: JSON.stringify(body)}).catch(() => 0);
const socket = new Promise(done => {
  const s = new WebSocket("ws://localhost:PORT/socket");
  s.onopen = () => { s.send(JSON.stringify({cmd: "delete_env", eid: "victim"})); done("open"); };
  s.onerror = () => done("refused");
});
Promise.all([
  send("/events", {win: "attack", eid: "victim", data: [{type: "text", content: "<img src=x onerror=alert(1)>"}]}),
  send("/delete_env", {eid: "victim"}), socket,
]).then(all => { document.title = "done " + all[2]; });
</script>"""


def test_a_page_of_another_origin_in_a_real_browser_changes_nothing(port: int) -> None:
    class Evil(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = ATTACK.replace("PORT", str(port)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *arguments: object) -> None:
            pass

    def ask(path: str, **message: object) -> object:
        connection = http.client.HTTPConnection("localhost", port, timeout=60)
        connection.request("POST", path, json.dumps(message))
        answer = connection.getresponse().read()
        connection.close()
        return json.loads(answer) if answer[:1] in b"[{tf" else answer

    pane = {"win": "mine", "eid": "victim", "opts": {}, "data": [{"type": "text", "content": "kept"}]}
    ask("/events", **pane)
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Evil)) as address, chromium() as browser:
        page = browser.new_page()
        page.goto(address)
        page.wait_for_function("document.title.startsWith('done')", timeout=120_000)
        assert page.title() == "done refused"
    assert ask("/win_exists", win="mine", eid="victim") is True
    assert ask("/win_exists", win="attack", eid="victim") is False
