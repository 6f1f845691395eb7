"""Download one file over http or https: resumable, and never over a weaker connection than asked for.

While it arrives, the file is called NAME.part; it gets its name when all bytes are there. NAME.json beside it holds the
address and the server's version of the file, so that bytes of two versions are never mixed.
"""

import contextlib
import http.client
import json
import os
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from tqdm import tqdm

from datasets.errors import UserError, file_error
from datasets.files import try_lock

BLOCK = 1 << 18  # bytes read at once
OTHER_WAY = "check the network, or fetch it another way and use --from_archive FILE"
AGAIN = "run the same command again to resume"


class FileVersion(NamedTuple):
    """Which file a partial file is the beginning of."""

    url: str
    tag: str  # the server's ETag or date, "" for neither
    bytes: int | None  # None where the server does not say


def fetch(url: str, target: Path, idle_seconds: float = 30.0) -> None:
    """Download `url` to `target`; resumes an earlier attempt if the server still has the same version.

    A target that an earlier call completed from this address is not fetched again. A partial file is kept for the next
    attempt, unless it cannot become the file. Raises UserError: not an http or https address, server not reached,
    silent for `idle_seconds`, an error status, a redirect from https to http, an HTML page instead of a file, a
    connection that ends early, a file that cannot be written.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise UserError(url, "is not an http or https address", "see --url")
    version = _read_version(target, url)
    if version and target.exists():
        return
    try:
        with _locked_part(target) as file:
            _fetch_rest(url, target, file, version, idle_seconds)
            file.flush()
            os.fsync(file.fileno())
            _part(target).replace(target)
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
        raise file_error(error, target, "written") from error


def discard(target: Path) -> None:
    """Remove a downloaded file, finished or not, and the note beside it."""
    for path in (target, _part(target), _note(target)):
        path.unlink(missing_ok=True)


def _fetch_rest(
    url: str, target: Path, file: IO[bytes], version: FileVersion | None, idle_seconds: float
) -> None:
    """Append the missing bytes to the partial file."""
    have = file.seek(0, os.SEEK_END)
    headers = {"User-Agent": "image-translation-datasets", "Accept-Encoding": "identity"}
    if version is None or not version.tag or version.bytes is None or have > version.bytes:
        have = file.truncate(0)
    elif have == version.bytes:  # killed between the last byte and the new name
        return
    elif have:
        headers |= {"Range": f"bytes={have}-", "If-Range": version.tag}
    request = urllib.request.Request(url, headers=headers)
    response = urllib.request.build_opener(NoDowngrade).open(request, timeout=idle_seconds)
    with response:
        if response.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
            file.truncate(0)
            raise UserError(url, "the server sends an HTML page, not an archive", OTHER_WAY)
        continues = response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if response.status != 206 or not continues:
            have = 0
            file.truncate(0)
        length = response.headers.get("Content-Length", "")
        total = have + int(length) if length.isdigit() else None
        etag = response.headers.get("ETag", "")
        is_strong = etag.startswith('"')  # a weak one stands for more than one sequence of bytes
        tag = etag if is_strong else response.headers.get("Last-Modified", "")
        _note(target).write_text(json.dumps(FileVersion(url, tag, total)._asdict()))
        file.seek(have)
        with tqdm(
            total=total, initial=have, unit="B", unit_scale=True, desc=target.stem, disable=None
        ) as bar:
            while block := response.read(BLOCK):
                file.write(block)
                have += len(block)
                bar.update(len(block))
    if total is not None and have != total:
        raise UserError(url, f"the connection ended after {have} of {total} bytes", AGAIN)


class NoDowngrade(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http or https, but never from https to http."""

    def redirect_request(self, request, file, code, message, headers, new_url):  # type: ignore[no-untyped-def]
        old, new = (urllib.parse.urlsplit(url).scheme for url in (request.full_url, new_url))
        if new not in ("http", "https") or (old == "https" and new != "https"):
            raise UserError(request.full_url, f"redirects from {old} to {new}, not followed", OTHER_WAY)
        return super().redirect_request(request, file, code, message, headers, new_url)


@contextlib.contextmanager
def _locked_part(target: Path) -> Iterator[IO[bytes]]:
    """The partial file, open to append and locked for this process; removed if it is left empty."""
    part = _part(target)
    part.parent.mkdir(parents=True, exist_ok=True)
    with part.open("a+b") as file:
        if not try_lock(file.fileno()):
            raise UserError(part, "another process is downloading it", "wait for it")
        try:
            yield file
        finally:
            file.flush()
            if part.exists() and part.stat().st_size == 0:
                discard(target)


def _part(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def _note(target: Path) -> Path:
    return target.with_name(target.name + ".json")


def _read_version(target: Path, url: str) -> FileVersion | None:
    """What the partial file of this address is the beginning of; None if its note is missing, damaged or another's."""
    try:
        note = json.loads(_note(target).read_text())
        size = None if note["bytes"] is None else int(note["bytes"])
        version = FileVersion(str(note["url"]), str(note["tag"]), size)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return version if version.url == url else None
