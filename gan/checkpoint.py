"""The one place that saves and loads the state of a training.

Saving: one file under a temporary name beside its target, hashed while it is written, flushed, renamed to a
new name (`ckpt-00000412.pt`), the folder flushed; then its sidecar and the pointer `latest.json` the same
way; only then are older ones deleted. A process killed anywhere in between leaves a folder from which
`load_checkpoint` gives the old state or the new one.
"""

import contextlib
import errno
import json
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

import torch

from datasets.errors import UserError, error_from_os, warn
from datasets.files import (
    HashingFile,
    as_mib,
    free_space,
    remove_leftovers,
    replacing,
    sha256_of,
    write_atomically,
)
from gan.archive_check import inspect
from gan.checkpoint_file import FILE_NAME, Sidecar, load_file, read_sidecar, sidecar_path, verify
from gan.plain_tensors import prepare_state, size_of
from gan.state import describe_difference, load_network, require_finite

__all__ = [
    "CheckpointInfo",
    "describe_difference",
    "list_checkpoints",
    "load_checkpoint",
    "load_file",
    "load_network",
    "prepare_state",
    "remove_leftovers",
    "require_finite",
    "save_checkpoint",
    "size_of",
]  # fmt: skip

LATEST, BEST = "latest.json", "best.json"


@dataclass(frozen=True)
class CheckpointInfo:
    """A checkpoint in a run's folder, as its sidecar describes it (not verified)."""

    path: Path
    step: int
    epoch: int
    bytes: int
    sha256: str


def list_checkpoints(folder: Path) -> list[CheckpointInfo]:
    """The checkpoints of a folder that have a sidecar, newest first: by step number, not by clock."""
    found = []
    for path in _checkpoint_files(folder):
        sidecar = read_sidecar(path)
        if sidecar is not None:
            found.append(CheckpointInfo(path, _step(path), sidecar.epoch, sidecar.bytes, sidecar.sha256))
    return found


def save_checkpoint(
    folder: Path, state: dict[str, Any], *, step: int, epoch: int, keep: int, best: bool = False
) -> Path:
    """Save a state so that it is either whole or not there, and return its file.

    state: plain containers and tensors (TypeError otherwise). keep: how many of the newest stay (at least 1);
    the one `best.json` names stays too. best: it becomes that one. Checkpoints of later steps are deleted:
    they belong to a course that was left by resuming from an older one. UserError if it cannot be written;
    what was there before is untouched then.
    """
    if keep < 1 or step < 0 or epoch < 0:
        raise ValueError(f"keep={keep} must be at least 1, step={step} and epoch={epoch} at least 0")
    plain = prepare_state(state)
    path = folder / f"ckpt-{step:08d}.pt"
    is_new = not path.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        _write_checkpoint(path, plain, step, epoch)
        pointer = json.dumps({"file": path.name, "step": step, "epoch": epoch}).encode() + b"\n"
        for name in (LATEST, BEST) if best else (LATEST,):
            write_atomically(folder / name, pointer)
    except OSError as error:
        if is_new and not sidecar_path(path).exists():  # without it the new file would only take up the space
            with contextlib.suppress(OSError):
                path.unlink()
        raise _not_saved(path, error, size_of(plain)) from error
    _delete_others(folder, step, keep)
    return path


def _write_checkpoint(path: Path, state: dict[str, Any], step: int, epoch: int) -> None:
    sidecar = sidecar_path(path)
    with replacing(path) as file:
        _write_state(state, file)
        inspect(file.path, checksums=False)  # what is saved can be loaded
        new = Sidecar(file.sha256, file.size, step, epoch)
        old = _whole(path)
        if old is not None:  # until the rename is done either content is right
            both = Sidecar(new.sha256, new.bytes, step, epoch, previous=old)
            write_atomically(sidecar, both.text(path.name).encode())
    write_atomically(sidecar, new.text(path.name).encode())


def _whole(path: Path) -> tuple[str, int] | None:
    """SHA-256 and size of a checkpoint that is there and agrees with its sidecar."""
    try:
        return (sha256_of(path), path.stat().st_size) if verify(path) is not None else None
    except (UserError, OSError):
        return None


def _write_state(state: dict[str, Any], file: HashingFile) -> None:
    try:
        torch.save(state, cast(IO[bytes], file))
    except RuntimeError as error:  # torch hides a Ctrl-C behind an error of its own about positions
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from None
        raise file.error or error from None
    if file.error is not None:
        raise file.error


def load_checkpoint(
    folder: Path, which: Literal["last", "best"] | int = "last"
) -> tuple[dict[str, Any], Path]:
    """The state saved in a run's folder, verified by size and SHA-256, on the CPU, and the file it came from.

    last: the one `latest.json` names; if that is damaged or missing, the newest that is whole, with one
    warning. best, or an epoch's number: exactly that one. UserError where there is none.
    """
    if which == "last":
        return _load_last(folder)
    path = _best(folder) if which == "best" else _of_epoch(folder, which)
    return load_file(path, need_sidecar=True), path


def _load_last(folder: Path) -> tuple[dict[str, Any], Path]:
    problems: list[str] = []
    named = None
    try:
        named = _read_pointer(folder / LATEST)
    except UserError as error:
        problems.append(f"{Path(error.subject).name} {error.reason}")
    others = [path for path in _checkpoint_files(folder) if path != named]
    for path in ([named] if named else []) + others:
        try:
            state = load_file(path, need_sidecar=True)
        except UserError as error:
            problems.append(f"{Path(error.subject).name} {error.reason}")
            continue
        if problems:
            warn(folder, f"{'; '.join(problems[:3])}; going on from {path.name} instead")
        return state, path
    if not _checkpoint_files(folder) and not (folder / LATEST).exists():
        raise UserError(folder, "no checkpoint here", "check the run's name, or train it first")
    raise UserError(folder, f"no valid checkpoint: {'; '.join(problems[:3])}", "train again or copy one back")


def _best(folder: Path) -> Path:
    if not (folder / BEST).exists():
        raise UserError(
            folder, "has no best checkpoint", "use the last one, or train with a metric to choose by"
        )
    return _read_pointer(folder / BEST)


def _of_epoch(folder: Path, epoch: int) -> Path:
    kept = list_checkpoints(folder)
    for info in kept:  # newest first
        if info.epoch == epoch:
            return info.path
    epochs = ", ".join(str(e) for e in sorted({info.epoch for info in kept})) or "none"
    raise UserError(folder, f"no checkpoint of epoch {epoch}", f"there are: {epochs}")


def _read_pointer(pointer: Path) -> Path:
    """The file that latest.json or best.json names, always in the pointer's own folder."""
    try:
        name = json.loads(pointer.read_bytes())["file"]
    except FileNotFoundError:
        raise UserError(pointer, "is missing") from None
    except OSError as error:
        raise UserError(pointer, f"cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(pointer, "is damaged", "use another checkpoint") from None
    if not isinstance(name, str) or not FILE_NAME.fullmatch(name):
        raise UserError(pointer, "is damaged", "use another checkpoint")
    return pointer.with_name(name)


def _delete_others(folder: Path, step: int, keep: int) -> None:
    """Keep the newest up to `step` and the best one. What cannot be deleted now is tried again at the next
    save.
    """
    try:
        best = _read_pointer(folder / BEST) if (folder / BEST).exists() else None
    except UserError:
        return  # a damaged pointer: any of them may be the best one
    files = _checkpoint_files(folder)
    whole = [path for path in files if _step(path) <= step and sidecar_path(path).exists()]
    stay = {*whole[:keep], best}
    for path in files:
        if path not in stay:
            with contextlib.suppress(OSError):
                path.unlink()
    for sidecar in folder.glob("ckpt-*.pt.sha256"):
        path = sidecar.with_suffix("")
        if FILE_NAME.fullmatch(path.name) and not path.exists():
            with contextlib.suppress(OSError):
                sidecar.unlink()


def _checkpoint_files(folder: Path) -> list[Path]:
    """The checkpoint files of a folder, newest first."""
    try:
        return sorted((p for p in folder.iterdir() if FILE_NAME.fullmatch(p.name)), key=_step, reverse=True)
    except OSError:
        return []


def _step(path: Path) -> int:
    match = FILE_NAME.fullmatch(path.name)
    return int(match[1]) if match else -1


def _not_saved(path: Path, error: OSError, need: int) -> UserError:
    """What an error of the operating system means for a save; need: bytes."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        with contextlib.suppress(OSError):
            free = as_mib(free_space(path.parent))
            return UserError(path, f"no space: need {as_mib(need)}, free {free}", "free some space")
    if error.errno == errno.EFBIG:
        return UserError(
            path, f"no space: need {as_mib(need)}, the file size limit is lower", "raise `ulimit -f`"
        )
    known = error_from_os(error, path)
    return UserError(
        path, f"cannot be written: {known.reason if known else error.strerror or error}", "check the disk"
    )
