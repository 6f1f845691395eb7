"""`python -m gan.curves RUN --output FILE`: losses and metrics of a run, as a table (.csv) or as a picture (.png)."""

import csv
import io
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from datasets.errors import UserError, file_error, printable, run_command
from datasets.files import require_writable, write_atomically
from gan.command_line import parse_flags
from gan.viewers import Record, find_run, shown_records

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

Curve = Sequence[tuple[int, float]]
"""(step, value), in the order of the steps."""

CHARTS = {
    "adversarial losses": ("G_A", "G_B", "G_GAN", "D_A", "D_B", "D_real", "D_fake", "D_gp"),
    "cycle and identity losses": ("cycle_A", "cycle_B", "idt_A", "idt_B"),
    "L1 loss": ("G_L1",),
}
"""Losses of one size, by the title of their chart. A metric has a chart with its values of both directions."""

COLOURS = ("#3e7cb1", "#d9733f", "#3f9b6d", "#b0559e", "#8a6d3b", "#d1495b", "#5b6ee1", "#7a8b2e")
INK, DIM, GRID_LINE = "#222222", "#777777", "#e4e4e4"
SCALE = 2  # everything is drawn so many times larger and then reduced: smooth lines
WIDTH, HEIGHT, HEAD = 680, 320, 48  # pixels of a chart, and of the title above all
LEFT, TOP, RIGHT, BOTTOM = 70, 56, 24, 50  # pixels around the axes of a chart
SMALLEST, LARGEST = 1e-30, 1e30  # of what can be drawn: the file may hold anything
LONGEST = 60  # characters of a name that are shown
MANY = 120  # values of a curve from which on their mean is drawn as well


@dataclass(frozen=True)
class CurvesOptions:
    """Write the losses and metrics of a run as a table or a picture."""

    run: Annotated[str, tyro.conf.Positional] = ""
    """Folder of a run, or its name under --checkpoints_dir."""
    output: Path | None = None
    """File to write, .csv or .png. Required."""
    checkpoints_dir: Path = Path("checkpoints")
    """Folder of all runs."""
    debug: bool = False
    """Also show the traceback of an error."""


def main() -> int:
    options = parse_flags(
        CurvesOptions, sys.argv[1:], "python -m gan.curves", "Losses and metrics of a run as a file."
    )
    if not options.run:
        raise UserError("run", "is missing", "name a run, and --output FILE")
    if options.output is None or options.output.suffix.lower() not in (".csv", ".png"):
        given = "is missing" if options.output is None else f"is {options.output}"
        raise UserError("--output", given, "name a file that ends in .csv or .png")
    folder = find_run(options.run, options.checkpoints_dir)
    records = [record for record in shown_records(folder) if record["kind"] in ("train", "metrics")]
    if not any(record.get("losses") or record.get("metrics") for record in records):
        raise UserError(folder, "has no losses or metrics yet", "train it first")
    is_table = options.output.suffix.lower() == ".csv"
    data = as_csv(records).encode() if is_table else as_png(folder.name, records)
    require_writable(options.output.absolute().parent)
    try:
        write_atomically(options.output, data)
    except OSError as error:
        raise file_error(error, options.output, "written") from error
    print(options.output)
    return 0


def as_csv(records: Iterable[Record]) -> str:
    """A line a step: step, epoch, learning rate, losses, metrics. An empty cell where there is no (finite) value."""
    rows: dict[int, dict[str, object]] = {}
    for record in records:
        row = rows.setdefault(record["step"], {"step": record["step"], "epoch": record["epoch"]})
        row |= {"lr": record["lr"]} if "lr" in record else {}
        row |= {**record.get("losses", {}), **record.get("metrics", {})}
    text = io.StringIO()
    columns = dict.fromkeys(name for row in rows.values() for name in row)
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows.values())
    return text.getvalue()


def as_png(title: str, records: Iterable[Record]) -> bytes:
    """A picture with a chart for losses of one size and one for each metric."""
    titles = {name: chart for chart, names in CHARTS.items() for name in names}
    charts: dict[str, dict[str, list[tuple[int, float]]]] = {chart: {} for chart in CHARTS}
    for record in records:
        of_metrics = {name: name.removesuffix("_A").removesuffix("_B") for name in record.get("metrics", {})}
        for table, chart_of in (("losses", titles), ("metrics", of_metrics)):
            for name, value in record.get(table, {}).items():
                curve = charts.setdefault(chart_of.get(name, "other losses"), {}).setdefault(name, [])
                if value is not None and abs(value) <= LARGEST and 0 <= record["step"] <= LARGEST:
                    curve.append((record["step"], value))
    data = io.BytesIO()
    draw_charts(title, {chart: curves for chart, curves in charts.items() if any(curves.values())}).save(
        data, "PNG"
    )
    return data.getvalue()


def draw_charts(title: str, charts: Mapping[str, Mapping[str, Curve]]) -> "Image.Image":
    """Charts by title, two in a row; each holds curves by name, and at least one value."""
    from PIL import Image, ImageDraw

    columns = min(2, max(1, len(charts)))
    size = columns * WIDTH, HEAD + -(-len(charts) // columns) * HEIGHT
    sheet = Image.new("RGB", (SCALE * size[0], SCALE * size[1]), "white")
    pen = ImageDraw.Draw(sheet)
    width = _text(pen, 20, HEAD / 2 + 4, title, 20, INK, "lm")
    if any(len(curve) > MANY for curves in charts.values() for curve in curves.values()):
        _text(pen, 40 + width, HEAD / 2 + 6, "thick lines: means of neighbouring values", 12, DIM, "lm")
    steps = (step for curves in charts.values() for curve in curves.values() for step, _ in curve)
    last = max(steps, default=0) or 1
    for number, (name, curves) in enumerate(charts.items()):
        _draw_chart(pen, number % columns * WIDTH, HEAD + number // columns * HEIGHT, name, curves, last)
    return sheet.reduce(SCALE)


def _draw_chart(
    pen: "ImageDraw.ImageDraw", x: float, y: float, title: str, curves: Mapping[str, Curve], last: int
) -> None:
    """One chart with its upper left corner at (x, y), from step 0 to the `last` one of the run."""
    low, high = _range([value for curve in curves.values() for _, value in curve])
    left, top, right, bottom = x + LEFT, y + TOP, x + WIDTH - RIGHT, y + HEIGHT - BOTTOM

    def place(point: tuple[float, float]) -> tuple[float, float]:
        across, up = point[0] / last, (point[1] - low) / (high - low)
        return SCALE * (left + across * (right - left)), SCALE * (bottom - up * (bottom - top))

    for tick in _ticks(low, high, 5):
        (start, level), (end, _) = place((0, tick)), place((last, tick))
        pen.line((start, level, end, level), GRID_LINE, SCALE)
        _text(pen, left - 8, level / SCALE, f"{tick:.6g}", 12, DIM, "rm")
    for tick in _ticks(0, last, 6):
        if tick == int(tick):
            _text(pen, place((tick, low))[0] / SCALE, bottom + 8, f"{tick:,.0f}", 12, DIM, "mt")
    pen.line([place((0, low)), place((last, low))], DIM, SCALE)
    _text(pen, (left + right) / 2, bottom + 26, "step", 12, DIM, "mt")
    _text(pen, left, y + 8, title, 15, INK, "lt")
    colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(curves)}
    legend = left
    for name, colour in colours.items():
        pen.rectangle([SCALE * side for side in (legend, y + 36, legend + 14, y + 40)], colour)
        legend += 38 + _text(pen, legend + 20, y + 38, name, 12, INK, "lm")
    for name, curve in curves.items():
        if len(curve) > MANY:  # below the means of all curves
            pen.line([place(point) for point in curve], _lighter(colours[name]), SCALE, "curve")
    for name, curve in curves.items():
        line = [place(point) for point in (_smoothed(curve) if len(curve) > MANY else curve)]
        pen.line(line, colours[name], 2 * SCALE, "curve")
        for center in line if len(line) <= 40 else ():
            pen.circle(center, 3 * SCALE, colours[name])


def _text(
    pen: "ImageDraw.ImageDraw", x: float, y: float, text: str, size: int, colour: str, anchor: str
) -> float:
    """Write, and return the width in pixels."""
    from PIL import ImageFont

    font, text = ImageFont.load_default(SCALE * size), printable(text)[:LONGEST]
    pen.text((SCALE * x, SCALE * y), text, colour, font, anchor)
    return pen.textlength(text, font) / SCALE


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Lowest and highest value with a little room, which is never zero; from 0 where that is near."""
    low, high = min(values), max(values)
    room = 0.06 * (high - low)
    if room < SMALLEST:
        room = abs(low) / 10 if abs(low) > SMALLEST else 1.0
    return 0.0 if 0 <= low < (high - low) / 2 else low - room, high + room


def _ticks(low: float, high: float, wanted: int) -> list[float]:
    """Round numbers from low to high, about as many as wanted.

    >>> _ticks(0, 10, 5)
    [0, 2, 4, 6, 8, 10]
    """
    rough = (high - low) / wanted
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    return [
        number * step for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


def _smoothed(curve: Curve) -> list[tuple[int, float]]:
    """Each value becomes the mean of its neighbours, a thirtieth of the curve."""
    reach = len(curve) // 60
    sums = [0.0]
    for _, value in curve:
        sums.append(sums[-1] + value)
    bounds = ((max(0, i - reach), min(len(curve), i + reach + 1)) for i in range(len(curve)))
    return [
        (step, (sums[end] - sums[begin]) / (end - begin))
        for (step, _), (begin, end) in zip(curve, bounds, strict=True)
    ]


def _lighter(colour: str) -> str:
    """`#RRGGBB` mixed with two thirds of white."""
    levels = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{255 - (255 - level) // 3:02x}" for level in levels)


if __name__ == "__main__":
    run_command(main, debug="--debug" in sys.argv)
