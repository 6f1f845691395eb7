"""The options of test.py: which run, which pictures, where to. What the networks are comes from the checkpoint."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TranslationOptions:
    """Translate with a trained run."""

    name: str = ""
    """Name of the run. Required."""
    checkpoints_dir: str = "checkpoints"
    """Folder of all runs."""
    epoch: str = "last"
    """Checkpoint: last, best, or the number of an epoch that is kept."""
    input: str = ""
    """Picture or folder of pictures (and the folders below it) to translate. Default: the test split of the run's data,
    with a results page."""
    output: str = ""
    """Folder for the translations of --input; each keeps its folder, its name and its size. For one picture also a name
    that ends in .png."""
    dataroot: str = ""
    """Where the run's data is now, if it has been moved (without --input)."""
    results_dir: str = "results"
    """Folder for the results page and its pictures (without --input)."""
    direction: Literal["AtoB", "BtoA"] | None = None
    """Default: as trained. A cycle_gan run can do both."""
    scale: str | None = None
    """trained (the default): pictures are resized for the network as far as in training, where that is more than 1.25
    times larger or smaller, and back. native: never. Or a factor."""
    size: int | None = None
    """Translate at SIZE x SIZE pixels instead of the input's own size."""
    num_test: int | None = None
    """Only the first so many pictures."""
    batch_size: int = 1
    """Pictures of equal size translated together."""
    test_mode: Literal["eval", "train"] = "eval"
    """train: dropout and batch statistics on, the published Pix2Pix protocol."""
    skip_bad: bool = False
    """Leave out unreadable pictures instead of stopping."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto: a CUDA GPU if there is one, then Apple's, else the CPU."""
    debug: bool = False
    """Show the traceback of an error as well."""
