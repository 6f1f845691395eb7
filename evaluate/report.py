"""A report: rows of numbers and everything that is needed to quote them, as JSON, Markdown, CSV and LaTeX."""

import csv
import io
import json
import math
import os
import platform
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path

import numpy as np
import tabulate

from datasets.errors import UserError
from datasets.files import read_json, write_atomically
from evaluate.comparisons import JSON_LIMIT, Comparison
from evaluate.metrics import METRICS, SEED, MeasuredValues, Metric, metrics_of
from evaluate.options import Protocol
from evaluate.per_image import HEADS, PerImage
from evaluate.pictures import FilePicture, set_hash
from gan.viewers.report_page import Table, make_report_page

SINGULAR = {"fid": ("FID", "KID", 2048), "fd_lite0": ("FD (EfficientNet-Lite0)", "KD", 1280)}
"""By metric: title, what to use instead, and number of features: with fewer images the covariances are singular."""
PACKAGES = ("torch", "torchvision", "numpy", "pillow", "pytorch-fid", "lpips")
FIXED = ("run", "direction", "checkpoint", "n_fake", "n_real")
WIDTH = 120  # characters of a terminal that a table should fit into
LABEL_WIDTH = 22  # characters of a run's name in a line, where a table would be wider
TEXTS = 3  # the first three columns are left-aligned text

tabulate.MIN_PADDING = 0  # heads are no wider than their text: a report should fit into a terminal


@dataclass(frozen=True)
class Row:
    """One line of the table, with the names of report.json. values, interval_95 and sd are by metric name.

    interval_95: half width of the bootstrap interval; sd: standard deviation over `seeds` runs, whose mean the values
    then are; file_list_hashes: of the pictures that are compared; missing: metrics that apply here but could not be
    computed.
    """

    label: str
    direction: str
    checkpoint: str
    n_fake: int
    n_real: int
    values: Mapping[str, float]
    interval_95: Mapping[str, float] = field(default_factory=dict)
    sd: Mapping[str, float] = field(default_factory=dict)
    seeds: int = 1
    file_list_hashes: Mapping[str, str] = field(default_factory=dict)
    missing: Sequence[str] = ()
    details: Mapping[str, object] = field(default_factory=dict)

    def cell(self, metric: Metric) -> str:
        """`12.34`, with the spread over seeds or else the interval behind it; - where it could not be computed."""
        if metric.name not in self.values:
            return "-" if metric.name in self.missing else ""
        text = f"{self.values[metric.name]:.{metric.digits}f}"
        width = self.width(metric)
        return text if width is None else f"{text} ± {width:.{metric.digits}f}"

    def width(self, metric: Metric) -> float | None:
        return self.sd.get(metric.name, self.interval_95.get(metric.name))

    def stored(self) -> dict[str, object]:
        """As in report.json, an infinite value as the text "inf"."""
        content = asdict(self)
        del content["missing"]
        content["values"] = {
            name: value if math.isfinite(value) else str(value) for name, value in self.values.items()
        }
        return content | content.pop("details")


def rows_of(
    comparisons: Sequence[Comparison], measured: Sequence[MeasuredValues], not_computed: Collection[str]
) -> list[Row]:
    """The table: a row for each comparison, and for configurations with several seeds their mean and spread."""
    rows = [
        Row(
            row.label, row.direction, row.checkpoint, len(row.fakes), row.n_real, found.values, found.widths,
            file_list_hashes=file_list_hashes(row),
            missing=[metric.name for metric in metrics_of(row, not_computed)],
            details={**row.details, **row.made_by},
        )
        for row, found in zip(comparisons, measured, strict=True)
    ]  # fmt: skip
    return with_groups(rows)


def file_list_hashes(row: Comparison) -> dict[str, str]:
    """Of the lists of files that are compared; none for predictions, which are no files."""
    if not isinstance(row.fakes[0], FilePicture):
        return {}
    sides = {"fake": row.fakes, "real": row.reals or None, "input": row.inputs}
    return {name: set_hash(pictures) for name, pictures in sides.items() if pictures is not None}


def with_groups(rows: Sequence[Row]) -> list[Row]:
    """The rows of runs, then mean and standard deviation of every configuration with several seeds, then the others.

    Seeds of one configuration are rows of equal data, direction and epoch (or each its best), all of another seed: the
    same training twice says nothing about the spread.
    """
    groups: dict[str, list[Row]] = {}
    runs = [row for row in rows if "configuration" in row.details]
    for row in runs:
        data, kind = row.details.get("data"), row.details.get("checkpoint")
        epoch = "best" if kind == "best" else row.details.get("epoch")  # each run's best is at its own epoch
        same = [row.details["configuration"], data, kind, epoch, row.direction]
        groups.setdefault(json.dumps(same, sort_keys=True, default=str), []).append(row)
    means = [
        _mean_of(group)
        for group in groups.values()
        if len({row.details.get("seed") for row in group}) == len(group) > 1
    ]
    return [*runs, *means, *(row for row in rows if row not in runs)]


def _mean_of(rows: Sequence[Row]) -> Row:
    kind = str(rows[0].details.get("checkpoint", ""))
    names = [name for name in rows[0].values if all(name in row.values for row in rows)]
    by_name = {name: np.array([row.values[name] for row in rows]) for name in names}
    common = os.path.commonprefix([row.label for row in rows]).rstrip("_- ")  # noqa: RUF071 - no path
    return replace(
        rows[0],
        label=f"{common or rows[0].label} (mean ± sd of {len(rows)})",
        checkpoint=f"epoch {kind}" if kind.isdecimal() else kind,
        values={name: float(found.mean()) for name, found in by_name.items()},
        interval_95={},
        sd={name: float(x.std(ddof=1)) for name, x in by_name.items() if np.isfinite(x).all()},
        seeds=len(rows),
        file_list_hashes={},
        details={"seed": [row.details.get("seed") for row in rows], "runs": [row.label for row in rows]},
    )


@dataclass(frozen=True)
class Report:
    """not_computed: by metric flag, why a column is missing; weights: by network, hash and whether it is verified."""

    protocol: Protocol
    rows: Sequence[Row]
    not_computed: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, object] = field(default_factory=dict)
    weights: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    seconds: float = 0.0
    notes: Sequence[str] = ()  # more remarks, of how the numbers were made
    per_image: PerImage | None = None

    @property
    def columns(self) -> list[Metric]:
        """The metrics any row has, or would have but for the reason given, in their fixed order."""
        names = {name for row in self.rows for name in (*row.values, *row.missing)}
        return [metric for metric in METRICS if metric.name in names]

    @property
    def remarks(self) -> list[str]:
        """One sentence for every reason why columns are empty, and about distances of few images."""
        by_reason: dict[str, list[str]] = {}
        for flag, reason in self.not_computed.items():
            by_reason.setdefault(reason, []).append(flag)
        remarks = [f"{', '.join(flags)} not computed: {reason}" for reason, flags in by_reason.items()]
        for name, (title, other, features) in SINGULAR.items():
            counts = [min(row.n_fake, row.n_real or row.n_fake) for row in self.rows if name in row.values]
            if counts and min(counts) < features:
                fix = f"compare it at equal counts only, or use {other}"
                remarks.append(f"{title} of {min(counts)} images is biased upwards: {fix}")
        if any(row.interval_95 for row in self.rows):
            of_mean = (
                "; of a mean the standard deviation over seeds" if any(row.sd for row in self.rows) else ""
            )
            remarks.append(f"± is half the 95 % interval by the bootstrap over pictures{of_mean}")
        remarks += [str(row.details["remark"]) for row in self.rows if "remark" in row.details]
        return [*remarks, *self.notes]

    def write(self, folder: Path, latex: bool = False) -> list[Path]:
        """Write report.json, .md, .csv (and .tex, and what belongs to single pictures) and return their paths.

        Raises OSError if the folder cannot be written.
        """
        texts = {"report.json": self.json(), "report.md": self.markdown(), "report.csv": self.csv()}
        if latex:
            texts["report.tex"] = f"% protocol {self.protocol.id}\n{self.table('latex_booktabs')}\n"
        if self.per_image:
            rows = list(self.per_image.rows(self.protocol.id))
            texts["per_image.csv"] = as_csv([HEADS, *rows])
            texts["per_image.json"] = self.per_image.json(self.protocol.id)
        for name, text in texts.items():
            write_atomically(folder / name, text.encode())
        pages = [self._write_page(folder / "report.html", self.per_image)] if self.per_image else []
        return [*(folder / name for name in texts), *pages]

    def _write_page(self, path: Path, per_image: PerImage) -> Path:
        """One HTML file with the table, the worst pictures and the best ones."""
        heads, lines, texts = _with_content(*self._cells())
        table = Table("Results", heads, lines, " ".join(f"{remark}." for remark in self.remarks), texts)
        title = f"Evaluation, protocol {self.protocol.id}"
        return make_report_page(path, title, [], [table], list(per_image.figures()))

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        """Heads and lines of the table, empty columns too."""
        lines = []
        for row in self.rows:
            fixed = [row.label, row.direction, row.checkpoint, str(row.n_fake or ""), str(row.n_real or "")]
            lines.append([*fixed, *(row.cell(metric) for metric in self.columns)])
        return [*FIXED, *(metric.title for metric in self.columns)], lines

    def table(self, form: str, narrow: bool = False, columns: Sequence[Metric] | None = None) -> str:
        """The rows as a table of `tabulate`: "simple" for a terminal, "pipe" (Markdown), "latex_booktabs".

        Columns without content are left out. In a terminal the pairing of a metric stands in a second line of the head;
        a table that is still wider than WIDTH is made narrow: cells take several lines. One that is wider even so
        becomes two, one below the other, each with half of the metrics. columns: None for all.
        """
        columns = self.columns if columns is None else columns
        heads = [*FIXED, *(metric.title for metric in columns)]
        lines = []
        for row in self.rows:
            fixed = [row.label, row.direction, row.checkpoint, str(row.n_fake or ""), str(row.n_real or "")]
            lines.append([*fixed, *(row.cell(metric) for metric in columns)])
        if form == "simple":
            breaks = {" ": "\n", "-": "-\n"} if narrow else {" (": "\n("}
            heads = [_broken(head, breaks) for head in heads]
        if narrow:
            lines = [_in_several_lines(line) for line in lines]
        used = [i for i in range(len(heads)) if any(line[i] for line in lines)]
        table = as_table(
            [heads[i] for i in used],
            [[line[i] for i in used] for line in lines],
            form,
            sum(i < TEXTS for i in used),
        )
        if form != "simple" or max(map(len, table.splitlines())) <= WIDTH:
            return table
        if not narrow:
            return self.table(form, True, columns)
        half = len(columns) // 2
        parts = (columns[:half], columns[half:]) if half else ()
        return "\n\n".join(self.table(form, True, part) for part in parts) or table

    def markdown(self) -> str:
        """report.md: the table, what its columns mean, why some are missing."""
        columns = [
            f"{metric.title}, {'lower' if metric.lower_is_better else 'higher'} is better: {metric.definition}"
            for metric in self.columns
        ]
        sentences = [*self.protocol.sentences(), *columns, *self.remarks]
        listed = "\n".join(f"- {sentence}" for sentence in sentences)
        return f"# Evaluation, protocol `{self.protocol.id}`\n\n{self.table('pipe')}\n\n{listed}\n"

    def csv(self) -> str:
        """Full precision; two columns a metric (value, sd or half interval), the protocol id in every line."""
        names = [name for m in self.columns for name in (m.name, f"{m.name}_plus_minus")]
        lines: list[list[object]] = [["protocol", *FIXED, "seeds", *names]]
        for row in self.rows:
            fixed = [row.label, row.direction, row.checkpoint, row.n_fake, row.n_real, row.seeds]
            numbers = [value for m in self.columns for value in (row.values.get(m.name), row.width(m))]
            lines.append([self.protocol.id, *fixed, *numbers])
        return as_csv(lines)

    def json(self) -> str:
        """report.json, strict JSON."""
        content = {
            "protocol": {
                "id": self.protocol.id,
                "in_words": self.protocol.sentences(),
                "metrics": {metric.name: metric.definition for metric in self.columns},
            },
            "rows": [row.stored() for row in self.rows],
            "not_computed": self.not_computed,
            "notes": self.notes,
            "options": self.options,
            "weights": self.weights,
            "versions": versions(),
            "seed": SEED,
            "seconds": round(self.seconds, 3),
        }
        return json.dumps(content, indent=1, allow_nan=False, default=str) + "\n"


def _with_content(
    heads: Sequence[str], lines: Sequence[Sequence[str]]
) -> tuple[list[str], list[list[str]], int]:
    """The columns that are not empty, and how many of them are text, on the left."""
    used = [i for i in range(len(heads)) if any(line[i] for line in lines)]
    return [heads[i] for i in used], [[line[i] for i in used] for line in lines], sum(i < TEXTS for i in used)


def _in_several_lines(cells: Sequence[str]) -> list[str]:
    """A row with the direction below the run, and long cells broken where their parts begin."""
    run, direction, *others = cells
    names = [*textwrap.wrap(run, LABEL_WIDTH), *([direction] if direction else [])]
    breaks = {" (": "\n(", ", ": ",\n", " ± ": "\n± "}
    return ["\n".join(names), "", *(_broken(cell, breaks) for cell in others)]


def _broken(text: str, breaks: Mapping[str, str]) -> str:
    """The text with lines broken at these marks."""
    for mark, broken in breaks.items():
        text = text.replace(mark, broken)
    return text


def as_table(heads: Sequence[str], lines: Sequence[Sequence[str]], form: str, texts: int) -> str:
    """A table of `tabulate`, cells as they are; the first `texts` columns on the left, numbers on the right."""
    if form == "pipe":
        lines = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    sides = ["left"] * texts + ["right"] * (len(heads) - texts)
    return tabulate.tabulate(lines, heads, form, disable_numparse=True, colalign=sides if lines else None)


def as_csv(lines: Sequence[Sequence[object]]) -> str:
    """Lines of cells; None is an empty cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def versions() -> dict[str, str]:
    """Of Python and the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def refuse_another_protocol(folder: Path, protocol: Protocol) -> None:
    """UserError where the folder has a report.json of another protocol, or one that is no report."""
    path, fix = folder / "report.json", "name another folder with --output"
    try:
        existing = str(read_json(path, JSON_LIMIT)["protocol"]["id"]) if path.exists() else protocol.id
    except (UserError, LookupError, TypeError) as error:
        raise UserError(path, "is not a report of this program", fix) from error
    if existing != protocol.id:
        raise UserError(path, f"holds a report of protocol {existing}, this one is {protocol.id}", fix)
