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
    resolve,
    stored_dict,
    to_dict,
)
from gan.run import RunFolder, check_name, read_yaml, refuse_changes, refuse_existing

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
    given, flags = _parse(argv), list(argv)
    if given.run.config:
        flags = [*flags_of(read_yaml(Path(given.run.config)), given.run.config), *argv]
        given = _parse(flags)
    runs = Path(given.run.checkpoints_dir)
    if not given.run.continue_train:
        if given.run.name and not given.run.dry_run:
            refuse_existing(RunFolder(runs / check_name(given.run.name)))
        return resolve(given), None
    if not given.run.name and not given.data.dataroot:
        raise UserError("--name", "is required with --continue_train", "name the run to resume")
    run = RunFolder(runs / (check_name(given.run.name) if given.run.name else resolve(given).run.name))
    if not run.options.is_file():
        raise UserError(run.path, "no run to resume", "check --name and --checkpoints_dir")
    known = (
        to_dict(TrainOptions()) | OLD_SWITCHES
    )  # another version of this program may have had other options
    stored = {name: value for name, value in read_yaml(run.options).items() if name in known}
    place = {"name": run.name, "checkpoints_dir": str(runs)}  # the folder may have been moved
    flags = [*flags_of(stored | place, run.options), *flags]  # checks the stored values too
    saved = stored_dict(from_dict(stored))
    given = _parse(flags)
    ranges = {name: (saved[name], getattr(given.data, name)) for name in ("value_range_A", "value_range_B")}
    if not given.run.override:  # "auto" was looked for when the run began
        flags += [f"--{name}={was}" for name, (was, now) in ranges.items() if was and now == "auto"]
    if saved["value_range"] == "auto" != given.data.value_range:  # what it has found would hide the new range
        flags += [f"--{name}=" for name, (was, now) in ranges.items() if was == now]
    given = _parse(flags)
    refuse_changes(run, changes_that_matter(saved, to_dict(given)), given.run.override, "options")
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


def _parse(argv: Sequence[str]) -> TrainOptions:
    """Parse twice: the first time to learn the model, the second time on top of its defaults."""
    description = "Train CycleGAN or Pix2Pix on a folder of pictures."
    first = parse_flags(TrainOptions, argv, "train.py", description)
    default = from_dict({"model": first.model.model})
    return parse_flags(TrainOptions, argv, "train.py", description, default)
