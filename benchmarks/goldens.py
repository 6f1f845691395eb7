"""Whether the working tree computes the same bits as a commit, on this machine.

    python -m benchmarks.goldens --base COMMIT [--reworded]

Both train four tiny runs for eight steps, continue one of the base's, translate and evaluate. Compared are weights,
optimizers, pools and random states of the checkpoints, metrics.jsonl without `time`, sample pictures, translated
pixels, and report.json without what names a machine or a file. Every item is one line: equal, or the first
difference. The exit code is 1 if there is one. Nothing is kept: bits differ between processors.
"""

import argparse
import json
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import nn

from benchmarks.sides import SECTIONS, Side, flatten, old_and_new

COMMON = (
    "--ngf 4 --ndf 4 --n_epochs 1 --n_epochs_decay 1 --pool_size 3 --val_count 2 --print_freq 1 --display_freq 4 "
    "--device cpu --visdom off"
)
CYCLE = "--model cycle_gan --dataroot ../data/unaligned --netG resnet_6blocks --load_size 36 --crop_size 32 --dropout"
PAIRS = "--model pix2pix --dataroot ../data/aligned --load_size 136 --crop_size 128"
PIXEL_METRICS = "psnr,ssim,l1"

RUNS = {
    "cycle_gan-instance": f"{CYCLE} --norm instance --max_dataset_size 4 --num_threads 0",
    "cycle_gan-nc_ms": f"{CYCLE} --norm nc_ms --max_dataset_size 4 --num_threads 0",
    "pix2pix-batch": f"{PAIRS} --norm batch --netG unet_128 --batch_size 2 --max_dataset_size 8 --num_threads 1",
    "pix2pix-nc": f"{PAIRS} --norm nc --netG resnet_6blocks --max_dataset_size 4 --num_threads 0"
    f" --eval_every 1 --eval_metrics {PIXEL_METRICS}",
}
"""Eight steps each, over two epochs, the second of which lowers the learning rate."""

CARRIED = "cycle_gan-nc_ms"
"""The run that both sides continue from the base's checkpoint."""

TRANSLATIONS = {
    "cycle_gan-nc_ms": "--input ../data/unaligned/testB --output translated/cycle_gan-nc_ms --direction BtoA",
    "pix2pix-batch": "--results_dir translated --size 128 --test_mode train",
}

EVALUATIONS = {
    "cycle_gan": "cycle_gan-instance cycle_gan-nc_ms --metrics fid,lpips",
    "pix2pix": f"pix2pix-batch pix2pix-nc --metrics fid_clean,kid,{PIXEL_METRICS} --baselines --bootstrap 20",
}

NOT_COMPARED = {"checkpoint_sha256", "versions", "seconds"}
SETTINGS = {"half", "latex", "flip", "no_flip", "dropout", "no_dropout"}
"""Options that may go or be stored in another way. What they do shows in weights and pixels."""

Leaf = str | np.ndarray[Any, Any]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", required=True, metavar="COMMIT", help="the commit to compare with")
    parser.add_argument("--reworded", action="store_true", help="sentences in the files may differ")
    arguments = parser.parse_args()
    differ = 0
    with old_and_new(arguments.base) as (old, new), ThreadPoolExecutor(2) as pool:
        prepare(old)
        for work, items in ((train, trained_items), (use, used_items)):
            list(pool.map(work, (old, new), (old, old)))
            for (name, expected), (_, found) in zip(items(old), items(new), strict=True):
                difference = first_difference(expected, found, arguments.reworded)
                print(f"{name:<50}  {difference or 'equal'}", flush=True)
                differ += bool(difference)
    print(f"{differ} items differ" if differ else "all equal")
    return 1 if differ else 0


def prepare(base: Side) -> None:
    """Data and network weights that both sides read: ../data and ../weights, seen from their homes."""
    for layout in ("aligned", "unaligned"):
        flags = f"--output ../data/{layout} --count 20 --size 32 --layout {layout}".split()
        base.run("-m", "datasets.synthetic", *flags)
    weights = base.home.parent / "weights"
    weights.mkdir()
    torch.save(random_inception(), weights / "inception.pth")
    from torchvision.models import AlexNet

    torch.save(AlexNet().features.state_dict(prefix="features."), weights / "alexnet.pth")


def random_inception() -> dict[str, torch.Tensor]:
    """A state of pytorch-fid's network that keeps the scale of what passes through."""
    from pytorch_fid import inception

    torch.manual_seed(0)
    with (
        mock.patch.object(inception, "load_state_dict_from_url"),
        mock.patch.object(nn.Module, "load_state_dict"),
    ):
        network = inception.fid_inception_v3()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    state: dict[str, torch.Tensor] = network.state_dict()
    return state


def train(side: Side, _: Side) -> None:
    for name, flags in RUNS.items():
        side.train("--name", name, *COMMON.split(), *flags.split())


def trained_items(side: Side) -> Iterator[tuple[str, Mapping[str, Leaf]]]:
    yield from items_of_runs(side, *(f"checkpoints/{name}" for name in RUNS))


def use(side: Side, base: Side) -> None:
    """Continue the base's run, translate with all runs, and evaluate them."""
    shutil.copytree(base.home / "checkpoints" / CARRIED, side.home / "carried" / CARRIED)
    side.train("--checkpoints_dir", "carried", "--name", CARRIED, "--continue_train", "--n_epochs_decay", "2")
    test = side.root / "test.py"
    for name, flags in TRANSLATIONS.items():
        side.run(test, "--name", name, "--device", "cpu", *flags.split())
    weights = "--inception_weights ../weights/inception.pth --lpips_weights ../weights/alexnet.pth --allow_unverified"
    for name, flags in EVALUATIONS.items():
        common = f"--output reports/{name} --device cpu {weights}"
        side.run("-m", "evaluate", *flags.split(), *common.split())


def used_items(side: Side) -> Iterator[tuple[str, Mapping[str, Leaf]]]:
    yield from items_of_runs(side, f"carried/{CARRIED}")
    for name in TRANSLATIONS:
        yield f"test.py {name}", pictures(side.home / "translated" / name)
    for name in RUNS:
        yield f"evaluate's pictures of {name}", pictures(side.home / "checkpoints" / name / "evaluation")
    for name in EVALUATIONS:
        report = json.loads((side.home / "reports" / name / "report.json").read_text())
        yield f"report.json of {name}", dict(flatten(without(report, NOT_COMPARED | SETTINGS)))


def items_of_runs(side: Side, *runs: str) -> Iterator[tuple[str, Mapping[str, Leaf]]]:
    for run, state in side.checkpoints(*runs).items():
        for section in SECTIONS:
            yield f"{run} {section}", state[section]
        lines = (side.home / run / "metrics.jsonl").read_text().splitlines()
        yield f"{run} metrics.jsonl", dict(flatten([without(json.loads(line), {"time"}) for line in lines]))
        yield f"{run} samples", pictures(side.home / run / "samples")


def without(value: Any, names: set[str]) -> Any:
    """A JSON value without the entries of these names, at any depth."""
    if isinstance(value, dict):
        return {key: without(entry, names) for key, entry in value.items() if key not in names}
    return [without(entry, names) for entry in value] if isinstance(value, list) else value


def pictures(folder: Path) -> dict[str, Leaf]:
    """Every PNG below a folder, by its relative path, as an array of pixels."""
    found: dict[str, Leaf] = {
        str(path.relative_to(folder)): np.asarray(Image.open(path)) for path in sorted(folder.rglob("*.png"))
    }
    if not found:
        raise SystemExit(f"{folder}: no pictures")
    return found


def first_difference(old: Mapping[str, Leaf], new: Mapping[str, Leaf], reworded: bool) -> str:
    """Where two items differ first, or nothing."""
    for place in [*old, *(place for place in new if place not in old)]:
        a, b = old.get(place, "absent"), new.get(place, "absent")
        if isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and a.shape == b.shape:
            if (different := np.argwhere(a != b)).size:
                at = tuple(different[0])
                count = f"{len(different)} of {a.size} values"
                return f"{place} at {tuple(map(int, at))}: {a[at]} -> {b[at]}, {count}"
        elif isinstance(a, str) and isinstance(b, str):
            if a != b and not (reworded and min(a.count(" "), b.count(" ")) >= 3):
                return f"{place}: {a} -> {b}"
        else:
            return f"{place}: {_short(a)} -> {_short(b)}"
    return ""


def _short(leaf: Leaf) -> str:
    return leaf if isinstance(leaf, str) else f"picture of shape {leaf.shape}"


if __name__ == "__main__":
    raise SystemExit(main())
