"""The plan of Table 3 as text: rows, commands, what is done, what is missing, how long the rest takes."""

import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from datasets.layouts import find_sources
from evaluate.table3_options import Table3Options
from evaluate.table3_plan import OTHER, DataSet, Preset, Training, options_of
from evaluate.table3_results import TITLES


def print_plan(plan: Sequence[Training], options: Table3Options, data_dir: Path) -> None:
    """The rows, their commands, the data that is missing, and how long it takes on this machine."""
    preset = plan[0].preset
    print(
        f"Table 3, preset {preset.name}: {len({(t.setting, t.norm) for t in plan})} rows, {len(plan)} trainings"
    )
    costs: dict[tuple[str, str], float] = {}
    total = 0.0
    for training in plan:
        setting, data = training.setting, training.setting.data
        ways = [training.direction] if setting.model == "pix2pix" else [data.disk, OTHER[data.disk]]
        words = ", ".join(f"{data.words(way)} ({way} on disk)" for way in ways)
        flags = training.flags(data_dir, options.checkpoints_dir)
        print(f"\n{setting.title}, {TITLES[training.norm]}, seed {training.seed}: {words}")
        print(f"  {shlex.join(['python', 'train.py', *flags])}")
        state = progress(training, options.checkpoints_dir)
        images = training_images(data, data_dir, preset)
        steps = max(0, preset.epochs - state) * images
        if not options.no_estimate:
            key = setting.model, training.norm
            if key not in costs:
                costs[key] = seconds_per_step(flags, options.device)
            total += steps * costs[key]
            print(
                f"  {state} of {preset.epochs} epochs done; {steps} steps to go, about {duration(steps * costs[key])}"
            )
        else:
            print(f"  {state} of {preset.epochs} epochs done; {steps} steps to go")
    if not options.no_estimate:
        print(
            f"\nabout {duration(total)} of training on this machine, one after the other, and the evaluation"
        )
    missing = missing_data(plan, data_dir)
    for note in count_notes(plan, data_dir):
        print(f"\n{note}")
    if missing and not preset.synthetic:
        print(
            "\nnot there yet: "
            + ", ".join(str(folder) for folder in missing)
            + "; see python -m datasets.prepare"
        )
    print("\nto carry it out (an interrupted call goes on where it stopped): add --run")


def progress(training: Training, checkpoints_dir: Path) -> int:
    """Epochs that a training's newest checkpoint has behind it."""
    from gan.checkpoint import list_checkpoints

    found = list_checkpoints(checkpoints_dir / training.name)
    return found[0].epoch or 0 if found else 0


def seconds_per_step(flags: Sequence[str], device: str) -> float:
    """One training step of these flags on this machine, after one to warm up, with random pictures."""
    import torch

    from gan.setup import build_trainer

    options = options_of([*flags, "--device", device])
    trainer = build_trainer(options)
    side = options.data.crop_size
    batch = {
        "A": torch.rand(1, options.model.input_nc, side, side) * 2 - 1,
        "B": torch.rand(1, options.model.output_nc, side, side) * 2 - 1,
    }
    for _ in range(2):
        start = time.perf_counter()
        torch.stack(list(trainer.step(batch).losses.values())).tolist()  # waits for the device
    return time.perf_counter() - start


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.5 h`, `2.1 days`."""
    for size, unit, least in ((86400.0, "days", 86400 * 2), (3600.0, "h", 5400), (60.0, "min", 90)):
        if seconds >= least:
            return f"{seconds / size:.1f} {unit}" if unit != "min" else f"{seconds / size:.0f} min"
    return f"{seconds:.0f} s"


def missing_data(plan: Sequence[Training], data_dir: Path) -> list[Path]:
    """Folders of data sets that are not there."""
    folders = dict.fromkeys(data_dir / training.setting.data.name for training in plan)
    return [folder for folder in folders if not folder.is_dir()]


def training_images(data: DataSet, data_dir: Path, preset: Preset) -> int:
    """Of the larger side: what is on disk, else what there will be."""
    folder = data_dir / data.name
    if folder.is_dir():
        sources = find_sources(folder, "train")
        return max(len(sources.a), len(sources.b))
    return preset.synthetic[0] if preset.synthetic else data.train_images


def count_notes(plan: Sequence[Training], data_dir: Path) -> list[str]:
    """A sentence for each real data set on disk that has other counts than the published one."""
    notes = []
    for data in dict.fromkeys(training.setting.data for training in plan):
        folder = data_dir / data.name
        if plan[0].preset.synthetic or not folder.is_dir():
            continue
        counts = []
        for split in ("train", "test"):
            sources = find_sources(folder, split)
            counts.append(max(len(sources.a), len(sources.b)))
        if counts != [data.train_images, data.test_images]:
            notes.append(
                f"{data.title}: {counts[0]} training and {counts[1]} test pictures in {folder}, the published set has "
                f"{data.train_images} and {data.test_images}: these numbers do not compare with the published ones"
            )
    return notes
