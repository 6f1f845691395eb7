"""Data sets from the net, from archives and from folders.

python -m datasets.prepare download maps                      a known set, verified and safely unpacked
python -m datasets.prepare download maps --from_archive FILE  the same from a file at hand
python -m datasets.prepare join --a DIR --b DIR --output DIR  pairs by equal stem to side-by-side A|B files
python -m datasets.prepare split --input DIR --output DIR     side-by-side files to A/ and B/
python -m datasets.prepare check DIR [--skip_bad]             is it usable, and what is in it
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from datasets.errors import run_command
from datasets.known_sets import KNOWN_SETS

# The modules that do the work are imported when they are needed: they bring torch, and --help should answer at once.


def _download(options: argparse.Namespace) -> int:
    from datasets.obtain import RECORD, obtain

    output = options.output or Path("data") / options.name
    found = obtain(
        options.name,
        output,
        archive=options.from_archive,
        url=options.url,
        hash_wanted=options.sha256,
        idle_seconds=options.timeout,
    )
    print(f"{output}: {_listed(found)}; address and SHA-256 in {output / RECORD}")
    return 0


def _join(options: argparse.Namespace) -> int:
    from datasets.pairs import join

    print(f"{options.output}: {_listed(join(options.a, options.b, options.output))} pairs, A left, B right")
    return 0


def _split(options: argparse.Namespace) -> int:
    from datasets.pairs import split

    print(f"{options.output}: {_listed(split(options.input, options.output))} pairs in A and B")
    return 0


def _check(options: argparse.Namespace) -> int:
    from datasets.inspect_folder import check

    for line in check(options.folder, options.dataset_mode, options.skip_bad):
        print(line)
    return 0


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count}" if name == "." else f"{name} {count}" for name, count in counts.items())


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 3600 seconds")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m datasets.prepare",
        description="Data sets from the net, from archives and from folders.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, work: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=text,
            description=text,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(work=work)
        return sub

    sub = command("download", _download, "fetch a known data set, verify its counts, unpack it safely")
    known = [f"  {name:24}{entry.note}" for name, entry in KNOWN_SETS.items()]
    sub.epilog = "known sets (for the terms of use see their authors' pages):\n" + "\n".join(known)
    sub.add_argument("name", metavar="NAME", help="one of the sets below, or your name for what --url gives")
    sub.add_argument("--output", type=Path, help="new or empty folder (default data/NAME)")
    sub.add_argument(
        "--from_archive", type=Path, metavar="FILE", help="tar, tar.gz or zip instead of the net"
    )
    sub.add_argument("--sha256", metavar="HEX", help="refuse an archive with another SHA-256")
    sub.add_argument("--url", help="fetch from this address")
    sub.add_argument("--timeout", type=_seconds, default=30.0, help="seconds without data (default 30)")
    sub = command("join", _join, "two folders of pictures, pairs by equal stem, to side-by-side A|B files")
    sub.add_argument("--a", type=Path, required=True, metavar="DIR", help="pictures, or train/ val/ test/")
    sub.add_argument("--b", type=Path, required=True, metavar="DIR", help="their partners")
    sub.add_argument("--output", type=Path, required=True, metavar="DIR", help="new or empty folder")
    sub = command("split", _split, "side-by-side A|B files to two folders A and B")
    sub.add_argument(
        "--input", type=Path, required=True, metavar="DIR", help="pictures, or train/ val/ test/"
    )
    sub.add_argument("--output", type=Path, required=True, metavar="DIR", help="new or empty folder")
    sub = command("check", _check, "counts, sizes, modes, unreadable files, unmatched pairs of a data folder")
    sub.add_argument("folder", type=Path, metavar="DIR")
    sub.add_argument(
        "--dataset_mode",
        choices=("auto", "aligned", "paired", "unaligned", "folder"),
        default="auto",
        help="the layout, where it is not what the folders' names say",
    )
    sub.add_argument("--skip_bad", action="store_true", help="leave unusable files out instead of failing")
    return parser


def main() -> int:
    """Parse the command line and do it."""
    options = _parser().parse_args()
    return options.work(options)


if __name__ == "__main__":
    run_command(main)
