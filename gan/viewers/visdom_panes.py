"""What is on the Visdom page: panes with stable names, and the calls of the package's client that fill them."""

import html
import json
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from gan.viewers import GRID, SAMPLE, SAVE, STOP, Record, RunInfo, public_options, sample_file

if TYPE_CHECKING:  # it imports the visdom package
    from gan.viewers.visdom_client import VisdomClient

Send = Callable[["VisdomClient"], None]

POINTS = 2000
"""Steps of a curve that Visdom holds at most."""

BLOCK = 20
"""Moments that the slider takes before it skips every second one, then three of four, and so on."""

LONGEST_SIDE = 2048
"""Pixels; a larger picture is scaled down before it is sent."""

BORDER, SLIDER_HEIGHT = 20, 120
"""Pixels that a pane is higher than its picture, and that one with a slider is higher than that. Visdom centres the
picture, and lays caption and slider over its end where there is no space."""

SIDE = 1000
"""Pixels that a pane of samples is wide or high at most, so that all of it is on the screen."""

TEXT_SIZE = {"width": 480, "height": 340}
BUTTONS = {"Save now": SAVE, "Sample now": SAMPLE, "Stop after this epoch": STOP}
SAMPLES, HISTORY, ABOUT, CONTROLS = "samples", "history", "about", "controls"
LEARNING_RATE, THROUGHPUT, DATA_WAIT = "learning_rate", "throughput", "data_wait"
FROM_ZERO = {LEARNING_RATE, THROUGHPUT, DATA_WAIT}
"""Panes whose axis starts at 0: around a constant Plotly would show one from -1 to 1."""


class CurvePane:
    """Curves over the same steps, thinned to every second step whenever there are more than POINTS."""

    def __init__(self, name: str, title: str) -> None:
        self.name = name
        self.title = title
        self.steps: list[int] = []
        self.curves: dict[
            str, list[float]
        ] = {}  # name -> the logged value at each step, NaN where there is none
        self.sent = 0  # steps the server has; 0 asks for a pane from scratch
        self.is_closed = False  # somebody closed the pane; its next point brings it back
        self._stride = 1
        self._seen = 0
        self._newest = -1

    def add(self, step: int, values: Mapping[str, float | None]) -> None:
        """A step that is not newer than the last one is known already (catching up reads it again)."""
        known = {name: value for name, value in values.items() if value is not None and math.isfinite(value)}
        if step <= self._newest or not known:
            return
        if self.is_closed:
            self.is_closed, self.sent = False, 0
        self._newest = step
        self._seen += 1
        if (self._seen - 1) % self._stride:
            return
        for name in known:
            if name not in self.curves:
                self.curves[name] = [math.nan] * len(self.steps)
                self.sent = 0
        self.steps.append(step)
        for name, curve in self.curves.items():
            curve.append(known.get(name, math.nan))
        if len(self.steps) > POINTS:
            self.steps = self.steps[::2]
            self.curves = {name: curve[::2] for name, curve in self.curves.items()}
            self._stride *= 2
            self.sent = 0

    def news(self) -> "Send | None":
        """A call that sends the steps that the server lacks, None if it has them all."""
        if self.sent == len(self.steps):
            return None
        options: dict[str, Any] = {"legend": list(self.curves)}
        if self.sent == 0:
            options |= {**TEXT_SIZE, "title": self.title, "layoutopts": {"plotly": self._layout()}}
        values = np.array(list(self.curves.values()), dtype=float).T[self.sent :]
        steps, update = np.array(self.steps[self.sent :]), "append" if self.sent else None
        self.sent = len(self.steps)

        def send(client: "VisdomClient") -> None:
            client.line(values, steps, win=self.name, opts=options, update=update)
            client.curves.add(self.name)

        return send

    def _layout(self) -> dict[str, Any]:
        scales = [
            {"label": scale, "method": "relayout", "args": [{"yaxis.type": scale}]}
            for scale in ("linear", "log")
        ]
        return {
            "title": None,  # the pane has it
            "legend": {"orientation": "h", "y": -0.25},
            "margin": {"l": 60, "r": 20, "t": 30, "b": 40},
            "xaxis": {"title": {"text": "step"}},
            "yaxis": {"rangemode": "tozero"} if self.name in FROM_ZERO else {},
            "updatemenus": [{"type": "buttons", "direction": "right", "x": 1, "y": 1.15, "buttons": scales}],
        }


class Board:
    """All that is shown of a run, in nearly constant memory, built from its records in their order.

    The newest samples have a pane of their own, which stands first. Older ones are in a slider. It only ever grows,
    ever more slowly: a page that is open at a moment which is no longer there goes blank. The training's thread adds
    records while another one takes the news; neither ever waits for a server.
    """

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self.panes: dict[str, CurvePane] = {}
        self.newest: Record | None = None  # the last record of samples
        self.history: list[Record] = []  # records of samples in the slider, oldest first
        self.epoch = 0
        self._moments = 0
        self._lock = threading.Lock()
        self.forget_sent()
        for record in records:
            self.add(record)

    def add(self, record: Record) -> None:
        """Take one record; what is known already changes nothing."""
        step = record.get("step", 0)
        with self._lock:
            self.epoch = max(self.epoch, record.get("epoch", 0))
            if record["kind"] == "samples" and (self.newest is None or step > self.newest["step"]):
                self.newest, self._newest_sent = record, False
                if self._moments % 2 ** (len(self.history) // BLOCK) == 0:
                    self.history.append(record)
                self._moments += 1
            for name, title, values in points_of(record):
                self.panes.setdefault(name, CurvePane(name, title)).add(step, values)

    def forget_sent(self, moments_shown: int = 0) -> None:
        """The server has lost everything, or may have; its slider still shows so many moments."""
        with self._lock:
            self._newest_sent = False
            self._history_sent = moments_shown
            self.fixed_sent: set[str] = set()  # panes that never change
            for pane in self.panes.values():
                pane.sent = 0

    def forget_pane(self, name: str) -> None:
        """Somebody closed it. A curve comes back whole with its next point, samples with the next ones only.

        Options and buttons stay away until everything is sent again.
        """
        with self._lock:
            if name == HISTORY:
                self.history.clear()
                self._history_sent = 0
            elif name in self.panes:
                self.panes[name].is_closed = True

    def take_news(self, run: RunInfo, with_controls: bool) -> list["Send"]:
        """Calls that send what the server does not have yet. After one that fails, `forget_sent`.

        The page shows panes in the order in which they came, so a text holds the first place until there are samples.
        """
        news: list[Send] = []
        with self._lock:
            if self.newest and not self._newest_sent:
                news.append(partial(_send_samples, pane=SAMPLES, run=run, record=self.newest))
                self._newest_sent = True
            fixed: dict[str, Send] = {ABOUT: partial(_send_text, pane=ABOUT, title="about", text=about(run))}
            if not self.newest:
                text = "Here the first samples will appear."
                fixed = {
                    SAMPLES: partial(_send_text, pane=SAMPLES, title="newest samples", text=text)
                } | fixed
            if with_controls:
                fixed[CONTROLS] = _send_controls
            news += [send for name, send in fixed.items() if name not in self.fixed_sent]
            self.fixed_sent |= fixed.keys()
            news += [send for pane in self.panes.values() if (send := pane.news())]
            unsent = self.history[self._history_sent :]
            news += [partial(_send_samples, pane=HISTORY, run=run, record=record) for record in unsent]
            self._history_sent = len(self.history)
        return news


def points_of(record: Record) -> Iterator[tuple[str, str, dict[str, float | None]]]:
    """Pane, title and named values of everything that a record adds to a curve."""
    if record["kind"] == "train":
        losses: dict[tuple[str, str], dict[str, float | None]] = {}
        for name, value in record["losses"].items():
            losses.setdefault(loss_pane(name), {})[name] = value
        for (pane, title), values in losses.items():
            yield pane, title, values
        time = record.get("time", {})
        yield LEARNING_RATE, "learning rate", {"lr": record.get("lr")}
        yield THROUGHPUT, "throughput, images/s", {"images/s": time.get("images_per_s")}
        yield DATA_WAIT, "waiting for data, share of time", {"data wait": time.get("data_wait")}
    elif record["kind"] == "metrics":
        for name, value in record["metrics"].items():
            counts = name.startswith("fid") and "n_fake" in record
            title = f"{name}, n_fake {record['n_fake']}, n_real {record['n_real']}" if counts else name
            yield f"metric_{name}", title, {name: value}


def loss_pane(loss: str) -> tuple[str, str]:
    """Pane and title for a loss: those of one size share one.

    >>> [loss_pane(loss)[1] for loss in ("D_A", "G_L1", "G_GAN")]
    ['discriminator losses', 'reconstruction losses', 'adversarial losses']
    """
    if loss.startswith("D"):
        return "losses_discriminator", "discriminator losses"
    if loss.startswith(("cycle", "idt", "rec")) or "L1" in loss or "L2" in loss:
        return "losses_reconstruction", "reconstruction losses"
    if loss.startswith("G"):
        return "losses_adversarial", "adversarial losses"
    return "losses_other", "other losses"


def moments_on_server(client: "VisdomClient", board: Board) -> int:
    """How many moments of our slider the server shows already, as after an outage without a restart.

    A slider of another run with this name goes. Raises Unreachable.
    """
    if not client.win_exists(HISTORY):
        return 0
    content = json.loads(client.get_window_data(HISTORY))["content"]
    ours = [caption_of(record) for record in board.history]
    newest = content[-1]["caption"] if content else ""
    if newest not in ours:
        client.close(HISTORY)
        return 0
    return ours.index(newest) + 1


def caption_of(record: Record) -> str:
    """`epoch 3, step 1200`; what each column shows stands in the picture."""
    return f"epoch {record['epoch']}, step {record['step']}"


def _send_samples(client: "VisdomClient", pane: str, run: RunInfo, record: Record) -> None:
    """Send the samples of one moment, to the slider or in place of the newest; nothing if their picture is gone."""
    kind = GRID if GRID in record["pictures"] else next(iter(record["pictures"]))
    try:
        with Image.open(sample_file(run.folder, record, kind)) as file:
            picture = file.convert("RGB")
    except OSError:
        return
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    shape = picture.height / picture.width
    width = max(240, min(SIDE, round(SIDE / shape), max(480, picture.width)))  # the picture fills the width
    height = round(width * shape) + BORDER
    options: dict[str, Any] = {"jpgquality": 90, "width": width, "height": height}
    if pane == HISTORY:
        options |= {"title": "samples over time", "caption": caption_of(record), "store_history": True}
        options["height"] += SLIDER_HEIGHT
    else:
        options["title"] = f"newest samples: {caption_of(record)}"
    client.image(np.asarray(picture).transpose(2, 0, 1), win=pane, opts=options)


def _send_text(client: "VisdomClient", pane: str, title: str, text: str) -> None:
    client.text(text, win=pane, opts={**TEXT_SIZE, "title": title})


def _send_controls(client: "VisdomClient") -> None:
    buttons = [{"type": "button", "name": name, "value": name} for name in BUTTONS]
    client.properties(buttons, win=CONTROLS, opts={"title": "controls", "width": 380, "height": 200})


def about(run: RunInfo) -> str:
    """Options and host as a table of HTML. Every word of it is escaped, and no password is in it."""
    lines = "".join(f"<div>{html.escape(line)}</div>" for line in run.host.splitlines())
    rows = (
        f"<tr><td>{html.escape(name)}&nbsp;&nbsp;</td><td>{html.escape(str(value))}</td></tr>"
        for name, value in public_options(run.options).items()
    )
    return f"<h4>{html.escape(run.name)}</h4>{lines}<table>{''.join(rows)}</table>"


def command_of(event: Mapping[str, Any], env: str) -> str | None:
    """What a click in the controls pane asks for, None for any other event."""
    place = (event.get("event_type"), event.get("eid"), event.get("target"))
    index = event.get("propertyId")
    if place != ("PropertyUpdate", env, CONTROLS) or not isinstance(index, int):
        return None
    return dict(enumerate(BUTTONS.values())).get(index)
