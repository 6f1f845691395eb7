"""What is on the Visdom page: panes with stable names, and the messages that create and extend them.

Names and shape of the messages are those of Visdom's JSON interface (`events` makes a pane, `update` extends it).
"""

import base64
import html
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from gan.viewers import GRID, SAMPLE, SAVE, STOP, Record, RunInfo, public_options

Message = dict[str, Any]

POINTS = 2000
"""Points of a curve that Visdom holds at most."""

BLOCK = 20
"""Moments that the slider takes before it skips every second one, then three of four, and so on."""

LONGEST_SIDE = 2048
"""Pixels; a larger picture is scaled down before it is sent."""

CAPTION_HEIGHT, SLIDER_HEIGHT = 80, 30
"""Pixels of a pane below its picture."""

BUTTONS = {"Save now": SAVE, "Sample now": SAMPLE, "Stop after this epoch": STOP}
SAMPLES, HISTORY, ABOUT, CONTROLS = "samples", "history", "about", "controls"


class Curve:
    """One curve, thinned to every second point whenever it has more than POINTS. Points are logged values."""

    def __init__(self) -> None:
        self.x: list[int] = []
        self.y: list[float] = []
        self.sent = 0  # points the server has; 0 asks for a pane from scratch
        self._stride = 1
        self._seen = 0
        self._newest = -1

    def add(self, step: int, value: float | None) -> None:
        """A step that is not newer than the last one is known already (catching up reads it again)."""
        if step <= self._newest or value is None or not math.isfinite(value):
            return
        self._newest = step
        if self._seen % self._stride == 0:
            self.x.append(step)
            self.y.append(value)
        self._seen += 1
        if len(self.x) > POINTS:
            self.x, self.y = self.x[::2], self.y[::2]
            self._stride *= 2
            self.sent = 0


class CurvePane:
    """Some curves in one pane."""

    def __init__(self, name: str, title: str) -> None:
        self.name = name
        self.title = title
        self.curves: dict[str, Curve] = {}

    def message(self, env: str) -> tuple[str, Message] | None:
        """Endpoint and message that bring the server's pane up to date; None if it is."""
        if all(curve.sent == len(curve.x) for curve in self.curves.values()):
            return None
        if any(curve.sent == 0 for curve in self.curves.values()):
            return "events", {
                **self._common(env, whole=True),
                "layout": self._layout(),
                "opts": self._options(),
            }
        return "update", {**self._common(env, whole=False), "append": True, "layout": {}, "opts": {}}

    def was_sent(self, done: bool = True) -> None:
        for curve in self.curves.values():
            curve.sent = len(curve.x) if done else 0

    def _common(self, env: str, whole: bool) -> Message:
        data = []
        for name, curve in self.curves.items():
            start = 0 if whole else curve.sent
            data.append(
                {"x": curve.x[start:], "y": curve.y[start:], "name": name, "type": "scatter", "mode": "lines"}
            )
        return {"win": self.name, "eid": env, "data": data}

    def _options(self) -> Message:
        return {"title": self.title, "width": 480, "height": 340}

    def _layout(self) -> Message:
        scales = [
            {"label": scale, "method": "relayout", "args": [{"yaxis.type": scale}]}
            for scale in ("linear", "log")
        ]
        return {
            "showlegend": True,
            "legend": {"orientation": "h", "y": -0.25},
            "margin": {"l": 60, "r": 20, "t": 30, "b": 40},
            "xaxis": {"title": {"text": "step"}},
            "updatemenus": [{"type": "buttons", "direction": "right", "x": 1, "y": 1.15, "buttons": scales}],
        }


class Board:
    """All that is shown of a run, in nearly constant memory, built from its records in their order.

    The newest samples have a pane of their own, which stands first. Older ones are in a slider. It only ever grows,
    ever more slowly: a page that is open at a moment which is no longer there goes blank.
    """

    def __init__(self) -> None:
        self.panes: dict[str, CurvePane] = {}
        self.newest: Record | None = None  # the last record of samples
        self.newest_sent = False
        self.history: list[Record] = []  # records of samples in the slider, oldest first
        self.history_sent = 0
        self.epoch = 0
        self._moments = 0

    def add(self, record: Record) -> None:
        """Take one record; what is known already changes nothing."""
        step = record.get("step", 0)
        self.epoch = max(self.epoch, record.get("epoch", 0))
        if record["kind"] == "train":
            for name, value in record["losses"].items():
                self._point(*loss_pane(name), name, step, value)
            if "lr" in record:
                self._point("learning_rate", "learning rate", "lr", step, record["lr"])
            time = record.get("time", {})
            if "images_per_s" in time:
                self._point("throughput", "throughput, images/s", "images/s", step, time["images_per_s"])
            if "data_wait" in time:
                self._point(
                    "data_wait", "waiting for data, share of time", "data wait", step, time["data_wait"]
                )
        elif record["kind"] == "metrics":
            for name, value in record["metrics"].items():
                counts = name.startswith("fid") and "n_fake" in record
                title = f"{name}, n_fake {record['n_fake']}, n_real {record['n_real']}" if counts else name
                self._point(f"metric_{name}", title, name, step, value)
        elif record["kind"] == "samples" and (self.newest is None or step > self.newest["step"]):
            self.newest, self.newest_sent = record, False
            if self._moments % 2 ** (len(self.history) // BLOCK) == 0:
                self.history.append(record)
            self._moments += 1

    def forget_sent(self) -> None:
        """The server has lost everything, or may have."""
        self.newest_sent = False
        self.history_sent = 0
        for pane in self.panes.values():
            pane.was_sent(False)

    def _point(self, pane: str, title: str, curve: str, step: int, value: float | None) -> None:
        if pane not in self.panes:
            self.panes[pane] = CurvePane(pane, title)
        self.panes[pane].curves.setdefault(curve, Curve()).add(step, value)


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


def caption_of(record: Record) -> str:
    """`epoch 3, step 1200: input | fake | target`."""
    kinds = " | ".join(kind for kind in record["pictures"] if kind != GRID)
    return f"epoch {record['epoch']}, step {record['step']}: {kinds}"


def samples_message(run: RunInfo, env: str, record: Record) -> tuple[str, Message]:
    """Endpoint and message for the newest samples. Raises OSError if their picture is gone."""
    content, options = _picture(run, record)
    data = [{"type": "image", "content": content}]
    return "events", {
        "win": SAMPLES,
        "eid": env,
        "data": data,
        "opts": {**options, "title": "newest samples"},
    }


def history_message(run: RunInfo, env: str, record: Record, first: bool) -> tuple[str, Message]:
    """Endpoint and message that add one moment to the slider. Raises OSError if its picture is gone."""
    content, options = _picture(run, record)
    data = [{"type": "image_history", "content": content}]
    options = {**options, "title": "samples over time", "height": options["height"] + SLIDER_HEIGHT}
    return ("events" if first else "update"), {"win": HISTORY, "eid": env, "data": data, "opts": options}


def _picture(run: RunInfo, record: Record) -> tuple[Message, Message]:
    """Content and options of a pane that shows the samples of one moment."""
    files = record["pictures"]
    path = run.folder / record["folder"] / files.get(GRID, next(iter(files.values())))
    source, size = jpeg_address(path)
    caption = caption_of(record)
    width = min(1000, max(480, size[0]))  # the picture is scaled to the pane's width
    height = min(1000, round(width * size[1] / size[0])) + CAPTION_HEIGHT
    return {"src": source, "caption": caption}, {"caption": caption, "width": width, "height": height}


def placeholder_message(env: str) -> tuple[str, Message]:
    """Holds the first place of the page for the samples that are to come."""
    data = [{"type": "text", "content": "The first samples appear here once they are drawn."}]
    return "events", {
        "win": SAMPLES,
        "eid": env,
        "data": data,
        "opts": {"title": "newest samples", "width": 480, "height": 340},
    }


def jpeg_address(path: Path) -> tuple[str, tuple[int, int]]:
    """A picture file as a `data:` address (uint8 RGB JPEG, quality 90) and its size (width, height)."""
    with Image.open(path) as file:
        picture = file.convert("RGB")
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"), picture.size


def about_message(run: RunInfo, env: str) -> tuple[str, Message]:
    """Options and host as a table; every word of it escaped, no password in it."""
    content = f"<h4>{html.escape(run.name)}</h4>{_lines(run.host)}{_table(public_options(run.options))}"
    data = [{"type": "text", "content": content}]
    return "events", {
        "win": ABOUT,
        "eid": env,
        "data": data,
        "opts": {"title": ABOUT, "width": 480, "height": 340},
    }


def controls_message(env: str) -> tuple[str, Message]:
    """Three buttons, in the order of BUTTONS."""
    buttons = [{"type": "button", "name": name, "value": name} for name in BUTTONS]
    data = [{"type": "properties", "content": buttons}]
    options = {"title": CONTROLS, "width": 380, "height": 200}
    return "events", {"win": CONTROLS, "eid": env, "data": data, "opts": options}


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


def _lines(text: str) -> str:
    return "".join(f"<div>{html.escape(line)}</div>" for line in text.splitlines())


def _table(options: Mapping[str, Any]) -> str:
    rows = (
        f"<tr><td>{html.escape(name)}&nbsp;&nbsp;</td><td>{html.escape(str(value))}</td></tr>"
        for name, value in options.items()
    )
    return f"<table>{''.join(rows)}</table>"
