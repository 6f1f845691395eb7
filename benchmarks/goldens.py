"""Whether the working tree computes the same bits as a commit, on this machine.

    python -m benchmarks.goldens --base COMMIT [--reworded]

Both train four tiny runs for eight steps, continue one of the base's, translate and evaluate. Compared are weights,
optimizers, pools and random states of the checkpoints, metrics.jsonl without `time`, sample pictures, translated
pixels, and report.json. Every item is one line: equal, or the first difference, which makes the exit code 1.
Nothing is kept for later: bits differ between processors.
"""

import argparse
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.sides import WEIGHTS, Side, old_and_new

COMMON = (
    "--ngf 4 --ndf 4 --n_epochs 1 --n_epochs_decay 1 --pool_size 3 --val_count 2 --print_freq 1 --display_freq 4 "
    "--device cpu --visdom off"
)
CYCLE = "--model cycle_gan --dataroot ../data/unaligned --netG resnet_6blocks --load_size 36 --crop_size 32 --dropout"
PAIRS = "--model pix2pix --dataroot ../data/aligned"
RUNS = {
    "cycle_gan-instance": f"{CYCLE} --norm instance --max_dataset_size 4 --num_threads 0",
    "cycle_gan-nc_ms": f"{CYCLE} --norm nc_ms --max_dataset_size 4 --num_threads 0",
    "pix2pix-batch": f"{PAIRS} --norm batch --netG unet_128 --load_size 136 --crop_size 128 --num_threads 1"
    " --batch_size 2 --max_dataset_size 8",
    "pix2pix-nc": f"{PAIRS} --norm nc --netG resnet_6blocks --load_size 36 --crop_size 32 --num_threads 0"
    " --max_dataset_size 4 --eval_every 1 --eval_metrics psnr,ssim,l1",
}
"""Eight steps each, over two epochs; the second lowers the learning rate."""

CARRIED = "cycle_gan-nc_ms"
"""The run that both sides continue from the base's checkpoint."""

TRANSLATIONS = {
    "cycle_gan-nc_ms": "--input ../data/unaligned/testB --output translated/cycle_gan-nc_ms --direction BtoA",
    "pix2pix-batch": "--results_dir translated --size 128 --test_mode train",
}
EVALUATIONS = {
    "cycle_gan": "cycle_gan-instance cycle_gan-nc_ms --metrics lpips",
    "pix2pix": "pix2pix-nc --metrics fid,fid_clean,kid,psnr,ssim,l1 --baselines --bootstrap 20",
}
LEFT_OUT = {
    "checkpoint_sha256",
    "versions",
    "seconds",
    "half",
    "latex",
    "flip",
    "no_flip",
    "dropout",
    "no_dropout",
}
"""Entries of report.json that name machine or file, or options that may go or be stored in another way."""

Item = tuple[str, Mapping[str, str]]
"""A name, and texts by place."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", required=True, metavar="COMMIT", help="the commit to compare with")
    parser.add_argument("--reworded", action="store_true", help="sentences in the files may differ")
    arguments = parser.parse_args()
    differ = 0
    with old_and_new(arguments.base, size=32) as (old, new), ThreadPoolExecutor(2) as pool:
        for work, items in ((train, trained_items), (use, used_items)):
            list(pool.map(work, (old, new), (old, old)))
            for (name, expected), (_, found) in zip(items(old), items(new), strict=True):
                difference = first_difference(expected, found, arguments.reworded)
                print(f"{name:<42}  {difference or 'equal'}", flush=True)
                differ += bool(difference)
    print(f"{differ} items differ" if differ else "all equal")
    return 1 if differ else 0


def train(side: Side, _: Side) -> None:
    for name, flags in RUNS.items():
        side.run(f"train.py --name {name} {COMMON} {flags}")


def trained_items(side: Side) -> Iterator[Item]:
    yield from items_of_runs(side, *(f"checkpoints/{name}" for name in RUNS))


def use(side: Side, base: Side) -> None:
    """Continue the base's run, translate, and evaluate."""
    shutil.copytree(base.home / "checkpoints" / CARRIED, side.home / "carried" / CARRIED)
    side.run(f"train.py --checkpoints_dir carried --name {CARRIED} --continue_train --n_epochs_decay 2")
    for name, flags in TRANSLATIONS.items():
        side.run(f"test.py --name {name} --device cpu {flags}")
    for name, flags in EVALUATIONS.items():
        side.run(f"-m evaluate {flags} --output reports/{name} --device cpu {WEIGHTS}")


def used_items(side: Side) -> Iterator[Item]:
    yield from items_of_runs(side, f"carried/{CARRIED}")
    for name in TRANSLATIONS:
        yield f"test.py {name}", pictures(side.home / "translated" / name)
    yield "pictures of python -m evaluate", pictures(side.home / "checkpoints", "*/evaluation/**/*.png")
    for name in EVALUATIONS:
        report = json.loads((side.home / "reports" / name / "report.json").read_text())
        yield f"report.json {name}", dict(leaves(report, LEFT_OUT))


def items_of_runs(side: Side, *runs: str) -> Iterator[Item]:
    for run, state in side.checkpoints(*runs).items():
        for section, contents in state.items():
            yield f"{run} {section}", contents
        lines = (side.home / run / "metrics.jsonl").read_text().splitlines()
        yield f"{run} metrics.jsonl", dict(leaves([json.loads(line) for line in lines], {"time"}))
        yield f"{run} samples", pictures(side.home / run / "samples")


def leaves(value: Any, left_out: set[str], place: str = "") -> Iterator[tuple[str, str]]:
    """Every leaf of a JSON value as (place, text), without the entries of these names."""
    if not isinstance(value, dict | list):
        yield place, repr(value)
        return
    for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
        if key not in left_out:
            yield from leaves(entry, left_out, f"{place}[{key!r}]")


def pictures(folder: Path, pattern: str = "**/*.png") -> dict[str, str]:
    """The pixels of every picture, as their SHA-256, by its path in the folder."""
    found = {}
    for path in sorted(folder.glob(pattern)):
        with Image.open(path) as picture:
            digest = hashlib.sha256(picture.tobytes()).hexdigest()[:16]
            found[str(path.relative_to(folder))] = f"{picture.mode} {picture.size} {digest}"
    if not found:
        raise SystemExit(f"{folder}: no pictures")
    return found


def first_difference(old: Mapping[str, str], new: Mapping[str, str], reworded: bool) -> str:
    """The first place of unequal texts, or nothing. reworded: texts of more than three words are left out."""
    for place in [*old, *(place for place in new if place not in old)]:
        a, b = old.get(place, "absent"), new.get(place, "absent")
        if a != b and not (reworded and min(a.count(" "), b.count(" ")) >= 3):
            return f"{place}: {a} -> {b}"
    return ""


if __name__ == "__main__":
    raise SystemExit(main())
