"""The options of test.py, and those that export and serve share. The checkpoint defines the networks."""

import re
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from datasets.errors import UserError
from gan.run import check_name


@dataclass(frozen=True)
class GeneratorOptions:
    """One generator of a run."""

    run: Annotated[str, tyro.conf.Positional] = ""
    """Folder of a run, or its name under --checkpoints_dir; or a file with one generator."""
    checkpoints_dir: str = "checkpoints"
    """Folder of all runs."""
    epoch: str = "last"
    """Checkpoint: last, best, or the number of a kept epoch."""
    which: Literal["ema", "raw"] = "ema"
    """Weights of a run trained with --ema: their average, or raw: as they were trained."""
    direction: Literal["AtoB", "BtoA"] | None = None
    """Direction of the translation. Default: that of the training. A cycle_gan run has learned both."""
    debug: bool = False
    """Also show the traceback of an error."""

    def check(self) -> None:
        """Raise UserError, naming the flag, for what is missing and for a value that is not allowed."""
        if not self.run:
            raise UserError("RUN", "is required", "name the run, first of all")


@dataclass(frozen=True)
class TranslationOptions:
    """Translate with a trained run, or with weights from elsewhere."""

    name: str = ""
    """Name of the run. Required, unless --weights is given."""
    weights: str = ""
    """Weights in the place of a run: an exported file, or a latest_net_G*.pth or the folder of it."""
    checkpoints_dir: str = "checkpoints"
    """Folder of all runs."""
    epoch: str = "last"
    """Checkpoint: last, best, or the number of a kept epoch."""
    which: Literal["ema", "raw"] = "ema"
    """Weights of a run trained with --ema: their average, or raw: as they were trained."""
    input: tuple[str, ...] = ()
    """Pictures, or one folder of pictures and subfolders, to translate.
    Default: the test split of the run's data, with a results page."""
    output: str = ""
    """Folder for the translations of --input. Each keeps its subfolder, name and size.
    For one picture, a file name that ends in .png or .tif is allowed too."""
    output_depth: Literal[8, 16] = 8
    """Bits of a channel that are written. PNG up to 4 channels, TIFF for more."""
    show_bands: str = ""
    """Bands that the results page shows of pictures with more than three: one, or three. Default: as in training."""
    dataroot: str = ""
    """Folder of the run's data, if it has moved (without --input)."""
    results_dir: str = "results"
    """Folder for the results page and its pictures (without --input)."""
    direction: Literal["AtoB", "BtoA"] | None = None
    """Direction of the translation. Default: that of the training. A cycle_gan run has learned both."""
    scale: str | None = None
    """trained (default): translate at the scale of training and resize back, where training resized by over 1.25 times.
    native: translate at the picture's own size. FACTOR: translate at this scale and resize back."""
    size: int | None = None
    """Translate at SIZE x SIZE pixels, and write this size."""
    tile: str = "auto"
    """auto: cut pictures of more than 4 megapixels into tiles, if that does not change the translation.
    N: into tiles of at most N pixels a side, whenever a picture is larger; refused if that changes the translation.
    0: never."""
    tile_inexact: bool = False
    """Take tiles also with instance norm, which then standardises each tile on its own."""
    max_pixels: int | None = None
    """Read pictures of up to this many pixels. Default: 64 megapixels."""
    num_test: int | None = None
    """Translate at most this many pictures."""
    batch_size: int = 1
    """Number of pictures of equal size that are translated together."""
    test_mode: Literal["eval", "train"] = "eval"
    """train: use dropout and batch statistics, as the published Pix2Pix protocol does."""
    skip_bad: bool = False
    """Skip unreadable pictures instead of stopping."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto: a CUDA GPU if there is one, else Apple's GPU, else the CPU."""
    debug: bool = False
    """Also show the traceback of an error."""

    def check(self) -> None:
        """Raise UserError, naming the flag, for a value or a combination that is not allowed."""
        if not self.name and not self.weights:
            raise UserError(
                "--name", "is required", "name the run to translate with, or a file with --weights"
            )
        if self.name and self.weights:
            raise UserError("--weights", "does not go with --name", "leave one of them out")
        check_name(self.name or "weights")
        if bool(self.input) != bool(self.output):
            missing = "--output" if self.input else "--input"
            raise UserError(missing, "is missing", "give --input and --output together")
        for flag, value, least, most in (
            ("--size", self.size, 2, 8000),
            ("--num_test", self.num_test, 1, 10**9),
            ("--batch_size", self.batch_size, 1, 10**4),
            ("--max_pixels", self.max_pixels, 1, 10**11),
        ):
            if value is not None and not least <= value <= most:
                raise UserError(flag, f"is {value}", f"allowed: {least} to {most}")
        if not re.fullmatch(r"auto|0|[1-9]\d{1,4}", self.tile, re.ASCII):
            raise UserError("--tile", f"is {self.tile}", "allowed: auto, 0, or 10 to 99999")
        if self.scale is not None and self.size is not None:
            raise UserError("--scale", "does not go with --size", "leave one of them out")
        try:
            factor = 1.0 if self.scale in (None, "trained", "native") else float(str(self.scale))
        except ValueError:
            factor = 0.0
        if not 0.01 <= factor <= 100:
            allowed = "allowed: trained, native, or a factor from 0.01 to 100"
            raise UserError("--scale", f"is {self.scale}", allowed)
