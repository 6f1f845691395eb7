"""What is asked for, and the named protocol that follows from it. No torch is imported here: --help answers at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from datasets.errors import UserError

VERSION = "i2i-1"  # of the protocol: raised when the definition of any metric or resize changes


@dataclass(frozen=True)
class NetworkOptions:
    """Where the weights of the metrics' networks come from, and where they run."""

    inception_weights: Path | None = None
    """Inception weights (pt_inception-2015-12-05-6726825d.pth). Default: I2I_WEIGHTS, the cache, a download."""
    lpips_weights: Path | None = None
    """AlexNet weights (alexnet-owt-7be5be79.pth). Default: I2I_WEIGHTS, the cache, a download."""
    allow_unverified: bool = False
    """Take weights that are not the published ones; it stands in the protocol id."""
    offline: bool = False
    """Download nothing (also: I2I_OFFLINE=1)."""
    cache_dir: Path | None = None
    """Folder of weights and features that are kept. Default: I2I_CACHE, or ~/.cache/i2i."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto: a CUDA GPU if there is one, then Apple's, else the CPU."""


@dataclass(frozen=True)
class EvaluateOptions(NetworkOptions):
    """FID, KID, LPIPS, PSNR, SSIM and L1 by a named protocol, of runs or of any two folders of pictures."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Runs of this program: folders, or names under --checkpoints_dir. Their test split is translated first."""
    fake: Path | None = None
    """Folder of generated pictures (instead of runs)."""
    real: Path | None = None
    """Folder of real pictures of the same domain."""
    input: Path | None = None
    """Folder of the inputs that --fake was made from, matched by equal stem."""
    paired: bool = False
    """Every picture in --fake has its target, of equal stem, in --real."""
    size: int | None = None
    """With folders: stretch all pictures to SIZE x SIZE. Default: use them as they are; all must have one size."""
    grey: bool = False
    """With folders: compare all pictures in grey, as runs with one output channel are (another protocol id)."""
    metrics: str = ""
    """Comma-separated: fid,fid_clean,kid,lpips,psnr,ssim,l1. Default: all that apply and whose weights can be had."""
    epoch: str = "last"
    """Checkpoint of the runs: last, best, the number of a kept epoch, or several with commas."""
    test_mode: Literal["eval", "train"] = "eval"
    """train: dropout and batch statistics on, the published Pix2Pix protocol."""
    num_test: int | None = None
    """Only the first so many test inputs, and their targets (another protocol id); FID and KID keep all reals."""
    dataroot: Path | None = None
    """Where the runs' data is now, if it has been moved."""
    baselines: bool = False
    """Add what needs no learning: mean colour, affine colour map and colour table (paired runs)."""
    bootstrap: int = 0
    """Resamples for a 95 % interval of every metric; 0: none. 200 is plenty."""
    output: Path | None = None
    """Folder for report.json, .md and .csv. Default: RUN/evaluation, else a folder in results/evaluation."""
    latex: bool = False
    """Write report.tex as well."""
    checkpoints_dir: Path = Path("checkpoints")
    """Folder of all runs."""
    no_cache: bool = False
    """Keep no features on disk."""
    batch_size: int = 16
    """Pictures that pass a network together."""
    num_threads: int = 2
    """Threads that decode pictures."""
    debug: bool = False
    """Show the traceback of an error as well."""

    def check(self) -> None:
        """Refuse flags that do not go together or are out of range. Raises UserError."""
        if bool(self.runs) == bool(self.fake or self.real):
            raise UserError("evaluate", "name runs, or --fake and --real", "see --help")
        if bool(self.fake) != bool(self.real):
            missing = "--real" if self.fake else "--fake"
            raise UserError(missing, "is missing", "--fake and --real go together")
        least = {"size": 2, "num_test": 1, "bootstrap": 20, "batch_size": 1, "num_threads": 1}
        for flag, low in least.items():
            value = getattr(self, flag)
            if value is not None and value < low and (flag, value) != ("bootstrap", 0):
                raise UserError(f"--{flag}", f"is {value}", f"allowed: {low} or more")
        for_folders = [flag for flag in ("size", "paired", "input", "grey") if getattr(self, flag)]
        if self.runs and for_folders:
            raise UserError(f"--{for_folders[0]}", "is for folders, not for runs", "leave it out")
        if self.baselines and not self.runs:
            raise UserError("--baselines", "needs a run, for its training pairs", "leave it out")
        self.epochs()

    def epochs(self) -> list[str]:
        """--epoch as a list without repetitions: "last", "best" or digits. UserError for anything else."""
        found = list(dict.fromkeys(part.strip() for part in self.epoch.split(",")))
        for epoch in found:
            if epoch not in ("last", "best") and not (epoch.isascii() and epoch.isdecimal()):
                allowed = "allowed: last, best, the number of a kept epoch, or several with commas"
                raise UserError("--epoch", f"is {self.epoch!r}", allowed)
        return found

    def variant(self) -> str:
        """What is asked for beyond the defaults and makes other numbers, as a folder's name: `epoch-5-train`."""
        wanted = self.epochs()
        parts = [f"epoch-{epoch}" if epoch.isdecimal() else epoch for epoch in wanted if wanted != ["last"]]
        parts += [] if self.test_mode == "eval" else [self.test_mode]
        parts += [] if self.num_test is None else [f"first-{self.num_test}"]
        parts += [] if self.size is None else [f"size-{self.size}"]
        parts += ["grey"] if self.grey else []
        return "-".join(parts)


@dataclass(frozen=True)
class Protocol:
    """Everything that moves a number and is not the pictures themselves: only numbers of equal ids may be compared.

    size: side that all pictures are stretched to, or "WxH" where they are used as they are. mode: how outputs were
    made: "eval" or "train" (dropout and batch statistics on) for runs, "files" for folders of pictures. first: at most
    so many test inputs, None for all; reals are never cut. verified: all weights are the published ones. colours: what
    outputs and reals are compared in: "RGB", "L" (grey), or domain A's and domain B's where they differ, as in "L-RGB".
    """

    size: str
    mode: str
    first: int | None = None
    verified: bool = True
    colours: str = "RGB"

    @property
    def id(self) -> str:
        """Short name that is printed with every number.

        >>> Protocol("256", "eval").id
        'i2i-1/256/eval'
        >>> Protocol("256", "eval", colours="L").id
        'i2i-1/256/eval/L'
        """
        parts = [VERSION, self.size, self.mode, *([self.colours] if self.colours != "RGB" else [])]
        parts += [] if self.first is None else [f"first{self.first}"]
        parts += [] if self.verified else ["unverified-weights"]
        return "/".join(parts)

    @property
    def smallest_side(self) -> int:
        """Of the compared pictures, in pixels."""
        return min(int(side) for side in self.size.split("x"))

    def sentences(self) -> list[str]:
        """What the id stands for, in words."""
        if "x" in self.size:
            size = f"all pictures are {self.size} pixels and used as they are"
        else:
            size = f"all pictures stretched to {self.size}x{self.size} pixels (PIL bicubic, no crop, no flip)"
        made = {
            "eval": "outputs made in eval mode (dropout off, running statistics), written as 8-bit PNG",
            "train": "outputs made in train mode (dropout and batch statistics on), written as 8-bit PNG",
            "files": "outputs read from the folder as they are",
        }[self.mode]
        words = {"RGB": "in RGB", "L": "in grey (luma, shown to the networks as three equal channels)"}
        if "-" in self.colours:
            a, b = self.colours.split("-")
            seen = f"domain A compared {words[a]}, domain B {words[b]}"
        else:
            seen = f"outputs and real images compared {words[self.colours]}"
        which = "all" if self.first is None else f"the first {self.first}"
        if self.mode == "files":
            counted = [f"fakes: {which} pictures of their folder", "reals: all pictures of theirs, never cut"]
        else:
            only = "" if self.first is None else " only"
            reals = "reals: all test pictures of the target domain, through the same resize"
            counted = [f"outputs of {which} test inputs{only}", reals]
        warning = [] if self.verified else ["WEIGHTS NOT VERIFIED: these numbers compare with no others"]
        return [size, made, seen, *counted, *warning]
