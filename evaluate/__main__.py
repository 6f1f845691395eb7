"""`python -m evaluate RUN [RUN ...]` or `python -m evaluate --fake DIR --real DIR`."""

import sys
from functools import partial

from datasets.errors import run_command


def main() -> int:
    from evaluate.options import EvaluateOptions  # no torch up to here: --help answers at once
    from gan.command_line import parse_flags
    from gan.processes import join

    description = "Evaluate runs, or any two folders of pictures, by a named protocol."
    with join() as processes:
        parse = partial(parse_flags, EvaluateOptions, sys.argv[1:], "python -m evaluate", description)
        options = processes.from_first(parse)
        from evaluate.command import run_evaluation

        return run_evaluation(options, processes)


if __name__ == "__main__":
    run_command(main, debug="--debug" in sys.argv)
