"""Weights that were trained before, wherever they are: a run, an exported generator, a file of another program.

Each is read as a state, the form in which a checkpoint holds a training (gan/state.py), so that nothing after it needs
to know where it came from. At least `options` and `networks` are in it.
"""

import re
from pathlib import Path
from typing import Any

from datasets.errors import UserError
from gan.checkpoint import load_checkpoint, load_file
from gan.foreign_weights import foreign_state, is_foreign_folder, read_foreign_folder
from gan.generator_file import FILE_NAME
from gan.run import RunFolder


def find_pretrained(name: str | Path, runs: Path = Path("checkpoints")) -> Path:
    """The run, file or folder of this name, given as a path or as the name of a run below `runs`.

    Raises UserError where there is none.
    """
    candidates = (Path(name), runs / name)
    for looks_right in (lambda path: RunFolder(path).exists, Path.is_dir, Path.is_file):
        for candidate in candidates:
            if looks_right(candidate):
                return candidate
    place = next((path.parent for path in candidates if path.parent != Path() and path.parent.is_dir()), runs)
    there = sorted(path.name for path in place.iterdir() if path.is_dir()) if place.is_dir() else []
    known = f"runs there: {', '.join(there[:10])}" if there else "no run is there"
    raise UserError(
        name, f"no such run, here or in {place}", f"check the name and --checkpoints_dir; {known}"
    )


def is_run(source: Path) -> bool:
    """Whether a run's folder is there, or is looked for there; otherwise it is a file or folder of weights."""
    if not source.is_dir() or RunFolder(source).exists:
        return source.is_dir()
    return not (source / FILE_NAME).is_file() and not is_foreign_folder(source)


def read_pretrained(
    source: Path, epoch: str | int = "last", discriminators: bool = False
) -> tuple[dict[str, Any], Path]:
    """The state in a run's folder, or in a file or folder of one or more networks; and the file it came from.

    epoch: last, best or a number; discriminators: of a folder of another program, read these as well. Raises UserError
    for an unknown epoch, and for what is missing, damaged, or holds no generator of a known layout; OSError.
    """
    if not re.fullmatch(r"last|best|\d{1,18}", str(epoch), re.ASCII):
        raise UserError("--epoch", f"is {epoch}", "allowed: last, best or the number of a kept epoch")
    which: Any = epoch if epoch in ("last", "best") else int(epoch)
    if is_run(source):
        return load_checkpoint(source, which)
    if (source / FILE_NAME).is_file():
        source = source / FILE_NAME
    elif source.is_dir():
        return read_foreign_folder(source, "latest" if which == "last" else str(which), discriminators)
    if which != "last":
        raise UserError(source, f"is a file, not a run, and has no checkpoint {epoch}", "leave that out")
    state = load_file(source)
    return state if "networks" in state else foreign_state({source: state}), source
