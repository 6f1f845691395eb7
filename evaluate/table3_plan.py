"""What Table 3 consists of: data sets, models, norms, published numbers, and the command of every training.

"A" and "B" are the table's, which for Maps and Day2Night are not the disk's: there the left half of a file (the disk's
A) is the photo or the night, and the table's A -> B is map -> photo or day -> night, `--direction BtoA` on disk.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from datasets.errors import UserError
from gan.command_line import parse_options
from gan.options import TrainOptions

NORMS = ("pono_ms", "nc_ms")

Direction = Literal["AtoB", "BtoA"]
OTHER: dict[str, Direction] = {"AtoB": "BtoA", "BtoA": "AtoB"}


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

    def words(self, disk_direction: str) -> str:
        """A disk direction in words, as in "map→photo"."""
        return self.a_to_b if disk_direction == self.disk else self.b_to_a


MAPS = DataSet("maps", "Maps", "map→photo", "photo→map", "BtoA", "aligned", 1096, 1098)
HORSES = DataSet("horse2zebra", "Horse2Zebra", "horse→zebra", "zebra→horse", "AtoB", "unaligned", 1334, 140)
NIGHTS = DataSet("night2day", "Day2Night", "day→night", "night→day", "BtoA", "aligned", 17823, 2287)


@dataclass(frozen=True)
class Setting:
    """A data set and a model: two rows of the table. figure: in which of the paper's figures its pictures are."""

    data: DataSet
    model: Literal["cycle_gan", "pix2pix"]
    figure: int

    @property
    def title(self) -> str:
        return f"{self.data.title}, {'CycleGAN' if self.model == 'cycle_gan' else 'Pix2Pix'}"


SETTINGS = (
    Setting(MAPS, "cycle_gan", 3),
    Setting(HORSES, "cycle_gan", 3),
    Setting(MAPS, "pix2pix", 4),
    Setting(NIGHTS, "pix2pix", 4),
)

DATA_SETS = tuple(dict.fromkeys(setting.data.name for setting in SETTINGS))


@dataclass(frozen=True)
class Numbers:
    """FID and LPIPS of both of the table's directions."""

    fid_ab: float
    fid_ba: float
    lpips_ab: float
    lpips_ba: float


PUBLISHED = {
    ("maps", "cycle_gan", "pono_ms"): Numbers(52.45, 64.13, 0.3317, 0.175),
    ("maps", "cycle_gan", "nc_ms"): Numbers(49.57, 59.78, 0.327, 0.177),
    ("horse2zebra", "cycle_gan", "pono_ms"): Numbers(71.70, 136.61, 0.757, 0.730),
    ("horse2zebra", "cycle_gan", "nc_ms"): Numbers(67.54, 133.81, 0.731, 0.763),
    ("maps", "pix2pix", "pono_ms"): Numbers(57.39, 62.39, 0.334, 0.171),
    ("maps", "pix2pix", "nc_ms"): Numbers(52.85, 60.01, 0.329, 0.171),
    ("night2day", "pix2pix", "pono_ms"): Numbers(200.69, 188.49, 0.6198, 0.5781),
    ("night2day", "pix2pix", "nc_ms"): Numbers(195.01, 179.97, 0.624, 0.5356),
}


@dataclass(frozen=True)
class Preset:
    """How the trainings are run. flags: given to every train.py; synthetic: (count, size) of the embedded data."""

    name: str
    epochs: int
    flags: tuple[str, ...] = ()
    synthetic: tuple[int, int] | None = None


PRESETS = {
    "full": Preset("full", 200),
    "smoke": Preset(
        "smoke",
        2,
        ("--netG", "resnet_6blocks", "--ngf", "4", "--ndf", "4", "--load_size", "36", "--crop_size", "32",
         "--n_epochs", "1", "--n_epochs_decay", "1", "--num_threads", "0", "--visdom", "off"),
        synthetic=(10, 32),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Training:
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


def trainings(preset: Preset, seeds: Sequence[int], only: str = "") -> list[Training]:
    """All trainings of the table whose name contains `only`. UserError where none does."""
    found = [
        Training(setting, norm, direction, seed, preset)
        for setting in SETTINGS
        for norm in NORMS
        for direction in directions(setting)
        for seed in seeds
    ]
    chosen = [training for training in found if only in training.name]
    if not chosen:
        raise UserError("--only", f"no training has {only!r} in its name", f"such as {found[0].name}")
    return chosen


def directions(setting: Setting) -> tuple[Direction, ...]:
    """The disk directions that are trained separately, the table's A -> B first."""
    if setting.model == "cycle_gan":
        return ("AtoB",)
    return (setting.data.disk, OTHER[setting.data.disk])


def options_of(flags: Sequence[str]) -> TrainOptions:
    """The complete options that train.py makes of these flags."""
    return parse_options(flags)


def command(flags: Sequence[str]) -> list[str]:
    """The process that trains."""
    return [sys.executable, str(Path(__file__).resolve().parents[1] / "train.py"), *flags]
