"""Fetch one file over HTTP: resumable, checked before it gets its name, never downgraded from https."""

import fcntl
import hashlib
import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO, Any

from datasets.errors import UserError

IDLE_SECONDS = 15.0  # without a byte (or a connection) for this long, the attempt is over
CHUNK = 1 << 20


class DownloadError(UserError):
    """The file cannot be had: the subject is its address."""


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(url: str, target: Path, hash_prefix: str, timeout: float = IDLE_SECONDS) -> None:
    """Fetch url into target, checking that the file's SHA-256 begins with hash_prefix.

    What has arrived is kept beside it as `<name>.part` and the next attempt goes on from there. Two
    processes at once: the second waits for the first. Raises DownloadError; target then does not exist.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    with part.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if target.exists():  # the other process has finished it
            part.unlink(missing_ok=True)
            return
        try:
            _fetch(url, file, timeout)
        except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
            if file.tell() == 0:
                part.unlink(missing_ok=True)
            raise DownloadError(url, _reason(error)) from error
        file.flush()
        os.fsync(file.fileno())
        found = sha256_of(part)
        if not found.startswith(hash_prefix):
            part.unlink()
            raise DownloadError(url, f"SHA-256 begins {found[:8]}, not {hash_prefix}; the file was removed")
        part.replace(target)


def _fetch(url: str, file: IO[bytes], timeout: float) -> None:
    from tqdm import tqdm

    have = file.tell()
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.build_opener(_NoDowngrade).open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is left to send: the hash will tell whether it is whole
            return
        raise
    with response:
        if have and response.status != 206:  # the server sends everything again
            file.truncate(0)
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        with tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=Path(url).name) as bar:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
        if total is not None and file.tell() != total:
            raise OSError(f"ended after {file.tell()} of {total} bytes")


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answers {error.code} {error.reason}"
    reason = getattr(error, "reason", None) or error
    if isinstance(reason, TimeoutError):
        return "no answer in time"
    return f"not reachable ({getattr(reason, 'strerror', None) or reason})"


class _NoDowngrade(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise urllib.error.URLError(f"redirected from https to {newurl}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)
