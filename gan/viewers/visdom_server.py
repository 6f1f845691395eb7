"""Visdom servers: where one is, whether it answers, and one of our own that only this machine can reach.

`python -m gan.viewers.visdom_server [--keep] [server arguments]` is the process of our own. It serves without the
download step that ends a server without internet. It ends with whoever started it: standard input is a pipe from
there, and a training that is killed closes it. With `--keep` it stays.
"""

import contextlib
import functools
import hashlib
import http.client
import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

CONNECT_TIMEOUT = 3.0
REQUEST_TIMEOUT = 10.0
"""Seconds until an answer must be complete."""

ANSWER_LIMIT = 64_000_000
"""Bytes of an answer that are read at most."""

START_LIMIT = 3
"""How often a run starts a server. One that ends each time is left alone."""

START_SECONDS = 45.0
"""How long a server that was started may take until it answers (its own download of scripts included)."""

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
STOP_SECONDS = 2.0
PORTS_TRIED = 20
ROOT = Path(__file__).resolve().parents[2]


class Unreachable(Exception):
    """No server that answers as Visdom does. The text says what happened instead."""


class Refused(Unreachable):
    """There is no use in trying again."""


@dataclass(frozen=True)
class Address:
    """Where a server is: `server` like http://localhost, `base_url` the path it is mounted under."""

    server: str = "http://localhost"
    port: int = 8097
    base_url: str = "/"

    @property
    def host(self) -> str:
        return urlsplit(self._with_scheme()).hostname or "localhost"

    @property
    def scheme(self) -> str:
        return urlsplit(self._with_scheme()).scheme

    @property
    def is_loopback(self) -> bool:
        return self.host in LOOPBACK_NAMES

    @property
    def origin(self) -> str:
        """Scheme and host, without port: http://[::1]."""
        return f"{self.scheme}://{f'[{self.host}]' if ':' in self.host else self.host}"

    @property
    def path(self) -> str:
        """The base path without a slash at its end: empty for `/`."""
        return "/" + self.base_url.strip("/") if self.base_url.strip("/") else ""

    def page(self, env: str = "") -> str:
        """The address a person opens."""
        return f"{self.origin}:{self.port}{self.path}" + (f"/env/{quote(env)}" if env else "")

    def _with_scheme(self) -> str:
        return self.server if "://" in self.server else "http://" + self.server


@dataclass(frozen=True)
class Answer:
    """What a server said: status, the cookie it set (empty if none), and the body."""

    status: int
    cookie: str
    body: bytes


def exchange(
    address: Address, method: str, path: str, body: str = "", cookie: str = "", seconds: float | None = None
) -> Answer:
    """One request that always ends. Raises Unreachable.

    A time-out per read is not enough: a server may send one byte a second. So the connection is shut down after
    `seconds` (default: REQUEST_TIMEOUT), whatever comes in.
    """
    seconds = REQUEST_TIMEOUT if seconds is None else seconds
    kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
    connection = kind(address.host, address.port, timeout=min(CONNECT_TIMEOUT, seconds))
    late = threading.Event()

    def give_up() -> None:
        late.set()
        with contextlib.suppress(OSError):
            connection.sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    try:
        connection.connect()
        connection.sock.settimeout(seconds)
        timer.start()
        headers = {"Content-Type": "application/json"} | ({"Cookie": cookie} if cookie else {})
        connection.request(method, address.path + path, body.encode(), headers)
        answer = connection.getresponse()
        received = answer.read(ANSWER_LIMIT + 1)
        if len(received) > ANSWER_LIMIT:
            raise Unreachable("its answer does not end")
        if late.is_set():
            raise TimeoutError
        return Answer(answer.status, (answer.headers.get("Set-Cookie") or "").partition(";")[0], received)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if late.is_set() or isinstance(error, TimeoutError):
            raise Unreachable(f"no answer within {seconds:.0f} s") from error
        if isinstance(error, http.client.HTTPException) and not isinstance(error, OSError):
            raise Unreachable("what answers there does not speak HTTP") from error
        raise Unreachable(getattr(error, "strerror", None) or str(error)) from error
    finally:
        timer.cancel()
        connection.close()


def log_in(address: Address, username: str = "", password: str = "", seconds: float | None = None) -> str:
    """The cookie of a session, empty without a user name, if page and interface there are Visdom's.

    seconds: for each of the requests. Raises Unreachable if not, Refused if the server does not let us in.
    """
    ask = functools.partial(exchange, address, seconds=seconds)
    cookie = ""
    if username:
        hashed = hashlib.sha256(password.encode()).hexdigest()  # what Visdom's login page sends
        answer = ask("POST", "/", json.dumps({"username": username, "password": hashed}))
        if answer.status in (400, 401):
            raise Refused(f"the login of {username!r} is refused")
        if answer.status != 200:
            raise Unreachable(f"its login answers {answer.status}")
        cookie = answer.cookie
    status = ask("GET", "/env/main", cookie=cookie).status
    if status in (400, 401) and not username:
        raise Refused("it wants a login (--visdom_username, --visdom_password)")
    if status == 403:
        raise Unreachable("it answers 403 (Visdom needs tornado<6.6)")
    if status != 200:
        raise Unreachable(f"its page answers {status}")
    try:
        is_visdom = isinstance(json.loads(ask("POST", "/env_state", "{}", cookie).body), list)
    except ValueError:
        is_visdom = False
    if not is_visdom:
        raise Unreachable("what answers there is not Visdom")
    return cookie


class LocalServer:
    """One server on the loopback interface, with its log and state under `folder`.

    Only the training's own thread starts and stops the process. A loader worker that another thread forks at that
    moment would inherit the pipe on which `Popen` waits for the start to succeed, and hold it open for an epoch.
    """

    def __init__(self, folder: Path, address: Address, keep: bool) -> None:
        self.address = address
        self.log = folder / "server.log"
        self.has_answered = False  # since its last start; whoever talks to it sets this
        self.failure = ""  # why the last start failed, empty if it did not
        self._folder, self._keep, self._wanted_port = folder, keep, address.port
        self._process: subprocess.Popen[bytes] | None = None
        self._starts, self._started_at = 0, 0.0

    @property
    def is_running(self) -> bool:
        """Whether the process exists. It may not answer yet, or be stopped."""
        process = self._process
        return process is not None and process.poll() is None

    @property
    def is_starting(self) -> bool:
        """Whether it has not had its time to answer for the first time yet."""
        on_time = time.monotonic() < self._started_at + START_SECONDS
        return self.is_running and not self.has_answered and on_time

    def start(self) -> None:
        """Start the process, on the next free port if the wanted one is taken; it answers a few seconds later.

        Does nothing while it runs. Notes the failure if it cannot be started.
        """
        if not self.is_running:
            try:
                self._start()
            except OSError as error:
                self.failure = str(error)

    def _start(self) -> None:
        if self._starts == START_LIMIT:
            raise OSError(f"it ended {START_LIMIT} times, see {self.log}")
        if importlib.util.find_spec("visdom") is None:
            raise OSError("the visdom package is not installed")
        port = free_port(self.address.port)
        self.address = Address("http://localhost", port, self.address.base_url)
        (self._folder / "state").mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "gan.viewers.visdom_server"]
        command += ["-logging_level", "WARNING"]  # it would log every request
        command += ["-port", str(port), "-bind_local", "-env_path", str(self._folder.resolve() / "state")]
        command += ["-base_url", self.address.path] if self.address.path else []
        command += ["--keep"] if self._keep else []
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL if self._keep else subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the training, which then stops the server
            )
        self._starts += 1
        self._started_at, self.has_answered = time.monotonic(), False

    def notes(self) -> list[str]:
        """What a person should know about the server, one line each."""
        notes = []
        if missing_scripts():
            notes.append(
                "Visdom's page will stay blank: it could not load its scripts (docs/watching.md says what helps)"
            )
        if self.address.port != self._wanted_port:
            held = f"port {self._wanted_port} is held by something that is not Visdom"
            notes.append(f"{held}, port {self.address.port} is used")
        return notes

    def stop(self) -> None:
        """End the process within seconds, unless it is to be kept."""
        process, self._process = self._process, None
        if process is None or self._keep:
            return
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()  # also where it is stopped (SIGSTOP)
            process.wait()
        if process.stdin:
            with contextlib.suppress(OSError):
                process.stdin.close()


def free_port(wanted: int) -> int:
    """`wanted`, or the next port above it that nothing listens on. Raises OSError if there is none near."""
    for port in range(wanted, min(wanted + PORTS_TRIED, 65536)):
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # as the server itself will bind it
            listener.bind(("127.0.0.1", port))
            listener.listen(1)
            return port
    raise OSError(f"ports {wanted} to {wanted + PORTS_TRIED - 1} are all taken")


# The process of our own server.

DOWNLOAD_SECONDS = 20
"""How long Visdom's own download of its page's scripts may take at the first start."""

PAGE_SCRIPTS = (
    "js/plotly-plotly.min.js",
    "js/react-react.min.js",
    "js/jquery.min.js",
    "css/bootstrap.min.css",
)
"""Some of the files without which the page stays blank."""


def missing_scripts() -> list[str]:
    """The page's scripts that the installed Visdom lacks."""
    package = importlib.util.find_spec("visdom")  # finds it without the seconds of importing it
    static = Path(package.origin).parent / "static" if package and package.origin else Path("none")
    return [name for name in PAGE_SCRIPTS if not (static / name).is_file()]


def main(arguments: list[str]) -> None:
    """Serve until the starter is gone. Raises ImportError without Visdom, OSError if the port is taken."""
    if "--keep" in arguments:
        arguments.remove("--keep")
    else:
        threading.Thread(target=_end_with_starter, daemon=True).start()
    if missing_scripts():
        download = [sys.executable, "-c", "from visdom.server.build import download_scripts as d; d()"]
        try:
            subprocess.run(download, timeout=DOWNLOAD_SECONDS, stdin=subprocess.DEVNULL)
        except subprocess.TimeoutExpired:
            print(f"the download of the page's scripts took more than {DOWNLOAD_SECONDS} s", flush=True)
    for unused in ("torch", "openTSNE"):  # Visdom's client alone uses them: seconds and 500 MB
        sys.modules[unused] = None  # type: ignore[assignment]
    import tornado.web
    import visdom.server.app
    from visdom.server.run_server import main as serve

    tornado.web.RequestHandler.prepare = refuse_foreign  # type: ignore[assignment, method-assign]
    visdom.server.app.tornado_settings["autoreload"] = False  # else it starts anew when a source file changes
    if hasattr(visdom.server.app, "DEFAULT_MAX_IMAGE_HISTORY"):  # Visdom 0.3 keeps 4 unless told
        visdom.server.app.DEFAULT_MAX_IMAGE_HISTORY = 1000
    sys.argv = ["visdom", *arguments]
    serve()


def refuse_foreign(handler: Any) -> None:
    """Answer 403 to a page of another origin, which could stop the training and run scripts in Visdom's page.

    handler: tornado's, of a page, a request or a socket. The name in Host must be this machine's (a page elsewhere may
    have a name that leads here), the port may be a tunnel's. An Origin must equal Host; programs send none.
    """
    import tornado.web

    host, origin = handler.request.host, handler.request.headers.get("Origin")
    try:
        is_ours = urlsplit(f"//{host}").hostname in LOOPBACK_NAMES
    except ValueError:
        is_ours = False
    if not is_ours or (origin is not None and urlsplit(origin).netloc != host):
        raise tornado.web.HTTPError(403)


def _end_with_starter() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
