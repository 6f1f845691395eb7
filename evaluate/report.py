"""A report: rows of numbers and everything that is needed to quote them."""

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import numpy as np

from datasets.errors import UserError
from datasets.files import require_writable, write_atomically
from evaluate.metrics import METRICS, Metric
from evaluate.protocol import METRIC_DEFINITIONS, Protocol
from evaluate.tables import csv_table, latex_table, markdown_table

FEATURES = 2048  # with fewer images the covariances of FID are singular
PACKAGES = ("torch", "torchvision", "numpy", "pillow", "pytorch-fid", "lpips")


@dataclass(frozen=True)
class Row:
    """One line of the table. values, errors and spreads are by metric name.

    errors: half width of the 95 % bootstrap interval; spreads: standard deviation over `seeds` runs, whose mean the
    values then are.
    """

    label: str
    direction: str
    checkpoint: str
    n_fake: int
    n_real: int
    values: Mapping[str, float]
    errors: Mapping[str, float] = field(default_factory=dict)
    spreads: Mapping[str, float] = field(default_factory=dict)
    seeds: int = 1
    missing: Sequence[str] = ()  # metrics that apply here but could not be computed
    hashes: Mapping[str, str] = field(default_factory=dict)  # of the lists of files
    details: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """reasons: by metric flag, why a column is missing; weights: by network, file hash and whether it is verified."""

    protocol: Protocol
    rows: Sequence[Row]
    reasons: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, object] = field(default_factory=dict)
    weights: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    seed: int = 0
    seconds: float = 0.0
    notes: Sequence[str] = ()  # more remarks, of how the numbers were made

    @property
    def columns(self) -> list[Metric]:
        """The metrics any row has, or would have but for the reason given, in their fixed order."""
        names = {name for row in self.rows for name in (*row.values, *row.missing)}
        return [metric for metric in METRICS if metric.name in names]

    @property
    def remarks(self) -> list[str]:
        """One sentence for every reason why columns are empty, and about FID of few images."""
        by_reason: dict[str, list[str]] = {}
        for flag, reason in self.reasons.items():
            by_reason.setdefault(reason, []).append(flag)
        remarks = [f"{', '.join(flags)} not computed: {reason}" for reason, flags in by_reason.items()]
        fewest = min(
            (min(row.n_fake, row.n_real) for row in self.rows if "fid" in row.values), default=FEATURES
        )
        if fewest < FEATURES:
            text = f"FID of {fewest} images is biased upwards: compare it at equal counts only, or use KID"
            remarks.append(text)
        remarks += [str(row.details["remark"]) for row in self.rows if "remark" in row.details]
        return [*remarks, *self.notes]


def with_groups(rows: Sequence[Row]) -> list[Row]:
    """The rows, and after them mean and standard deviation of every configuration that has several seeds.

    Seeds of one configuration are rows of equal data, direction and epoch (or each its best), all of another seed.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if "configuration" in row.details:
            data, kind = row.details.get("data"), row.details.get("checkpoint")
            epoch = (
                "best" if kind == "best" else row.details.get("epoch")
            )  # each run's best is at its own epoch
            key = json.dumps(
                [row.details["configuration"], data, kind, epoch, row.direction], sort_keys=True, default=str
            )
            groups.setdefault(key, []).append(row)
    return [*rows, *(_grouped(group) for group in groups.values() if _are_seeds(group))]


def _are_seeds(rows: Sequence[Row]) -> bool:
    """Several rows, no two of one seed: the same training twice says nothing about the spread."""
    return len(rows) > 1 and len({row.details.get("seed") for row in rows}) == len(rows)


def _grouped(rows: Sequence[Row]) -> Row:
    names = [name for name in rows[0].values if all(name in row.values for row in rows)]
    kind = str(rows[0].details.get("checkpoint", ""))
    by_name = {name: np.array([row.values[name] for row in rows]) for name in names}
    return Row(
        label=f"{_common_start([row.label for row in rows])} (mean ± sd of {len(rows)})",
        direction=rows[0].direction,
        checkpoint=f"epoch {kind}" if kind.isdecimal() else kind,
        n_fake=rows[0].n_fake,
        n_real=rows[0].n_real,
        values={name: float(found.mean()) for name, found in by_name.items()},
        spreads={name: float(x.std(ddof=1)) for name, x in by_name.items() if np.isfinite(x).all()},
        seeds=len(rows),
        missing=rows[0].missing,
        details={"seed": [row.details.get("seed") for row in rows], "runs": [row.label for row in rows]},
    )


def _common_start(labels: Sequence[str]) -> str:
    start = labels[0]
    while not all(label.startswith(start) for label in labels):
        start = start[:-1]
    return start.rstrip("_- ") or labels[0]


def to_json(report: Report) -> str:
    """report.json: strict JSON, an infinite PSNR as the text "inf"."""
    content = {
        "protocol": {
            "id": report.protocol.id,
            "in_words": report.protocol.sentences(),
            "metrics": {metric.name: METRIC_DEFINITIONS[metric.name] for metric in report.columns},
        },
        "rows": [
            {
                "label": row.label,
                "direction": row.direction,
                "checkpoint": row.checkpoint,
                "n_fake": row.n_fake,
                "n_real": row.n_real,
                "values": _plain(row.values),
                "interval_95": _plain(row.errors),
                "sd": _plain(row.spreads),
                "seeds": row.seeds,
                "file_list_hashes": dict(row.hashes),
                **dict(row.details),
            }
            for row in report.rows
        ],
        "not_computed": dict(report.reasons),
        "notes": list(report.notes),
        "options": dict(report.options),
        "weights": {name: dict(found) for name, found in report.weights.items()},
        "versions": versions(),
        "seed": report.seed,
        "seconds": round(report.seconds, 3),
    }
    return json.dumps(content, indent=1, allow_nan=False, default=str) + "\n"


def _plain(values: Mapping[str, float]) -> dict[str, float | str]:
    return {name: value if math.isfinite(value) else str(value) for name, value in values.items()}


def versions() -> dict[str, str]:
    """Of Python and the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def write_report(report: Report, folder: Path, latex: bool = False) -> list[Path]:
    """Write report.json, .md, .csv (and .tex) and return their paths.

    Raises UserError where the folder holds a report of another protocol, or cannot be written to.
    """
    check_place(folder, report.protocol)
    texts = {
        "report.json": to_json(report),
        "report.md": markdown(report),
        "report.csv": csv_table(report.rows, report.columns, report.protocol.id),
    }
    if latex:
        texts["report.tex"] = latex_table(report.rows, report.columns, report.protocol.id)
    for name, text in texts.items():
        write_atomically(folder / name, text.encode())
    return [folder / name for name in texts]


def check_place(folder: Path, *protocols: Protocol) -> None:
    """UserError where the folder cannot be written to or holds a report of a protocol that is none of these."""
    require_writable(folder)
    existing = read_protocol_id(folder / "report.json")
    if existing is not None and existing not in [protocol.id for protocol in protocols]:
        reason = f"holds a report of protocol {existing}, this one is {protocols[-1].id}"
        raise UserError(folder / "report.json", reason, "name another folder with --output")


def read_protocol_id(path: Path) -> str | None:
    """The protocol of a report.json, None where there is none. UserError for a file that is no report."""
    try:
        return str(json.loads(path.read_bytes())["protocol"]["id"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            path, "is not a report of this program", "name another folder with --output"
        ) from error


def markdown(report: Report) -> str:
    """report.md: the table, what its columns mean, why some are missing."""
    lines = [
        f"# Evaluation, protocol `{report.protocol.id}`",
        "",
        markdown_table(report.rows, report.columns),
        "",
    ]
    lines += [f"- {sentence}" for sentence in report.protocol.sentences()]
    lines += [f"- {metric.title}: {METRIC_DEFINITIONS[metric.name]}" for metric in report.columns]
    lines += [f"- {remark}" for remark in report.remarks]
    return "\n".join(lines) + "\n"
