"""What people do on the Visdom page: events over a WebSocket (RFC 6455) that is never waited for.

Visdom also offers events by polling, but only in some releases and without a login. The open connection has a second
use: it breaks when the server ends, so even the quickest restart is noticed.
"""

import base64
import json
import os
import struct
import time
from collections.abc import Iterator
from typing import Any

from gan.viewers.visdom_http import ANSWER_LIMIT, Client, Unreachable, WrongAnswer, failures_as_unreachable

TEXT, CLOSE, PING, PONG = 1, 8, 9, 10


class Events:
    """A listener for events, from its making to `close`. Raises Unreachable, or WrongAnswer if it is not let in."""

    def __init__(self, client: Client) -> None:
        self._raw = bytearray()
        self._text = bytearray()  # of a message whose last part has not come yet
        deadline = time.monotonic() + client.timeout
        key = base64.b64encode(os.urandom(16)).decode()
        upgrade = {"Upgrade": "websocket", "Sec-WebSocket-Key": key, "Sec-WebSocket-Version": "13"}
        with failures_as_unreachable(client.timeout):
            self._connection = client.connect()
            try:
                self._connection.settimeout(client.timeout)
                self._connection.sendall(
                    client.head("GET", "/vis_socket", {**upgrade, "Connection": "Upgrade"})
                )
                while b"\r\n\r\n" not in self._raw:
                    self._connection.settimeout(max(0.001, deadline - time.monotonic()))
                    piece = self._connection.recv(4096)
                    if not piece or len(self._raw) > 65536 or time.monotonic() > deadline:
                        raise TimeoutError if piece else WrongAnswer("it lets nobody listen")
                    self._raw += piece
                head, _, rest = bytes(self._raw).partition(b"\r\n\r\n")
                if head.split(b" ")[1:2] != [b"101"]:
                    raise WrongAnswer("it lets nobody listen")
                self._raw = bytearray(rest)
                self._connection.setblocking(False)
            except BaseException:
                self._connection.close()
                raise

    def poll(self) -> list[dict[str, Any]]:
        """Events that have arrived since the last call; does not wait. Raises Unreachable once the server is gone."""
        with failures_as_unreachable(0.0):
            while True:
                try:
                    piece = self._connection.recv(1 << 16)
                except (BlockingIOError, InterruptedError):
                    break
                except OSError as error:
                    if "WantRead" in type(error).__name__:  # TLS has nothing complete yet
                        break
                    raise
                if not piece:
                    raise Unreachable("it closed the connection")
                self._raw += piece
                if len(self._raw) > ANSWER_LIMIT:
                    raise Unreachable("its events do not end")
            return [event for text in self._messages() if isinstance(event := _json(text), dict)]

    def close(self) -> None:
        self._connection.close()

    def _messages(self) -> Iterator[bytes]:
        while (frame := _take_frame(self._raw)) is not None:
            final, kind, payload = frame
            if kind == CLOSE:
                raise Unreachable("it closed the connection")
            if kind == PING:
                self._connection.send(bytes([0x80 | PONG, 0x80 | len(payload)]) + bytes(4) + payload)
            elif kind != PONG:
                self._text += payload
                if final:
                    yield bytes(self._text)
                    self._text.clear()


def _take_frame(raw: bytearray) -> tuple[bool, int, bytes] | None:
    """Cut the first frame off: whether it ends a message, its kind, its payload. None while it is incomplete.

    A server's frames are not masked (RFC 6455, section 5.1).
    """
    if len(raw) < 2:
        return None
    length, start = raw[1] & 0x7F, 2
    if length >= 126:
        form, start = (">H", 4) if length == 126 else (">Q", 10)
        if len(raw) < start:
            return None
        (length,) = struct.unpack_from(form, raw, 2)
    if len(raw) < start + length:
        return None
    frame = bool(raw[0] & 0x80), raw[0] & 0x0F, bytes(raw[start : start + length])
    del raw[: start + length]
    return frame


def _json(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
