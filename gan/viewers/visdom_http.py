"""Requests to a Visdom server that always end: every one has a connect time-out and a deadline as a whole.

The visdom package's own client waits without limit for an answer, and so would a time-out per read if a server sent
one byte a second. Here a request is one connection, written and read until a moment fixed in advance.
"""

import base64
import contextlib
import hashlib
import http.client
import io
import json
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import quote, urlsplit

CONNECT_TIMEOUT = 3.0
REQUEST_TIMEOUT = 10.0
"""Seconds until an answer must be complete."""

ANSWER_LIMIT = 64_000_000
"""Bytes of an answer that are read at most."""


class Unreachable(Exception):
    """No server that answers as Visdom does; the text says what happened instead."""


class WrongAnswer(Unreachable):
    """The server is there and refuses this one request."""


class LoginRefused(Unreachable):
    """The server does not take this user name and password."""


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
    def is_encrypted(self) -> bool:
        return urlsplit(self._with_scheme()).scheme == "https"

    @property
    def is_loopback(self) -> bool:
        return self.host in ("localhost", "127.0.0.1", "::1")

    @property
    def path(self) -> str:
        """The base path without a slash at its end: empty for `/`."""
        return "/" + self.base_url.strip("/") if self.base_url.strip("/") else ""

    def page(self, env: str = "") -> str:
        """The address a person opens."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        place = f"/env/{quote(env)}" if env else ""
        return f"{'https' if self.is_encrypted else 'http'}://{host}:{self.port}{self.path}{place}"

    def _with_scheme(self) -> str:
        return self.server if "://" in self.server else "http://" + self.server


class Client:
    """Speaks Visdom's JSON interface. Every method raises Unreachable, and nothing else, when it cannot."""

    def __init__(self, address: Address, username: str = "", password: str = "") -> None:
        self.address = address
        self.timeout = REQUEST_TIMEOUT
        self._login = (username, password) if username else None
        self._cookie = ""

    def probe(self) -> None:
        """Log in if there is a name to log in with, then make sure that page and interface are Visdom's."""
        if self._login:
            self._log_in(*self._login)
        status, _, _ = self._exchange("GET", "/env/main")
        if status in (400, 401) and not self._login:
            raise LoginRefused("it wants a login (--visdom_username, --visdom_password)")
        if status == 403:
            raise Unreachable("it answers 403 (Visdom needs tornado<6.6)")
        if status != 200:
            raise Unreachable(f"its page answers {status}")
        try:
            known = json.loads(self.post("env_state", {}))
        except ValueError as error:
            raise Unreachable("what answers there is not Visdom") from error
        if not isinstance(known, list):
            raise Unreachable("what answers there is not Visdom")

    def post(self, endpoint: str, message: Any) -> bytes:
        """Send one message and return the answer's body. Raises WrongAnswer for any status but 200."""
        status, _, body = self._exchange("POST", "/" + endpoint, json.dumps(message).encode())
        if status != 200:
            raise WrongAnswer(f"it answers {status}")
        return body

    def _log_in(self, username: str, password: str) -> None:
        hashed = hashlib.sha256(password.encode()).hexdigest()  # what Visdom's login page sends
        body = json.dumps({"username": username, "password": hashed}).encode()
        status, headers, _ = self._exchange("POST", "/", body)
        if status in (400, 401):
            raise LoginRefused(f"the login of {username!r} is refused")
        if status != 200:
            raise Unreachable(f"its login answers {status}")
        self._cookie = (headers.get("Set-Cookie") or "").partition(";")[0]

    def _exchange(
        self, method: str, path: str, body: bytes = b""
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        deadline = time.monotonic() + self.timeout
        fields = {"Connection": "close", "Content-Type": "application/json", "Content-Length": str(len(body))}
        with failures_as_unreachable(self.timeout):
            with self.connect() as connection:
                connection.settimeout(self.timeout)
                connection.sendall(self.head(method, path, fields) + body)
                raw = _receive(connection, deadline)
            # HTTPResponse reads from anything with makefile(); here the bytes are all there already
            answer = http.client.HTTPResponse(cast(socket.socket, _Received(raw)), method=method)
            answer.begin()
            return answer.status, answer.headers, answer.read()

    def connect(self) -> socket.socket:
        """A connection to the server. Raises OSError, within CONNECT_TIMEOUT."""
        wait = min(CONNECT_TIMEOUT, self.timeout)
        plain = socket.create_connection((self.address.host, self.address.port), timeout=wait)
        if not self.address.is_encrypted:
            return plain
        try:
            return ssl.create_default_context().wrap_socket(plain, server_hostname=self.address.host)
        except BaseException:
            plain.close()
            raise

    def head(self, method: str, path: str, fields: Mapping[str, str]) -> bytes:
        """The head of a request, with the login in it."""
        lines = [
            f"{method} {self.address.path}{path} HTTP/1.1",
            f"Host: {self.address.host}:{self.address.port}",
        ]
        lines += [f"{name}: {value}" for name, value in fields.items()]
        credentials = urlsplit(self.address.server)
        if credentials.username:  # a proxy in front of the server may want its own
            pair = f"{credentials.username}:{credentials.password or ''}".encode()
            lines.append("Authorization: Basic " + base64.b64encode(pair).decode())
        if self._cookie:
            lines.append(f"Cookie: {self._cookie}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode()


@contextlib.contextmanager
def failures_as_unreachable(timeout: float) -> Iterator[None]:
    """Whatever goes wrong on a connection becomes Unreachable, in words."""
    try:
        yield
    except TimeoutError as error:
        raise Unreachable(f"no answer within {timeout:.0f} s") from error
    except http.client.HTTPException as error:
        raise Unreachable("what answers there does not speak HTTP") from error
    except (OSError, ValueError) as error:
        raise Unreachable(getattr(error, "strerror", None) or str(error)) from error


def _receive(connection: socket.socket, deadline: float) -> bytes:
    """Everything up to the end of the answer. Raises TimeoutError at the deadline, however fast bytes come."""
    raw = bytearray()
    wanted: int | None = None
    while wanted is None or len(raw) < wanted:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        piece = connection.recv(1 << 16)
        if not piece:
            break
        raw += piece
        if len(raw) > ANSWER_LIMIT:
            raise ValueError("its answer does not end")
        if wanted is None:
            wanted = _full_length(raw)
    return bytes(raw)


def _full_length(raw: bytearray) -> int | None:
    """Bytes of the whole answer, where its head is complete and says so."""
    head, separator, _ = bytes(raw[:65536]).partition(b"\r\n\r\n")
    if not separator:
        return None
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length" and value.strip().isdigit():
            return len(head) + 4 + int(value)
    return None


class _Received:
    """Bytes that were received, as the socket that `http.client` wants to read from."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def makefile(self, *_: object, **__: object) -> io.BytesIO:
        return io.BytesIO(self._raw)
