"""`python -m evaluate.table3`: the plan of Table 3; with --run the table itself, resumably."""

import sys

from datasets.errors import run_command


def main() -> int:
    from evaluate.table3_options import Table3Options
    from gan.command_line import parse_flags

    description = "Plan, and with --run carry out, the comparison of PONO+MS and NC+MS."
    options = parse_flags(Table3Options, sys.argv[1:], "python -m evaluate.table3", description)
    from evaluate.table3_run import run_table3

    return run_table3(options)


if __name__ == "__main__":
    run_command(main, debug="--debug" in sys.argv)
