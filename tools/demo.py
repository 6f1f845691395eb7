"""`make demo`: run the whole program on drawn data, in minutes on two CPU cores without a GPU.

A small Pix2Pix learns from pairs to draw the street map of an aerial photo. A small CycleGAN learns without pairs to
turn day into night and back: its towns by night are other towns than those by day. Pairs that it never saw measure the
result. The commands are those that a user would type.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SMALL = (
    "--norm nc_ms --netG unet_128 --no_dropout --netD n_layers --ndf 16 --load_size 128 --crop_size 128 "
    "--display_freq 200 --print_freq 20 --num_threads 0 --cache_gb 1 --visdom off"
)
PIX2PIX = f"--model pix2pix --ngf 16 --n_layers_D 2 --n_epochs 5 --n_epochs_decay 3 --lr 0.002 {SMALL}"
CYCLEGAN = (
    "--model cycle_gan --upsample resize --ngf 8 --n_layers_D 3 --lambda_A 5 --lambda_B 5 --n_epochs 10 "
    f"--n_epochs_decay 6 --lr 0.001 --ema 0.995 {SMALL}"
)
TOWNS = "--count 100 --size 128"
DAYS = "--count 100 --size 128 --extent 128 --task night"


class Direction(NamedTuple):
    """One direction in which a run translates."""

    run: str
    direction: str
    caption: str


DIRECTIONS = (
    Direction("pix2pix", "AtoB", "Pix2Pix, photo to map"),
    Direction("cyclegan", "AtoB", "CycleGAN, day to night"),
    Direction("cyclegan", "BtoA", "CycleGAN, night to day"),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.demo", description="Train, translate and evaluate on drawn data."
    )
    parser.add_argument("--output", type=Path, default=Path("demo"), help="new folder (default: demo)")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the towns and the trainings (default: 0)"
    )
    options = parser.parse_args()
    start, output, seed = time.monotonic(), options.output, f"--seed {options.seed}"
    if output.exists():
        sys.exit(f"error: {output}: an earlier demo is there (to start again, remove it: rm -r {output})")
    folder = shlex.quote(str(output))
    run(f"-m datasets.synthetic {TOWNS} {seed} --output {folder}/towns")
    run(f"-m datasets.synthetic {DAYS} {seed} --layout unaligned --output {folder}/days")
    run(f"-m datasets.synthetic {DAYS} {seed} --output {folder}/days_paired")

    runs, trained = f"--checkpoints_dir {folder}/checkpoints", time.monotonic()
    run(f"train.py --name pix2pix --dataroot {folder}/towns {PIX2PIX} {seed} {runs}")
    run(f"train.py --name cyclegan --dataroot {folder}/days {CYCLEGAN} {seed} {runs}")
    trained = time.monotonic() - trained

    pairs = {"pix2pix": f"--dataroot {folder}/towns", "cyclegan": f"--dataroot {folder}/days_paired"}
    for name, direction, _ in DIRECTIONS:
        places = f"{pairs[name]} {runs} --results_dir {folder}/results"
        run(f"test.py --name {name} --direction {direction} {places}")
    for name, dataroot in pairs.items():
        metrics = f"--metrics psnr,ssim,l1,fd_lite0,kd_lite0 --baselines --output {folder}/evaluation/{name}"
        run(f"-m evaluate {name} {dataroot} {runs} {metrics}")
    page = write_page(output, trained)
    print(
        f"\ntraining took {trained:.0f} s, everything {time.monotonic() - start:.0f} s\npage: {page.resolve()}"
    )


def run(arguments: str) -> None:
    """Show and run a command as a user would type it. If it fails, the demo ends with its exit code."""
    print(f"\n$ python {arguments}", flush=True)
    code = subprocess.run([sys.executable, *shlex.split(arguments)], check=False).returncode
    if code:
        sys.exit(code)


def write_page(folder: Path, trained: float) -> Path:
    """Write the page of both runs: results, test pictures, samples over time. trained: seconds of training."""
    from gan.viewers.report_page import Figure, Table, make_report_page  # imports torch: not for --help

    rows = [row for direction in DIRECTIONS for row in results(folder, direction)]
    columns = ("task", "by", "PSNR (dB)", "SSIM", "L1", "FD", "KD")
    about = (
        "Baselines are fitted on training pairs. They know colours but no shapes. The CycleGAN has seen no pairs. "
        "FD and KD are distances of all outputs to all targets, without pairing, on EfficientNet-Lite0's features. "
        "They are not FID and KID."
    )
    figures = [Figure(direction.caption, test_grid(folder, direction)) for direction in DIRECTIONS]
    intro = (
        "A small Pix2Pix and a small CycleGAN with normalized convolution and moment shortcut, trained for "
        f"{trained / 60:.1f} minutes on this machine, on drawn towns of 128 pixels."
    )
    checkpoints = [folder / "checkpoints" / name for name in ("pix2pix", "cyclegan")]
    table = Table("Test pictures", columns, rows, about, texts=2)
    return make_report_page(folder / "index.html", "Demo", checkpoints, [table], figures, intro)


def results(folder: Path, wanted: Direction) -> Iterator[tuple[str, ...]]:
    """Rows of the table: the metrics of the run in one direction, and of the baselines."""
    report = folder / "evaluation" / wanted.run / "report.json"
    for row in json.loads(report.read_text(encoding="utf-8"))["rows"]:
        if row["direction"] == wanted.direction:
            values = row["values"]
            digits = {"psnr": 2, "ssim": 3, "l1": 4, "fd_lite0": 2, "kd_lite0": 4}
            figures = (f"{values[name]:.{n}f}" if name in values else "" for name, n in digits.items())
            yield wanted.caption, row["label"], *figures


def test_grid(folder: Path, wanted: Direction, count: int = 6) -> Path:
    """Draw a labelled grid of the first test pictures that test.py wrote."""
    import torch

    from datasets.images import load_image, to_tensor
    from gan.viewers.samples import GRID, save_samples

    images = folder / "results" / wanted.run / f"test_last_{wanted.direction}" / "images"
    source, target = wanted.direction.split("to")
    endings = {"input": f"real_{source}", "fake": f"fake_{target}", "target": f"real_{target}"}
    columns = {
        kind: torch.stack(
            [to_tensor(load_image(path)) for path in sorted(images.glob(f"*_{ending}.png"))[:count]]
        )
        for kind, ending in endings.items()
    }
    return save_samples(folder / "figures" / f"{wanted.run}_{wanted.direction}", columns)[GRID]


if __name__ == "__main__":
    main()
