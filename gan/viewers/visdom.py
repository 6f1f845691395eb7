"""The run in Visdom: samples, curves, options, and three buttons. Nothing here can slow or stop a training.

The methods below only put things into an inbox; `visdom_sender` does the rest in a thread of its own.
"""

import os
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from datasets.errors import UserError, say
from gan.viewers import Record, RunInfo, Viewer
from gan.viewers.history import read_records
from gan.viewers.visdom_http import Address, Client
from gan.viewers.visdom_sender import Sender
from gan.viewers.visdom_server import LocalServer

Mode = Literal["auto", "on", "off", "offline"]

FLUSH_SECONDS = 5.0
"""How long the end of a run waits for what is still to be sent."""


class Visdom(Viewer):
    """Shows the run on the server at `server`:`port``base_url`, in the environment `env` (default: the run's name).

    mode: auto uses a server that answers, now or later; on starts one on this machine if none does, and stops it at
    the end unless `keep`; offline sends nothing (`python -m gan.viewers RUN` plays the run's files later); off is
    silent. The password may come from the environment variable VISDOM_PASSWORD instead, the name from
    VISDOM_USERNAME. A user name without a password is one warning, and no login is sent.
    """

    def __init__(
        self,
        mode: Mode = "auto",
        server: str = "http://localhost",
        port: int = 8097,
        base_url: str = "/",
        env: str = "",
        username: str = "",
        password: str = "",
        keep: bool = False,
    ) -> None:
        self._mode = mode
        self._env = env
        self._keep = keep
        self._sender: Sender | None = None
        username, password = _login(username, password)
        self._lacks_password = username if not password else ""
        self._client = Client(Address(server, port, base_url), username if password else "", password)

    def start(self, run: RunInfo, records: Iterable[Record]) -> None:
        if self._mode == "off":
            return
        if self._mode == "offline":
            folder = shlex.quote(str(run.folder))
            say(f"visdom: offline; play the run into a server later with: python -m gan.viewers {folder}")
            return
        if self._lacks_password:
            name = self._lacks_password
            say(f"warning: visdom: no password for {name!r} (set VISDOM_PASSWORD); going on without a login")
        server = None
        if self._mode == "on" and self._client.address.is_loopback:
            server = LocalServer(run.folder / "visdom", self._client.address, self._keep)
        env = environment_name(self._env or run.name)
        reread = lambda: read_records(run.folder)
        self._sender = Sender(run, env, self._client, server, records, reread)
        self._sender.start()

    def record(self, record: Record) -> None:
        if (
            self._sender and record["kind"] != "samples"
        ):  # those come through `samples`, once their files exist
            self._sender.inbox.put(record)

    def samples(self, record: Record, pictures: Mapping[str, Path]) -> None:
        if self._sender:
            self._sender.inbox.put(record)

    def commands(self) -> set[str]:
        return self._sender.commands() if self._sender else set()

    def close(self) -> None:
        if self._sender:
            self._sender.close(FLUSH_SECONDS)
            self._sender = None


def make_client(address: Address, username: str, password: str) -> Client:
    """A client with the login of these arguments or of VISDOM_USERNAME and VISDOM_PASSWORD.

    Raises UserError for a user name without a password.
    """
    username, password = _login(username, password)
    if username and not password:
        raise UserError(
            "--visdom_username", "there is no password for it", "set VISDOM_PASSWORD in the environment"
        )
    return Client(address, username, password)


def _login(username: str, password: str) -> tuple[str, str]:
    """User name and password, each from the environment where it is not given."""
    username = username or os.environ.get("VISDOM_USERNAME", "")
    return username, password or os.environ.get("VISDOM_PASSWORD", "")


def environment_name(name: str) -> str:
    """The name as Visdom can keep it: a file name and a part of an address.

    >>> environment_name("../x <img>"), environment_name("maps_nc-ms.2")
    ('x_img', 'maps_nc-ms.2')
    """
    return re.sub(r"[^\w.-]+", "_", name).strip("._") or "run"
