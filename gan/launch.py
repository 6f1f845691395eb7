"""From options to a finished (or interrupted) training: the run's folder, resuming, viewers, exit code."""

import contextlib
import dataclasses
import os
import platform
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from datasets.check import changes
from datasets.errors import UserError, printable, say, set_log_file
from datasets.files import new_folder
from gan.checkpoint import list_checkpoints, load_checkpoint
from gan.loop import Evaluate, Plan, Training
from gan.options import ModelGroup, TrainOptions, changes_that_matter, stored_dict
from gan.run import (
    MetricsLog,
    RunFolder,
    read_records,
    refuse_changes,
    refuse_existing,
    resume_command,
    run_command_line,
)
from gan.setup import TrainingData, build_data, build_trainer, check_device, check_sizes
from gan.signals import StopRequest, tolerate_closed_stdout
from gan.state import (
    Position,
    check_format,
    checkpoint_size,
    describe_difference,
    restore,
    seed_everything,
    use_deterministic,
)
from gan.step import Trainer
from gan.viewers import RunInfo, Viewer, Viewers
from gan.viewers.console import Console
from gan.viewers.page import Page
from gan.viewers.visdom import Visdom


def train(options: TrainOptions, saved: dict[str, Any] | None, evaluate: Evaluate | None = None) -> int:
    """Train a new run, or go on with one (`saved`: the options it was made with). Returns the exit code.

    Raises UserError and RunError, which the command line turns into one line.
    """
    tolerate_closed_stdout()
    run = RunFolder.at(Path(options.run.checkpoints_dir), options.run.name)
    if saved is None:
        refuse_existing(run)
    with new_folder(run.path), run.lock(), _forgotten_if_not_started(run):
        if saved is None:
            refuse_existing(run)  # again: another training may have come and gone before the lock was ours
        set_log_file(run.log)
        use_deterministic(options.run.deterministic)
        seed_everything(options.run.seed)
        check_device(options)
        trainer = build_trainer(options)
        check_sizes(options, trainer.networks)
        run.require_space(2 * checkpoint_size(trainer))  # a new one is written before an old one goes
        data = build_data(options)
        seed_everything(options.run.seed)  # the weights' random numbers do not shift the dropout's
        position, log = Position(), MetricsLog(run.metrics)
        if saved is not None:
            position = _resume(run, trainer, data, log, options)
            if position.epoch > options.schedule.n_epochs + options.schedule.n_epochs_decay:
                _say_nothing_left(run, options, position)
                return 0
        run.write_options(stored_dict(options))
        return _train(options, saved, run, trainer, data, position, log, evaluate)


def dry_run(options: TrainOptions) -> int:
    """Print what would be done; write nothing."""
    check_device(options)
    trainer = build_trainer(options)
    check_sizes(options, trainer.networks)
    run = RunFolder.at(Path(options.run.checkpoints_dir), options.run.name)
    print(describe(options, trainer, build_data(options), run))
    return 0


def describe(options: TrainOptions, trainer: Trainer, data: TrainingData, run: RunFolder) -> str:
    """The plan of a training as text, and what is worth knowing of its data."""
    model, schedule = options.model, options.schedule
    epochs = schedule.n_epochs + schedule.n_epochs_decay
    sizes = {name: sum(p.numel() for p in net.parameters()) for name, net in trainer.networks.items()}
    counts = (
        f"{len(data.sources.a)} A, {len(data.sources.b)} B"
        if not data.dataset.paired
        else f"{len(data.sources.a)} pairs"
    )
    device = next(next(iter(trainer.networks.values())).parameters()).device
    lines = {
        "run": str(run.path),
        "model": f"{model.model}, {model.netG}, norm {model.norm}, base norm {model.base_norm}",
        "networks": "  ".join(f"{name} {count / 1e6:.3f} M" for name, count in sizes.items()),
        "data": f"{data.sources.root} ({data.sources.layout}, {options.data.direction}): {counts}",
        "pictures": f"{options.data.preprocess} to {options.data.crop_size} pixels, batch {options.data.batch_size}",
        "steps": f"{epochs} epochs of {data.steps_per_epoch} = {epochs * data.steps_per_epoch}",
        "device": f"{device}, {options.device.precision}",
        "page": str(run.page),
    }
    return "\n".join([*(f"{name:>9}  {text}" for name, text in lines.items()), *data.report.notes()])


def _train(
    options: TrainOptions,
    saved: dict[str, Any] | None,
    run: RunFolder,
    trainer: Trainer,
    data: TrainingData,
    position: Position,
    log: MetricsLog,
    evaluate: Evaluate | None,
) -> int:
    print(describe(options, trainer, data, run), flush=True)
    if data.report.bad:
        with contextlib.suppress(OSError), run.log.open("a", encoding="utf-8") as file:
            file.writelines(f"left out: {printable(entry)}\n" for entry in data.report.bad)
    plan = plan_of(options)
    stored = stored_dict(options)
    viewers = Viewers(_viewers(options, plan, data))
    with StopRequest() as stop, viewers:
        viewers.start(RunInfo(run.name, run.path, stored, _host(trainer)), read_records(run.metrics))
        training = Training(trainer, data, plan, run, log, viewers, stop, position, stored, evaluate)
        training.log_changes(saved)
        done = training.train()
    if stop.requested:
        print(f"stopped at step {position.step}; saved. To go on:\n  {resume_command(run)}", flush=True)
        return stop.exit_code
    if not done:
        print(f"stopped after epoch {position.epoch - 1}, as asked. To go on:\n  {resume_command(run)}")
        return 0
    translate = shlex.join(run_command_line(run, "test.py"))
    print(f"done: {position.step} steps. Page: {run.page}\nto translate:  {translate}")
    return 0


def plan_of(options: TrainOptions) -> Plan:
    schedule, output = options.schedule, options.output
    return Plan(
        n_epochs=schedule.n_epochs,
        n_epochs_decay=schedule.n_epochs_decay,
        lr=schedule.lr,
        lr_policy=schedule.lr_policy,
        lr_decay_iters=schedule.lr_decay_iters,
        print_freq=output.print_freq,
        display_freq=output.display_freq,
        save_epoch_freq=output.save_epoch_freq,
        save_step_freq=output.save_step_freq,
        keep=output.keep,
        best_by=output.best_by,
        eval_every=output.eval_every,
    )


def _viewers(options: TrainOptions, plan: Plan, data: TrainingData) -> list[Viewer]:
    """The page, the terminal and, where asked for, Visdom."""
    viewers: list[Viewer] = [Page(), Console(plan.epochs, data.steps_per_epoch)]
    wanted = options.viewer
    if wanted.visdom != "off":
        viewers.append(
            Visdom(
                mode=wanted.visdom,
                server=wanted.visdom_server,
                port=wanted.visdom_port,
                base_url=wanted.visdom_base_url,
                env=wanted.visdom_env or options.run.name,
                username=wanted.visdom_username,
                password=wanted.visdom_password or os.environ.get("VISDOM_PASSWORD", ""),
                keep=wanted.visdom_keep,
            )
        )
    return viewers


def _resume(
    run: RunFolder, trainer: Trainer, data: TrainingData, log: MetricsLog, options: TrainOptions
) -> Position:
    """Put the newest good checkpoint back and cut the log to its length."""
    if not list_checkpoints(run.path):
        say(f"no checkpoint in {run.path} yet: starting from the beginning")
        log.truncate(0)
        return Position()
    state, path = load_checkpoint(run.path, "last")
    check_format(state, str(path))
    override = options.run.override  # the checkpoint knows better than options.yaml, which anybody can edit
    refuse_changes(run, changes_that_matter(state["options"], stored_dict(options)), override, "options")
    was, now = state["data"].split("\0"), data.report.listing
    if change := changes(was, now):
        refuse_changes(run, [f"{options.data.dataroot}: {printable(change)}"], override, "data")
    try:
        position = restore(trainer, state, str(path))
    except UserError as error:
        names = [field.name for field in dataclasses.fields(ModelGroup)]
        misfit = describe_difference(state["options"], stored_dict(options), names)
        if misfit:  # tensor names mean nothing to the person who changed an option
            reason = f"networks do not fit: checkpoint -> asked for: {', '.join(misfit)}"
            raise UserError(path, reason, "use the options it was trained with") from error
        raise
    if state["options"].get("best_by") != options.output.best_by:
        position.best = None  # a figure of another metric
    log.truncate(state["metrics_bytes"])
    return position


def _say_nothing_left(run: RunFolder, options: TrainOptions, position: Position) -> None:
    more = max(1, position.epoch - 1 - options.schedule.n_epochs_decay + 10)
    print(
        f"nothing left to train: all {position.epoch - 1} epochs of {run.name} are done\n"
        f"to extend it:  {resume_command(run)} --n_epochs {more}"
    )


def _host(trainer: Trainer) -> str:
    device = next(next(iter(trainer.networks.values())).parameters()).device
    card = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    )
    return (
        f"{platform.node()}, {device} ({card}), torch {torch.__version__}, Python {platform.python_version()}"
    )


@contextlib.contextmanager
def _forgotten_if_not_started(run: RunFolder) -> Iterator[None]:
    """No log and no lock stay behind if no training came of it. Only for the holder of the lock."""
    try:
        yield
    except BaseException:
        if not run.exists:
            set_log_file(None)
            for leftover in (run.log, run.lock_file):
                leftover.unlink(missing_ok=True)
        raise
