"""The options of `python -m evaluate.table3`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Table3Options:
    """Table 3: PONO+MS and NC+MS on Maps, Horse2Zebra and Day2Night. Prints the plan; --run carries it out."""

    preset: Literal["full", "smoke"] = "full"
    """full: the published protocol on the real data. smoke: all rows in miniature on the embedded data."""
    run: bool = False
    """Train, evaluate, write the table and the figures. What is done is skipped, what was interrupted goes on."""
    seeds: str = "0"
    """Seeds, with commas; several give mean ± sd."""
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
    inception_weights: Path | None = None
    """Inception weights. Default: I2I_WEIGHTS, the cache, a download."""
    lpips_weights: Path | None = None
    """AlexNet weights. Default: I2I_WEIGHTS, the cache, a download."""
    allow_unverified: bool = False
    """Take weights that are not the published ones."""
    offline: bool = False
    """Download nothing."""
    cache_dir: Path | None = None
    """Folder of weights and features that are kept. Default: I2I_CACHE, or ~/.cache/i2i."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train and evaluate."""
    debug: bool = False
    """Show the traceback of an error as well."""
