#!/usr/bin/env python3
"""Train CycleGAN or Pix2Pix: `python train.py --dataroot FOLDER --model pix2pix --norm nc_ms`."""

import sys
from typing import TYPE_CHECKING, Any

from datasets.errors import run_command

if TYPE_CHECKING:
    from gan.loop import Evaluate
    from gan.options import TrainOptions


def main() -> int:
    from gan.command_line import parse_train  # imports no torch, so --help answers at once

    options, saved = parse_train(sys.argv[1:])
    output, evaluate = options.output, None
    if output.eval_every and not options.run.dry_run:
        from evaluate.training import make_evaluator

        evaluate = make_evaluator(output.eval_metrics, best_by=output.best_by, device=options.device.device)
    return train(options, saved, evaluate)


def train(
    options: "TrainOptions", saved: dict[str, Any] | None = None, evaluate: "Evaluate | None" = None
) -> int:
    """Train a new run, or resume one (`saved`: the options it was saved with). Returns the exit code.

    evaluate: computes the metrics of --eval_every. Raises UserError and RunError, which become one line.
    """
    from gan import messages
    from gan.loop import Training
    from gan.options import stored_dict
    from gan.resume import resume
    from gan.run import MetricsLog, open_run
    from gan.setup import build_data, build_trainer, build_viewers, found_options
    from gan.signals import StopRequest, tolerate_closed_stdout
    from gan.state import Position, checkpoint_size

    if options.run.dry_run:
        print(messages.plan(options, build_trainer(options), build_data(options)))
        return 0
    tolerate_closed_stdout()
    with open_run(options.run.checkpoints_dir, options.run.name, is_new=saved is None) as run:
        trainer = build_trainer(options)
        run.require_space(2 * checkpoint_size(trainer))  # a new checkpoint is written before an old one goes
        data = build_data(options)
        position, log = Position(), MetricsLog(run.metrics)
        if saved is not None:
            position = resume(run, trainer, data, log, options)
            if position.epoch > options.schedule.epochs:
                print(messages.nothing_left(run, position, options.schedule))
                return 0
        stored = stored_dict(options) | found_options(options, data)
        run.write_options(stored)
        print(messages.plan(options, trainer, data), flush=True)
        with StopRequest() as stop, build_viewers(options, data, trainer, run) as viewers:
            training = Training(
                trainer,
                data,
                options.schedule,
                options.output,
                run,
                log,
                viewers,
                stop,
                position,
                stored,
                evaluate,
            )
            training.log_changes(saved)
            finished = training.train()
        print(messages.end(run, position, stop.requested, finished), flush=True)
        return stop.exit_code


if __name__ == "__main__":
    run_command(main, debug="--debug" in sys.argv)
