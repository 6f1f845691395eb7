"""Command lines and option files become options; tyro parses them.

An option file, or the options of a run that is resumed, is turned into flags in front of the user's own. So every value
passes the same type checks, and the last one wins. This file imports no torch.
"""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from datasets.errors import UserError
from gan.options import (
    TrainOptions,
    changes_that_matter,
    current_names,
    from_dict,
    model_defaults,
    resolve,
    stored_dict,
    to_dict,
)
from gan.run import RunFolder, read_yaml, refuse_changes, refuse_existing

Options = TypeVar("Options")

OLD_SWITCHES = {"no_flip": False, "no_dropout": False}
"""Names in option files of format 1; see `current_names`."""


def parse_flags(
    options_type: type[Options],
    argv: Sequence[str],
    prog: str,
    description: str,
    default: Options | None = None,
) -> Options:
    """Flat flags with underscores; a wrong flag or value ends the process with its message and exit code 2."""
    return tyro.cli(
        options_type,
        args=list(argv),
        prog=prog,
        description=description,
        default=default or options_type(),
        use_underscores=True,
        config=(tyro.conf.OmitArgPrefixes,),
    )


def parse_train(argv: Sequence[str]) -> tuple[TrainOptions, dict[str, Any] | None]:
    """Complete options of train.py and, with --continue_train, the options the run was saved with.

    Raises UserError for an unusable option file, a missing run, a run that exists already, and for options that change
    what a resumed run trains.
    """
    given, flags, saved = _parse(argv), list(argv), None
    if given.run.config:
        flags = [*flags_of(read_yaml(Path(given.run.config)), given.run.config), *argv]
        given = _parse(flags)
    checkpoints_dir = Path(given.run.checkpoints_dir)
    if given.run.continue_train:
        if not given.run.name and not given.data.dataroot:
            raise UserError("--name", "is required with --continue_train", "name the run to resume")
        run = RunFolder.at(checkpoints_dir, given.run.name or resolve(given).run.name)
        if not run.options.is_file():
            raise UserError(run.path, "no run to resume", "check --name and --checkpoints_dir")
        stored = _known(run.read_options())
        place = {"name": run.name, "checkpoints_dir": str(checkpoints_dir)}  # the folder may have been moved
        flags = [*flags_of(stored | place, run.options), *flags]
        saved = stored_dict(from_dict(stored))
        given = _parse(flags)
        if not given.run.override:  # "auto" was looked for when the run began
            names = ("value_range_A", "value_range_B")
            found = [name for name in names if saved[name] and getattr(given.data, name) == "auto"]
            flags += [f"--{name}={saved[name]}" for name in found]
            given = _parse(flags)
        if (
            saved["value_range"] == "auto" != given.data.value_range
        ):  # what it has found would hide the new range
            names = ("value_range_A", "value_range_B")
            flags += [f"--{name}=" for name in names if getattr(given.data, name) == saved[name]]
            given = _parse(flags)
        refuse_changes(run, changes_that_matter(saved, to_dict(given)), given.run.override, "options")
    elif given.run.name and not given.run.dry_run:
        refuse_existing(RunFolder.at(checkpoints_dir, given.run.name))
    return resolve(given), saved


def parse_options(argv: Sequence[str]) -> TrainOptions:
    """Complete options from flags alone; see `parse_train` for files and runs."""
    return resolve(_parse(argv))


def flags_of(options: Mapping[str, Any], source: Path | str) -> list[str]:
    """Options of a file as the flags that set them. None means that the default holds.

    Raises UserError, naming `source`, for an unknown name and for a value that no flag can have.
    """
    defaults = to_dict(TrainOptions())
    known = defaults | OLD_SWITCHES
    for name, value in options.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]}?" if close else "see train.py --help for the names"
            raise UserError(source, f"unknown option {name!r}", hint)
        if isinstance(value, list | dict):
            raise UserError(source, f"option {name!r} holds a {type(value).__name__}", "give one value")
        if isinstance(known[name], bool) and not isinstance(value, bool | None):
            raise UserError(source, f"option {name!r} is {value!r}", "allowed: true or false")
    flags = []
    for name, value in current_names({k: v for k, v in options.items() if v is not None}).items():
        if isinstance(defaults[name], bool):
            flags.append(f"--{name}" if value else f"--no_{name}")
        elif isinstance(value, bool):  # YAML reads a bare `on` or `off` as true or false
            flags.append(f"--{name}={'on' if value else 'off'}")
        elif value != "":
            flags.append(f"--{name}={value}")
    return flags


def _known(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Without the options that another version of this program had."""
    return {name: value for name, value in stored.items() if name in to_dict(TrainOptions()) | OLD_SWITCHES}


def _parse(argv: Sequence[str]) -> TrainOptions:
    """Parse twice: the first time to learn the model, the second time on top of its defaults."""
    description = "Train CycleGAN or Pix2Pix on a folder of pictures."
    first = parse_flags(TrainOptions, argv, "train.py", description)
    default = model_defaults(first.model.model)
    return parse_flags(TrainOptions, argv, "train.py", description, default)
