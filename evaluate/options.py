"""The options of the evaluation, and the protocol that follows from them. No torch here, so --help answers at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from datasets.errors import UserError

VERSION = "i2i-1"  # of the protocol: raised when the definition of any metric or resize changes
LITE0 = "efficientnet-lite0"  # part of the id; raised likewise for the metrics on that network's features


@dataclass(frozen=True)
class NetworkOptions:
    """Weights of the metric networks, and the device."""

    inception_weights: Path | None = None
    """Inception weights (pt_inception-2015-12-05-6726825d.pth). Default: I2I_WEIGHTS, the cache, a download."""
    lpips_weights: Path | None = None
    """AlexNet weights (alexnet-owt-7be5be79.pth). Default: I2I_WEIGHTS, the cache, a download."""
    allow_unverified: bool = False
    """Accept weights other than the published ones. The protocol id then says so."""
    offline: bool = False
    """Download nothing. I2I_OFFLINE=1 does the same."""
    cache_dir: Path | None = None
    """Folder for downloaded weights and computed features. Default: I2I_CACHE, or ~/.cache/i2i."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto: a CUDA GPU if there is one, else Apple's GPU, else the CPU."""


@dataclass(frozen=True)
class EvaluateOptions(NetworkOptions):
    """FID, KID, LPIPS, PSNR, SSIM and L1 by a named protocol, of runs or of any two folders of pictures."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Runs of this program: folders, or names under --checkpoints_dir. Their test split is translated.
    Or weights with --dataroot: exported files, latest_net_G*.pth, or folders of these."""
    fake: Path | None = None
    """Folder of generated pictures, instead of runs."""
    real: Path | None = None
    """Folder of real pictures of the same domain, or a file of their Fréchet statistics (.npz), for FID alone."""
    input: Path | None = None
    """Folder of the inputs of the generated pictures, matched by equal stem."""
    paired: bool = False
    """Every picture in --fake has a target in --real with an equal stem."""
    size: int | None = None
    """With folders: stretch all pictures to SIZE x SIZE. Default: as they are; all must have one size.
    With weights: evaluate at SIZE x SIZE. Default: the size of their training, or 256 where that is not known."""
    direction: Literal["AtoB", "BtoA"] | None = None
    """With weights: direction of the translation. Default: every one that they know, or AtoB."""
    grey: bool = False
    """With folders: compare all pictures in grey, like runs with one output channel. The protocol id says so."""
    show_bands: str = ""
    """Bands of runs with more than three that psnr, ssim and l1 measure: one, or three. Default: as in training."""
    metrics: str = ""
    """Comma-separated. Default: those of fid,fid_clean,kid,lpips,psnr,ssim,l1 that apply and whose weights are found.
    Only if named: precision,recall,density,coverage (FID's features), pixel_accuracy, and without a download:
    fd_lite0,kd_lite0,precision_lite0,recall_lite0,density_lite0,coverage_lite0."""
    epoch: str = "last"
    """Checkpoint of the runs: last, best, the number of a kept epoch, or several separated by commas."""
    which: Literal["ema", "raw"] = "ema"
    """Weights of runs trained with --ema: their average, or raw: as they were trained."""
    test_mode: Literal["eval", "train"] = "eval"
    """train: use dropout and batch statistics, as the published Pix2Pix protocol does."""
    num_test: int | None = None
    """Use at most this many test inputs and their targets. FID and KID use all reals. The protocol id says so."""
    dataroot: Path | None = None
    """Folder of the runs' data, if it has moved."""
    baselines: bool = False
    """For runs with training pairs: add mean colour, affine colour map and colour table as rows."""
    bootstrap: int = 0
    """Number of resamples for the 95 % interval of every metric. 0: no interval. 200 are enough."""
    output: Path | None = None
    """Folder of the report. Default: RUN/evaluation for one run, otherwise a folder in results/evaluation."""
    save_stats: Path | None = None
    """Also write the Fréchet statistics of the real pictures as .npz, in pytorch-fid's layout, for --real."""
    per_image: bool = False
    """Also write the metrics of every single output (per_image.csv, per_image.json), and report.html with the ten
    worst and best of each metric."""
    latex: bool = False
    """Also write report.tex."""
    checkpoints_dir: Path = Path("checkpoints")
    """Folder of all runs."""
    no_cache: bool = False
    """Do not store features on disk."""
    batch_size: int = 16
    """Number of pictures in a batch of a metric network."""
    num_threads: int = 2
    """Number of threads that decode pictures."""
    debug: bool = False
    """Also show the traceback of an error."""

    def check(self) -> None:
        """Raise UserError for flags that exclude each other or are out of range."""
        if bool(self.runs) == bool(self.fake or self.real):
            raise UserError("evaluate", "name runs, or --fake and --real", "see --help")
        if bool(self.fake) != bool(self.real):
            missing = "--real" if self.fake else "--fake"
            raise UserError(missing, "is missing", "--fake and --real go together")
        for flag, (low, high) in _BOUNDS.items():
            value = getattr(self, flag)
            if value is not None and not low <= value <= high and (flag, value) != ("bootstrap", 0):
                raise UserError(f"--{flag}", f"is {value}", f"allowed: {low} to {high}")
        for_folders = [flag for flag in ("paired", "input", "grey") if getattr(self, flag)]
        if self.runs and for_folders:
            raise UserError(f"--{for_folders[0]}", "is for folders, not for runs", "leave it out")
        if self.show_bands and not self.runs:
            raise UserError("--show_bands", "is for runs, not for folders", "leave it out")
        if self.baselines and not self.runs:
            raise UserError("--baselines", "needs a run, for its training pairs", "leave it out")
        if self.has_statistics:
            for flag in ("paired", "bootstrap", "save_stats"):
                if getattr(self, flag):
                    raise UserError(
                        f"--{flag}", f"needs the real pictures, and --real is {self.real}", "leave it out"
                    )
        self.epochs()

    @property
    def has_statistics(self) -> bool:
        """Whether --real is a file of statistics instead of a folder."""
        return self.real is not None and self.real.suffix == ".npz" and not self.real.is_dir()

    def epochs(self) -> list[str]:
        """--epoch as a list without repetitions: "last", "best" or digits. UserError for anything else."""
        found = list(dict.fromkeys(part.strip() for part in self.epoch.split(",")))
        for epoch in found:
            if epoch not in ("last", "best") and not (epoch.isascii() and epoch.isdecimal()):
                allowed = "allowed: last, best, the number of a kept epoch, or several with commas"
                raise UserError("--epoch", f"is {self.epoch!r}", allowed)
        return found

    def variant(self) -> str:
        """The choices that change the numbers and are not the defaults, as a folder's name: `epoch-5-train`."""
        wanted = self.epochs()
        parts = [f"epoch-{epoch}" if epoch.isdecimal() else epoch for epoch in wanted if wanted != ["last"]]
        parts += [] if self.which == "ema" else [self.which]
        parts += [] if self.direction is None else [self.direction]
        parts += [] if self.test_mode == "eval" else [self.test_mode]
        parts += [] if self.num_test is None else [f"first-{self.num_test}"]
        parts += [] if self.size is None else [f"size-{self.size}"]
        parts += ["grey"] if self.grey else []
        parts += [LITE0] if "_lite0" in self.metrics else []
        parts += [f"bands-{self.show_bands.replace(',', '-')}"] if self.show_bands else []
        return "-".join(parts)


_BOUNDS = {
    "size": (2, 8000),  # 64 megapixels, as many as are read
    "num_test": (1, 10**9),
    "bootstrap": (20, 100_000),
    "batch_size": (1, 4096),
    "num_threads": (1, 256),
}


@dataclass(frozen=True)
class Protocol:
    """Everything that changes a number, except the pictures. Only numbers of equal ids may be compared.

    size: side in pixels that all pictures are stretched to, or "WxH" where they are used as they are. mode: how outputs
    were made: "eval" or "train" (dropout and batch statistics on) for runs, "files" for folders of pictures. first: at
    most this many test inputs, None for all; all reals are used. verified: all weights are the published ones. colours:
    how outputs and reals are compared: "RGB", "L" (grey), "bands4+3+2", or those of domains A and B if they differ, as
    in "L-RGB". lite0: whether features of EfficientNet-Lite0 are compared.
    """

    size: str
    mode: str
    first: int | None = None
    verified: bool = True
    colours: str = "RGB"
    lite0: bool = False

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
        parts += [LITE0] if self.lite0 else []
        parts += [] if self.verified else ["unverified-weights"]
        return "/".join(parts)

    @property
    def pictures(self) -> str:
        """What a file of statistics has to have in common with the pictures: version, size, colours."""
        return f"{VERSION}/{self.size}/{self.colours}"

    @property
    def smallest_side(self) -> int:
        """Smallest side of the compared pictures, in pixels."""
        return min(int(side) for side in self.size.split("x"))

    def sentences(self) -> list[str]:
        """The protocol in sentences."""
        if "x" in self.size:
            size = f"all pictures have {self.size} pixels and are used as they are"
        else:
            size = f"all pictures stretched to {self.size}x{self.size} pixels (PIL bicubic, no crop, no flip)"
        made = {
            "eval": "outputs made in eval mode (dropout off, running statistics), written as 8-bit PNG",
            "train": "outputs made in train mode (dropout and batch statistics on), written as 8-bit PNG",
            "files": "outputs read from the folder as they are",
        }[self.mode]
        words = {"RGB": "in RGB", "L": "in grey (luma, shown to the networks as three equal channels)"}
        a, *b = [words.get(colours, f"by {colours} alone") for colours in self.colours.split("-")]
        seen = f"domain A compared {a}, domain B {b[0]}" if b else f"outputs and real images compared {a}"
        which = "all" if self.first is None else f"the first {self.first}"
        if self.mode == "files":
            counted = [f"fakes: {which} pictures of their folder", "reals: all pictures of their folder"]
        else:
            only = "" if self.first is None else " only"
            reals = "reals: all test pictures of the target domain, through the same resize"
            counted = [f"outputs of {which} test inputs{only}", reals]
        warning = [] if self.verified else ["WEIGHTS NOT VERIFIED: do not compare these numbers with others"]
        return [size, made, seen, *counted, *warning]
