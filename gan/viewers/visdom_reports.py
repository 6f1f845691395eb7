"""What is said on the terminal about a Visdom server: where to look, when it is lost, when it is back. No more."""

import getpass
import os
import time
from pathlib import Path

from datasets.errors import say
from gan.viewers.visdom_http import Address, LoginRefused, Unreachable

QUIET_SECONDS = 600.0
"""A connection that comes and goes is reported at most this often."""


class Reports:
    """Keeps count of what was said. `page` is where the run can be watched instead."""

    def __init__(self, page: Path) -> None:
        self.introduced = False
        self._page = page
        self._reported: float | None = None  # when an outage was last reported
        self._owes_return = False

    def lost(self, address: Address, reason: Unreachable, was_connected: bool, closing: bool) -> None:
        """There is no server, or no longer: one line if that is news."""
        now, given_up = time.monotonic(), isinstance(reason, LoginRefused)
        first = self._reported is None and not self.introduced
        recently = self._reported is not None and now - self._reported < QUIET_SECONDS
        if not (first or given_up or (was_connected and not recently and not closing)):
            return
        self._reported = now
        self._owes_return = True
        what = "lost the connection to" if self.introduced else "no server at"
        then = "not tried again" if given_up else "tried again in the background"
        say(f"visdom: {what} {address.page()}: {reason} ({then}; {self._page} shows the same)")

    def reached(self, address: Address, env: str) -> None:
        """The server has everything: say where to look, once, and once after every reported outage."""
        if not self.introduced:
            self.introduced = True
            self._reported = None
            say(f"visdom: {address.page(env)}")
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
