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
    """The run a viewer shows: `folder` holds metrics.jsonl and samples/, `options` and `host` are text.

    total_steps: of the whole training, 0 if that is not known. program: what trains it (`gan.run.RunFolder`).
    """

    name: str
    folder: Path
    options: Mapping[str, Any]
    host: str = ""
    total_steps: int = 0
    program: str = "train.py"


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


def find_run(name: str, checkpoints: Path) -> Path:
    """The folder of a run: a path, or a name under the folder of all runs. Raises UserError if there is none."""
    for folder in (Path(name), checkpoints / name):
        if (folder / "metrics.jsonl").is_file():
            return folder.resolve()
    raise UserError(
        name, f"is no run: no metrics.jsonl in it, nor in {checkpoints / name}", "name a run's folder"
    )


KEYS = {"train": "losses", "samples": "pictures", "metrics": "metrics", "event": "message"}
"""Kind of record -> the key it must have to be shown."""


def shown_records(folder: Path) -> list[Record]:
    """The records of FOLDER/metrics.jsonl that can be shown; empty without the file."""
    return [record for record in read_records(folder / "metrics.jsonl") if _can_be_shown(record)]


def _can_be_shown(record: Record) -> bool:
    """Whether everything that is read of a record has its type: the file may be anybody's."""
    kind = str(record.get("kind"))
    content = record.get(KEYS.get(kind, ""))
    if not all(isinstance(record.get(name), int) for name in ("step", "epoch")):
        return False
    if not isinstance(content, dict):
        return kind == "event" and isinstance(content, str)
    if kind == "samples":
        return isinstance(record.get("folder"), str) and all(
            isinstance(name, str) for name in content.values()
        )
    return all(value is None or isinstance(value, int | float) for value in content.values())


def sample_file(folder: Path, record: Record, kind: str) -> Path:
    """The picture that a record of samples names. Raises OSError if it is not in the run's folder."""
    path = folder / record["folder"] / record["pictures"][kind]
    if not path.resolve().is_relative_to(folder.resolve()):
        raise PermissionError(f"{path}: not a file of the run")
    return path


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
