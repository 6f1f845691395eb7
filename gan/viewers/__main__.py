"""Show a run again from its files: `python -m gan.viewers RUN` plays it into a Visdom server.

With `--page` it writes the run's index.html anew instead, which needs no server. `python -m gan.viewers compare RUN
RUN` writes one page of several runs side by side.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from datasets.errors import RunError, UserError, run_command, warn
from gan.viewers import Record, RunInfo, find_run, shown_options, shown_records
from gan.viewers.page import Page, about_run
from gan.viewers.visdom import environment_name, login_of
from gan.viewers.visdom_panes import Board
from gan.viewers.visdom_server import BLANK, Address, Unreachable, is_blank, log_in


def main() -> None:
    """Show the run. Raises UserError if there is no such run, RunError without a server."""
    if sys.argv[1:2] == ["compare"]:
        print(_compare(sys.argv[2:]))
        return
    arguments = _parser().parse_args()
    folder = find_run(arguments.run, Path(arguments.checkpoints_dir))
    run = RunInfo(folder.name, folder, shown_options(folder))
    records = shown_records(folder)
    if not records:
        raise UserError(str(folder), "has no metrics.jsonl with anything in it", "name the folder of a run")
    if arguments.page:
        first = [record["step"] for record in records if record["epoch"] == 1]  # the last one ends the epoch
        page, total = Page(), about_run(run.name, run.options)["epochs"] * max(first, default=0)
        page.start(replace(run, total_steps=total), records)
        page.close()
        print(folder / "index.html")
        return
    print(_play(arguments, run, records))


def _compare(arguments: list[str]) -> Path:
    """Write the page of several runs, their samples and curves side by side, and return it."""
    from gan.viewers.report_page import make_report_page

    parser = argparse.ArgumentParser(
        prog="python -m gan.viewers compare", description="Show runs side by side."
    )
    parser.add_argument("runs", nargs="+", help="folders of runs, or their names")
    parser.add_argument("--checkpoints_dir", default="checkpoints", help="folder of all runs (%(default)s)")
    parser.add_argument("--output", help="file to write (compare-RUN-RUN.html beside the first run)")
    options = parser.parse_args(arguments)
    runs = [find_run(name, Path(options.checkpoints_dir)) for name in options.runs]
    names = [run.name for run in runs]
    output = Path(options.output or runs[0].parent / f"compare-{'-'.join(names)}.html")
    return make_report_page(output, " and ".join(names), runs, side_by_side=True)


def _play(arguments: argparse.Namespace, run: RunInfo, records: list[Record]) -> str:
    """Show a finished run on the server, have the server keep it, and return the address of its page."""
    address = Address(arguments.visdom_server, arguments.visdom_port, arguments.visdom_base_url)
    username, password = login_of(arguments.visdom_username, "")
    if username and not password:
        fix = "set VISDOM_PASSWORD in the environment"
        raise UserError("--visdom_username", "there is no password for it", fix)
    env = environment_name(arguments.visdom_env or run.name)
    try:
        cookie = log_in(address, username, password)
        from gan.viewers.visdom_client import VisdomClient

        client = VisdomClient(address, env, cookie)
        for send in Board(records).take_news(run, with_controls=False):
            send(client)
        client.save([env])
        if is_blank(address):
            warn(address.page(env), f"it stays blank: {BLANK}")
    except ImportError as error:
        raise RunError("visdom", "the package is not installed", "pip install visdom") from error
    except Unreachable as error:
        fix = "start one with: python -m gan.viewers.visdom_server --keep -bind_local"
        raise RunError(address.page(), f"no Visdom server: {error}", fix) from error
    return address.page(env)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m gan.viewers", description=__doc__)
    parser.add_argument("run", help="folder of a run, or its name")
    parser.add_argument("--page", action="store_true", help="write index.html anew; no server")
    parser.add_argument("--checkpoints_dir", default="checkpoints", help="folder of all runs (%(default)s)")
    parser.add_argument("--visdom_server", default="http://localhost", help="(%(default)s)")
    parser.add_argument("--visdom_port", type=int, default=8097, help="(%(default)s)")
    parser.add_argument("--visdom_base_url", default="/", help="(%(default)s)")
    parser.add_argument("--visdom_env", default="", help="environment (the run's name)")
    parser.add_argument("--visdom_username", default="", help="its password is read from VISDOM_PASSWORD")
    return parser


if __name__ == "__main__":
    run_command(main)
