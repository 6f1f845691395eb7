#!/usr/bin/env python3
"""Translate pictures with a trained run: `python test.py --name RUN --input FOLDER --output FOLDER`."""

import sys
from functools import partial

from datasets.errors import run_command


def main() -> int:
    from gan.command_line import parse_flags  # no torch up to here: --help answers at once
    from gan.processes import join
    from gan.translation_options import TranslationOptions

    description = "Translate the test split of a run's data, or any folder of pictures."
    with join() as processes:
        parse = partial(parse_flags, TranslationOptions, sys.argv[1:], "test.py", description)
        options = processes.from_first(parse)
        options.check()
        from gan.translate_command import run_test

        return run_test(options, processes)


if __name__ == "__main__":
    run_command(main, debug="--debug" in sys.argv)
