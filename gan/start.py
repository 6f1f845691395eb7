"""Around the loop: the plan, what a checkpoint puts back, the viewers, the last words."""

import dataclasses
import os
import platform
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from datasets.check import changes
from datasets.errors import UserError, printable, say, set_log_file
from datasets.files import remove_leftovers, write_atomically
from datasets.images import PLAIN
from gan.checkpoint import delete_others, list_checkpoints, load_checkpoint
from gan.loop import Training
from gan.options import DataGroup, ModelGroup, TrainOptions, changes_that_matter, from_dict, stored_dict
from gan.processes import job
from gan.run import refuse_changes, resume_command, run_command_line
from gan.show_bands import about_shown_bands
from gan.state import check_format, refuse_malformed, restore
from gan.viewers import RunInfo, Viewer, Viewers, shown_records
from gan.viewers.console import Console
from gan.viewers.page import Page

YARDSTICK = frozenset(field.name for field in dataclasses.fields(DataGroup)) - {
    "dataroot", "batch_size", "flip", "serial_batches", "num_threads", "cache_gb"
} | {"seed", "best_by", "input_nc", "output_nc"}  # fmt: skip
"""Options that decide what the metric of the best checkpoint measures. Files are compared, not where they are."""


def initial_weights(training: Training) -> str:
    """Take the weights of --init_from, unless there is a checkpoint to go on from. Returns what the plan says of it."""
    if not training.options.model.init_from or list_checkpoints(training.run.path):
        return ""
    from gan.fine_tuning import initialize_from  # few trainings start from other weights

    return initialize_from(training.trainer, training.options)


def plan(training: Training, weights: str = "") -> str:
    """The plan of a training as a block of lines, with notes about its data. weights: where they come from."""
    options, trainer, data = training.options, training.trainer, training.data
    model, epochs = options.model, options.schedule.epochs
    parameters = {name: list(net.parameters()) for name, net in trainer.networks.items()}
    sizes = {name: sum(p.numel() for p in own) for name, own in parameters.items()}
    frozen = [p for own in parameters.values() for p in own if not p.requires_grad]
    a, b = len(data.sources.a), len(data.sources.b)
    lines = {
        "run": str(training.run.path),
        "model": f"{model.model}, {model.netG}, norm {model.norm}, base norm {model.base_norm}",
        "networks": "  ".join(f"{name} {count / 1e6:.3f} M" for name, count in sizes.items()),
        "weights": weights,
        "frozen": f"{sum(p.numel() for p in frozen) / 1e6:.3f} M in {len(frozen)} tensors" if frozen else "",
        "data": f"{data.sources.root} ({data.sources.layout}, {options.data.direction}): "
        + (f"{a} pairs" if data.dataset.paired else f"{a} A, {b} B"),
        "pictures": f"{options.data.preprocess} to {options.data.crop_size} pixels, batch {options.data.batch_size}",
        "cache": str(data.dataset.cache or ""),
        "processes": _sharing(training),
        "shown": about_shown_bands((model.input_nc, model.output_nc), options.viewer.show_bands),
        "values": ", ".join(
            f"{domain} {wanted[0]:g} is black, {wanted[1]:g} white"
            for domain, wanted in zip("AB", data.sources.ranges, strict=True)
            if wanted and wanted != "auto"
        ),
        "steps": f"{epochs} epochs of {data.steps_per_epoch} = {epochs * data.steps_per_epoch}",
        "average": f"of the generators' weights, decay {ema}" if (ema := options.schedule.ema) else "",
        "device": f"{trainer.placement.device}, {options.device.precision}{_advice_on_precision(training)}",
        "page": str(training.run.page),
    }
    return "\n".join([*(f"{name:>9}  {text}" for name, text in lines.items() if text), *data.report.notes()])


def _advice_on_precision(training: Training) -> str:
    """What bf16 costs on a CPU that only imitates it; nothing where torch cannot tell."""
    placement = training.trainer.placement
    instructions: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    has_bf16 = not instructions or any(there for name, there in instructions.items() if "bf16" in name)
    if has_bf16 or not placement.bf16 or placement.device.type != "cpu":
        return ""
    return " (slower than fp32: this CPU has no instructions for bf16)"


def _sharing(training: Training) -> str:
    """How several processes share a step; nothing where there is one."""
    options, world = training.options, training.trainer.processes.world
    if world == 1:
        return ""
    batch, lr = options.data.batch_size, options.schedule.lr
    rate = f"{lr:g} x {world}" if options.schedule.scale_lr else f"{lr:g}, not scaled (--scale_lr)"
    norms = {type(layer) for net in training.trainer.networks.values() for layer in net.modules()}
    norm = "; batch norm of the global batch" if torch.nn.SyncBatchNorm in norms else ""
    if torch.nn.BatchNorm2d in norms:
        norm = "; batch norm of each process's own pictures, running statistics averaged"
    return f"{world}, global batch {world} x {batch} = {world * batch}; learning rate {rate}{norm}"


def resume(training: Training) -> None:
    """Restore the newest good checkpoint, and cut the log to the length that it had then.

    Raises UserError, unless --override is given, where options or data differ in what is trained.
    """
    run, log, options = training.run, training.log, training.options
    processes, data = training.trainer.processes, training.data
    if (found := processes.from_first(lambda: _newest(training))) is None:
        return
    state, path = found
    check_format(state, str(path))
    saved, wanted = stored_dict(from_dict(state["options"])), stored_dict(options)
    override, changed = options.run.override, changes_that_matter(saved, wanted)
    refuse_changes(run, changed, override, "options")  # the checkpoint decides: anybody can edit options.yaml
    with refuse_malformed(str(path)):
        other_data = changes(state["data"].split("\0"), data.report.listing)
    if other_data:
        refuse_changes(run, [f"{options.data.dataroot}: {printable(other_data)}"], override, "data")
    try:
        training.position = restore(training.trainer, state, str(path))
    except UserError as error:
        of_model = tuple(f"{field.name}:" for field in dataclasses.fields(ModelGroup))
        if misfit := [line for line in changed if line.startswith(of_model)]:
            # tensor names mean nothing to the person who changed an option
            reason = f"networks do not fit: checkpoint -> asked for: {', '.join(misfit)}"
            raise UserError(path, reason, "use the options it was trained with") from error
        raise
    if bool(training.trainer.averages) != ("averages" in state):
        what = "starts at the weights of" if training.trainer.averages else "is not kept after"
        say(f"--ema: the average {what} step {training.position.step}")
    at, before = training.position, state.get("machine", {}).get("processes", 1) * saved["batch_size"]
    if before != data.pictures_per_step:
        at.batches = data.batches_done(at.batches * before)
    if not processes.is_first:
        return
    log.truncate(state["metrics_bytes"])
    delete_others(run.path, training.position.step, options.output.keep)  # what a kill in a save has left
    of_pictures = options.output.best_by not in (None, "val_l1")  # which show a part of many bands
    by_bands = {"show_bands"} if of_pictures and options.model.output_nc not in PLAIN else set()
    if other_data or any(saved.get(name) != wanted[name] for name in YARDSTICK | by_bands):
        _forget_best(training)


def begin(training: Training) -> None:
    """Write the options into the run's folder, and give all processes the weights of the first, which writes."""
    run, processes = training.run, training.trainer.processes
    processes.spread([*training.trainer.networks.values(), *training.trainer.averages.values()])
    if not processes.is_first:
        set_log_file(run.log)
        return
    if of := job():
        write_atomically(run.job_file, of.encode())
    run.write_options(training.stored)


def _newest(training: Training) -> tuple[dict[str, Any], Path] | None:
    """The newest good checkpoint and its file, after what killed saves have left is gone; None where there is none."""
    run = training.run
    for folder in (run.path, *run.path.rglob("*/")):  # samples and the page too
        remove_leftovers(folder)
    if list_checkpoints(run.path):
        return load_checkpoint(run.path, "last")
    say(f"no checkpoint in {run.path} yet: starting from the beginning")
    training.log.truncate(0)
    return None


def _forget_best(training: Training) -> None:
    """The best value belongs to another metric or to other validation pictures: none that follows compares with it."""
    best, training.position.best = training.position.best, None
    if best is not None:
        message = f"the best value so far, {best:.4g}, does not compare with what follows: it starts anew"
        say(message)
        training.record("event", message=message)


def open_viewers(training: Training, saved: Mapping[str, Any] | None) -> Viewers:
    """The viewers of a training, started with what the run has recorded so far; only the first process has any.

    saved: the options that a resumed run was saved with; what has changed is recorded.
    """
    if not training.trainer.processes.is_first:
        return Viewers([])
    run, device = training.run, training.trainer.placement.device
    threads = f"{torch.get_num_threads()} threads"
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else threads
    host = (
        f"{platform.node()}, {device} ({card}), torch {torch.__version__}, Python {platform.python_version()}"
    )
    at, steps = training.position, training.data.steps_per_epoch
    more_steps = at.step - (at.epoch - 1) * steps - at.batches  # than epochs of this data have
    total_steps = training.options.schedule.epochs * steps + more_steps
    info = RunInfo(run.name, run.path, stored_dict(training.options), host, total_steps)
    viewers = Viewers(choose_viewers(training.options, steps, more_steps))
    try:
        viewers.start(info, shown_records(run.path))
    except BaseException:  # a second Ctrl-C: no server that was started stays behind
        viewers.close()
        raise
    training.viewers = viewers
    model, chosen = training.options.model, training.options.viewer.show_bands
    if saved is None and (text := about_shown_bands((model.input_nc, model.output_nc), chosen)):
        training.record("event", message=f"samples show {text}")
    changed = {name: value for name, value in training.stored.items() if saved and saved.get(name) != value}
    if changed:
        training.record("event", message="resumed with other options", options=changed)
    return viewers


def choose_viewers(options: TrainOptions, steps_per_epoch: int, more_steps: int) -> list[Viewer]:
    """The page, the terminal, unless it is off Visdom, and TensorBoard where it is on."""
    viewers: list[Viewer] = [
        Page(),
        Console(options.schedule.epochs, steps_per_epoch, more_steps=more_steps),
    ]
    wanted = options.viewer
    if wanted.visdom != "off":
        from gan.viewers.visdom import Visdom  # nobody else needs what it loads

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
                controls=wanted.visdom_controls,
            )
        )
    if wanted.tensorboard == "on":
        from gan.viewers.tensorboard import TensorBoard

        viewers.append(TensorBoard())
    return viewers


def nothing_left(training: Training) -> str:
    """All epochs of the schedule are done, or even more. The lines say how to train ten more, and how fast."""
    done, schedule = training.position.epoch - 1, training.options.schedule
    lines = [f"nothing left to train: all {done} epochs of {training.run.name} are done; to extend it:"]
    for n_epochs in (done + 10 - schedule.n_epochs_decay, schedule.n_epochs):
        longer = dataclasses.replace(schedule, n_epochs=n_epochs, n_epochs_decay=done + 10 - n_epochs)
        first, last = longer.learning_rate(done + 1), longer.learning_rate(done + 10)
        flags = f"--n_epochs {longer.n_epochs} --n_epochs_decay {longer.n_epochs_decay}"
        lines.append(f"  {resume_command(training.run)} {flags}   # learning rate {first:.2g} to {last:.2g}")
    return "\n".join(lines)


def ending(training: Training, finished: bool) -> str:
    """How a training ended, and the command for the next step."""
    run, at = training.run, training.position
    if training.stop.requested:
        return f"stopped at step {at.step}; saved. To resume:\n  {resume_command(run)}"
    if not finished:
        return f"stopped after epoch {at.epoch - 1}, as asked. To resume:\n  {resume_command(run)}"
    translate = shlex.join(run_command_line(run, "test.py"))
    return f"done: {at.step} steps. Page: {run.page}\nto translate:  {translate}"
