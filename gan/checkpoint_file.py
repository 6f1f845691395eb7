"""One checkpoint file: its sidecar (size, SHA-256, step, epoch), its verification, and reading it safely."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from datasets.errors import UserError
from datasets.files import sha256_of
from gan.archive_check import NotCompleteError, NotPlainError, inspect
from gan.plain_tensors import prepare_state

NOT_PLAIN = "not a plain-tensor checkpoint, refused"
FILE_NAME = re.compile(r"ckpt-(\d{8,18})\.pt")


@dataclass(frozen=True)
class Sidecar:
    """What `ckpt-00000412.pt.sha256` says about its checkpoint.

    previous: SHA-256 and size of the file of this name that the checkpoint is about to replace. While that is
    under way either of the two is right, so a process killed in between leaves a valid pair.
    """

    sha256: str
    bytes: int
    step: int
    epoch: int
    previous: tuple[str, int] | None = None

    def text(self, name: str) -> str:
        """The file's content: `sha256sum -c` reads it and skips the comment lines."""
        lines = [f"# bytes: {self.bytes}", f"# step: {self.step}", f"# epoch: {self.epoch}"]
        if self.previous is not None:
            lines.append(f"# replaces: {self.previous[0]} {self.previous[1]}")
        return "\n".join([*lines, f"{self.sha256}  {name}", ""])


def sidecar_path(checkpoint: Path) -> Path:
    """`ckpt-00000412.pt` -> `ckpt-00000412.pt.sha256`."""
    return checkpoint.with_name(checkpoint.name + ".sha256")


def read_sidecar(checkpoint: Path) -> Sidecar | None:
    """The sidecar of a checkpoint, or None where there is none or it cannot be understood."""
    try:
        text = sidecar_path(checkpoint).read_text("ascii")
    except (OSError, UnicodeDecodeError):
        return None
    numbers = {
        key: int(value) for key, value in re.findall(r"^# (bytes|step|epoch): (\d{1,18})$", text, re.M)
    }
    digest = re.search(r"^([0-9a-f]{64}) [ *]\S", text, re.M)
    replaces = re.search(r"^# replaces: ([0-9a-f]{64}) (\d{1,18})$", text, re.M)
    if digest is None or len(numbers) < 3:
        return None
    previous = (replaces[1], int(replaces[2])) if replaces else None
    return Sidecar(digest[1], numbers["bytes"], numbers["step"], numbers["epoch"], previous)


def verify(path: Path) -> Sidecar | None:
    """Compare a checkpoint with its sidecar, size first; None where there is no sidecar. UserError if it is
    damaged.
    """
    sidecar = read_sidecar(path)
    if sidecar is None:
        if sidecar_path(path).exists():
            raise UserError(
                sidecar_path(path), "damaged, so the checkpoint cannot be verified", "remove it to go on"
            )
        return None
    size = path.stat().st_size
    allowed = [(sidecar.sha256, sidecar.bytes), *([sidecar.previous] if sidecar.previous else [])]
    if size not in [expected for _, expected in allowed]:
        short = "incomplete" if size < sidecar.bytes else "wrong size"
        raise UserError(
            path, f"{short}: {size} of {sidecar.bytes} bytes", "copy it again or use another checkpoint"
        )
    if (sha256_of(path), size) not in allowed:
        raise UserError(
            path, "checksum mismatch: the file has changed", "copy it again or use another checkpoint"
        )
    return sidecar


def load_file(path: Path, *, need_sidecar: bool = False) -> dict[str, Any]:
    """Read one checkpoint file onto the CPU: plain containers and tensors, never code.

    A sidecar beside it is used if there is one; without (unless it is needed), the CRC-32 of every record.
    Raises UserError, naming what is wrong: missing, folder, empty, incomplete, damaged, a page or pointer in
    place of the file, code in it.
    """
    try:
        return _load_file(path, need_sidecar)
    except OSError as error:
        raise UserError(path, f"cannot be read: {error.strerror or error}") from error


def _load_file(path: Path, need_sidecar: bool) -> dict[str, Any]:
    _check_is_file(path)
    verified = verify(path) is not None
    if need_sidecar and not verified:
        raise UserError(
            path, f"cannot be verified: {sidecar_path(path).name} is missing", "copy that file too"
        )
    _check_first_bytes(path)
    try:
        inspect(path, checksums=not verified)
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = prepare_state(state)
    except NotCompleteError as error:
        raise UserError(path, str(error), "copy it again or use another checkpoint") from None
    except NotPlainError as error:
        _refuse(path, str(error))
    except MemoryError:
        raise
    except Exception as error:  # whatever torch says, its advice would be to switch the check off
        if "not enough memory" in str(error):
            raise MemoryError from None
        _refuse(path, type(error).__name__)
    if not isinstance(state, dict):
        _refuse(path, "not a dictionary")
    return state


def _refuse(path: Path, found: str) -> NoReturn:
    raise UserError(path, f"{NOT_PLAIN}: {found}", "use a checkpoint made by train.py") from None


def _check_is_file(path: Path) -> None:
    if path.is_dir():
        raise UserError(path, "is a folder, not a checkpoint file", "name a ckpt-*.pt file")
    if not path.exists():
        raise UserError(path, "no such file", "check the path")
    if not path.is_file():
        raise UserError(path, "is not an ordinary file", "name a ckpt-*.pt file")


def _check_first_bytes(path: Path) -> None:
    """Name the things that are found in place of a checkpoint."""
    with path.open("rb") as file:
        head = file.read(1024)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        raise UserError(path, "is empty (0 bytes)", "copy it again or use another checkpoint")
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        raise UserError(path, "looks like an HTML page, not a checkpoint", "download the file itself")
    if text.startswith(b"version https://git-lfs"):
        raise UserError(path, "is a git-lfs pointer, not the checkpoint itself", "run `git lfs pull`")
    if head[:4] == b"PK\x03\x04":
        return
    if b"PK\x03\x04".startswith(head):  # cut within its first bytes
        raise UserError(path, "not a complete checkpoint", "copy it again or use another checkpoint")
    if head[257:262] == b"ustar":
        _refuse(path, "a tar archive")
    if head[:1] == b"\x80":
        _refuse(path, "a raw pickle or a format older than torch 1.6")
    if all(byte in b"\t\r\n\x0c\x1b" or 32 <= byte < 127 for byte in head):
        _refuse(path, "a text file")
    _refuse(path, "not a zip file")
