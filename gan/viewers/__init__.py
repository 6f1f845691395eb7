"""What shows a training while it runs: one small protocol, and a fan-out that no failing viewer can stop.

A viewer receives what `metrics.jsonl` receives, one dict a line. It may raise from any method: `Viewers` then drops it
with one warning, and training continues.
"""

import contextlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.errors import UserError, say
from gan.run import read_records, read_yaml

Record = dict[str, Any]
"""One line of `metrics.jsonl`; its key `kind` is train, samples, metrics or event (docs/architecture.md)."""

GRID = "grid"
"""Kind (and file stem) of the combined picture: a row per validation input, a captioned column per kind."""

SAVE, SAMPLE, STOP = "save", "sample", "stop"
"""What a viewer can ask of the loop: save now, sample now, stop after this epoch."""


@dataclass(frozen=True)
class RunInfo:
    """The run a viewer shows: `folder` holds metrics.jsonl and samples/, `options` and `host` are text."""

    name: str
    folder: Path
    options: Mapping[str, Any]
    host: str = ""


class Viewer:
    """One way to watch a run. Implementations override what they need. A viewer that raises is dropped."""

    def start(self, run: RunInfo, records: Iterable[Record]) -> None:
        """Begin; `records` is what metrics.jsonl already holds (empty unless the run is resumed)."""

    def record(self, record: Record) -> None:
        """Show one new line of metrics.jsonl. The pictures that a line of samples names exist by then."""

    def progress(self, step: int, epoch: int) -> None:
        """A training step is done (called every step: must cost microseconds)."""

    def commands(self) -> set[str]:
        """What the person watching asked for since the last call: a subset of {SAVE, SAMPLE, STOP}."""
        return set()

    def close(self) -> None:
        """The run is over (or interrupted): flush within seconds and let go of everything."""


class Viewers:
    """Several viewers as one that never raises.

    >>> with Viewers([]) as viewers:
    ...     viewers.record({"kind": "train", "step": 1, "epoch": 1, "losses": {}})
    """

    def __init__(self, viewers: Sequence[Viewer]) -> None:
        self._viewers = list(viewers)

    def __enter__(self) -> "Viewers":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, run: RunInfo, records: Iterable[Record] = ()) -> None:
        """Start every viewer with the records so far (read once, handed to each)."""
        known = list(records)
        self._each(lambda viewer: viewer.start(run, known))

    def record(self, record: Record) -> None:
        self._each(lambda viewer: viewer.record(record))

    def progress(self, step: int, epoch: int) -> None:
        self._each(lambda viewer: viewer.progress(step, epoch))

    def commands(self) -> set[str]:
        """All that was asked for since the last call; the loop polls it once a step."""
        asked: set[str] = set()
        self._each(lambda viewer: asked.update(viewer.commands()))
        return asked

    def close(self) -> None:
        """Close every viewer once; a second call does nothing."""
        self._each(lambda viewer: viewer.close())
        self._viewers.clear()

    def _each(self, call: Callable[[Viewer], None]) -> None:
        for viewer in tuple(self._viewers):
            try:
                call(viewer)
            except Exception as error:  # a viewer is never worth a training
                self._viewers.remove(viewer)
                reason = " ".join(str(error).split()) or type(error).__name__
                say(
                    f"warning: {type(viewer).__name__} stopped: {reason[:200]} (training continues without it)"
                )
                with contextlib.suppress(Exception):
                    viewer.close()


KEYS = {"train": "losses", "samples": "pictures", "metrics": "metrics", "event": "message"}
"""Kind of record -> the key it must have to be shown."""


def shown_records(folder: Path) -> list[Record]:
    """The records of FOLDER/metrics.jsonl that can be shown; empty without the file.

    Left out are samples whose pictures lie outside the folder: a page that is handed on would hold any file of its
    maker.
    """
    records = read_records(folder / "metrics.jsonl")
    return [
        record
        for record in records
        if KEYS.get(str(record.get("kind")), "no such key") in record and _is_inside(folder, record)
    ]


def _is_inside(folder: Path, record: Record) -> bool:
    """Whether the pictures that a record of samples names lie in the run's folder, links followed."""
    if record["kind"] != "samples":
        return True
    try:
        files = [folder / record["folder"] / name for name in record["pictures"].values()]
        return all(file.resolve().is_relative_to(folder.resolve()) for file in files)
    except (LookupError, TypeError, AttributeError, ValueError, OSError, RuntimeError):
        return False  # no names of files, or links in a loop


def shown_options(folder: Path) -> dict[str, Any]:
    """The options of FOLDER/options.yaml, flat; empty if there is no readable file."""
    try:
        return read_yaml(folder / "options.yaml")
    except UserError:
        return {}


def public_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that may be shown: no password, and no login in the server's address, on pages and panes."""
    public = {name: value for name, value in options.items() if "password" not in name.lower()}
    if isinstance(server := public.get("visdom_server"), str):
        public["visdom_server"] = re.sub(r"^(\w+://)?.*@", r"\1", server, flags=re.DOTALL)
    return public
