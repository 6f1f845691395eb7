"""What is on the Visdom page: panes with stable names, and the calls of the package's client that fill them."""

import contextlib
import html
import json
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from gan.viewers import GRID, SAMPLE, SAVE, STOP, Record, RunInfo, public_options

if TYPE_CHECKING:  # it imports the visdom package
    from gan.viewers.visdom_client import VisdomClient

POINTS = 2000
"""Steps of a curve that Visdom holds at most."""

BLOCK = 20
"""Moments that the slider takes before it skips every second one, then three of four, and so on."""

LONGEST_SIDE = 2048
"""Pixels; a larger picture is scaled down before it is sent."""

CAPTION_HEIGHT, SLIDER_HEIGHT = 80, 30
"""Pixels of a pane below its picture."""

TEXT_SIZE = {"width": 480, "height": 340}
BUTTONS = {"Save now": SAVE, "Sample now": SAMPLE, "Stop after this epoch": STOP}
SAMPLES, HISTORY, ABOUT, CONTROLS = "samples", "history", "about", "controls"
LEARNING_RATE = "learning_rate"


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
        self._stride = 1
        self._seen = 0
        self._newest = -1

    def add(self, step: int, values: Mapping[str, float | None]) -> None:
        """A step that is not newer than the last one is known already (catching up reads it again)."""
        known = {name: value for name, value in values.items() if value is not None and math.isfinite(value)}
        if step <= self._newest or not known:
            return
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

    def send(self, client: "VisdomClient") -> None:
        """Send the steps that the server lacks."""
        if self.sent == len(self.steps):
            return
        options: dict[str, Any] = {"legend": list(self.curves)}
        if self.sent == 0:
            options |= {**TEXT_SIZE, "title": self.title, "layoutopts": {"plotly": self._layout()}}
        values = np.array(list(self.curves.values()), dtype=float).T[self.sent :]
        steps = np.array(self.steps[self.sent :])
        client.line(values, steps, win=self.name, opts=options, update="append" if self.sent else None)
        client.curves.add(self.name)
        self.sent = len(self.steps)

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
            "yaxis": {"rangemode": "tozero"} if self.name == LEARNING_RATE else {},
            "updatemenus": [{"type": "buttons", "direction": "right", "x": 1, "y": 1.15, "buttons": scales}],
        }


class Board:
    """All that is shown of a run, in nearly constant memory, built from its records in their order.

    The newest samples have a pane of their own, which stands first. Older ones are in a slider. It only ever grows,
    ever more slowly: a page that is open at a moment which is no longer there goes blank.
    """

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self.panes: dict[str, CurvePane] = {}
        self.newest: Record | None = None  # the last record of samples
        self.history: list[Record] = []  # records of samples in the slider, oldest first
        self.epoch = 0
        self._moments = 0
        self._closed: set[str] = set()  # curves that somebody closed, and that have no new point yet
        self.forget_sent()
        for record in records:
            self.add(record)

    def add(self, record: Record) -> None:
        """Take one record; what is known already changes nothing."""
        step = record.get("step", 0)
        self.epoch = max(self.epoch, record.get("epoch", 0))
        if record["kind"] == "train":
            losses: dict[tuple[str, str], dict[str, float]] = {}
            for name, value in record["losses"].items():
                losses.setdefault(loss_pane(name), {})[name] = value
            for (pane, title), values in losses.items():
                self._point(pane, title, step, values)
            time = record.get("time", {})
            self._point(LEARNING_RATE, "learning rate", step, {"lr": record.get("lr")})
            self._point("throughput", "throughput, images/s", step, {"images/s": time.get("images_per_s")})
            self._point(
                "data_wait", "waiting for data, share of time", step, {"data wait": time.get("data_wait")}
            )
        elif record["kind"] == "metrics":
            for name, value in record["metrics"].items():
                counts = name.startswith("fid") and "n_fake" in record
                title = f"{name}, n_fake {record['n_fake']}, n_real {record['n_real']}" if counts else name
                self._point(f"metric_{name}", title, step, {name: value})
        elif record["kind"] == "samples" and (self.newest is None or step > self.newest["step"]):
            self.newest, self.newest_sent = record, False
            if self._moments % 2 ** (len(self.history) // BLOCK) == 0:
                self.history.append(record)
            self._moments += 1

    def forget_sent(self) -> None:
        """The server has lost everything, or may have."""
        self.newest_sent = False
        self.history_sent = 0
        self.fixed_sent: set[str] = set()  # panes that never change
        for pane in self.panes.values():
            pane.sent = 0

    def forget_pane(self, name: str) -> None:
        """Somebody closed it. A curve comes back whole with its next point, samples with the next ones only.

        Options and buttons stay away until everything is sent again.
        """
        if name == HISTORY:
            self.history.clear()
            self.history_sent = 0
        else:
            self._closed.add(name)

    def _point(self, name: str, title: str, step: int, values: Mapping[str, float | None]) -> None:
        pane = self.panes.setdefault(name, CurvePane(name, title))
        pane.add(step, values)
        if name in self._closed:
            self._closed.remove(name)
            pane.sent = 0


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


def send_news(client: "VisdomClient", run: RunInfo, board: Board, with_controls: bool) -> None:
    """Send what the server does not have yet. Raises Unreachable half way.

    The page shows panes in the order in which they came, so a text holds the first place until there are samples.
    """
    if board.newest and not board.newest_sent:
        with contextlib.suppress(OSError):  # its picture is gone: the next one comes soon
            _send_samples(client, SAMPLES, run, board.newest)
        board.newest_sent = True
    if not board.newest and SAMPLES not in board.fixed_sent:
        options = {**TEXT_SIZE, "title": "newest samples"}
        client.text("Here the first samples will appear.", win=SAMPLES, opts=options)
        board.fixed_sent.add(SAMPLES)
    for pane in board.panes.values():
        pane.send(client)
    if ABOUT not in board.fixed_sent:
        client.text(about(run), win=ABOUT, opts={**TEXT_SIZE, "title": "about"})
        board.fixed_sent.add(ABOUT)
    if with_controls and CONTROLS not in board.fixed_sent:
        buttons = [{"type": "button", "name": name, "value": name} for name in BUTTONS]
        client.properties(buttons, win=CONTROLS, opts={"title": "controls", "width": 380, "height": 200})
        board.fixed_sent.add(CONTROLS)
    while board.history_sent < len(board.history):
        try:
            _send_samples(client, HISTORY, run, board.history[board.history_sent])
        except OSError:  # its picture is gone: the slider has one moment less
            del board.history[board.history_sent]
        else:
            board.history_sent += 1


def history_on_server(client: "VisdomClient", board: Board) -> int:
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
    """Send the samples of one moment, to the slider or in place of the newest. Raises OSError without their picture."""
    files = record["pictures"]
    with Image.open(run.folder / record["folder"] / files.get(GRID, next(iter(files.values())))) as file:
        picture = file.convert("RGB")
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    width = min(1000, max(480, picture.width))  # the picture is scaled to the pane's width
    height = min(1000, round(width * picture.height / picture.width)) + CAPTION_HEIGHT
    options = {"caption": caption_of(record), "jpgquality": 90, "width": width, "height": height}
    if pane == HISTORY:
        options |= {"title": "samples over time", "store_history": True, "height": height + SLIDER_HEIGHT}
    else:
        options |= {"title": "newest samples"}
    client.image(np.asarray(picture).transpose(2, 0, 1), win=pane, opts=options)


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
    if event.get("event_type") != "PropertyUpdate" or (event.get("eid"), event.get("target")) != (
        env,
        CONTROLS,
    ):
        return None
    index = event.get("propertyId")
    commands = list(BUTTONS.values())
    return commands[index] if isinstance(index, int) and 0 <= index < len(commands) else None
