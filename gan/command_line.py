"""Command lines and option files become options. tyro parses; one way in for flags, files and saved runs.

An option file and the options of a run that goes on are turned into flags in front of the user's own, so that every
value passes the same type checks and the last one wins. No torch is imported here.
"""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from datasets.errors import UserError
from gan.options import TrainOptions, changes_that_matter, from_dict, resolve, stored_dict, to_dict
from gan.run import RunFolder, read_yaml, refuse_changes, refuse_existing

Options = TypeVar("Options")


def parse_flags(options_type: type[Options], argv: Sequence[str], prog: str, description: str) -> Options:
    """Flat flags with underscores; prints its message and exits with 2 on an unknown flag or a bad value."""
    config = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
    return tyro.cli(
        options_type, args=list(argv), prog=prog, description=description, use_underscores=True, config=config
    )


def parse_train(argv: Sequence[str]) -> tuple[TrainOptions, dict[str, Any] | None]:
    """Complete options of train.py and, with --continue_train, the options the run was saved with.

    Raises UserError for an option file that cannot be used, a run that is not there, and for options that change what
    a run trains.
    """
    given = _parse(argv)
    defaults: list[str] = []
    saved: dict[str, Any] | None = None
    if given.run.config:
        defaults += flags_of(read_yaml(Path(given.run.config)), given.run.config)
        given = _parse([*defaults, *argv])
    if given.run.continue_train:
        if not given.run.name and not given.data.dataroot:
            raise UserError("--name", "is required with --continue_train", "name the run to go on with")
        name = given.run.name or resolve(given).run.name
        run = RunFolder.at(Path(given.run.checkpoints_dir), name)
        if not run.options.is_file():
            raise UserError(run.path, "no run to go on with", "check --name and --checkpoints_dir")
        stored = {key: value for key, value in run.read_options().items() if key in to_dict(given)}
        saved = stored_dict(from_dict(stored))
        stored |= {"name": name, "checkpoints_dir": str(run.path.parent)}  # the folder may have been moved
        defaults = flags_of(stored, run.options) + defaults
    elif given.run.name and not given.run.dry_run:
        refuse_existing(RunFolder.at(Path(given.run.checkpoints_dir), given.run.name))
    options = _parse([*defaults, *argv])
    if (
        saved is not None
    ):  # first, so that a change is called a change, not a contradiction to an older option
        refuse_changes(run, changes_that_matter(saved, to_dict(options)), options.run.override, "options")
    return resolve(options), saved


def flags_of(options: Mapping[str, Any], source: Path | str) -> list[str]:
    """Options as the flags that would set them; None and false stand for the default and are left out."""
    known = to_dict(TrainOptions())
    flags: list[str] = []
    for name, value in options.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]}?" if close else "see train.py --help for the names"
            raise UserError(source, f"unknown option {name!r}", hint)
        if isinstance(value, list | dict):
            raise UserError(source, f"option {name!r} holds a {type(value).__name__}", "give one value")
        if isinstance(known[name], bool):
            if value not in (True, False, None):
                raise UserError(source, f"option {name!r} is {value!r}", "allowed: true or false")
            flags += [f"--{name}"] if value else []
        elif isinstance(value, bool):  # YAML reads a bare `on` or `off` as true or false
            flags.append(f"--{name}={'on' if value else 'off'}")
        elif value is not None and value != "":
            flags.append(f"--{name}={value}")
    return flags


def _take_back(argv: list[str]) -> list[str]:
    """`--no_compile` undoes the `--compile` of a file or a saved run in front of it, as `--flip` undoes `--no_flip`."""
    switches = [name for name, value in to_dict(TrainOptions()).items() if isinstance(value, bool)]
    opposite = {
        f"--{name.removeprefix('no_') if name.startswith('no_') else 'no_' + name}": name for name in switches
    }
    kept: list[str] = []
    for word in argv:
        if (
            word in opposite and word[2:] not in switches
        ):  # dropout and no_dropout are two options of their own
            kept = [earlier for earlier in kept if earlier != f"--{opposite[word]}"]
        else:
            kept.append(word)
    return kept


def _parse(argv: Sequence[str]) -> TrainOptions:
    description = "Train CycleGAN or Pix2Pix on a folder of pictures."
    return parse_flags(TrainOptions, _take_back(list(argv)), "train.py", description)
