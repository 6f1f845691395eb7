"""Servers that are no Visdom, or a sick one: each does one thing with every connection."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator


def answer(status: str, body: bytes = b"") -> Callable[[socket.socket], None]:
    def reply(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)

    return reply


def garbage(connection: socket.socket) -> None:
    connection.recv(1 << 16)
    connection.sendall(bytes(range(256)) * 40)


def drip(connection: socket.socket) -> None:
    """An answer that is right and never done: no single read ever waits long."""
    connection.recv(1 << 16)
    for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100000:
        connection.sendall(bytes([byte]))
        time.sleep(0.05)


def silence(connection: socket.socket) -> None:
    while connection.recv(1 << 16):
        pass


def endless(connection: socket.socket) -> None:
    connection.recv(1 << 16)
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(b"x" * (1 << 20))


@contextlib.contextmanager
def stub(behave: Callable[[socket.socket], None]) -> Iterator[int]:
    """The port of a server that does one thing with every connection."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve_one(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            behave(connection)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve_one, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


STUBS = {
    "403": (answer("403 Forbidden"), "tornado<6.6"),
    "500": (answer("500 Internal Server Error"), "answers 500"),
    "another program": (answer("200 OK", b"<html>hello</html>"), "not Visdom"),
    "a list that is none": (answer("200 OK", b'{"a": 1}'), "not Visdom"),
    "garbage": (garbage, "does not speak HTTP"),
    "a byte at a time": (drip, "no answer within"),
    "accepts and is silent": (silence, "no answer within"),
    "wants a login": (answer("400 Bad Request"), "wants a login"),
}
