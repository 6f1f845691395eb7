"""The options of `python -m tools.classify` (no torch)."""

import dataclasses
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from datasets.errors import UserError
from gan.command_line import parse_flags
from gan.run import RunFolder, check_name, read_yaml

PROGRAM = "-m tools.classify"
MAY_CHANGE = {"dataroot", "name", "checkpoints_dir", "device", "print_freq"}
"""Options that a resumed run may have otherwise: the result is the same."""

LEAST = {"size": 8, "batch_size": 2, "ghost_batch": 0, "n_epochs": 1, "seed": 0, "print_freq": 1}
MOST = {"width": 16.0, "lr": 1e9, "momentum": 1.0, "weight_decay": 1.0}


@dataclass(frozen=True)
class ClassifyOptions:
    """The options; every one is a flag."""

    dataroot: Path = Path()
    """Folder with cifar-10-batches-py or cifar-100-python, or with train/CLASS/* and test/CLASS/*."""
    name: str = ""
    """Name of the run. Default: FOLDER_NORM."""
    checkpoints_dir: Path = Path("checkpoints")
    """Folder of all runs."""
    norm: Literal["bn", "gn", "nc", "gn_nc", "bn_nc"] = "nc"
    """Batch norm, group norm, normalized convolution, or both of two."""
    width: float = 1.0
    """Factor of all numbers of channels; 0.25 suits a CPU."""
    size: int = 32
    """Side of the pictures in pixels; others are resized."""
    batch_size: int = 128
    """Pictures a step."""
    ghost_batch: int = 2
    """Pictures that a batch norm sees at once; 0 for the whole batch."""
    n_epochs: int = 30
    """Epochs."""
    lr: float = 0.1
    """First learning rate."""
    momentum: float = 0.9
    """Of SGD."""
    weight_decay: float = 5e-4
    """Of all parameters."""
    seed: int = 0
    """Of the weights, the order and the augmentation."""
    print_freq: int = 50
    """Steps between two records."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    continue_train: bool = False
    """Resume the run `name`; its options are read from it."""
    debug: bool = False
    """Show the traceback of an error as well."""

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.checkpoints_dir / self.name, PROGRAM)

    def learning_rate(self, progress: float) -> float:
        """Of the step after which `progress`, from 0 to 1, of the whole training is done.

        It rises first because the biases of NC begin at 0. Flat parts of a picture are then patches of zeros behind the
        first layer, and NC passes their gradient on 1 / sqrt(eps) times as large.
        """
        return self.lr * min(1.0, 20 * progress) * 0.1 ** ((progress > 0.5) + (progress > 0.75))

    @property
    def stored(self) -> dict[str, str | int | float]:
        """What options.yaml and checkpoints hold."""
        flat = {
            name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()
        }
        return {name: value for name, value in flat.items() if name not in ("continue_train", "debug")}


def parse(argv: Sequence[str]) -> ClassifyOptions:
    """Complete options of a new or a resumed run. Raises UserError."""
    given = parse_flags(ClassifyOptions, argv, f"python {PROGRAM}", "Train an image classifier.")
    if given.continue_train:
        run = dataclasses.replace(given, name=check_name(given.name)).run
        if not run.options.is_file():
            raise UserError(run.path, "no run to resume", "check --name and --checkpoints_dir")
        stored = {name: value for name, value in read_yaml(run.options).items() if name in given.stored}
        place = {"name": given.name, "checkpoints_dir": given.checkpoints_dir}  # it may have been moved
        flags = [f"--{name}={value}" for name, value in (stored | place).items()]
        given = parse_flags(ClassifyOptions, [*flags, *argv], f"python {PROGRAM}", "")
    if given.dataroot == Path():
        raise UserError("--dataroot", "is required", "name the folder of the data")
    for name, least in LEAST.items():
        if getattr(given, name) < least:
            raise UserError(f"--{name}", f"is {getattr(given, name)}", f"allowed: {least} or more")
    for name, most in MOST.items():
        value, above = getattr(given, name), name in ("width", "lr")
        if not 0 <= value <= most or (above and not value):
            raise UserError(f"--{name}", f"is {value}", f"allowed: {'more than ' * above}0 to {most:g}")
    if given.ghost_batch and given.batch_size % given.ghost_batch:
        reason = f"does not divide --batch_size {given.batch_size}"
        raise UserError("--ghost_batch", reason, "use a divisor of it, or 0")
    if given.ghost_batch == 1 and given.size == LEAST["size"] and given.norm in ("bn", "bn_nc"):
        reason = f"is 1, and the last maps of pictures of {given.size} pixels have one value: no variance"
        raise UserError("--ghost_batch", reason, "use 2 or more, or a larger --size")
    if round(given.width * 64) < 2 and "nc" in given.norm.split("_"):
        reason = f"is {given.width}: a patch of a 1x1 convolution would be one value, which has no variance"
        raise UserError("--width", reason, "allowed with normalized convolution: 0.024 or more")
    name = given.name or f"{given.dataroot.resolve().name}_{given.norm}"
    return dataclasses.replace(given, name=check_name(name))
