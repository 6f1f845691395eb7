"""What `prepare check` says about a data folder: the same scan that a training starts with, for every split."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from datasets.check import ScanReport, scan
from datasets.errors import UserError
from datasets.layouts import Sources, find_sources

SMALLEST = 2  # pixels a side, what no network can do without; crops are the business of a training
MOST_SHOWN = 5  # sizes or modes in a line


def check(root: Path, layout: str = "auto", skip_bad: bool = False) -> Iterator[str]:
    """Lines about each split of a data folder; a split that is not there is such a line.

    Raises UserError where no split is there, and, when all have been looked at, where one is not usable:
    unreadable files (unless skip_bad), unmatched pairs, pairs of different size.
    """
    problems: list[UserError] = []
    missing: list[UserError] = []
    splits: tuple[Literal["train", "test"], ...] = ("train", "test")
    for split in splits:
        try:
            sources = find_sources(root, split, layout)
        except UserError as error:
            (missing if f"{split} split" in f"{error.reason} {error.fix}" else problems).append(error)
            continue
        try:
            left, report = _scanned(sources, skip_bad)
        except UserError as error:
            problems.append(error)
            continue
        yield from _lines(left, report)
        if left.layout == "folder":
            return
    problems = list({str(error): error for error in problems}.values())  # one about the root is met twice
    if problems:
        raise problems[0] if len(problems) == 1 else _all_of(root, problems)
    if len(missing) == len(splits):
        raise missing[0]
    yield from (f"not there: {error.reason}" for error in missing)


def _scanned(sources: Sources, skip_bad: bool) -> tuple[Sources, ScanReport]:
    with tqdm(unit="file", disable=None, leave=False, desc=sources.split) as bar:

        def progress(done: int, _total: int) -> None:
            bar.update(done - bar.n)

        return scan(sources, crop_size=SMALLEST, preprocess="none", skip_bad=skip_bad, progress=progress)


def _all_of(root: Path, problems: list[UserError]) -> UserError:
    details = [line for problem in problems for line in (str(problem), *(f"  {d}" for d in problem.details))]
    return UserError(root, f"{len(problems)} problems", "mend them one by one", details)


def _lines(sources: Sources, report: ScanReport) -> Iterator[str]:
    name = "pictures" if sources.layout == "folder" else sources.split
    if sources.is_paired:
        yield f"{name}: {report.count_a} pairs, {sources.layout}"
    elif sources.b:
        yield f"{name}: {report.count_a} in A, {report.count_b} in B, {sources.layout}"
    else:
        yield f"{name}: {report.count_a}, no A and B: for translation only"
    yield f"  sizes: {_most({f'{w}x{h}': n for (w, h), n in report.sizes.items()})}"
    yield f"  modes: {_most(report.modes)}"
    yield from (f"  note: {note}" for note in report.notes())


def _most(counts: Mapping[str, int]) -> str:
    """The most frequent first, with their numbers."""
    order = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{name} ({count})" for name, count in order[:MOST_SHOWN])
    left = len(order) - MOST_SHOWN
    return shown + (f" and {left} more" if left > 0 else "")
