"""The one place that saves and loads the state of a training.

Saving: one file under a temporary name beside its target, flushed, renamed to a new name
(`ckpt-00000412.safetensors`), the folder flushed; then the pointers `best.json` and `latest.json` the same way;
only then are older ones deleted. A process killed anywhere in between leaves a folder from which
`load_checkpoint` gives the old state or the new one. Runs of the versions before 2.0 have `ckpt-00000412.pt`
with a sidecar `ckpt-00000412.pt.sha256`; these are still read.
"""

import contextlib
import errno
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from datasets.decoding import foreign_content
from datasets.errors import UserError, file_error, warn
from datasets.files import (
    as_mib,
    free_space,
    read_json,
    read_small,
    remove_leftovers,
    replacing,
    require_file,
    sha256_of,
    write_atomically,
)  # fmt: skip
from gan.checkpoint_format import (
    damaged,
    decode,
    encode,
    not_plain,
    raw_bytes,
    read_header,
    read_metadata,
)

LATEST, BEST = "latest.json", "best.json"
FILE_NAME = re.compile(r"ckpt-(\d{8,18})\.(safetensors|pt)")


@dataclass(frozen=True)
class CheckpointInfo:
    """A checkpoint file of a run's folder (not verified)."""

    path: Path

    @property
    def step(self) -> int:
        return int(self.path.stem.removeprefix("ckpt-"))

    @property
    def epoch(self) -> int | None:
        """None where it cannot be told."""
        if self.path.suffix == ".pt":
            found = re.search(r"^# epoch: (\d{1,18})$", _read_sidecar(self.path), re.M)
            return int(found[1]) if found else None
        with contextlib.suppress(UserError, OSError):
            return int(read_header(self.path)[0]["epoch"])
        return None


def list_checkpoints(folder: Path) -> list[CheckpointInfo]:
    """The checkpoints of a folder, newest first: by step number, not by clock."""
    try:
        found = [CheckpointInfo(path) for path in folder.iterdir() if FILE_NAME.fullmatch(path.name)]
    except OSError:
        return []
    return sorted(found, key=lambda info: info.step, reverse=True)


def save_checkpoint(
    folder: Path, state: dict[str, Any], *, step: int, epoch: int, keep: int, best: bool = False
) -> Path:
    """Save a state so that it is either whole or not there, and return its file.

    state: plain containers and tensors (TypeError otherwise). keep: how many of the newest stay (at least 1);
    the one `best.json` names stays too. best: it becomes that one. Checkpoints of later steps are deleted:
    they belong to a course that was left by resuming from an older one. UserError if it cannot be written;
    what was there before is untouched then.
    """
    header, tensors = encode(state, step=step, epoch=epoch)
    path = folder / f"ckpt-{step:08d}.safetensors"
    pointer = json.dumps({"file": path.name, "step": step, "epoch": epoch}).encode() + b"\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        with replacing(path) as write:
            write(header)
            for tensor in tensors:
                write(raw_bytes(tensor))
        # best first: killed in between, resuming from the latest comes to this best again; the other way round
        # the resumed state would know of a best that no pointer names
        for name in (BEST, LATEST) if best else (LATEST,):
            write_atomically(folder / name, pointer)
    except OSError as error:
        raise _not_saved(path, error, len(header) + sum(tensor.nbytes for tensor in tensors)) from error
    delete_others(folder, step, keep)
    return path


def load_checkpoint(
    folder: Path, which: Literal["last", "best"] | int = "last"
) -> tuple[dict[str, Any], Path]:
    """The state saved in a run's folder, verified, on the CPU, and the file it came from.

    last: the one `latest.json` names; if that is damaged or missing, the newest that is whole, with one
    warning. best, or an epoch's number: exactly that one. UserError where there is none.
    """
    if which == "last":
        return _load_last(folder)
    if which == "best" and not (folder / BEST).exists():
        fix = "use the last one, or train with a metric to choose by"
        raise UserError(folder, "has no best checkpoint", fix)
    path = _read_pointer(folder / BEST) if which == "best" else _of_epoch(folder, which)
    return load_file(path), path


def load_file(path: Path) -> dict[str, Any]:
    """Read one checkpoint file onto the CPU: plain containers and tensors, never code.

    Raises UserError, naming what is wrong: missing, folder, empty, incomplete, damaged, a page or pointer in
    place of the file, code in it.
    """
    require_file(path)
    try:
        with path.open("rb") as file:
            head = file.read(1024)
        if head[8:9] != b"{":  # else the eight bytes before it are a length, whatever they look like
            if head[:2] == b"PK" or head[:1] == b"\x80":
                from gan.zip_pickle import OLD_MAGIC, read_zip_pickle  # few runs are that old

                if head[:1] == b"\x80" and not head.startswith(OLD_MAGIC):
                    raise not_plain(path, "a raw pickle")
                _verify_by_sidecar(path)
                return read_zip_pickle(path)
            if reason := foreign_content(head, "a plain-tensor checkpoint"):
                raise damaged(path, reason)
        from gan.generator_file import is_generator, read_generator  # only what is loaded from outside is one

        return read_generator(path) if is_generator(path) else decode(path)
    except OSError as error:
        raise UserError(path, f"cannot be read: {error.strerror or error}") from error


def checkpoint_hash(path: Path) -> str:
    """SHA-256 that identifies what a checkpoint holds, 64 hexadecimal digits: the one that it or its sidecar carries.

    A `.pt` file without a sidecar is hashed. Raises UserError for a file that is not a checkpoint; OSError.
    """
    if path.suffix == ".safetensors":
        return read_metadata(path)[0].get("sha256") or sha256_of(path)
    found = re.search(r"^([0-9a-f]{64}) [ *]", _read_sidecar(path), re.M)
    return found[1] if found else sha256_of(path)


def _load_last(folder: Path) -> tuple[dict[str, Any], Path]:
    problems: list[str] = []
    paths = [info.path for info in list_checkpoints(folder)]
    if not paths and not (folder / LATEST).exists():
        raise UserError(folder, "no checkpoint here", "check the run's name, or train it first")
    try:
        named = _read_pointer(folder / LATEST)
        paths = [named, *(path for path in paths if path != named)]
    except UserError as error:
        problems.append(f"{Path(error.subject).name} {error.reason}")
    for path in paths:
        try:
            state = load_file(path)
        except UserError as error:
            problems.append(f"{Path(error.subject).name} {error.reason}")
            continue
        if problems:
            warn(folder, f"{'; '.join(problems[:3])}; using {path.name} instead")
        return state, path
    raise UserError(folder, f"no valid checkpoint: {'; '.join(problems[:3])}", "train again or copy one back")


def _of_epoch(folder: Path, epoch: int) -> Path:
    kept = list_checkpoints(folder)
    for info in reversed(kept):  # oldest first: later ones were saved within the next epoch
        if info.epoch == epoch:
            return info.path
    epochs = ", ".join(map(str, sorted({info.epoch for info in kept if info.epoch is not None}))) or "none"
    raise UserError(folder, f"no checkpoint of epoch {epoch}", f"there are: {epochs}")


def _read_pointer(pointer: Path) -> Path:
    """The file that latest.json or best.json names, always in the pointer's own folder."""
    match read_json(pointer, limit=4096):
        case {"file": str(name)} if FILE_NAME.fullmatch(name):
            return pointer.with_name(name)
    raise UserError(pointer, "is damaged", "use another checkpoint")


def delete_others(folder: Path, step: int, keep: int) -> None:
    """Keep the newest up to `step` and the best one. What cannot be deleted now is tried again at the next save.

    Nothing is deleted where a pointer is damaged or `latest.json` names another step.
    """
    try:
        best = _read_pointer(folder / BEST) if (folder / BEST).exists() else None
        latest = FILE_NAME.fullmatch(_read_pointer(folder / LATEST).name)
    except UserError:
        return  # any of them may be the best one
    if latest is None or int(latest[1]) != step:
        return
    kept = list_checkpoints(folder)
    stay = {*[info.path for info in kept if info.step <= step][:keep], best}
    sidecars = (file for file in folder.glob("ckpt-*.pt.sha256") if FILE_NAME.fullmatch(file.stem))
    for path in [*(info.path for info in kept if info.path not in stay), *sidecars]:
        with contextlib.suppress(OSError):
            if path.suffix != ".sha256" or not path.with_suffix("").exists():
                path.unlink()


def _read_sidecar(path: Path) -> str:
    """The text beside a checkpoint of the first format, as `sha256sum` writes it; empty where there is none."""
    with contextlib.suppress(UserError):
        return read_small(path.with_name(path.name + ".sha256")).decode("ascii", "replace")
    return ""


def _verify_by_sidecar(path: Path) -> None:
    """Compare the SHA-256 with that of a sidecar, where there is one. Raises UserError if they differ."""
    # a save at a step that was saved before also names the file that it replaced
    allowed = re.findall(r"^(?:# replaces: )?([0-9a-f]{64}) ", _read_sidecar(path), re.M)
    if allowed and sha256_of(path) not in allowed:
        raise damaged(path, "checksum mismatch: the file is incomplete or has changed")


def _not_saved(path: Path, error: OSError, need: int) -> UserError:
    """What an error of the operating system means for a save; need: bytes."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        with contextlib.suppress(OSError):
            free = as_mib(free_space(path.parent))
            return UserError(path, f"no space: need {as_mib(need)}, free {free}", "free some space")
    if error.errno == errno.EFBIG:
        reason = f"no space: need {as_mib(need)}, the file size limit is lower"
        return UserError(path, reason, "raise `ulimit -f`")
    return UserError(path, file_error(error, path, "written").reason, "check the place and the disk")
