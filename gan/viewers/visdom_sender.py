"""The thread that talks to Visdom. The training thread only ever puts things into its inbox, which cannot block.

What the server shows is a `Board`, which this thread keeps up to date whether or not there is a server. So an outage
loses nothing: when a server answers again, everything is sent anew. Should the inbox overflow, the board is rebuilt
from `metrics.jsonl`, which holds it all.
"""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterable

from datasets.errors import say
from gan.viewers import Record, RunInfo
from gan.viewers.visdom_events import Events
from gan.viewers.visdom_http import Client, LoginRefused, Unreachable, WrongAnswer
from gan.viewers.visdom_inbox import INBOX_LIMIT, Inbox
from gan.viewers.visdom_launch import missing_scripts
from gan.viewers.visdom_panes import (
    ABOUT,
    HISTORY,
    Board,
    about_message,
    caption_of,
    command_of,
    controls_message,
    placeholder_message,
)
from gan.viewers.visdom_push import send_news
from gan.viewers.visdom_reports import Reports
from gan.viewers.visdom_server import LocalServer

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
"""Seconds between attempts to reach a server: doubled from the first to the longest."""

LISTEN_EVERY = 1.5
"""Seconds between questions for clicks in the controls pane."""

PAUSE, LONGEST_PAUSE, SHARE = 1.0, 10.0, 0.05
"""Seconds between two updates: at least PAUSE, more so that updating takes at most SHARE of the time."""

START_SECONDS = 2.0
"""How long the start of a training waits to learn whether a server answers already."""

SERVER_SECONDS = 45.0
"""How long a server that was started may take until it answers (its own download of scripts included)."""


class Sender:
    """One thread, from `start` to `close`."""

    def __init__(
        self,
        run: RunInfo,
        env: str,
        client: Client,
        server: LocalServer | None,
        known: Iterable[Record],
        reread: Callable[[], Iterable[Record]],
    ) -> None:
        self.inbox = Inbox(INBOX_LIMIT)
        self._run_info, self._env, self._client, self._server = run, env, client, server
        self._server_wanted = False
        self._start_failure = ""
        self._board = _board(known)
        self._reread = reread
        self._connected = False
        self._given_up = False
        self._fixed_panes_sent = False
        self._saved_epoch = self._board.epoch
        self._events: Events | None = None
        self._listen_at = self._next_try = self._next_push = 0.0
        self._wait = FIRST_WAIT
        self._connected_at = 0.0
        self._reports = Reports(run.folder / "index.html")
        self._asked: set[str] = set()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="visdom", daemon=True)

    def start(self) -> None:
        """Start the thread, and before it a server if one may be started and none answers yet."""
        if self._server:
            patience = self._client.timeout
            self._client.timeout = min(patience, START_SECONDS)
            with contextlib.suppress(LoginRefused):  # there is a server
                try:
                    self._client.probe()
                except Unreachable:
                    self._start_server(self._server)
            self._client.timeout = patience
        self._thread.start()

    def close(self, seconds: float) -> None:
        """Send what is left, for so many seconds at most, then stop the server if we started it."""
        self._client.timeout = min(self._client.timeout, seconds)
        self.inbox.close()
        self._thread.join(seconds)
        if self._server:
            self._server.stop()

    def commands(self) -> set[str]:
        """What was clicked since the last call. A server that the thread has missed is started here."""
        if self._server_wanted:
            self._server_wanted = False
            assert self._server
            self._start_server(self._server)
        if not self._asked:
            return set()
        with self._lock:
            asked, self._asked = self._asked, set()
        return asked

    def _work(self) -> None:
        try:
            self._send_until_closed()
        except Exception as error:  # our own fault: still nothing that a training should hear of
            say(f"warning: visdom stopped: {type(error).__name__}: {error} (training continues without it)")
        finally:
            if self._events:
                self._events.close()

    def _send_until_closed(self) -> None:
        closing = False
        while not closing:
            batch = self.inbox.take(self._next_push, self._listen_at if self._connected else self._next_try)
            closing = batch.closing
            if batch.overflowed:
                self._board = _board(self._reread())
            for record in batch.records:
                self._board.add(record)
            if self._given_up:
                self._next_try = time.monotonic() + LONGEST_WAIT
                continue
            try:
                if not self._connected and (closing or time.monotonic() >= self._next_try):
                    self._connect()
                if self._connected:
                    self._push()
                    if closing:
                        self._save()
                    elif time.monotonic() >= self._listen_at:
                        self._listen()
            except Unreachable as error:
                self._lost(error)

    def _connect(self) -> None:
        if self._start_failure:
            reason, self._start_failure = self._start_failure, ""
            self._server = None
            raise Unreachable(f"none could be started: {reason}")
        try:
            if self._server and self._server.is_running and not self._server.has_answered:
                self._await_server(self._server)
            else:
                self._client.probe()
        except LoginRefused:
            raise
        except Unreachable:
            self._server_wanted = self._server is not None and not self._server.is_running
            raise
        self._connected, self._connected_at = True, time.monotonic()
        self._start_over()

    def _start_over(self) -> None:
        """Send everything again, and listen again: the server is another one, or has forgotten us."""
        self._board.forget_sent()
        self._board.history_sent = self._history_on_server()
        self._fixed_panes_sent = False
        self._next_push = 0.0
        self._events = self._register()
        self._listen_at = time.monotonic() + LISTEN_EVERY

    def _history_on_server(self) -> int:
        """How many moments of our slider the server shows already, as after an outage without a restart."""
        if self._client.post("win_exists", {"win": HISTORY, "eid": self._env}) != b"true":
            return 0
        content = json.loads(self._client.post("win_data", {"win": HISTORY, "eid": self._env}))["content"]
        ours = [caption_of(record) for record in self._board.history]
        shown = content[-1]["caption"] if content else ""
        return ours.index(shown) + 1 if shown in ours else 0

    def _start_server(self, server: LocalServer) -> None:
        """Start the process, in the thread that forks the loader's workers and no other."""
        try:
            server.start()
        except OSError as error:
            self._start_failure = str(error)

    def _await_server(self, server: LocalServer) -> None:
        """Wait until the server that was started answers. Raises Unreachable."""
        wanted = self._client.address.port
        self._client.address = server.address
        deadline = time.monotonic() + SERVER_SECONDS
        while True:
            try:
                self._client.probe()
                break
            except Unreachable as error:
                if not server.is_running or time.monotonic() > deadline:
                    raise Unreachable(
                        f"the one that was started does not answer, see {server.log}"
                    ) from error
            time.sleep(0.1)
        server.has_answered = True
        if missing_scripts():
            say(
                "note: Visdom's page will stay blank: it could not load its scripts (docs/watching.md says what helps)"
            )
        if server.address.port != wanted:
            say(
                f"note: port {wanted} is held by something that is not Visdom, port {server.address.port} is used"
            )

    def _push(self) -> None:
        """Bring the server up to date."""
        begin = time.monotonic()
        if not self._fixed_panes_sent and not self._board.newest:
            # the page shows panes in the order they came in: the samples' place comes first
            self._client.post(*placeholder_message(self._env))
        send_news(self._client, self._run_info, self._env, self._board)
        if not self._fixed_panes_sent:
            self._client.post(*about_message(self._run_info, self._env))
            if self._events:
                self._client.post(*controls_message(self._env))
            self._fixed_panes_sent = True
        if self._board.epoch > self._saved_epoch:
            self._save()
        now = time.monotonic()
        self._next_push = now + min(LONGEST_PAUSE, max(PAUSE, (now - begin) / SHARE))
        self._reports.reached(self._client.address, self._env)

    def _save(self) -> None:
        self._client.post("save", {"data": [self._env]})
        self._saved_epoch = self._board.epoch

    def _register(self) -> Events | None:
        """Listen for clicks; None where that is refused, as behind a proxy that knows no WebSocket."""
        if self._events:
            self._events.close()
        try:
            return Events(self._client)
        except WrongAnswer:
            return None

    def _listen(self) -> None:
        """Take what was clicked. A server that is gone shows here at the latest, one that started anew as well."""
        self._listen_at = time.monotonic() + LISTEN_EVERY
        if self._events is None:
            if self._client.post("win_exists", {"win": ABOUT, "eid": self._env}) != b"true":
                self._start_over()
            return
        for event in self._events.poll():
            if command := command_of(event, self._env):
                with self._lock:
                    self._asked = self._asked | {command}
            if event.get("event_type") == "close" and event.get("eid") == self._env:
                self._closed_by_hand(str(event.get("target")))

    def _closed_by_hand(self, pane: str) -> None:
        """A curve that somebody closed comes back whole with its next point, samples with the next ones only.

        Options and buttons stay away until everything is sent again.
        """
        if pane == HISTORY:
            self._board.history.clear()
            self._board.history_sent = 0
        elif pane in self._board.panes:
            self._board.panes[pane].was_sent(False)

    def _lost(self, reason: Unreachable) -> None:
        """Note the outage, report it once, and try again later: after 1, 2, 4, ... 60 seconds."""
        was_connected, self._connected = self._connected, False
        now = time.monotonic()
        if was_connected and now - self._connected_at > LONGEST_WAIT:
            self._wait = FIRST_WAIT  # a server that comes and goes is asked less and less
        self._next_try = now + self._wait
        self._wait = min(LONGEST_WAIT, 2 * self._wait)
        self._given_up = isinstance(reason, LoginRefused)
        self._reports.lost(self._client.address, reason, was_connected, self.inbox.is_closing())


def _board(records: Iterable[Record]) -> Board:
    board = Board()
    for record in records:
        board.add(record)
    return board
