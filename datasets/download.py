"""One file from a web server: resumed, checked, never over a weaker connection than asked for.

While it arrives the file is called NAME.part, and NAME appears when all bytes are there. Beside it NAME.json says
where it comes from and which version it is, so that the rest of another version is never appended.
"""

import contextlib
import fcntl
import http.client
import json
import os
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tqdm import tqdm

from datasets.errors import UserError, error_from_os

IDLE_SECONDS = 30.0  # without a single byte, then it is given up
BLOCK = 1 << 18
OTHER_WAY = "check the network, or fetch it another way and use --from_archive FILE"
AGAIN = "the same command goes on from there"


@dataclass(frozen=True)
class Version:
    """Which bytes a partial file is the beginning of. `tag` is the server's ETag or date, "" for neither."""

    url: str
    tag: str
    bytes: int | None  # None where the server does not say


def fetch(url: str, target: Path, idle_seconds: float = IDLE_SECONDS) -> None:
    """Download `url` to `target`, going on with an earlier attempt where the server still has the same version.

    Raises UserError: no http or https address, server not reached, silent for `idle_seconds`, an error status, a
    redirect from https to http, an HTML page instead of a file, connection closed early, disk trouble.
    A partial file is kept for the next attempt; what cannot become the file is removed. A target that an earlier
    call has completed from this address is not fetched again.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise UserError(url, "is not an http or https address", "see --url")
    version = _read_version(target)
    if target.exists() and version and version.url == url:
        return
    part = _part(target)
    try:
        with _locked(target) as file:
            if version is None or version.url != url or not version.tag:
                file.truncate(0)
            _fetch_rest(url, target, file, version, idle_seconds)
            file.flush()
            os.fsync(file.fileno())
            part.replace(target)
    except urllib.error.HTTPError as error:
        raise UserError(url, f"the server answers {error.code} {error.reason}", OTHER_WAY) from error
    except TimeoutError as error:
        raise UserError(url, f"no data for {idle_seconds:g} s, given up", AGAIN) from error
    except (urllib.error.URLError, http.client.HTTPException, ssl.SSLError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            raise UserError(url, f"no answer for {idle_seconds:g} s, given up", OTHER_WAY) from error
        raise UserError(url, f"cannot be reached: {reason}", OTHER_WAY) from error
    except OSError as error:
        raise error_from_os(error, target) or UserError(
            target, f"cannot be written: {error.strerror}", "choose another --output"
        ) from error


def _fetch_rest(
    url: str, target: Path, file: IO[bytes], version: Version | None, idle_seconds: float
) -> None:
    """Append what is missing to the partial file."""
    have = file.seek(0, os.SEEK_END)
    headers = {"User-Agent": "image-translation-datasets", "Accept-Encoding": "identity"}
    if have and version:
        headers |= {"Range": f"bytes={have}-", "If-Range": version.tag}
    try:
        response = _open(urllib.request.Request(url, headers=headers), idle_seconds)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:  # 416: it has no byte after those we have
            raise
        error.close()
        if version and version.bytes == have:
            return
        file.truncate(0)
        _fetch_rest(url, target, file, None, idle_seconds)
        return
    with response:
        if response.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
            file.truncate(0)
            raise UserError(url, "the server sends an HTML page, not an archive", OTHER_WAY)
        if not _continues(response, have):
            have = 0
            file.truncate(0)
        length = response.headers.get("Content-Length")
        total = have + int(length) if length and length.isdigit() else None
        _write_version(target, Version(url, _tag(response), total))
        file.seek(have)
        with tqdm(
            total=total, initial=have, unit="B", unit_scale=True, desc=target.stem, disable=None
        ) as progress:
            while block := response.read(BLOCK):
                file.write(block)
                have += len(block)
                progress.update(len(block))
    if total is not None and have != total:
        raise UserError(url, f"the connection ended after {have} of {total} bytes", AGAIN)


def _continues(response: http.client.HTTPResponse, have: int) -> bool:
    """Whether the answer is the rest of the file from byte `have` on."""
    return response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")


def _tag(response: http.client.HTTPResponse) -> str:
    """What names the version of a file: a strong ETag, else the date of its last change."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified", "")


class NoDowngrade(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http or https, but never from https to http."""

    def redirect_request(self, request, file, code, message, headers, new_url):  # type: ignore[no-untyped-def]
        old, new = (urllib.parse.urlsplit(url).scheme for url in (request.full_url, new_url))
        if new not in ("http", "https") or (old == "https" and new != "https"):
            raise UserError(request.full_url, f"redirects from {old} to {new}, not followed", OTHER_WAY)
        return super().redirect_request(request, file, code, message, headers, new_url)


def _open(request: urllib.request.Request, idle_seconds: float) -> http.client.HTTPResponse:
    return urllib.request.build_opener(NoDowngrade).open(request, timeout=idle_seconds)


@contextlib.contextmanager
def _locked(target: Path) -> Iterator[IO[bytes]]:
    """The partial file, open to append, for this process alone; removed if it is left empty."""
    part = _part(target)
    part.parent.mkdir(parents=True, exist_ok=True)
    with part.open("a+b") as appending:
        try:
            fcntl.flock(appending, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(part, "another process is downloading it", "wait for it") from error
        try:
            yield appending
        finally:
            appending.flush()
            if part.exists() and part.stat().st_size == 0:
                discard(target)


def discard(target: Path) -> None:
    """Remove a downloaded file, finished or not, and the note beside it."""
    for path in (target, _part(target), _note(target)):
        path.unlink(missing_ok=True)


def _part(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def _note(target: Path) -> Path:
    return target.with_name(target.name + ".json")


def _read_version(target: Path) -> Version | None:
    """What the partial file belongs to, None where that cannot be told."""
    try:
        note = json.loads(_note(target).read_text())
        return Version(str(note["url"]), str(note["tag"]), note["bytes"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_version(target: Path, version: Version) -> None:
    _note(target).write_text(json.dumps({"url": version.url, "tag": version.tag, "bytes": version.bytes}))
