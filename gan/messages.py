"""The messages of train.py: the plan before a training, the commands that resume or use the run after it."""

import shlex

from gan.options import ScheduleGroup, TrainOptions
from gan.run import RunFolder, resume_command, run_command_line
from gan.setup import TrainingData
from gan.state import Position
from gan.step import Trainer


def plan(options: TrainOptions, trainer: Trainer, data: TrainingData) -> str:
    """The plan of a training as a block of lines, with notes about its data."""
    run = RunFolder.at(options.run.checkpoints_dir, options.run.name)
    model, epochs = options.model, options.schedule.epochs
    sizes = {name: sum(p.numel() for p in net.parameters()) for name, net in trainer.networks.items()}
    a, b = len(data.sources.a), len(data.sources.b)
    lines = {
        "run": str(run.path),
        "model": f"{model.model}, {model.netG}, norm {model.norm}, base norm {model.base_norm}",
        "networks": "  ".join(f"{name} {count / 1e6:.3f} M" for name, count in sizes.items()),
        "data": f"{data.sources.root} ({data.sources.layout}, {options.data.direction}): "
        + (f"{a} pairs" if data.dataset.paired else f"{a} A, {b} B"),
        "pictures": f"{options.data.preprocess} to {options.data.crop_size} pixels, batch {options.data.batch_size}",
        "values": ", ".join(
            f"{domain} {wanted[0]:g} is black, {wanted[1]:g} white"
            for domain, wanted in zip("AB", data.sources.ranges, strict=True)
            if wanted and wanted != "auto"
        ),
        "steps": f"{epochs} epochs of {data.steps_per_epoch} = {epochs * data.steps_per_epoch}",
        "device": f"{trainer.placement.device}, {options.device.precision}",
        "page": str(run.page),
    }
    return "\n".join([*(f"{name:>9}  {text}" for name, text in lines.items() if text), *data.report.notes()])


def nothing_left(run: RunFolder, position: Position, schedule: ScheduleGroup) -> str:
    """All epochs of the schedule are done, or even more. The line says how to train ten more."""
    done = position.epoch - 1
    more = max(1, done + 10 - schedule.n_epochs_decay)
    return (
        f"nothing left to train: all {done} epochs of {run.name} are done\n"
        f"to extend it:  {resume_command(run)} --n_epochs {more}"
    )


def end(run: RunFolder, position: Position, signal: int | None, finished: bool) -> str:
    """How a training ended, and the command for the next step."""
    if signal:
        return f"stopped at step {position.step}; saved. To resume:\n  {resume_command(run)}"
    if not finished:
        return f"stopped after epoch {position.epoch - 1}, as asked. To resume:\n  {resume_command(run)}"
    translate = shlex.join(run_command_line(run, "test.py"))
    return f"done: {position.step} steps. Page: {run.page}\nto translate:  {translate}"
