"""From evaluated trainings to Table 3: ours beside the published numbers, and NC minus PONO in both."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.errors import UserError
from evaluate.table3_plan import NORMS, PUBLISHED, SETTINGS, Setting, Training

COLUMNS = ("fid_ab", "fid_ba", "lpips_ab", "lpips_ba")
DIGITS = {"fid_ab": 2, "fid_ba": 2, "lpips_ab": 4, "lpips_ba": 4}
WITH_COUNTS = ("fid_ab", "fid_ba")  # a distance of few pictures is biased: n_fake and n_real stand beside it
TITLES = {"pono_ms": "PONO+MS", "nc_ms": "NC+MS"}


@dataclass(frozen=True)
class Cell:
    """Ours: mean and standard deviation over seeds (None for one seed), or nothing; and the published number.

    counts: (n_fake, n_real) of every seed, each once; of both models for their difference.
    """

    mean: float | None
    sd: float | None
    published: float
    counts: tuple[tuple[int, int], ...] = ()

    def text(self, digits: int) -> str:
        if self.mean is None:
            return "-"
        return f"{self.mean:.{digits}f}" + ("" if self.sd is None else f" ± {self.sd:.{digits}f}")

    @property
    def counts_text(self) -> str:
        """`1098/1098`: n_fake and n_real."""
        return ", ".join(f"{fakes}/{reals}" for fakes, reals in self.counts) or "-"


@dataclass(frozen=True)
class TableRow:
    """One of the eight rows, or a difference (norm "NC − PONO")."""

    setting: Setting
    norm: str
    cells: Mapping[str, Cell]

    @property
    def label(self) -> str:
        data = self.setting.data
        return f"{self.setting.title} (A→B: {data.a_to_b}, B→A: {data.b_to_a})"


def table_rows(reports: Mapping[Training, Mapping[str, object]]) -> list[TableRow]:
    """All rows for which there is a training, each pair of norms followed by its difference.

    reports: the content of report.json of each training. UserError where their protocols differ.
    """
    protocol_of(reports)
    rows = []
    for setting in SETTINGS:
        pair = [
            _row(setting, norm, {t: r for t, r in reports.items() if t.setting == setting and t.norm == norm})
            for norm in NORMS
            if any(t.setting == setting and t.norm == norm for t in reports)
        ]
        rows += pair
        if len(pair) == 2:
            rows.append(_difference(pair[0], pair[1]))
    return rows


def protocol_of(reports: Mapping[Training, Mapping[str, object]]) -> str:
    """The one protocol id of all reports. UserError where there are several."""
    ids = {report["protocol"]["id"]: training.name for training, report in reports.items()}  # type: ignore[index]
    if len(ids) > 1:
        both = ", ".join(f"{identity} ({name})" for identity, name in ids.items())
        raise UserError("table 3", f"rows of different protocols: {both}", "name another --output")
    return str(next(iter(ids)))


def _row(setting: Setting, norm: str, reports: Mapping[Training, Mapping[str, object]]) -> TableRow:
    found: dict[str, list[float]] = {column: [] for column in COLUMNS}
    counts: dict[str, list[tuple[int, int]]] = {column: [] for column in COLUMNS}
    for report in reports.values():
        for row in report["rows"]:  # type: ignore[attr-defined]
            side = "ab" if row["direction"] == setting.data.disk else "ba"
            values = row["values"]
            lpips = values.get("lpips_target", values.get("lpips_all_pairs"))
            for name, value in (("fid", values.get("fid")), ("lpips", lpips)):
                if value is not None:
                    found[f"{name}_{side}"].append(float(value))
                    counts[f"{name}_{side}"].append((int(row["n_fake"]), int(row["n_real"])))
    published = PUBLISHED[setting.data.name, setting.model, norm]
    return TableRow(setting, norm, {c: _cell(found[c], getattr(published, c), counts[c]) for c in COLUMNS})


def _cell(values: Sequence[float], published: float, counts: Sequence[tuple[int, int]]) -> Cell:
    if not values:
        return Cell(None, None, published)
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Cell(float(np.mean(values)), sd, published, tuple(dict.fromkeys(counts)))


def _difference(pono: TableRow, nc: TableRow) -> TableRow:
    cells = {}
    for column in COLUMNS:
        a, b = pono.cells[column], nc.cells[column]
        mean = None if a.mean is None or b.mean is None else b.mean - a.mean
        counts = () if mean is None else tuple(dict.fromkeys((*a.counts, *b.counts)))
        cells[column] = Cell(mean, None, b.published - a.published, counts)
    return TableRow(pono.setting, "NC − PONO", cells)


def markdown(rows: Sequence[TableRow], protocol: str, epochs: int, remarks: Sequence[str]) -> str:
    """table3.md."""
    heads = ["data, model", "norm"]
    for metric, kinds in (("FID", ("", " n_fake/n_real", " (published)")), ("LPIPS", ("", " (published)"))):
        heads += [f"{metric} {way}{kind}" for way in ("A→B", "B→A") for kind in kinds]
    lines = [title(protocol, epochs), "", "| " + " | ".join(heads) + " |"]
    lines.append("| --- | --- |" + " ---: |" * (len(heads) - 2))
    for row in rows:
        texts = [row.label, TITLES.get(row.norm, row.norm)]
        for column in COLUMNS:
            cell = row.cells[column]
            texts.append(cell.text(DIGITS[column]))
            texts += [cell.counts_text] if column in WITH_COUNTS else []
            texts.append(f"{cell.published:.{DIGITS[column]}f}")
        lines.append("| " + " | ".join(texts) + " |")
    return "\n".join([*lines, "", *explanations(epochs, remarks)]) + "\n"


def title(protocol: str, epochs: int) -> str:
    return f"# Table 3, protocol `{protocol}`, {epochs} epochs"


def explanations(epochs: int, remarks: Sequence[str]) -> list[str]:
    """The sentences below the table."""
    lines = ["Lower is better everywhere; a negative difference is in favour of NC."]
    lines += ["LPIPS: to the target on paired data; over all pairs on Horse2Zebra.", *remarks]
    if epochs != 200:
        lines.append("A miniature on invented data: its numbers say that everything runs, and nothing else.")
    return lines


def csv_text(rows: Sequence[TableRow], protocol: str) -> str:
    """table3.csv, full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    kinds = {
        c: ("", "_sd", "_published", *(("_n_fake", "_n_real") if c in WITH_COUNTS else ())) for c in COLUMNS
    }
    writer.writerow(
        ["protocol", "data", "model", "norm", *(f"{c}{kind}" for c in COLUMNS for kind in kinds[c])]
    )
    for row in rows:
        texts: list[object] = [protocol, row.setting.data.name, row.setting.model, row.norm]
        for column in COLUMNS:
            cell = row.cells[column]
            texts += ["" if value is None else value for value in (cell.mean, cell.sd, cell.published)]
            if column in WITH_COUNTS:
                texts += [" ".join(str(counts[side]) for counts in cell.counts) for side in (0, 1)]
        writer.writerow(texts)
    return text.getvalue()


def latex(rows: Sequence[TableRow], protocol: str) -> str:
    """table3.tex: ours; in brackets the published number, and n_fake/n_real of ours."""
    lines = [
        f"% protocol {protocol}; in brackets: published; n_fake/n_real of ours",
        r"\begin{tabular}{llrrrr}",
        r"\toprule",
    ]
    lines.append(r"data, model & norm & FID A$\to$B & FID B$\to$A & LPIPS A$\to$B & LPIPS B$\to$A \\")
    for row in rows:
        if row.norm == NORMS[0]:
            lines.append(r"\midrule")
        texts = [row.setting.title, TITLES.get(row.norm, "NC $-$ PONO")]
        for column in COLUMNS:
            cell, digits = row.cells[column], DIGITS[column]
            counts = f"; {cell.counts_text}" if column in WITH_COUNTS and cell.counts else ""
            texts.append(f"{cell.text(digits)} ({cell.published:.{digits}f}{counts})".replace("±", r"$\pm$"))
        lines.append(" & ".join(texts) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def read_row(path: Path) -> dict[str, object] | None:
    """A finished training's stored report, None where there is none or it cannot be read."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and "rows" in content and "flags" in content else None


def outputs_of(run: Path, row: Mapping[str, object], direction: str) -> Path:
    """The folder of the pictures that a report's row was computed from."""
    return run / "evaluation" / f"epoch-{row['epoch']}-step-{row['step']}" / direction
