"""Rows of numbers as a terminal, Markdown, CSV or LaTeX table."""

import csv
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from evaluate.metrics import Metric

if TYPE_CHECKING:
    from evaluate.report import Row

FIXED = ("run", "direction", "checkpoint", "n_fake", "n_real")
TEXTS = 3  # of the fixed columns, the first so many are text and stand on the left


def cell(row: "Row", metric: Metric, plus_minus: str = "±") -> str:
    """`12.34`, with the spread over seeds or else the interval behind it; - where it could not be computed."""
    if metric.name not in row.values:
        return "-" if metric.name in row.missing else ""
    text = f"{row.values[metric.name]:.{metric.digits}f}"
    width = row.spreads.get(metric.name, row.errors.get(metric.name))
    return text if width is None else f"{text} {plus_minus} {width:.{metric.digits}f}"


def cells(row: "Row", columns: Sequence[Metric]) -> list[str]:
    """All cells of a row as text, fixed ones first."""
    counts = [str(row.n_fake or ""), str(row.n_real or "")]
    return [row.label, row.direction, row.checkpoint, *counts, *(cell(row, metric) for metric in columns)]


def _used(rows: Sequence["Row"], columns: Sequence[Metric]) -> list[int]:
    """Places of the columns that hold anything."""
    body = [cells(row, columns) for row in rows]
    return [i for i in range(len(FIXED) + len(columns)) if any(line[i] for line in body)]


def terminal_table(rows: Sequence["Row"], columns: Sequence[Metric]) -> str:
    """Aligned columns; the pairing of a metric stands in a second line of the head."""
    heads = [(name, "") for name in FIXED]
    for metric in columns:
        name, _, rest = metric.title.partition(" (")
        heads.append((name, f"({rest}" if rest else ""))
    body = [cells(row, columns) for row in rows]
    used = _used(rows, columns)
    widths = {i: max(len(text) for text in (*heads[i], *(line[i] for line in body))) for i in used}

    def line(texts: Sequence[str]) -> str:
        parts = [texts[i].ljust(widths[i]) if i < TEXTS else texts[i].rjust(widths[i]) for i in used]
        return "  ".join(parts).rstrip()

    top, bottom = [head[0] for head in heads], [head[1] for head in heads]
    rule = "-" * (sum(widths.values()) + 2 * (len(used) - 1))
    return "\n".join([line(top), *([line(bottom)] if any(bottom) else []), rule, *map(line, body)])


def markdown_table(rows: Sequence["Row"], columns: Sequence[Metric]) -> str:
    """A table of GitHub's Markdown."""
    used = _used(rows, columns)
    heads = [*FIXED, *(metric.title for metric in columns)]
    lines = [heads, ["---"] * TEXTS + ["---:"] * (len(heads) - TEXTS)]
    lines += [[text.replace("|", "\\|") for text in cells(row, columns)] for row in rows]
    return "\n".join("| " + " | ".join(line[i] for i in used) + " |" for line in lines)


def csv_table(rows: Sequence["Row"], columns: Sequence[Metric], protocol: str) -> str:
    """Full precision; two columns a metric (value, sd or half interval), the protocol id in every line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["protocol", *FIXED, "seeds", *(head for m in columns for head in (m.name, f"{m.name}_plus_minus"))]
    )
    for row in rows:
        numbers: list[object] = []
        for metric in columns:
            width = row.spreads.get(metric.name, row.errors.get(metric.name, ""))
            numbers += [row.values.get(metric.name, ""), width]
        fixed = [protocol, row.label, row.direction, row.checkpoint, row.n_fake, row.n_real, row.seeds]
        writer.writerow([*fixed, *numbers])
    return text.getvalue()


def latex_table(rows: Sequence["Row"], columns: Sequence[Metric], protocol: str) -> str:
    """A booktabs tabular; the best value of a column in bold where there are several rows."""
    used = _used(rows, columns)
    kinds = ["l"] * TEXTS + ["r"] * (len(FIXED) - TEXTS + len(columns))
    heads = [_escaped(text) for text in (*FIXED, *(metric.title for metric in columns))]
    for i, metric in enumerate(columns, start=len(FIXED)):
        heads[i] += r" $\downarrow$" if metric.lower_is_better else r" $\uparrow$"
    table = [heads]
    for row in rows:
        numbers = []
        for metric in columns:
            text = cell(row, metric, r"$\pm$")
            numbers.append(
                rf"\textbf{{{text}}}" if metric.name in row.values and _is_best(row, rows, metric) else text
            )
        table.append([*(_escaped(text) for text in cells(row, [])), *numbers])
    head, *body = [" & ".join(line[i] for i in used) + r" \\" for line in table]
    lines = [f"% protocol {protocol}", rf"\begin{{tabular}}{{{''.join(kinds[i] for i in used)}}}"]
    return "\n".join([*lines, r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}", ""])


def _is_best(row: "Row", rows: Sequence["Row"], metric: Metric) -> bool:
    same = [r.values[metric.name] for r in rows if metric.name in r.values and r.direction == row.direction]
    return row.values[metric.name] == (min(same) if metric.lower_is_better else max(same)) and len(same) > 1


def _escaped(text: str) -> str:
    return text.translate(_LATEX)


_LATEX = str.maketrans(
    {special: "\\" + special for special in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "±": r"$\pm$"}
)
