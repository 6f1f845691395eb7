"""The options of `python -m evaluate`. No torch is imported here: --help answers at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class EvaluateOptions:
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
    no_cache: bool = False
    """Keep no features on disk."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto: a CUDA GPU if there is one, then Apple's, else the CPU."""
    half: bool = False
    """On a CUDA GPU: Inception in float16, if it keeps FID of the first pictures within 0.1 % (other protocol id)."""
    batch_size: int = 16
    """Pictures that pass a network together."""
    num_threads: int = 2
    """Threads that decode pictures."""
    debug: bool = False
    """Show the traceback of an error as well."""
