"""Visdom servers: where one is, whether it answers, and one of our own that only this machine can reach.

`python -m gan.viewers.visdom_server [--keep] [server arguments]` is the process of our own. It serves without the
download step that ends a server without internet. It ends with whoever started it: standard input is a pipe from
there, and a training that is killed closes it. With `--keep` it stays.
"""

import contextlib
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
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, quote, urlsplit

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
    def parts(self) -> SplitResult:
        return urlsplit(self.server if "://" in self.server else "http://" + self.server)

    @property
    def host(self) -> str:
        return self.parts.hostname or "localhost"

    @property
    def is_loopback(self) -> bool:
        return self.host in LOOPBACK_NAMES

    @property
    def origin(self) -> str:
        """Scheme and host, without port: http://[::1]."""
        return f"{self.parts.scheme}://{f'[{self.host}]' if ':' in self.host else self.host}"

    @property
    def path(self) -> str:
        """The base path without a slash at its end: empty for `/`."""
        return f"/{self.base_url.strip('/')}".rstrip("/")

    def page(self, env: str = "") -> str:
        """The address a person opens."""
        return f"{self.origin}:{self.port}{self.path}" + (f"/env/{quote(env)}" if env else "")


@dataclass(frozen=True)
class Answer:
    """What a server said: status, the cookie it set (empty if none), and the body."""

    status: int
    cookie: str
    body: bytes


def exchange(address: Address, method: str, path: str, body: str = "", cookie: str = "") -> Answer:
    """One request that always ends. Raises Unreachable.

    A time-out per read is not enough: a server may send one byte a second. So the connection is shut down after
    REQUEST_TIMEOUT, whatever comes in.
    """
    seconds = REQUEST_TIMEOUT
    is_https = address.parts.scheme == "https"
    kind = http.client.HTTPSConnection if is_https else http.client.HTTPConnection
    connection = kind(address.host, address.port, timeout=seconds)
    late = threading.Event()

    def give_up() -> None:
        late.set()
        with contextlib.suppress(OSError, AttributeError):  # there is no socket before it is connected
            connection.sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
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
        reason = getattr(error, "strerror", None) or str(error)
        if late.is_set() or isinstance(error, TimeoutError):
            reason = f"no answer within {seconds:.0f} s"
        elif isinstance(error, http.client.HTTPException) and not isinstance(error, OSError):
            reason = "what answers there does not speak HTTP"
        raise Unreachable(reason) from error
    finally:
        timer.cancel()
        connection.close()


def log_in(address: Address, username: str = "", password: str = "") -> str:
    """The cookie of a session, empty without a user name, if page and interface there are Visdom's.

    Raises Unreachable if not, Refused if the server does not let us in.
    """
    cookie = ""
    if username:
        hashed = hashlib.sha256(password.encode()).hexdigest()  # what Visdom's login page sends
        answer = exchange(address, "POST", "/", json.dumps({"username": username, "password": hashed}))
        if answer.status in (400, 401):
            raise Refused(f"the login of {username!r} is refused")
        if answer.status != 200:
            raise Unreachable(f"its login answers {answer.status}")
        cookie = answer.cookie
    status = exchange(address, "GET", "/env/main", cookie=cookie).status
    if status in (400, 401) and not username:
        raise Refused("it wants a login (--visdom_username, --visdom_password)")
    if status == 403:
        raise Unreachable("it answers 403 (Visdom needs tornado<6.6)")
    if status != 200:
        raise Unreachable(f"its page answers {status}")
    try:
        is_visdom = isinstance(json.loads(exchange(address, "POST", "/env_state", "{}", cookie).body), list)
    except ValueError:
        is_visdom = False
    if not is_visdom:
        raise Unreachable("what answers there is not Visdom")
    return cookie


class LocalServer:
    """One server on the loopback interface, with its log and state under `folder`."""

    def __init__(self, folder: Path, address: Address, keep: bool) -> None:
        self.address = address
        self.log = folder / "server.log"
        self._folder, self._keep = folder, keep
        self._process: subprocess.Popen[bytes] | None = None
        self._starts = 0
        self._is_over = False
        self._lock = threading.Lock()  # no process is started after `stop`

    @property
    def is_running(self) -> bool:
        """Whether the process exists. It may not answer yet, or be stopped."""
        process = self._process
        return process is not None and process.poll() is None

    def start(self) -> None:
        """Start the process, on the next free port if the wanted one is taken, and wait until it answers.

        Raises Unreachable if it ends or does not answer, Refused if it cannot be started or has ended too often.
        """
        if self._starts == START_LIMIT:
            raise Refused(f"the one that was started ended {START_LIMIT} times, see {self.log}")
        self._starts += 1
        try:
            with self._lock:
                self._process = process = self._launch()
        except OSError as error:
            raise Refused(f"none could be started: {error}") from error
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                log_in(self.address)
            except Unreachable as error:
                if process.poll() is None and time.monotonic() < deadline:
                    time.sleep(0.1)
                    continue
                what = "does not answer" if process.poll() is None else f"ended: {self._last_words()}"
                raise Unreachable(f"the one that was started {what}, see {self.log}") from error
            return

    def _launch(self) -> subprocess.Popen[bytes]:
        """Start the process in a way that no fork in another thread can delay.

        Otherwise Popen waits for the end of a pipe, which a process that is forked at that moment inherits and holds
        open until it ends. Without `close_fds`, `cwd` and `start_new_session` it needs none (posix_spawn). All
        our descriptors are closed by exec.
        """
        if self._is_over:
            raise OSError("the training is over")
        if importlib.util.find_spec("visdom") is None:
            raise OSError("the visdom package is not installed")
        port = free_port(self.address.port)
        self.address = Address("http://localhost", port, self.address.base_url)
        (self._folder / "state").mkdir(parents=True, exist_ok=True)
        # with -P, so that `import visdom` there does not find the file beside this one
        command = [sys.executable, "-P", __file__, *(["--keep"] if self._keep else [])]
        command += ["-logging_level", "WARNING"]  # it would log every request
        command += ["-port", str(port), "-bind_local", "-env_path", str(self._folder.resolve() / "state")]
        command += ["-base_url", self.address.path] if self.address.path else []
        stdin = subprocess.DEVNULL if self._keep else subprocess.PIPE
        with self.log.open("ab") as log:
            return subprocess.Popen(command, stdin=stdin, stdout=log, stderr=log, close_fds=False)

    def _last_words(self) -> str:
        """The last line of the log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "without a word")

    def stop(self) -> None:
        """End the process within seconds, unless it is to be kept."""
        with self._lock:
            self._is_over = True
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
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise OSError(f"ports {wanted} to {wanted + PORTS_TRIED - 1} are all taken")


PAGE_FILES = (
    "js/plotly-plotly.min.js",
    "js/react-react.min.js",
    "js/jquery.min.js",
    "css/bootstrap.min.css",
    "fonts/glyphicons-halflings-regular.woff2",
)
"""Some of the files that Visdom downloads at its first start. Its page stays blank without those in js/."""

BLANK = "its server could not load Visdom's scripts (docs/watching.md says what helps)"


def is_blank(address: Address) -> bool:
    """Whether the page of the server that answers there lacks its scripts. Raises Unreachable."""
    scripts = [name for name in PAGE_FILES if name.startswith("js/")]
    return any(exchange(address, "HEAD", f"/static/{name}").status == 404 for name in scripts)


# The process of our own server.

DOWNLOAD_SECONDS = 20
"""How long Visdom's own download of its page's files may take at the first start."""


def main(arguments: list[str]) -> None:
    """Serve until the starter is gone. Raises ImportError without Visdom, SystemExit if the port is taken."""
    if "--keep" in arguments:
        arguments.remove("--keep")
    else:
        threading.Thread(target=_end_with_starter, daemon=True).start()
    if not sys.stdin.isatty():
        with contextlib.suppress(OSError):  # it leads a session or a group already
            os.setsid()  # Ctrl-C is for the training, which then stops the server
    package = importlib.util.find_spec("visdom")  # finds it without the seconds of importing it
    static = Path(package.origin).parent / "static" if package and package.origin else Path("none")
    if not all((static / name).is_file() for name in PAGE_FILES):
        download = [sys.executable, "-c", "from visdom.server.build import download_scripts as d; d()"]
        try:
            subprocess.run(download, timeout=DOWNLOAD_SECONDS, stdin=subprocess.DEVNULL)
        except subprocess.TimeoutExpired:
            print(f"the download of the page's files took more than {DOWNLOAD_SECONDS} s", flush=True)
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
    port = int(arguments[arguments.index("-port") + 1]) if "-port" in arguments else 8097
    try:
        # Visdom 0.3 would serve on another port, where nobody looks
        socket.create_server(("127.0.0.1", port)).close()
        serve()
    except OSError as error:  # the port is taken
        sys.exit(f"error: {error}")


def refuse_foreign(handler: Any, names: Collection[str] = LOOPBACK_NAMES) -> None:
    """Answer 403 to a page of another origin, which could stop the training and run scripts in Visdom's page.

    handler: tornado's, of a page, a request or a socket. The name in Host must be one of this machine's `names` (a page
    elsewhere may have a name that leads here), the port may be a tunnel's. An Origin must equal Host; programs send
    none.
    """
    import tornado.web

    host, origin = handler.request.host, handler.request.headers.get("Origin")
    try:
        is_ours = urlsplit(f"//{host}").hostname in names
    except ValueError:
        is_ours = False
    if not is_ours or (origin is not None and urlsplit(origin).netloc != host):
        raise tornado.web.HTTPError(403)


def _end_with_starter() -> None:
    os.read(0, 1)  # nothing is ever written to it
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
