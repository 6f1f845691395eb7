#!/usr/bin/env python3
"""Train CycleGAN or Pix2Pix: `python train.py --dataroot FOLDER --model pix2pix --norm nc_ms`."""

import sys

from datasets.errors import run_command


def main() -> int:
    from gan.command_line import parse_train  # no torch up to here: --help answers at once

    options, saved = parse_train(sys.argv[1:])
    from gan.launch import dry_run, train

    return dry_run(options) if options.run.dry_run else train(options, saved)


if __name__ == "__main__":
    run_command(main, debug="--debug" in sys.argv)
