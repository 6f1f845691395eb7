"""The client of the visdom package, with an end to every request.

The package's own requests wait for an answer without limit. Importing this module imports the package, which takes
about a second: it is done once a server has answered.
"""

import json
import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any

import requests

from gan.viewers.visdom_server import Address, Unreachable, exchange

sys.modules.setdefault("openTSNE", None)  # type: ignore[arg-type]  # Visdom 0.3 would load scikit-learn with it: 20 s

import visdom  # noqa: E402

logging.getLogger("visdom").setLevel(logging.CRITICAL)  # an outage is reported by ours, once


class VisdomClient(visdom.Visdom):
    """Sends messages to one environment, and listens for what people do there.

    cookie: of the session, from `log_in`. on_event: called with every event of a pane that was posted, in the package's
    own thread; without it there is no such thread. Every method that sends raises Unreachable.
    """

    def __init__(
        self,
        address: Address,
        env: str,
        cookie: str = "",
        on_event: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        self.address, self.cookie, self.on_event = address, cookie, on_event
        self.connections = 0
        """How often the package has connected to listen: a rise means that the server was another one or away."""
        self.curves: set[str] = set()  # panes of curves that were drawn
        self._watched: set[str] = set()
        super().__init__(address.origin, port=address.port, base_url=address.path or "/", env=env,
                         use_incoming_socket=False)  # fmt: skip
        if on_event:
            self.listen()

    def listen(self) -> None:
        """Start to listen, or do nothing if the package does so already. It connects anew after an outage."""
        thread = getattr(self, "socket_thread", None)
        if thread is None or not thread.is_alive():
            self.use_socket = True
            self.setup_socket()

    def stop_listening(self) -> None:
        self.use_socket = False

    @property
    def socket_alive(self) -> bool:
        """Whether the server greeted a connection for events. The package sets it."""
        return self._socket_alive

    @socket_alive.setter
    def socket_alive(self, alive: bool) -> None:
        self._socket_alive = alive
        self.connections += alive

    @property
    def session(self) -> requests.Session:
        """Where the package looks for the cookie when it connects for events."""
        session = requests.Session()
        name, _, value = self.cookie.partition("=")
        session.cookies.set(name or "user_password", value)
        return session

    def win_exists(self, win: str, env: str | None = None) -> bool | None:
        """Whether a pane is there; a curve's always is: else the package would make one of the appended points only."""
        exists: bool | None = win in self.curves or super().win_exists(win, env)
        return exists

    def get_env_list(self) -> list[str]:
        """Names of all environments. The package's own request names ours, and 0.3.0 then answers with its panes."""
        url = f"{self.server}:{self.port}{self.base_url}/env_state"
        return list(json.loads(self._handle_post(url, "{}")))

    def _send(self, msg: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        pane = msg.get("win")
        if self.on_event and pane and pane not in self._watched:
            self._watched.add(pane)
            self.register_event_handler(self.on_event, pane)
        return super()._send(msg, *args, **kwargs)

    def _handle_post(self, url: str, data: str | None = None) -> str:
        path = url.removeprefix(f"{self.address.origin}:{self.address.port}{self.address.path}")
        answer = exchange(self.address, "POST", path, data or "", self.cookie)
        if answer.status != 200:
            raise Unreachable(f"it answers {answer.status}")
        return answer.body.decode(errors="replace")
