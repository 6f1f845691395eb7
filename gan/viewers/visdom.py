"""The run in Visdom: samples, curves, options, and three buttons. Nothing here can slow or stop a training.

The training's thread only adds records to a `Board`, which holds what the server shows. A thread of the viewer's own
brings the news to the server, and starts a server where one is wanted. The board is kept up to date whether or not
there is a server. So an outage loses nothing: when a server answers again, everything is sent anew.
"""

import getpass
import os
import re
import shlex
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets.errors import say, warn
from gan.viewers import Record, RunInfo, Viewer
from gan.viewers.visdom_panes import Board, command_of, moments_on_server
from gan.viewers.visdom_server import BLANK, Address, LocalServer, Refused, Unreachable, is_blank, log_in

if TYPE_CHECKING:  # it imports the visdom package
    from gan.viewers.visdom_client import VisdomClient

FLUSH_SECONDS, GOODBYE_SECONDS = 5.0, 1.0
"""How long the end of a run waits for what is still to be sent, and for a server that does not answer."""

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
"""Seconds between attempts to reach a server: doubled from the first to the longest."""

PAUSE, LONGEST_PAUSE, SHARE = 1.0, 10.0, 0.05
"""Seconds between two updates: at least PAUSE, more so that updating takes at most SHARE of the time."""

QUIET_SECONDS = 600.0
"""A connection that comes and goes is reported at most this often."""


class Visdom(Viewer):
    """Shows the run on the server at `server`:`port``base_url`, in the environment `env` (default: the run's name).

    mode: auto uses a server that answers, now or later; on starts one on this machine if none does, and stops it at
    the end unless `keep`; offline sends nothing (`python -m gan.viewers RUN` plays the run's files later). The password
    may come from the environment variable VISDOM_PASSWORD instead, the name from VISDOM_USERNAME. A user name without a
    password is one warning, and no login is sent. controls: buttons that steer the training also on a server that this
    run has not started, where others may click them.
    """

    def __init__(
        self,
        mode: str = "auto",
        server: str = "http://localhost",
        port: int = 8097,
        base_url: str = "/",
        env: str = "",
        username: str = "",
        password: str = "",
        keep: bool = False,
        controls: bool = False,
    ) -> None:
        self._mode, self._env, self._keep, self._controls = mode, env, keep, controls
        self._address = Address(server, port, base_url)
        self._login = login_of(username, password)
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._server: LocalServer | None = None
        self._client: VisdomClient | None = None
        self._connected_since: float | None = None
        self._connections_seen = 0
        self._given_up = False
        self._wait, self._next_try = FIRST_WAIT, 0.0
        self._commands: deque[str] = deque()

    # In the training's thread.

    def start(self, run: RunInfo, records: Iterable[Record]) -> None:
        if self._mode == "offline":
            folder = shlex.quote(str(run.folder))
            say(f"visdom: offline; play the run into a server later with: python -m gan.viewers {folder}")
            return
        username, password = self._login
        if username and not password:
            warn("visdom", f"no password for {username!r} (set VISDOM_PASSWORD); continuing without a login")
            self._login = ("", "")
        self._run, self._env = run, environment_name(self._env or run.name)
        self._board = Board(records)
        self._saved_epoch = self._board.epoch
        is_asked_for = self._mode == "on" or self._address != Address() or bool(self._login[0])
        self._reports = Reports(run.folder, is_asked_for)
        if self._mode == "on" and self._address.is_loopback:
            self._server = LocalServer(run.folder / "visdom", self._address, self._keep)
        self._thread = threading.Thread(target=self._work, name="visdom", daemon=True)
        self._thread.start()

    def record(self, record: Record) -> None:
        if self._thread:
            self._board.add(record)

    def commands(self) -> set[str]:
        return {self._commands.popleft() for _ in range(len(self._commands))}

    def close(self) -> None:
        if self._thread:
            self._closing.set()
            stays = self._server is not None and self._server.is_running and self._keep
            answers = stays or self._connected_since is not None
            self._thread.join(FLUSH_SECONDS if answers else GOODBYE_SECONDS)
            self._thread = None
            self._reports.ended(self._address)  # so that nothing is said of a server that is stopped now
            if self._server:
                self._server.stop()

    # In the viewer's thread.

    def _work(self) -> None:
        try:
            pause = 0.0
            while not self._closing.wait(pause):
                pause = self._update()
            self._update()
        except Exception as error:  # our own fault: still nothing that a training should hear of
            warn("visdom", f"stopped: {type(error).__name__}: {error} (training continues without it)")
        finally:
            if self._client:
                self._client.stop_listening()

    def _update(self) -> float:
        """Bring the server, where there is one, up to date. Returns the seconds to wait until the next time."""
        begin = time.monotonic()
        if self._given_up:
            return PAUSE
        try:
            if self._connected_since is None and begin >= self._next_try:
                self._connect()
            if self._connected_since is not None:
                assert self._client
                self._notice_restart(self._client)
                self._push(self._client)
                return min(LONGEST_PAUSE, max(PAUSE, (time.monotonic() - begin) / SHARE))
        except Unreachable as error:
            self._lost(error)
        return PAUSE

    def _connect(self) -> None:
        """Connect, to a server of our own where there is no other. Raises Unreachable if there is none."""
        try:
            cookie = log_in(self._address, *self._login)
        except Refused:
            raise
        except Unreachable:
            if self._server is None or self._server.is_running:
                raise
            wanted, cookie = self._address.port, ""
            self._server.start()
            self._address = self._server.address
            if self._address.port != wanted:
                used = f"port {self._address.port} is used"
                say(f"note: port {wanted} is held by something that is not Visdom, {used}")
        self._connected_since = time.monotonic()
        self._listen(cookie)
        self._start_over()

    def _listen(self, cookie: str) -> None:
        """Make a client of the package, or wake the one that there is."""
        try:
            from gan.viewers.visdom_client import VisdomClient
        except ImportError as error:
            raise Refused("the visdom package is not installed") from error
        if self._client and self._client.address == self._address:
            self._client.cookie = cookie
            self._client.listen()
        else:
            self._client = VisdomClient(self._address, self._env, cookie, self._on_event)

    def _start_over(self) -> None:
        """Send everything again: the server is another one, or has forgotten us."""
        assert self._client
        self._connections_seen = self._client.connections
        self._board.forget_sent(moments_on_server(self._client, self._board))

    def _notice_restart(self, client: "VisdomClient") -> None:
        """Start over if the server has been away, however shortly. Raises Unreachable if it is away now."""
        again = client.connections > self._connections_seen > 0
        self._connections_seen = client.connections
        if again or (self._board.fixed_sent and self._env not in client.get_env_list()):
            self._start_over()

    def _push(self, client: "VisdomClient") -> None:
        for send in self._board.take_news(self._run, client.connections > 0 and self._is_steered):
            send(client)
        if self._closing.is_set() or self._board.epoch > self._saved_epoch:
            client.save([self._env])
            self._saved_epoch = self._board.epoch
        self._reports.reached(self._address, self._env)

    def _on_event(self, event: Mapping[str, Any]) -> None:
        """Take what was clicked. Called in the package's thread."""
        if self._is_steered and (command := command_of(event, self._env)):
            self._commands.append(command)
        elif event.get("event_type") == "close" and event.get("eid") == self._env:
            self._board.forget_pane(str(event.get("target")))

    @property
    def _is_steered(self) -> bool:
        """Whether clicks are obeyed: those on our own server, which only this machine reaches, or as asked for."""
        return self._controls or (self._server is not None and self._server.is_running)

    def _lost(self, reason: Unreachable) -> None:
        """Note the outage, report it once, and try again later: after 1, 2, 4, ... 60 seconds."""
        since, self._connected_since = self._connected_since, None
        now = time.monotonic()
        if since is not None and now - since > LONGEST_WAIT:
            self._wait = FIRST_WAIT  # a server that comes and goes is asked less and less
        self._next_try = now + self._wait
        self._wait = min(LONGEST_WAIT, 2 * self._wait)
        self._given_up = isinstance(reason, Refused)
        if not (self._closing.is_set() and since is not None):
            self._reports.lost(self._address, reason, since is not None)


class Reports:
    """What is said on the terminal: where to look, when the server is lost, when it is back. Nothing after the end.

    folder: of the run. is_asked_for: whether somebody has asked for Visdom; others are told of the page only.
    """

    def __init__(self, folder: Path, is_asked_for: bool) -> None:
        self._folder, self._is_asked_for = folder, is_asked_for
        self._introduced = False
        self._reported: float | None = None  # when an outage was last reported
        self._owes_return = False
        self._is_over = False

    def lost(self, address: Address, reason: Unreachable, was_connected: bool) -> None:
        """There is no server, or no longer: one line if that is news."""
        now, given_up = time.monotonic(), isinstance(reason, Refused)
        first = self._reported is None and not self._introduced
        recently = self._reported is not None and now - self._reported < QUIET_SECONDS
        if self._is_over or not (first or given_up or (was_connected and not recently)):
            return
        self._reported = now
        self._owes_return = True
        what = "lost the connection to" if self._introduced else "no server at"
        then = "not tried again" if given_up else "tried again in the background"
        page = self._folder / "index.html"
        if self._is_asked_for or self._introduced or given_up:
            say(f"visdom: {what} {address.page()}: {reason} ({then}; {page} shows the same)")
        else:
            say(f"watch this training in {page}")

    def ended(self, address: Address) -> None:
        """The training is over: say so if the server has shown nothing of it and no word was said about that."""
        self._is_over = True
        if self._is_asked_for and not self._introduced and self._reported is None:
            folder = shlex.quote(str(self._folder))
            play = f"to play it into a server: python -m gan.viewers {folder}"
            say(f"visdom: the training ended before {address.page()} answered, nothing was sent; {play}")

    def reached(self, address: Address, env: str) -> None:
        """The server has everything: say where to look, once, and once after every reported outage."""
        if self._is_over:
            return
        if not self._introduced:
            self._introduced = True
            self._reported = None
            say(f"visdom: {address.page(env)}")
            if is_blank(address):
                say(f"note: that page stays blank: {BLANK}")
            if tunnel := tunnel_command(address):
                say(f"visdom: from your own machine: {tunnel}")
        elif self._owes_return:
            say(f"visdom: {address.page(env)} is back, nothing is missing")
        self._owes_return = False


def tunnel_command(address: Address) -> str:
    """The `ssh -L` line that brings the page to whoever is logged in here from elsewhere; empty if nobody is."""
    parts = os.environ.get("SSH_CONNECTION", "").split()  # their address and port, ours and its port
    if not address.is_loopback or len(parts) != 4:
        return ""
    try:
        user = getpass.getuser() + "@"
    except (OSError, KeyError):  # no entry for this user, as in some containers
        user = ""
    return f"ssh -L {address.port}:localhost:{address.port} {user}{parts[2]}"


def login_of(username: str, password: str) -> tuple[str, str]:
    """User name and password, each from the environment where it is not given."""
    username = username or os.environ.get("VISDOM_USERNAME", "")
    return username, password or os.environ.get("VISDOM_PASSWORD", "")


def environment_name(name: str) -> str:
    """The name as Visdom can keep it: a file name and a part of an address.

    >>> environment_name("../x <img>"), environment_name("maps_nc-ms.2")
    ('x_img', 'maps_nc-ms.2')
    """
    return re.sub(r"[^\w.-]+", "_", name).strip("._") or "run"
