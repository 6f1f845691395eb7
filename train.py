#!/usr/bin/env python3
"""Train CycleGAN or Pix2Pix: `python train.py --dataroot FOLDER --model pix2pix --norm nc_ms`."""

import sys

from datasets.errors import run_command


def main() -> int:
    from gan.command_line import parse_train  # no torch up to here: --help answers at once

    options, saved = parse_train(sys.argv[1:])
    from gan.launch import dry_run, train

    if options.run.dry_run:
        return dry_run(options)
    evaluate = None
    if options.output.eval_every:
        from evaluate.training import make_evaluator

        output = options.output
        evaluate = make_evaluator(output.eval_metrics, best_by=output.best_by, device=options.device.device)
    return train(options, saved, evaluate)


if __name__ == "__main__":
    run_command(main, debug="--debug" in sys.argv)
