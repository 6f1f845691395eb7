"""The server of `python -m gan.serve`: a picture comes in, is translated in memory, and goes back. No file is written.

`POST /translate?name=x.png` with a file as its body is answered with two PNG files, one after the other: the picture as
it was read, of `Input-Length` bytes, and its translation. What is wrong is a status from 400 on, and one line.
"""

import asyncio
import io
import os
import re
import signal
import socket
import sys
import traceback
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import tornado.web
from PIL import Image
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets

from datasets.bands import Bands
from datasets.errors import RunError, UserError, as_user_error, printable, say, warn
from datasets.images import as_picture, load_received
from gan.pretrained import find_pretrained
from gan.serve import ServeOptions
from gan.translate import Translator
from gan.translate_command import choose_scale
from gan.viewers.page import translate_page
from gan.viewers.visdom_server import LOOPBACK_NAMES, refuse_foreign

UPLOAD_LIMIT = 128_000_000
"""Bytes of a picture's file."""

HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def serve(options: ServeOptions) -> None:
    """Serve until Ctrl-C or SIGTERM, which end the process with exit code 0.

    Raises UserError for an address that cannot be had, what `Translator.load` refuses, and channels that no PNG holds.
    """
    try:
        sockets = bind_sockets(options.port, options.host)
    except OSError as error:
        where = f"--host {options.host} --port {options.port}"
        raise UserError(where, f"cannot be served: {error.strerror}", "name another") from error
    if options.host not in LOOPBACK_NAMES:
        warn("--host", "everybody who reaches this address can have pictures translated, without encryption")
    translator = Translator.load(
        find_pretrained(options.run, Path(options.checkpoints_dir)),
        epoch=options.epoch,
        direction=options.direction,
        device=options.device,
        weights=options.which,
    )
    counts = translator.input_nc, translator.output_nc
    if not {*counts} <= {1, 3, 4}:
        reason = f"a browser shows 1, 3 or 4 channels, and this model has {counts[0]} and {counts[1]}"
        raise UserError(options.run, reason, "use test.py")
    names = frozenset({*LOOPBACK_NAMES, options.host.lower(), socket.gethostname().lower()})
    asyncio.run(_serve(_Site(translator, names), options.host, sockets))


class _Site:
    """What the handlers share: the page, its policy, the names of this machine, and the one thread that translates."""

    def __init__(self, translator: Translator, names: frozenset[str]) -> None:
        self.names, self._translator = names, translator
        self.worker = ThreadPoolExecutor(1)
        told = choose_scale(translator, "trained", None)[1]
        about = {"limit": UPLOAD_LIMIT, "told": f"as test.py: {told}"}
        words = {**translator.stored_options, "dataroot": "", "direction": translator.direction}
        name = f"{translator.options.run.name} {translator.direction}"
        promise = "The server of this page translates it and keeps nothing."
        self.page = translate_page(name, words, translator.position, "by_server.js", about, promise)
        self.policy = (
            f"default-src 'none'; script-src {_hashes(self.page, 'script')}; style-src {_hashes(self.page, 'style')}; "
            "img-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )

    def translate(self, name: str, content: bytes) -> tuple[bytes, bytes]:
        """The picture and its translation as PNG files. Raises UserError."""
        translator = self._translator
        picture = load_received(name, content, translator.input_nc, translator.value_range)
        if isinstance(picture, Bands):
            pixels = np.asarray(picture)
            return _png(as_picture(pixels)), _png(as_picture(translator(pixels)))
        return _png(picture), _png(translator(picture))


def _hashes(page: str, tag: str) -> str:
    """The elements without attributes, as a policy names what it lets run."""
    texts = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    return " ".join(f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" for text in texts)


def _png(picture: Image.Image) -> bytes:
    data = io.BytesIO()
    picture.save(data, "PNG")
    return data.getvalue()


class _Page(tornado.web.RequestHandler):
    def initialize(self, site: _Site) -> None:
        self.site = site

    def set_default_headers(self) -> None:
        for name, value in HEADERS.items():
            self.set_header(name, value)

    def prepare(self) -> None:
        refuse_foreign(self, self.site.names)

    def get(self) -> None:
        self.set_header("Content-Security-Policy", self.site.policy)
        self.finish(self.site.page)


@tornado.web.stream_request_body
class _Translation(_Page):
    get = tornado.web.RequestHandler._unimplemented_method

    def prepare(self) -> None:
        super().prepare()
        self.content = bytearray()
        length = self.request.headers.get("Content-Length", "")
        if not length.isdecimal():
            return self.refuse(411, "request: does not say how long it is")
        self.is_too_large = int(length) > UPLOAD_LIMIT
        if self.is_too_large:
            # read and dropped: a client that is still sending takes no answer
            self.request.connection.set_max_body_size(sys.maxsize)  # type: ignore[union-attr]
        return None

    def data_received(self, chunk: bytes) -> None:
        if not self.is_too_large:
            self.content += chunk

    async def post(self) -> None:
        name = self.get_query_argument("name", "picture")
        if self.is_too_large:
            return self.refuse(413, f"{printable(name)}: is larger than {UPLOAD_LIMIT / 1e6:.0f} MB")
        content, self.content = bytes(self.content), bytearray()
        loop, site = asyncio.get_running_loop(), self.site
        try:
            before, after = await loop.run_in_executor(site.worker, site.translate, name, content)
        except Exception as error:
            known = as_user_error(error)
            if known is None:
                traceback.print_exception(error)
                known = RunError("internal error", f"{type(error).__name__}: {error}", "please report it")
            say(f"error: {known}")
            return self.refuse(400 if known.exit_code == 2 else 500, str(known))
        self.set_header("Content-Type", "application/octet-stream")
        self.set_header("Input-Length", str(len(before)))
        self.write(before)
        self.finish(after)
        return None

    def refuse(self, status: int, line: str) -> None:
        self.set_status(status)
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(line)


async def _serve(site: _Site, host: str, sockets: list[socket.socket]) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop.set))
    routes: list[Any] = [(r"/", _Page, {"site": site}), (r"/translate", _Translation, {"site": site})]
    application = tornado.web.Application(routes, log_function=lambda handler: None)
    HTTPServer(application, max_body_size=UPLOAD_LIMIT).add_sockets(sockets)
    name = f"[{host}]" if ":" in host else host
    print(f"http://{name}:{sockets[0].getsockname()[1]} translates pictures, Ctrl-C ends it", flush=True)
    await stop.wait()
    os._exit(0)  # what is under way is not waited for
