"""The page of a run: `index.html`, which opens from a file or over HTTP and keeps itself current.

`index.html` is written once and loads its data as scripts, because a page opened from a file may not fetch.
`page/data-NNNNN.js` hold one record a line, CHUNK records a file, and are only ever appended to;
`page/state.js` says how many records there are. An update appends a line and replaces that small file; its
cost does not grow.

The parts of the pages (HTML, CSS, JavaScript) lie in `web/`. Nothing is loaded from anywhere: style and scripts are
written into the page.
"""

import contextlib
import json
import os
import re
import time
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from datasets.errors import say, warn
from datasets.files import write_atomically
from gan.run import RunFolder, resume_command
from gan.viewers import Record, RunInfo, Viewer, public_options
from gan.viewers.console import TimeLeft

CHUNK = 250
"""Records a data file: what an open page loads again to see the newest one."""

WEB = Path(__file__).parent / "web"
STATE_SECONDS = 5.0
"""Between two updates of page/state.js without a new record."""

_SHARED_SCRIPTS = ("run.js", "curves.js", "samples.js")
_SUBTITLE = ("model", "norm", "netG", "dataroot", "direction")


class Page(Viewer):
    """Keeps `index.html` of the run's folder; what a full disk held back is written once there is space."""

    def __init__(self) -> None:
        self._waiting: list[str] = []  # records, as lines, that are not in a file yet
        self._written = 0
        self._laid_out = False
        self._has_failed = False  # the last attempt to write
        self._status = "training"
        self._at: dict[str, int] = {}  # the newest step and its epoch
        self._next_state = 0.0

    def start(self, run: RunInfo, records: Iterable[Record]) -> None:
        self._run = run
        self._generation = str(time.time_ns())  # an open page of an earlier start reloads itself
        self._begin = time.monotonic()
        self._clock = TimeLeft(run.total_steps)
        for record in records:
            self._at = {key: record[key] for key in ("step", "epoch")}
            self._waiting.append(_line(len(self._waiting), record))
        self._write()
        self._next_state = 0.0  # the first step is news

    def record(self, record: Record) -> None:
        self._waiting.append(_line(self._written + len(self._waiting), record))
        self._write()

    def progress(self, step: int, epoch: int) -> None:
        """Tell an open page where the training is, long before the first record, and that it is alive."""
        self._at = {"step": step, "epoch": epoch}
        self._clock.update(step)
        if time.monotonic() >= self._next_state:
            self._write()

    def close(self) -> None:
        total = self._run.total_steps
        self._status = "ended" if self._at.get("step", 0) >= total else "stopped"
        self._write()

    def _write(self) -> None:
        failed_before, self._next_state = self._has_failed, time.monotonic() + STATE_SECONDS
        try:
            if not self._laid_out:
                self._lay_out()
            while self._waiting:
                self._append_to_chunk()
            self._write_state()
        except OSError as error:
            self._has_failed = True
            if not failed_before:
                warn(self._run.folder / "index.html", f"cannot be updated: {error.strerror or error}")
        else:
            self._has_failed = False
            if failed_before:
                say(f"note: {self._run.folder / 'index.html'} is up to date again")

    def _lay_out(self) -> None:
        """Write index.html and an empty page/ folder."""
        folder = self._run.folder / "page"
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob("data-*.js"):
            stale.unlink()
        self._replace("index.html", _index(self._run))
        self._laid_out = True

    def _append_to_chunk(self) -> None:
        """Append what the current data file still takes; nothing of it stays if the disk is full half way."""
        path = self._run.folder / "page" / f"data-{self._written // CHUNK:05d}.js"
        lines = self._waiting[: CHUNK - self._written % CHUNK]
        length = path.stat().st_size if path.exists() else 0
        try:
            with path.open("a", encoding="utf-8") as file:
                file.writelines(lines)
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(path, length)  # half a line would spoil the whole script
            raise
        self._written += len(lines)
        del self._waiting[: len(lines)]

    def _write_state(self) -> None:
        state = {
            "generation": self._generation,
            "records": self._written,
            "status": self._status,
            "resume": resume_command(RunFolder(self._run.folder, self._run.program)),
            "elapsed": round(time.monotonic() - self._begin),
            "left": self._clock.left() if self._status == "training" else None,
            "updated": round(time.time(), 1),
            **self._at,
        }
        self._replace("page/state.js", f"gan.state({json.dumps(state)});\n")

    def _replace(self, name: str, text: str) -> None:
        """Write a file whole or not at all: a browser reads the old or the new one. It need not outlive a crash."""
        write_atomically(self._run.folder / name, text.encode(), durable=False)


def _line(index: int, record: Record) -> str:
    return f"gan.add({index},{json.dumps(record, default=str)});\n"  # NaN and Infinity are JavaScript


def _index(run: RunInfo) -> str:
    options = public_options(run.options)
    data = embed({**about_run(run.name, options, run.host), "chunk": CHUNK})
    return fill("page.html", "live.js", title=escape(run.name), subtitle=escape(subtitle(options)), run=data)


def about_run(name: str, options: Mapping[str, Any], host: str = "") -> dict[str, Any]:
    """What a page shows of a run beside its records."""
    epochs = sum(int(options.get(key) or 0) for key in ("n_epochs", "n_epochs_decay"))
    return {"name": name, "host": host, "options": options, "epochs": epochs}


def fill(template: str, script: str, shared: Iterable[str] = _SHARED_SCRIPTS, **texts: str) -> str:
    """The template with style, `shared` scripts and `script` in it; `texts` replace `{{name}}` as they are.

    Whoever passes a text has escaped it: `html.escape` for words, `embed` for data.
    """

    def part(name: str) -> str:
        return (WEB / name).read_text(encoding="utf-8")

    scripts = "\n".join(map(part, (*shared, script)))
    parts = {**texts, "style": part("page.css"), "script": scripts}
    # all at once: a text that looks like a placeholder stays a text
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], part(template))


def translate_page(
    name: str, words: Mapping[str, Any], position: str, script: str, about: Mapping[str, Any], promise: str
) -> str:
    """The page that translates a dropped picture, by `script`, which finds `about` in `model`.

    words: options that the line below the name shows; position: where in the training; promise: where pictures go.
    """
    return fill(
        "translate.html",
        script,
        shared=("translate.js",),
        title=escape(name),
        subtitle=escape(f"{subtitle(words)} · {position}"),
        model=embed(about),
        promise=escape(promise),
        own_style=(WEB / "translate.css").read_text(encoding="utf-8"),
    )


def embed(data: Any) -> str:
    """JSON that cannot end the script element it stands in. Values JSON does not know become text."""
    return json.dumps(data, default=str).replace("<", "\\u003c")


def subtitle(options: Mapping[str, Any]) -> str:
    """`pix2pix · nc_ms · unet_256 · ./data`: the options that tell runs apart."""
    return " · ".join(str(options[name]) for name in _SUBTITLE if options.get(name))
