"""`python -m evaluate.table3`: the plan of Table 3; with --run the table itself, resumably.

"A" and "B" are the table's, which for Maps and Day2Night are not the disk's: there the left half of a file (the disk's
A) is the photo or the night, and the table's A -> B is map -> photo or day -> night, `--direction BtoA` on disk.
"""

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from datasets.errors import UserError, run_command
from evaluate.options import NetworkOptions
from gan.command_line import parse_flags, parse_options
from gan.options import BASE_NORM

NORMS = {"pono_ms": "PONO+MS", "nc_ms": "NC+MS", "batch": "batch norm", "instance": "instance norm"}
COMPARED = ("pono_ms", "nc_ms")

Direction = Literal["AtoB", "BtoA"]


@dataclass(frozen=True)
class Table3Options(NetworkOptions):
    """Table 3: PONO+MS and NC+MS on Maps, Horse2Zebra and Day2Night. Prints the plan; --run carries it out."""

    preset: Literal["full", "small", "smoke"] = "full"
    """full: the published protocol on the real data. small: real data at 64 pixels, for a CPU and several seeds.
    smoke: all rows in miniature on the embedded data."""
    run: bool = False
    """Train, evaluate, write the table and the figures. What is done is skipped, what was interrupted is resumed."""
    seeds: str = ""
    """Seeds, with commas; several give mean ± sd. Default: 0, with the preset small 0,1,2,3,4."""
    only: str = ""
    """Only trainings whose name contains this, such as maps or cycle_gan_nc."""
    data_dir: Path = Path("data")
    """Folder that holds maps/, horse2zebra/ and night2day/."""
    checkpoints_dir: Path = Path("checkpoints")
    """Folder of all runs."""
    output: Path | None = None
    """Folder for the table and the figures. Default: results/table3_PRESET."""
    epoch: Literal["last", "best"] = "last"
    """Which checkpoint is evaluated; best exists for pix2pix (validation L1)."""
    pictures: int = 5
    """Test pictures in the figures."""
    latex: bool = False
    """Write table3.tex as well."""
    no_estimate: bool = False
    """Do not time a training step for the plan (on a CPU at full size that takes minutes)."""
    debug: bool = False
    """Show the traceback of an error as well."""


@dataclass(frozen=True)
class DataSet:
    """One data set. a_to_b: the table's A -> B in words; disk: the `--direction` that it is on disk."""

    name: str
    title: str
    a_to_b: str
    b_to_a: str
    disk: Direction
    layout: Literal["aligned", "unaligned"]
    train_images: int  # of the larger side
    test_images: int

    @property
    def words(self) -> dict[Direction, str]:
        """Both directions on disk in words, as in "map→photo"; the table's A -> B first."""
        other: Direction = "AtoB" if self.disk == "BtoA" else "BtoA"
        return {self.disk: self.a_to_b, other: self.b_to_a}


MAPS = DataSet("maps", "Maps", "map→photo", "photo→map", "BtoA", "aligned", 1096, 1098)
HORSES = DataSet("horse2zebra", "Horse2Zebra", "horse→zebra", "zebra→horse", "AtoB", "unaligned", 1334, 140)
NIGHTS = DataSet("night2day", "Day2Night", "day→night", "night→day", "BtoA", "aligned", 17823, 2287)


@dataclass(frozen=True)
class Setting:
    """A data set and a model: two rows of the table.

    published: FID A -> B, FID B -> A, LPIPS A -> B, LPIPS B -> A of each norm; figure: the paper's figure that shows
    its pictures.
    """

    data: DataSet
    model: Literal["cycle_gan", "pix2pix"]
    figure: int
    published: Mapping[str, tuple[float, float, float, float]] = field(hash=False)

    @property
    def title(self) -> str:
        return f"{self.data.title}, {'CycleGAN' if self.model == 'cycle_gan' else 'Pix2Pix'}"


MAPS_CYCLEGAN = Setting(
    MAPS, "cycle_gan", 3, {"pono_ms": (52.45, 64.13, 0.3317, 0.175), "nc_ms": (49.57, 59.78, 0.327, 0.177)}
)
HORSES_CYCLEGAN = Setting(
    HORSES, "cycle_gan", 3, {"pono_ms": (71.70, 136.61, 0.757, 0.730), "nc_ms": (67.54, 133.81, 0.731, 0.763)}
)
MAPS_PIX2PIX = Setting(
    MAPS, "pix2pix", 4, {"pono_ms": (57.39, 62.39, 0.334, 0.171), "nc_ms": (52.85, 60.01, 0.329, 0.171)}
)
NIGHTS_PIX2PIX = Setting(
    NIGHTS,
    "pix2pix",
    4,
    {"pono_ms": (200.69, 188.49, 0.6198, 0.5781), "nc_ms": (195.01, 179.97, 0.624, 0.5356)},
)
SETTINGS = (MAPS_CYCLEGAN, HORSES_CYCLEGAN, MAPS_PIX2PIX, NIGHTS_PIX2PIX)


@dataclass(frozen=True)
class Preset:
    """How the trainings are run.

    flags: given to every train.py; settings: in the order of training; seeds: unless others are asked for; floor:
    whether the models' base norm is trained as well, after all others; most: pictures in an epoch; synthetic: (count,
    size) of the embedded data.
    """

    name: str
    epochs: int
    flags: tuple[str, ...] = ()
    settings: tuple[Setting, ...] = SETTINGS
    seeds: str = "0"
    floor: bool = False
    most: int | None = None
    synthetic: tuple[int, int] | None = None

    @property
    def blocks(self) -> list[tuple[Setting, tuple[str, ...]]]:
        """What is trained one after the other: a setting with the norms that are compared in it."""
        floor = [(setting, (BASE_NORM[setting.model],)) for setting in self.settings if self.floor]
        return [*((setting, COMPARED) for setting in self.settings), *floor]


PRESETS = {
    "full": Preset("full", 200),
    "small": Preset(
        "small",
        40,
        ("--netG", "resnet_6blocks", "--ngf", "16", "--ndf", "16", "--load_size", "72", "--crop_size", "64",
         "--max_dataset_size", "240", "--n_epochs", "20", "--n_epochs_decay", "20", "--num_threads", "0",
         "--save_epoch_freq", "5", "--keep", "1", "--display_freq", "2400", "--visdom", "off"),
        settings=(MAPS_PIX2PIX, MAPS_CYCLEGAN, HORSES_CYCLEGAN),
        seeds="0,1,2,3,4",
        floor=True,
        most=240,
    ),
    "smoke": Preset(
        "smoke",
        2,
        ("--netG", "resnet_6blocks", "--ngf", "4", "--ndf", "4", "--load_size", "36", "--crop_size", "32",
         "--n_epochs", "1", "--n_epochs_decay", "1", "--num_threads", "0", "--visdom", "off"),
        synthetic=(10, 32),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class PlannedTraining:
    """One call of train.py. CycleGAN learns both directions at once, Pix2Pix needs one training for each."""

    setting: Setting
    norm: str
    direction: Direction
    seed: int
    preset: Preset

    @property
    def name(self) -> str:
        """Of the run's folder."""
        data, model = self.setting.data.name, self.setting.model
        direction = f"_{self.direction}" if model == "pix2pix" else ""
        return f"table3_{self.preset.name}_{data}_{model}_{self.norm}{direction}_seed{self.seed}"

    def flags(self, data_dir: Path, checkpoints_dir: Path) -> list[str]:
        """Of train.py."""
        return [
            "--name", self.name, "--checkpoints_dir", str(checkpoints_dir),
            "--dataroot", str(data_dir / self.setting.data.name), "--model", self.setting.model,
            "--norm", self.norm, "--direction", self.direction, "--seed", str(self.seed), *self.preset.flags,
        ]  # fmt: skip

    def epochs_done(self, checkpoints_dir: Path) -> int:
        """Epochs that its newest checkpoint has behind it."""
        from gan.checkpoint import list_checkpoints

        found = list_checkpoints(checkpoints_dir / self.name)
        return found[0].epoch or 0 if found else 0

    def steps_to_go(self, data_dir: Path, checkpoints_dir: Path) -> int:
        """By the images of the larger side: what is on disk, else what there will be."""
        data = self.setting.data
        images = self.preset.synthetic[0] if self.preset.synthetic else data.train_images
        if (data_dir / data.name).is_dir():
            images = min(_count(data_dir / data.name, "train"), self.preset.most or sys.maxsize)
        return max(0, self.preset.epochs - self.epochs_done(checkpoints_dir)) * images


def plan_trainings(preset: Preset, seeds: Sequence[int], only: str = "") -> list[PlannedTraining]:
    """All trainings of the table whose name contains `only`. UserError where none does.

    Of each block all of the first seed come first, then all of the next: an unfinished table has complete pairs.
    """
    one_way: tuple[Direction, ...] = ("AtoB",)
    found = [
        PlannedTraining(setting, norm, direction, seed, preset)
        for setting, norms in preset.blocks
        for seed in seeds
        for direction in (setting.data.words if setting.model == "pix2pix" else one_way)
        for norm in norms
    ]
    chosen = [training for training in found if only in training.name]
    if not chosen:
        raise UserError("--only", f"no training has {only!r} in its name", f"such as {found[0].name}")
    return chosen


def parse_seeds(text: str) -> list[int]:
    """`0,1,2` -> [0, 1, 2]. UserError otherwise."""
    try:
        seeds = list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise UserError("--seeds", f"is {text!r}", "such as 0 or 0,1,2") from None
    if min(seeds) < 0:
        raise UserError("--seeds", f"is {text!r}", "0 or more")
    return seeds


def print_plan(plan: Sequence[PlannedTraining], options: Table3Options, data_dir: Path) -> None:
    """The rows, their commands, the data that is missing, and how long it takes on this machine."""
    from gan.viewers.console import duration

    preset = plan[0].preset
    rows = len({(training.setting, training.norm) for training in plan})
    print(f"Table 3, preset {preset.name}: {rows} rows, {len(plan)} trainings")
    costs: dict[tuple[str, str], float] = {}
    total = 0.0
    for training in plan:
        setting = training.setting
        ways = [training.direction] if setting.model == "pix2pix" else setting.data.words
        words = ", ".join(f"{setting.data.words[way]} ({way} on disk)" for way in ways)
        flags = training.flags(data_dir, options.checkpoints_dir)
        print(f"\n{setting.title}, {NORMS[training.norm]}, seed {training.seed}: {words}")
        print(f"  {shlex.join(['python', 'train.py', *flags])}")
        steps = training.steps_to_go(data_dir, options.checkpoints_dir)
        line = f"{training.epochs_done(options.checkpoints_dir)} of {preset.epochs} epochs done; {steps} steps to go"
        if not options.no_estimate:
            kind = setting.model, training.norm
            if kind not in costs:
                costs[kind] = seconds_per_step(flags, options.device)
            total += steps * costs[kind]
            line += f", about {duration(steps * costs[kind])}"
        print(f"  {line}")
    if not options.no_estimate:
        print(
            f"\nabout {duration(total)} of training on this machine, one after the other, and the evaluation"
        )
    for note in count_notes(plan, data_dir):
        print(f"\n{note}")
    if (missing := missing_data(plan, data_dir)) and not preset.synthetic:
        print(f"\nnot there yet: {', '.join(map(str, missing))}; see python -m datasets.prepare")
    print("\nto carry it out (an interrupted call is resumed where it stopped): add --run")


def seconds_per_step(flags: Sequence[str], device: str) -> float:
    """One training step of these flags on this machine, after one to warm up, with random pictures."""
    import torch

    from gan.setup import build_trainer

    options = parse_options([*flags, "--device", device])
    trainer = build_trainer(options)
    side = options.data.crop_size
    batch = {
        "A": torch.rand(1, options.model.input_nc, side, side) * 2 - 1,
        "B": torch.rand(1, options.model.output_nc, side, side) * 2 - 1,
    }
    for _ in range(2):
        start = time.perf_counter()
        torch.stack(list(trainer.step(batch).losses.values())).tolist()  # waits for the device
    return time.perf_counter() - start


def missing_data(plan: Sequence[PlannedTraining], data_dir: Path) -> list[Path]:
    """Folders of data sets that are not there."""
    folders = dict.fromkeys(data_dir / training.setting.data.name for training in plan)
    return [folder for folder in folders if not folder.is_dir()]


def count_notes(plan: Sequence[PlannedTraining], data_dir: Path) -> list[str]:
    """A sentence for each real data set on disk that has other counts than the published one."""
    notes = []
    for data in dict.fromkeys(training.setting.data for training in plan):
        folder = data_dir / data.name
        if plan[0].preset.synthetic or not folder.is_dir():
            continue
        counts = [_count(folder, "train"), _count(folder, "test")]
        if counts != [data.train_images, data.test_images]:
            notes.append(
                f"{data.title}: {counts[0]} training and {counts[1]} test pictures in {folder}, the published set has "
                f"{data.train_images} and {data.test_images}: these numbers do not compare with the published ones"
            )
    return notes


def _count(folder: Path, split: Literal["train", "test"]) -> int:
    """Images of the larger side."""
    from datasets.layouts import find_sources  # not at the top: --help answers without torch

    sources = find_sources(folder, split)
    return max(len(sources.a), len(sources.b))


def main() -> int:
    description = "Plan, and with --run carry out, the comparison of PONO+MS and NC+MS."
    options = parse_flags(Table3Options, sys.argv[1:], "python -m evaluate.table3", description)
    from evaluate.table3_run import run_table3

    return run_table3(options)


if __name__ == "__main__":
    run_command(main, debug="--debug" in sys.argv)
