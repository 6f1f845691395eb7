"""`make demo`: the whole program on data it draws itself, in minutes on two CPU cores and without a GPU.

Draws towns as aerial photo and street map; trains a small Pix2Pix and a small CycleGAN with `--norm nc_ms` by the same
commands a user would type; translates the test split, evaluates, and writes demo/index.html.
"""

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from datasets.images import load_image, to_tensor
from gan.viewers.report_page import Figure, Table, make_report_page
from gan.viewers.samples import GRID, save_samples

FOLDER = Path("demo")
TOWNS = 100
SIZE = 64
SMALL = (
    "--norm nc_ms --netG resnet_6blocks --ndf 16 --load_size 64 --crop_size 64 --lr 0.0005 "
    "--num_threads 0 --print_freq 20 --display_freq 100 --visdom off --checkpoints_dir demo/checkpoints"
)
PIX2PIX = (
    "--name pix2pix --model pix2pix --dataroot demo/towns "
    f"--ngf 32 --no_dropout --n_epochs 8 --n_epochs_decay 7 {SMALL}"
)
CYCLEGAN = (
    "--name cyclegan --model cycle_gan --dataroot demo/towns_unpaired "
    f"--ngf 16 --n_epochs 3 --n_epochs_decay 3 {SMALL}"
)


def main() -> None:
    start = time.monotonic()
    if FOLDER.exists():
        sys.exit(
            f"error: {FOLDER}: is there already from an earlier demo (remove it to start afresh: rm -r {FOLDER})"
        )
    run("datasets.synthetic", f"--output demo/towns --count {TOWNS} --size {SIZE}")
    run(
        "datasets.synthetic", f"--output demo/towns_unpaired --count {TOWNS} --size {SIZE} --layout unaligned"
    )
    trained = time.monotonic()
    run("train.py", PIX2PIX)
    run("train.py", CYCLEGAN)
    trained = time.monotonic() - trained
    places = "--checkpoints_dir demo/checkpoints --results_dir demo/results"
    run("test.py", f"--name pix2pix {places}")
    run("test.py", f"--name cyclegan {places}")
    run("test.py", f"--name cyclegan --direction BtoA {places}")
    run(
        "evaluate", "pix2pix cyclegan --checkpoints_dir demo/checkpoints --output demo/evaluation --baselines"
    )

    report = json.loads((FOLDER / "evaluation" / "report.json").read_text(encoding="utf-8"))
    runs = [FOLDER / "checkpoints" / name for name in ("pix2pix", "cyclegan")]
    intro = (
        f"A small Pix2Pix and a small CycleGAN with normalized convolution and moment shortcut, trained for "
        f"{trained / 60:.1f} minutes on this machine, on drawn towns of {SIZE} pixels: aerial photo to street map."
    )
    figures = [
        Figure("Pix2Pix, test split", test_grid("pix2pix", "AtoB", "input", "fake", "target")),
        Figure("CycleGAN, photo to map, test split", test_grid("cyclegan", "AtoB", "input_A", "fake_B")),
        Figure("CycleGAN, map to photo, test split", test_grid("cyclegan", "BtoA", "input_B", "fake_A")),
    ]
    page = make_report_page(FOLDER / "index.html", "Demo", runs, [results_table(report)], figures, intro)
    print(
        f"\ntraining took {trained:.0f} s, everything {time.monotonic() - start:.0f} s\npage: {page.resolve()}"
    )


def run(program: str, arguments: str) -> None:
    """One command as a user would type it, shown before it runs."""
    interpreter = [sys.executable] if program.endswith(".py") else [sys.executable, "-m"]
    words = shlex.split(arguments)
    shown = ["python", *interpreter[1:], program, *words]
    print(f"\n$ {shlex.join(shown)}", flush=True)
    code = subprocess.run([*interpreter, program, *words], check=False).returncode
    if code:
        sys.exit(code)


def test_grid(run: str, direction: str, *kinds: str, count: int = 6) -> Path:
    """A labelled grid of the first test pictures, from what test.py wrote."""
    folder = FOLDER / "results" / run / f"test_last_{direction}" / "images"
    source, target = direction.split("to")
    endings = (f"_real_{source}.png", f"_fake_{target}.png", f"_real_{target}.png")
    images = {
        kind: torch.stack([enlarged(path) for path in sorted(folder.glob(f"*{ending}"))[:count]])
        for kind, ending in zip(kinds, endings, strict=False)
    }
    return save_samples(FOLDER / "figures" / f"{run}_{direction}", images)[GRID]


def enlarged(path: Path) -> torch.Tensor:
    """A picture of the test split at twice its size, so that it can be looked at."""
    return to_tensor(load_image(path)).repeat_interleave(2, 1).repeat_interleave(2, 2)


def results_table(report: dict[str, Any]) -> Table:
    """The figures that need no downloaded weights, and how far Pix2Pix is ahead of what needs no learning."""
    columns = ("run", "direction", "PSNR (dB)", "SSIM", "L1")
    rows = [
        (row["label"], row["direction"], *(shown(row["values"].get(name)) for name in ("psnr", "ssim", "l1")))
        for row in report["rows"]
    ]
    psnr = {row["label"]: row["values"]["psnr"] for row in report["rows"] if "psnr" in row["values"]}
    baseline = max(value for label, value in psnr.items() if label.startswith("baseline"))
    note = f"Pix2Pix is {psnr['pix2pix'] - baseline:.2f} dB better than the best that learns no structure."
    print(f"\n{note}")
    about_cyclegan = (
        "CycleGAN has no pairs to be measured against: its figures, FID and LPIPS, need their weights."
    )
    return Table("Test split", columns, rows, f"{note} {about_cyclegan}")


def shown(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}"


if __name__ == "__main__":
    main()
