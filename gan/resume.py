"""Resuming a run: its newest good checkpoint is put back into freshly built objects."""

import dataclasses

from datasets.check import changes
from datasets.errors import UserError, printable, say
from datasets.files import remove_leftovers
from gan.checkpoint import list_checkpoints, load_checkpoint
from gan.options import DataGroup, ModelGroup, TrainOptions, changes_that_matter, from_dict, stored_dict
from gan.run import MetricsLog, RunFolder, refuse_changes
from gan.setup import TrainingData
from gan.state import Position, check_format, describe_difference, refuse_malformed, restore
from gan.step import Trainer

YARDSTICK = frozenset(field.name for field in dataclasses.fields(DataGroup)) - {
    "dataroot", "batch_size", "flip", "serial_batches", "num_threads"
} | {"seed", "best_by", "input_nc", "output_nc"}  # fmt: skip
"""Options that decide what the metric of the best checkpoint measures. Files are compared, not where they are."""


def resume(
    run: RunFolder, trainer: Trainer, data: TrainingData, log: MetricsLog, options: TrainOptions
) -> Position:
    """Restore the newest good checkpoint, and cut the log to the length that it had then.

    Raises UserError, unless --override is given, where options or data differ in what is trained.
    """
    for folder in (run.path, *run.path.rglob("*/")):  # samples and the page too
        remove_leftovers(folder)
    if not list_checkpoints(run.path):
        say(f"no checkpoint in {run.path} yet: starting from the beginning")
        log.truncate(0)
        return Position()
    state, path = load_checkpoint(run.path, "last")
    check_format(state, str(path))
    saved, wanted = stored_dict(from_dict(state["options"])), stored_dict(options)
    override = options.run.override  # the checkpoint decides: anybody can edit options.yaml
    refuse_changes(run, changes_that_matter(saved, wanted), override, "options")
    with refuse_malformed(str(path)):
        change = changes(state["data"].split("\0"), data.report.listing)
    if change:
        refuse_changes(run, [f"{options.data.dataroot}: {printable(change)}"], override, "data")
    try:
        position = restore(trainer, state, str(path))
    except UserError as error:
        misfit = describe_difference(saved, wanted, [field.name for field in dataclasses.fields(ModelGroup)])
        if misfit:  # tensor names mean nothing to the person who changed an option
            reason = f"networks do not fit: checkpoint -> asked for: {', '.join(misfit)}"
            raise UserError(path, reason, "use the options it was trained with") from error
        raise
    log.truncate(state["metrics_bytes"])
    if change or any(saved.get(name) != wanted[name] for name in YARDSTICK):
        _forget_best(position, log)
    return position


def _forget_best(position: Position, log: MetricsLog) -> None:
    """The best value belongs to another metric or to other validation pictures: none that follows compares with it."""
    if position.best is not None:
        message = (
            f"the best value so far, {position.best:.4g}, does not compare with what follows: it starts anew"
        )
        say(message)
        log.append({"kind": "event", "step": position.step, "epoch": position.epoch, "message": message})
    position.best = None
