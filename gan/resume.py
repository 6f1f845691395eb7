"""How a run goes on, in words: commands to show, and the refusals to overwrite and to mix. Needs no torch."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from datasets.errors import UserError
from gan.run_folder import RunFolder


def run_command_line(run: RunFolder, program: str = "train.py") -> list[str]:
    """`python PROGRAM --name RUN`, with the folder of runs where it is not the default."""
    place = [] if run.path.parent == Path("checkpoints") else ["--checkpoints_dir", str(run.path.parent)]
    return ["python", program, "--name", run.name, *place]


def resume_command(run: RunFolder) -> str:
    return shlex.join([*run_command_line(run), "--continue_train"])


def refuse_existing(run: RunFolder) -> None:
    """UserError with both ways out if a training has been started in this folder: nothing is overwritten."""
    if run.exists:
        ways = (
            f"to go on with it:  {resume_command(run)}",
            "to start another:  the same command with a --name that is not taken",
        )
        raise UserError(run.path, "this run exists already, nothing was changed", "two ways to go on", ways)


def refuse_changes(run: RunFolder, changes: Sequence[str], override: bool, kind: str) -> None:
    """UserError with the list if a run would go on with another kind of thing than before, unless that is wanted."""
    if changes and not override:
        reason = f"the run was trained with other {kind}"
        raise UserError(run.path, reason, "undo the change, or add --override to go on with it", changes)
