"""The metrics of every single picture (`--per_image`): a table, and a page of the worst and the best."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from evaluate.bootstrap import Values
from evaluate.comparisons import Comparison
from evaluate.metrics import METRICS, MeasuredValues, Metric
from evaluate.pictures import Picture
from gan.viewers.report_page import Figure
from gan.viewers.samples import labelled_grid

SHOWN = 10  # of the worst and of the best pictures
SIDE = 160  # pixels of a shown picture at most

HEADS = ("protocol", "run", "direction", "checkpoint", "picture", "metric", "value")
"""Columns of per_image.csv, keys of the rows in per_image.json."""


@dataclass(frozen=True)
class PerImage:
    """Rows of the report, and for each row the values of its pictures by metric name, in the order of `fakes`."""

    comparisons: Sequence[Comparison]
    values: Sequence[Mapping[str, Values]]

    @classmethod
    def of(cls, comparisons: Sequence[Comparison], measured: Sequence[MeasuredValues]) -> "PerImage":
        return cls(comparisons, [found.per_picture for found in measured])

    def rows(self, protocol: str) -> Iterator[list[object]]:
        """A row a picture and metric, in the order of HEADS."""
        for comparison, by_metric in zip(self.comparisons, self.values, strict=True):
            for metric, values in by_metric.items():
                for picture, value in zip(comparison.fakes, values.tolist(), strict=True):
                    fixed = [protocol, comparison.label, comparison.direction, comparison.checkpoint]
                    yield [*fixed, file_name(picture), metric, value]

    def json(self, protocol: str) -> str:
        """per_image.json, strict JSON: an infinite value is the text "inf"."""
        rows = [dict(zip(HEADS, row, strict=True)) for row in self.rows(protocol)]
        for row in rows:
            row["value"] = row["value"] if math.isfinite(float(str(row["value"]))) else str(row["value"])
        return json.dumps({"rows": rows}, indent=1, allow_nan=False) + "\n"

    def figures(self) -> Iterator[Figure]:
        """For each row and metric the worst pictures and the best ones; none of baselines, which are bounds."""
        for comparison, by_metric in zip(self.comparisons, self.values, strict=True):
            if comparison.only is None:
                parts = (comparison.label, comparison.direction, comparison.checkpoint)
                name = ", ".join(part for part in parts if part)
                for metric in (metric for metric in METRICS if metric.name in by_metric):
                    worst, best = extremes(by_metric[metric.name], metric.lower_is_better)
                    for what, numbers in (("worst", worst), ("best", best)):
                        title = f"{name}: the {len(numbers)} {what} by {metric.title}"
                        yield _figure(title, comparison, metric, by_metric[metric.name], numbers)


def extremes(values: Values, lower_is_better: bool) -> tuple[list[int], list[int]]:
    """Numbers of the worst pictures, the worst first, and of the best, the best first; none is in both.

    >>> import numpy as np
    >>> extremes(np.array([3.0, 1.0, 2.0, 5.0]), lower_is_better=True)
    ([3, 0], [1, 2])
    """
    best = sorted(range(len(values)), key=lambda i: values[i] if lower_is_better else -values[i])
    count = min(SHOWN, max(1, len(values) // 2))
    return best[::-1][:count], best[:count]


def _figure(
    title: str, comparison: Comparison, metric: Metric, values: Values, numbers: Sequence[int]
) -> Figure:
    """A column a picture, the value and its name above: input (where there is one), output, target (the same)."""
    sides = {"input": comparison.inputs, "output": comparison.fakes, "target": comparison.targets}
    there = {name: pictures for name, pictures in sides.items() if pictures is not None}
    columns = {
        f"{values[i]:.{metric.digits}f}   {file_name(comparison.fakes[i])}": [
            _small(pictures[i]) for pictures in there.values()
        ]
        for i in numbers
    }
    return Figure(f"{title} (from the top: {', '.join(there)})", labelled_grid(columns))


def _small(picture: Picture) -> Image.Image:
    shown = Image.fromarray(picture.load())
    shown.thumbnail((SIDE, SIDE))
    return shown


def file_name(picture: Picture) -> str:
    return Path(picture.name).name
