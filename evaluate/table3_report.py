"""Table 3 from the results of trainings: means over seeds, paired differences, tables and figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from datasets.errors import UserError
from datasets.files import write_atomically
from datasets.images import save_png
from evaluate.bootstrap import half_width_of_few
from evaluate.comparisons import Comparison
from evaluate.metrics import METRICS
from evaluate.pictures import Picture
from evaluate.report import WIDTH, as_csv, as_table
from evaluate.table3_plan import COMPARED, NORMS, Direction, PlannedTraining, Preset, Setting
from evaluate.table3_result import Result
from gan.viewers.samples import labelled_grid

Results = Mapping[PlannedTraining, Result]

DIFFERENCE = "NC − PONO"
RESAMPLES = 2000
COLUMNS = {
    metric.flag: metric for metric in reversed(METRICS)
}  # of LPIPS the one to the target stands for all


class Cell(NamedTuple):
    """A mean over seeds and the published number.

    spread: the standard deviation over seeds, of a difference half its 95 % interval; None for one seed.
    """

    mean: float | None = None
    spread: float | None = None
    published: float | None = None

    def text(self, digits: int) -> str:
        if self.mean is None:
            return "-"
        return f"{self.mean:.{digits}f}" + ("" if self.spread is None else f" ± {self.spread:.{digits}f}")


class TableRow(NamedTuple):
    """A direction (on disk) with a norm, or a difference.

    counts: (n_fake, n_real), each once; cells: by metric flag.
    """

    setting: Setting
    direction: Direction
    norm: str
    seeds: Sequence[int]
    counts: Sequence[tuple[int, int]]
    cells: Mapping[str, Cell]

    @property
    def words(self) -> str:
        return self.setting.data.words[self.direction]

    @property
    def counted(self) -> str:
        """As in `80/80`."""
        return ", ".join(f"{fakes}/{reals}" for fakes, reals in self.counts)


def table_rows(preset: Preset, results: Results) -> list[TableRow]:
    """A row for each direction and norm that has a result; where both have one, NC − PONO follows PONO+MS and NC+MS."""
    rows: list[TableRow] = []
    for setting, direction in ((one, way) for one in preset.settings for way in one.data.words):
        by_norm = {norm: _by_seed(results, setting, direction, norm) for norm in NORMS}
        for norm, by_seed in by_norm.items():
            if by_seed:
                cells = {
                    flag: _mean(
                        _values(by_seed, flag, setting, direction), setting.paper(flag, direction, norm)
                    )
                    for flag in preset.columns
                }
                rows.append(TableRow(setting, direction, NORMS[norm], [*by_seed], _counts(by_seed), cells))
            if norm == COMPARED[-1]:
                rows += _difference(preset, setting, direction, *(by_norm[norm] for norm in COMPARED))
    return rows


def _difference(
    preset: Preset, setting: Setting, direction: Direction, pono: Mapping[int, Any], nc: Mapping[int, Any]
) -> list[TableRow]:
    """NC − PONO of the seeds that both have, as a row; none without such seeds."""
    seeds = [seed for seed in nc if seed in pono]
    cells = {}
    for flag in preset.columns:
        ours, theirs = (_values(one, flag, setting, direction) for one in (nc, pono))
        differences = np.array(
            [ours[seed] - theirs[seed] for seed in seeds if seed in ours and seed in theirs]
        )
        n, p = (setting.paper(flag, direction, norm) for norm in reversed(COMPARED))
        cells[flag] = Cell(
            float(differences.mean()) if len(differences) else None,
            half_width_of_few(differences, RESAMPLES) if len(differences) > 1 else None,
            None if n is None or p is None else n - p,
        )
    counts = _counts({seed: pono[seed] for seed in seeds}, {seed: nc[seed] for seed in seeds})
    return [TableRow(setting, direction, DIFFERENCE, seeds, counts, cells)] if seeds else []


def _by_seed(results: Results, setting: Setting, direction: str, norm: str) -> dict[int, Any]:
    """By seed, in their order, the row of the result that has this direction."""
    found = {
        training.seed: row
        for training, result in results.items()
        if (training.setting, training.norm) == (setting, norm)
        for row in result["rows"]
        if row["direction"] == direction
    }
    return dict(sorted(found.items()))


def _counts(*by_seeds: Mapping[int, Any]) -> list[tuple[int, int]]:
    rows = [row for by_seed in by_seeds for row in by_seed.values()]
    return list(dict.fromkeys((int(row["n_fake"]), int(row["n_real"])) for row in rows))


def _values(
    by_seed: Mapping[int, Any], flag: str, setting: Setting, direction: Direction
) -> dict[int, float]:
    """By seed, the first column of METRICS with this flag: LPIPS to the target, or of all pairs without targets."""
    if flag == "pixel_accuracy" and not setting.data.words[direction].endswith("→map"):
        return {}  # defined for the flat colours of maps
    names = [metric.name for metric in METRICS if metric.flag == flag]
    found = {seed: [row["values"][n] for n in names if n in row["values"]] for seed, row in by_seed.items()}
    return {seed: float(values[0]) for seed, values in found.items() if values}


def _mean(by_seed: Mapping[int, float], published: float | None) -> Cell:
    values = list(by_seed.values())
    mean = float(np.mean(values)) if values else None
    return Cell(mean, float(np.std(values, ddof=1)) if len(values) > 1 else None, published)


def missing_lines(plan: Sequence[PlannedTraining], results: Results) -> list[str]:
    """A line for each kind of training that has no result, with its seeds."""
    seeds: dict[str, list[str]] = {}
    for training in plan:
        if training not in results:
            setting = training.setting
            way = f", {setting.data.words[training.direction]}" if setting.model == "pix2pix" else ""
            seeds.setdefault(f"{setting.title}{way}, {NORMS[training.norm]}", []).append(str(training.seed))
    return [f"missing: {kind}, seed {', '.join(found)}" for kind, found in seeds.items()]


def protocol_of(results: Results) -> str:
    """The one protocol id of all results. UserError where there are several."""
    ids = {result["protocol"]["id"]: training.name for training, result in results.items()}
    if len(ids) > 1:
        both = ", ".join(f"{identity} ({name})" for identity, name in ids.items())
        raise UserError("table 3", f"rows of different protocols: {both}", "name another --results_dir")
    return str(next(iter(ids)))


def write_table(
    plan: Sequence[PlannedTraining], results: Results, preset: Preset, output: Path, with_latex: bool
) -> str:
    """table3.md, .csv (and .tex) of what there is so far. Returns the same for a terminal.

    plan: all trainings of the table. Raises UserError for results of different protocols.
    """
    rows, protocol = table_rows(preset, results), protocol_of(results)
    title = f"Table 3, preset {preset.name}, protocol `{protocol}`, {preset.epochs} epochs"
    below = [
        "Lower is better, and a negative NC − PONO is in favour of NC; for pixel accuracy it is the other way round.",
        "± is the standard deviation over seeds. NC − PONO is the mean of the differences of equal seeds, and its ± is "
        "half the 95 % interval by the bootstrap over seeds, widened by Student's t, since the seeds are few.",
        "LPIPS: to the target on paired data; over all pairs on Horse2Zebra.",
        *dict.fromkeys(text for result in results.values() for text in result["remarks"]),
        *([preset.remark] if preset.remark else []),
        *missing_lines(plan, results),
    ]
    listed = "".join(f"- {line}\n" for line in below)
    texts = {"table3.md": f"# {title}\n\n{table_text(rows, preset, 'pipe')}\n\n{listed}"}
    texts["table3.csv"] = csv_text(rows, preset, protocol)
    if with_latex:
        texts["table3.tex"] = f"% protocol {protocol}\n{table_text(rows, preset, 'latex_booktabs')}\n"
    for name, text in texts.items():
        write_atomically(output / name, text.encode())
    return "\n".join([title, "", table_text(rows, preset, "simple"), "", *below])


def table_text(rows: Sequence[TableRow], preset: Preset, form: str) -> str:
    """A table of `tabulate` for each setting, with a line for each direction and norm, without empty columns.

    In a terminal ("simple") a cell takes two lines where the table would be wider than WIDTH.
    """
    parts = []
    for setting in dict.fromkeys(row.setting for row in rows):
        chosen = [row for row in rows if row.setting == setting]
        columns = [
            ("", [row.words for row in chosen]),
            ("norm", [row.norm for row in chosen]),
            ("seeds", [str(len(row.seeds)) for row in chosen]),
            ("n_fake/n_real", [row.counted for row in chosen]),
        ]
        for flag in preset.columns:
            metric, cells = COLUMNS[flag], [row.cells[flag] for row in chosen]
            title, published = metric.title.removesuffix(" (to target)"), [cell.published for cell in cells]
            if any((cell.mean, cell.published) != (None, None) for cell in cells):
                columns.append((title, [cell.text(metric.digits) for cell in cells]))
            if any(number is not None for number in published):
                head = "published" if form == "simple" else f"{title} (published)"
                texts = ["" if number is None else f"{number:.{metric.digits}f}" for number in published]
                columns.append((head, texts))
        heads, cells_of_columns = zip(*columns, strict=True)
        lines = [list(line) for line in zip(*cells_of_columns, strict=True)]
        heading = {"pipe": f"## {setting.title}", "simple": setting.title}.get(form, f"% {setting.title}")
        parts.append(f"{heading}\n\n{_fitting_table(heads, lines, form)}")
    return "\n\n".join(parts)


def _fitting_table(heads: Sequence[str], lines: Sequence[Sequence[str]], form: str) -> str:
    table = as_table(heads, lines, form, texts=2)
    if form != "simple" or max(map(len, table.splitlines())) <= WIDTH:
        return table
    heads = [head.replace(" (", "\n(").replace("/", "/\n") for head in heads]
    lines = [[cell.replace(" ± ", "\n± ").replace(", ", ",\n") for cell in line] for line in lines]
    return as_table(heads, lines, form, texts=2)


def csv_text(rows: Sequence[TableRow], preset: Preset, protocol: str) -> str:
    """table3.csv, full precision. `_plus_minus`: standard deviation over seeds, of a difference half its interval."""
    keys = {title: norm for norm, title in NORMS.items()}
    lines = []
    for row in rows:
        line: dict[str, object] = {
            "protocol": protocol,
            "data": row.setting.data.name,
            "model": row.setting.model,
        }
        line |= {
            "direction": row.words,
            "norm": keys.get(row.norm, row.norm),
            "seeds": " ".join(map(str, row.seeds)),
        }
        line["n_fake"] = " ".join(str(fakes) for fakes, _ in row.counts)
        line["n_real"] = " ".join(str(reals) for _, reals in row.counts)
        for flag, cell in row.cells.items():
            line |= {flag: cell.mean, f"{flag}_plus_minus": cell.spread, f"{flag}_published": cell.published}
        lines.append(line)
    return as_csv([list(lines[0]), *(list(line.values()) for line in lines)])


def write_figures(
    pictures: Mapping[PlannedTraining, Sequence[Comparison]], preset: Preset, count: int, output: Path
) -> list[str]:
    """figure3.png (CycleGAN) and figure4.png (Pix2Pix): columns input, a column a norm, and the target if there is one.

    Of the lowest seed; `count` pictures, evenly spread over the test split. Returns the names of the files.
    """
    figures: dict[int, list[Image.Image]] = {}
    order = sorted(pictures, key=lambda training: (list(NORMS).index(training.norm), training.seed))
    for setting, way in ((one, way) for one in preset.settings for way in one.data.words):
        rows: dict[str, Comparison] = {}
        for training in order:
            for row in pictures[training]:
                if (training.setting, row.direction) == (setting, way):
                    rows.setdefault(NORMS[training.norm], row)
        if rows:
            first = next(iter(rows.values()))
            sides = {
                "input": first.inputs,
                **{n: row.fakes for n, row in rows.items()},
                "target": first.targets,
            }
            columns = {caption: _spread(side, count) for caption, side in sides.items() if side is not None}
            title = f"{setting.title}: {setting.data.words[way]}".replace("→", " to ")
            block = labelled_grid({title: [labelled_grid(columns)]})
            figures.setdefault(setting.figure, []).append(block)
    for figure, blocks in figures.items():
        size = max(block.width for block in blocks), sum(block.height for block in blocks)
        sheet = Image.new("RGB", size, "white")
        top = 0
        for block in blocks:
            sheet.paste(block, (0, top))
            top += block.height
        save_png(sheet, output / f"figure{figure}.png")
    return [f"figure{figure}.png" for figure in figures]


def _spread(pictures: Sequence[Picture], count: int) -> list[Image.Image]:
    """At most `count` pictures, from the first to the last."""
    shown = min(count, len(pictures))
    numbers = [round(i * (len(pictures) - 1) / max(shown - 1, 1)) for i in range(shown)]
    return [Image.fromarray(pictures[i].load()) for i in numbers]
