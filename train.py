#!/usr/bin/env python3
"""Train CycleGAN or Pix2Pix: `python train.py --dataroot FOLDER --model pix2pix --norm nc_ms`."""

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets.errors import run_command
from datasets.workers import start_server
from gan.processes import ALONE, Processes, job, join

if TYPE_CHECKING:
    from gan.loop import Evaluate
    from gan.options import TrainOptions


def main() -> int:
    from gan.command_line import parse_train  # imports no torch, so --help answers at once

    with join() as processes:
        options, saved = processes.from_first(lambda: parse_train(sys.argv[1:], job()))
        if options.data.num_threads and not options.run.dry_run:
            start_server()  # it imports torch while this process does
        output, evaluate = options.output, None
        if output.eval_every and not options.run.dry_run:
            from evaluate.training import make_evaluator

            evaluate = make_evaluator(
                output.eval_metrics,
                best_by=output.best_by,
                device=options.device.device,
                show_bands=options.viewer.show_bands,
                processes=processes,
            )
        return train(options, saved, evaluate, processes)


def train(
    options: "TrainOptions",
    saved: dict[str, Any] | None = None,
    evaluate: "Evaluate | None" = None,
    processes: Processes = ALONE,
) -> int:
    """Train a new run, or resume one (`saved`: the options it was saved with). Returns the exit code.

    evaluate: computes the metrics of --eval_every. processes: that train together. Raises UserError and RunError,
    which become one line.
    """
    from gan import start
    from gan.loop import Training
    from gan.run import RunFolder, open_run
    from gan.setup import build_data, build_trainer, checkpoint_size, keep_pictures
    from gan.signals import StopRequest, tolerate_closed_stdout

    run = RunFolder(Path(options.run.checkpoints_dir) / options.run.name)
    if options.run.dry_run:
        trainer = build_trainer(options, processes)
        training = Training(options, run, trainer, build_data(options, trainer.networks, processes))
        print(start.plan(training, processes.from_first(lambda: start.initial_weights(training))))
        return 0
    tolerate_closed_stdout()
    with open_run(run, is_new=saved is None) if processes.is_first else contextlib.nullcontext():
        trainer = build_trainer(options, processes)
        spare = 2 * checkpoint_size(trainer)  # a new checkpoint is written before an old one goes
        if processes.is_first:
            run.require_space(spare)
        data = build_data(options, trainer.networks, processes)
        training = Training(options, run, trainer, data, evaluate)
        weights = processes.from_first(lambda: start.initial_weights(training))
        if saved is not None:
            start.resume(training)
            if training.position.epoch > options.schedule.epochs:
                print(start.nothing_left(training))
                return 0
        start.begin(training)
        keep_pictures(options, data, processes, spare)
        print(start.plan(training, weights), flush=True)
        with StopRequest(shared=processes.world > 1) as stop, start.open_viewers(training, saved) as viewers:
            finished = training.train(viewers, stop)
        print(start.ending(training, finished), flush=True)
        return processes.from_first(lambda: stop.exit_code)


if __name__ == "__main__":
    run_command(main, debug="--debug" in sys.argv)
