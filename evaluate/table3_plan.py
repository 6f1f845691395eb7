"""The trainings of Table 3: settings, presets, and what train.py is called with.

"A" and "B" are the table's, which for Maps and Day2Night are not the disk's: there the left half of a file (the disk's
A) is the photo or the night, and the table's A -> B is map -> photo or day -> night, `--direction BtoA` on disk.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from datasets.errors import UserError
from gan.options import BASE_NORM

NORMS = {"pono_ms": "PONO+MS", "nc_ms": "NC+MS", "batch": "batch norm", "instance": "instance norm"}
COMPARED = ("pono_ms", "nc_ms")

Direction = Literal["AtoB", "BtoA"]


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

    def paper(self, metric: str, direction: str, norm: str) -> float | None:
        """The published number, where there is one."""
        first = {"fid": 0, "lpips": 2}.get(metric)
        if first is None or norm not in self.published:
            return None
        return self.published[norm][first + (direction != self.data.disk)]


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

    flags: given to every train.py; settings: in the order of training; columns: flags of the metrics that the table
    shows; metrics: those that are computed, or all that apply; test_mode and seeds: unless others are asked for; floor:
    whether the models' base norm is trained as well, after all others; most: pictures in an epoch; remark: below the
    table; synthetic: (count, size) of the embedded data.
    """

    name: str
    epochs: int
    flags: tuple[str, ...] = ()
    settings: tuple[Setting, ...] = SETTINGS
    columns: tuple[str, ...] = ("fid", "lpips")
    metrics: tuple[str, ...] = ()
    test_mode: Literal["eval", "train"] = "eval"
    seeds: str = "0"
    floor: bool = False
    most: int | None = None
    remark: str = ""
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
        columns=("fd_lite0", "kd_lite0", "lpips", "pixel_accuracy"),
        metrics=("fd_lite0", "kd_lite0", "lpips", "psnr", "ssim", "l1", "pixel_accuracy"),
        test_mode="train",  # at batch size 1 the running statistics of batch norm fit no single picture
        seeds="0,1,2,3,4",
        floor=True,
        most=240,
        remark="64 pixels, small networks, few pictures: only signs of differences compare with the paper's.",
    ),
    "smoke": Preset(
        "smoke",
        2,
        ("--netG", "resnet_6blocks", "--ngf", "4", "--ndf", "4", "--load_size", "36", "--crop_size", "32",
         "--n_epochs", "1", "--n_epochs_decay", "1", "--num_threads", "0", "--visdom", "off"),
        remark="A miniature on invented data: its numbers say that everything runs, and nothing else.",
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

    @property
    def options(self) -> list[str]:
        """The flags of train.py that say what is trained, not where."""
        return [
            "--model", self.setting.model, "--norm", self.norm, "--direction", self.direction,
            "--seed", str(self.seed), *self.preset.flags,
        ]  # fmt: skip

    def flags(self, data_dir: Path, checkpoints_dir: Path) -> list[str]:
        """Of train.py."""
        places = [
            "--checkpoints_dir",
            str(checkpoints_dir),
            "--dataroot",
            str(data_dir / self.setting.data.name),
        ]
        return ["--name", self.name, *places, *self.options]

    def is_trained(self, checkpoints_dir: Path) -> bool:
        return self.epochs_done(checkpoints_dir) >= self.preset.epochs

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
            images = _count(data_dir / data.name, "train")
        images = min(images, self.preset.most or images)
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


def missing_data(plan: Sequence[PlannedTraining], data_dir: Path) -> list[Path]:
    """Folders of data sets that are not there."""
    folders = dict.fromkeys(data_dir / training.setting.data.name for training in plan)
    return [folder for folder in folders if not folder.is_dir()]


def count_notes(plan: Sequence[PlannedTraining], data_dir: Path) -> list[str]:
    """A sentence for each real data set of which other counts are taken than the published ones."""
    notes = []
    for data in dict.fromkeys(training.setting.data for training in plan):
        folder = data_dir / data.name
        if plan[0].preset.synthetic or not folder.is_dir():
            continue
        counts = [_count(folder, "train"), _count(folder, "test")]
        counts[0] = min(counts[0], plan[0].preset.most or counts[0])
        if counts != [data.train_images, data.test_images]:
            notes.append(
                f"{data.title}: {counts[0]} training and {counts[1]} test pictures, the published set has "
                f"{data.train_images} and {data.test_images}: these numbers do not compare with the published ones"
            )
    return notes


def _count(folder: Path, split: Literal["train", "test"]) -> int:
    """Images of the larger side."""
    from datasets.layouts import find_sources  # not at the top: --help answers without torch

    sources = find_sources(folder, split)
    return max(len(sources.a), len(sources.b))
