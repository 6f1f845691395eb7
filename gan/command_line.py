"""Command lines and option files become checked options; tyro parses them.

An option file, or the options of a run that is resumed, is turned into flags in front of the user's own. So every value
passes the same type checks, and the last one wins. This file imports no torch.
"""

import contextlib
import difflib
import io
import os
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import tyro

from datasets.errors import UserError
from gan.options import (
    BASE_NORM,
    PIXEL_METRICS,
    RANGES,
    TrainOptions,
    changes_that_matter,
    current_names,
    from_dict,
    stored_dict,
    to_dict,
)
from gan.run import RunFolder, check_name, read_yaml, refuse_changes, refuse_existing
from gan.show_bands import shown_bands

Options = TypeVar("Options")

FAMILIAR = {
    "gpu_ids": "use --device cpu, or --device cuda with CUDA_VISIBLE_DEVICES",
    "niter": "use --n_epochs",
    "niter_decay": "use --n_epochs_decay",
    "epoch_count": "leave it out: --continue_train goes on where the run has stopped",
    "load_iter": "use --epoch with test.py; --continue_train takes the newest checkpoint",
    "epoch": "use it with test.py; --continue_train takes the newest checkpoint",
    "phase": "leave it out: train.py trains, test.py translates",
    "isTrain": "leave it out: train.py trains, test.py translates",
    "use_wandb": "leave it out: the run's index.html shows curves and samples, --visdom on as well",
    "wandb_project_name": "leave it out: the run's index.html shows curves and samples, --visdom on as well",
    "display_id": "use --visdom on, auto or off",
    "display_server": "use --visdom_server",
    "display_port": "use --visdom_port",
    "display_env": "use --visdom_env",
    "update_html_freq": "use --display_freq",
    "no_html": "leave it out: index.html costs nothing",
    "save_latest_freq": "use --save_step_freq",
    "save_by_iter": "use --save_step_freq",
    "loadSize": "use --load_size",
    "fineSize": "use --crop_size",
    "resize_or_crop": "use --preprocess",
    "nThreads": "use --num_threads",
    "which_direction": "use --direction",
    "which_model_netG": "use --netG",
    "which_model_netD": "use --netD",
    "no_lsgan": "use --gan_mode vanilla",
    "identity": "use --lambda_identity",
    "how_many": "use --num_test",
    "verbose": "use --dry_run, which prints the plan",
    "suffix": "use --name",
}
"""Flags of the widely used implementation -> what to write here."""

OLD_SWITCHES = {"no_flip": False, "no_dropout": False}
"""Names in option files of format 1; see `current_names`."""


def parse_flags(
    options_type: type[Options],
    argv: Sequence[str],
    prog: str,
    description: str,
    default: Options | None = None,
) -> Options:
    """Flat flags with underscores. Raises UserError for a wrong flag or value; --help ends the process."""
    told = io.StringIO()
    width = os.environ.get("COLUMNS", "")
    if not {"-h", "--help"} & set(argv):
        os.environ["COLUMNS"] = "10000"  # tyro tells an error in a box, which would break words
    try:
        with contextlib.redirect_stderr(told):
            return tyro.cli(
                options_type,
                args=list(argv),
                prog=prog,
                description=description,
                default=default or options_type(),
                use_underscores=True,
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except SystemExit as leaving:
        if not leaving.code:
            raise
        raise _wrong_flag(told.getvalue(), list(argv), prog) from None
    finally:
        os.environ.pop("COLUMNS", None)
        if width:
            os.environ["COLUMNS"] = width


def _wrong_flag(told: str, argv: list[str], prog: str) -> UserError:
    """What tyro tells in a box, in one line. Below the title, rules part paragraphs; the first says what is wrong."""
    lines = [line.strip("│ ") for line in told.splitlines()[1:]]
    rules = [number for number, line in enumerate(lines) if line and not line.strip("─-")] or [len(lines)]
    # without the frame, a rule is below the title too
    first = " ".join(lines[: rules[0]] or lines[1 : rules[1]])
    look = f"see {prog} --help"
    if found := re.search(
        r"invalid choice '(.*)' for argument '(--\w+)'. Expected one of \((.*?),?\)", first
    ):
        value, flag, choices = found.groups()
        if (flag, value) == ("--lr_policy", "plateau"):
            reason = "plateau is not built: the rate depends on the epoch alone, and cycle_gan has no metric"
            return UserError(flag, reason, "use linear, step, cosine or constant")
        allowed = re.findall(r"'([^']*)'", choices)
        if "None" in allowed:  # of an optional choice, which tyro keeps in no order
            allowed = sorted(set(allowed) - {"None"})
        return UserError(flag, f"is {value}", f"allowed: {', '.join(allowed)}")
    if found := re.search(r"Error parsing (--\w+): (.*)", first):
        values = re.findall(r"'([^']*)'", found[2]) or ["no number that can be read"]
        return UserError(found[1], f"is {values[-1]}", f"allowed: {'whole ' * ('int' in found[2])}numbers")
    if found := re.search(r"Missing value for argument '(--\w+)'", first):
        return UserError(found[1], "needs a value", look)
    if found := re.search(r"Unrecognized options: (.*?)(?:, |$)", first):
        unknown = found[1]
        flag, name = unknown.partition("=")[0], unknown.lstrip("-").partition("=")[0]
        given = (
            [text for text in argv[: argv.index(unknown)] if text.startswith("-")] if unknown in argv else []
        )
        if not unknown.startswith("-") and given:
            fix = "give a folder instead of *" if given[-1] in ("--input", "--dataroot") else look
            return UserError(given[-1], f"takes one value, and {unknown} is one more", fix)
        if name in FAMILIAR:
            return UserError(flag, "is a flag of another program", FAMILIAR[name])
        if prog == "test.py" and name in to_dict(TrainOptions()):
            return UserError(flag, "is a flag of train.py", "leave it out: the run knows its networks")
        close = next((f"did you mean {line.split()[0]}? " for line in lines if re.match(r"--\w", line)), "")
        return UserError(flag, "unknown flag", close + look)
    return UserError(prog, first or "cannot read the command line", look)


def parse_train(argv: Sequence[str], job: str = "") -> tuple[TrainOptions, dict[str, Any] | None]:
    """Complete options of train.py and, with --continue_train, the options the run was saved with.

    job: of torchrun (`gan.processes.job`). A run that it has begun is resumed: torchrun restarts the same command.
    Raises UserError for an unusable option file, a missing run, a run that exists already, and for options that change
    what a resumed run trains.
    """
    given, flags = _parse(argv), list(argv)
    if given.run.config:
        flags = [*flags_of(read_yaml(Path(given.run.config)), given.run.config), *argv]
        given = _parse(flags)
    runs = Path(given.run.checkpoints_dir)
    is_new = not given.run.continue_train
    if is_new and job and RunFolder(runs / resolve(given).run.name).belongs_to(job):
        flags, is_new = ["--continue_train", *flags], False
        given = _parse(flags)
    if is_new:
        if given.run.name and not given.run.dry_run:
            refuse_existing(RunFolder(runs / check_name(given.run.name)))
        return resolve(given), None
    if not given.run.name and not given.data.dataroot:
        raise UserError("--name", "is required with --continue_train", "name the run to resume")
    run = RunFolder(runs / (check_name(given.run.name) if given.run.name else resolve(given).run.name))
    if not run.options.is_file():
        raise UserError(run.path, "no run to resume", "check --name and --checkpoints_dir")
    # another version of this program may have had other options
    known = to_dict(TrainOptions()) | OLD_SWITCHES
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


def resolve(options: TrainOptions) -> TrainOptions:
    """Derive the base norm and the run's name where they are not given, and check every value.

    The default name is FOLDER_MODEL_NORM. Raises UserError naming the flag and what it allows.
    """
    model = options.model
    _ = options.data.value_ranges  # raises where one cannot be read
    implied = {"instance": "instance", "batch": "batch", "none": "none", "nc": "none"}.get(model.norm)
    if implied and model.base_norm not in (None, implied):
        reason = f"--norm {model.norm} does not use the base norm {model.base_norm}"
        raise UserError("--base_norm", reason, f"leave it out or use {implied}")
    flat = to_dict(options)
    flat["base_norm"] = model.base_norm or implied or BASE_NORM[model.model]
    folder = flat["dataroot"].rstrip("/").rsplit("/", 1)[-1] or "run"
    flat["name"] = check_name(flat["name"] or f"{folder}_{model.model}_{model.norm}")
    _check_ranges(flat)
    _check_combinations(flat)
    return from_dict(flat)


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


def _computed_metrics(flat: Mapping[str, Any]) -> list[str]:
    """Metrics that --eval_metrics computes. A cycle_gan run has no targets, but two directions and a mean."""
    flags = [flag.strip() for flag in flat["eval_metrics"].split(",")]
    if flat["model"] == "pix2pix":
        return ["val_l1", *flags]
    return [flag + side for flag in flags if flag not in PIXEL_METRICS for side in ("", "_A", "_B")]


def _check_ranges(flat: Mapping[str, Any]) -> None:
    """Ranges that types cannot express. NaN fails every comparison, so it is refused too."""
    if not flat["dataroot"]:
        raise UserError("--dataroot", "is required", "name the folder that holds your pictures")
    for name, (low, high) in RANGES.items():
        if flat[name] is not None and not low <= flat[name] <= high:
            allowed = f"{low} or more" if high > 65535 and flat[name] < low else f"{low} to {high}"
            raise UserError(f"--{name}", f"is {flat[name]}", f"allowed: {allowed}")
    for name in ("lr", "init_gain"):
        if not 0 < flat[name] < float("inf"):
            raise UserError(f"--{name}", f"is {flat[name]}", "allowed: greater than 0, finite")
    for name in ("beta1", "ema"):
        if not 0 <= flat[name] < 1:
            raise UserError(f"--{name}", f"is {flat[name]}", "allowed: 0 to less than 1")


def _check_combinations(flat: Mapping[str, Any]) -> None:
    """Options that contradict each other."""
    if "@" in flat["visdom_server"]:  # only a login holds one; options are stored and shown
        fix = "use --visdom_username and the environment variable VISDOM_PASSWORD"
        raise UserError("--visdom_server", "holds a login", fix)
    if flat["tensorboard"] == "on" and find_spec("tensorboard") is None:
        raise UserError(
            "--tensorboard", "the package tensorboard is not installed", "pip install tensorboard"
        )
    if flat["n_epochs"] + flat["n_epochs_decay"] < 1:
        fix = "--n_epochs plus --n_epochs_decay must be at least 1"
        raise UserError("--n_epochs", "no epoch to train", fix)
    if flat["preprocess"] == "resize_and_crop" and flat["load_size"] < flat["crop_size"]:
        reason = f"{flat['crop_size']} is larger than --load_size {flat['load_size']}"
        raise UserError("--crop_size", reason, f"allowed: up to {flat['load_size']}, or a larger --load_size")
    if flat["compile"] and flat["grad_checkpoint"]:
        raise UserError("--compile", "does not go with --grad_checkpoint", "leave one of them out")
    if flat["compile"] and flat["gan_mode"] == "wgangp":
        reason = "the gradient penalty of wgangp cannot be compiled"
        raise UserError("--compile", reason, "leave one of them out")
    if flat["model"] == "cycle_gan" and flat["lambda_identity"] > 0 and flat["input_nc"] != flat["output_nc"]:
        raise UserError("--lambda_identity", "needs --input_nc and --output_nc to be equal", "set it to 0")
    counts = (flat["input_nc"], flat["output_nc"])
    for count in counts:
        shown_bands(count, flat["show_bands"])  # raises where it cannot be
    measured = counts if flat["model"] == "cycle_gan" else counts[1:]
    best = flat["best_by"]
    if best == "val_l1" and flat["model"] == "cycle_gan":
        reason = "val_l1 needs pairs, and cycle_gan has none"
        raise UserError("--best_by", reason, "use fid with --eval_every N")
    if best in (None, "val_l1"):
        return
    if best not in (known := _computed_metrics(flat)):
        reason = f"{best} is not among the computed metrics"
        raise UserError("--best_by", reason, f"allowed: {', '.join(known)}")
    if best not in PIXEL_METRICS and not {*measured} <= {1, 3}:
        reason = f"{best} is defined for pictures of 1 or 3 channels, not of {max(measured)}"
        raise UserError("--best_by", reason, "leave it out, or use another metric")
    if not flat["eval_every"]:
        raise UserError("--best_by", f"{best} is never computed", "add --eval_every N")
