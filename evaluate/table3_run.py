"""Table 3 carried out: data, trainings, evaluations, table, figures. Every step that is done is not done again."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from datasets.errors import RunError, UserError
from datasets.files import read_json, require_writable, write_atomically
from datasets.images import save_png
from datasets.synthetic import write_dataset
from evaluate.command import Evaluation, advising_on_memory, prepare, weights_choice
from evaluate.comparisons import JSON_LIMIT, Comparison
from evaluate.metrics import DEFAULT_FLAGS, networks_of, without_weights
from evaluate.options import EvaluateOptions, NetworkOptions
from evaluate.pictures import Picture
from evaluate.report import as_csv, as_table, file_list_hashes
from evaluate.table3 import (
    NORMS,
    PRESETS,
    SETTINGS,
    PlannedTraining,
    Preset,
    Setting,
    Table3Options,
    count_notes,
    missing_data,
    parse_seeds,
    plan_trainings,
    print_plan,
)
from gan.run import RunFolder
from gan.viewers.samples import labelled_grid

Execute = Callable[[Sequence[str]], int]
"""Runs train.py with these flags and returns its exit code."""

StoredReport = Mapping[str, Any]
"""The content of a report.json, with the `flags` of its training and the report's `remarks`."""

COLUMNS = {"fid_ab": 2, "fid_ba": 2, "lpips_ab": 4, "lpips_ba": 4}
"""Of the table, in the order of `Setting.published`, with their decimals."""


def run_table3(options: Table3Options, execute: Execute | None = None) -> int:
    """Print the plan or carry it out. Returns the exit code of a training that failed or was stopped, else 0."""
    preset = PRESETS[options.preset]
    plan = plan_trainings(preset, parse_seeds(options.seeds or preset.seeds), options.only)
    output = options.output or Path("results") / f"table3_{preset.name}"
    data_dir = output / "data" if preset.synthetic else options.data_dir
    if not options.run:
        print_plan(plan, options, data_dir)
        return 0
    shared = {field.name: getattr(options, field.name) for field in fields(NetworkOptions)}
    evaluation = EvaluateOptions(**shared, epoch=options.epoch)
    refuse_before_training(plan, options, data_dir)
    announce_missing_weights(evaluation)
    require_writable(output / "rows")
    make_data(plan, preset, data_dir)
    notes = count_notes(plan, data_dir)
    reports: dict[PlannedTraining, StoredReport] = {}
    pictures: dict[PlannedTraining, Sequence[Comparison]] = {}
    for number, training in enumerate(plan, start=1):
        print(f"\n[{number}/{len(plan)}] {training.name}", flush=True)
        flags = training.flags(data_dir, options.checkpoints_dir)
        code = train(training, [*flags, "--device", options.device], options, execute or by_process)
        if code:
            return code
        run = options.checkpoints_dir / training.name
        request = replace(evaluation, runs=(str(run),), dataroot=data_dir / training.setting.data.name)
        stored = output / "rows" / f"{training.name}.json"
        with advising_on_memory("--device cpu, or end other programs"):
            prepared = prepare(request, [run])
            reports[training] = report_of(prepared, request, [*flags, options.epoch], stored)
        pictures[training] = prepared.comparisons
        text = write_table(reports, preset, output, notes, options.latex)
    write_figures(pictures, options.pictures, output)
    print(f"\n{text}\n\n{output / 'table3.md'}, table3.csv, figure3.png, figure4.png")
    return 0


def refuse_before_training(plan: Sequence[PlannedTraining], options: Table3Options, data_dir: Path) -> None:
    """Refuse, before hours of training, what could not be trained or evaluated after it. Raises UserError."""
    if options.epoch == "best" and any(training.setting.model == "cycle_gan" for training in plan):
        fix = "leave it out, or --only pix2pix"
        raise UserError("--epoch", "cycle_gan trainings have no best checkpoint", fix)
    if options.pictures < 1:
        raise UserError("--pictures", f"is {options.pictures}", "allowed: 1 or more")
    if plan[0].preset.synthetic is None and (missing := missing_data(plan, data_dir)):
        raise UserError(missing[0], "no such data set", "python -m datasets.prepare, or see --data_dir")


def announce_missing_weights(options: EvaluateOptions) -> None:
    """Find the weights before training, and say which columns will stay empty. UserError for unusable files."""
    _, missing = weights_choice(options).find(networks_of(DEFAULT_FLAGS))
    by_reason: dict[str, list[str]] = {}
    for flag, error in without_weights(DEFAULT_FLAGS, missing).items():
        by_reason.setdefault(str(error), []).append(flag)
    for reason, flags in by_reason.items():
        print(
            f"{', '.join(flags)} cannot be computed: {reason}; the table is filled in by a later call",
            flush=True,
        )


def make_data(plan: Sequence[PlannedTraining], preset: Preset, data_dir: Path) -> None:
    """Draw the embedded data of a small preset where it is not there yet."""
    if preset.synthetic is None:
        return
    count, size = preset.synthetic
    names = list(dict.fromkeys(setting.data.name for setting in SETTINGS))
    layouts = {training.setting.data.name: training.setting.data.layout for training in plan}
    for folder in missing_data(plan, data_dir):
        write_dataset(folder, count, size, layouts[folder.name], seed=names.index(folder.name))


def train(training: PlannedTraining, flags: list[str], options: Table3Options, execute: Execute) -> int:
    """Train, or resume an interrupted training, unless all its epochs are done. Returns the exit code."""
    if training.epochs_done(options.checkpoints_dir) >= training.preset.epochs:
        print("trained already", flush=True)
        return 0
    if RunFolder(options.checkpoints_dir / training.name).exists:
        flags = [*flags, "--continue_train"]
    code = execute(flags)
    if code in (0, 2) or code >= 128:  # done, refused with its own line, or stopped by a signal
        return code
    raise RunError(training.name, f"training ended with exit code {code}", "the same command resumes it")


def by_process(flags: Sequence[str]) -> int:
    """Run train.py as a process of its own. The terminal sends it Ctrl-C as well: it saves and ends, we wait."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).resolve().parents[1] / "train.py"), *flags]
    )
    while True:
        try:
            code = process.wait()
            return code if code >= 0 else 128 - code
        except KeyboardInterrupt:  # nothing is sent on: a second signal would make it leave without saving
            print("waiting for the training to save", flush=True)


def report_of(evaluation: Evaluation, options: EvaluateOptions, flags: list[str], path: Path) -> StoredReport:
    """The training's report: the stored one where nothing that it was computed from has changed, else a new one."""
    try:
        stored: StoredReport = read_json(path, JSON_LIMIT)
        if stored["flags"] != flags or stored["not_computed"]:
            stored = {}
    except (UserError, LookupError, TypeError):  # there is none, or it is no report
        stored = {}
    if stored and is_current(stored, evaluation):
        print("evaluated already", flush=True)
        return stored
    report = evaluation.carry_out(options)
    content = {**json.loads(report.json()), "flags": flags, "remarks": report.remarks}
    write_atomically(path, json.dumps(content, indent=1).encode())
    return content


def is_current(stored: StoredReport, evaluation: Evaluation) -> bool:
    """Compare protocol, weights, checkpoint, and by their hashes the inputs, outputs and real pictures.

    A row stays current where its weights cannot be had now. Outputs that are gone are made again, which changes no
    number.
    """
    protocols = [replace(evaluation.protocol, verified=verified).id for verified in (True, False)]
    if any(stored["weights"].get(n, {}).get("sha256") != w.digest for n, w in evaluation.weights.items()):
        return False
    of_stored = [
        (row["direction"], row.get("checkpoint_sha256"), row["file_list_hashes"]) for row in stored["rows"]
    ]
    return stored["protocol"]["id"] in protocols and of_stored == [
        (row.direction, row.made_by["checkpoint_sha256"], file_list_hashes(row))
        for row in evaluation.comparisons
    ]


class Cell(NamedTuple):
    """Ours: mean and standard deviation over seeds (None for one seed), or nothing; and the published number.

    counts: (n_fake, n_real) of every seed, each once; of both models for their difference.
    """

    mean: float | None
    sd: float | None
    published: float
    counts: tuple[tuple[int, int], ...]

    def texts(self, column: str) -> list[str]:
        """Ours, the published number, and between them the counts that an FID depends on: `1098/1098`."""
        digits = COLUMNS[column]
        ours = "-" if self.mean is None else f"{self.mean:.{digits}f}"
        ours += "" if self.sd is None else f" ± {self.sd:.{digits}f}"
        counts = ", ".join(f"{fakes}/{reals}" for fakes, reals in self.counts) or "-"
        return [ours, *([counts] if column.startswith("fid") else []), f"{self.published:.{digits}f}"]

    def minus(self, other: "Cell") -> "Cell":
        """The difference, without a deviation."""
        is_there = self.mean is not None and other.mean is not None
        mean = self.mean - other.mean if is_there else None  # type: ignore[operator]
        counts = tuple(dict.fromkeys((*other.counts, *self.counts))) if is_there else ()
        return Cell(mean, None, self.published - other.published, counts)


class TableRow(NamedTuple):
    """One of the eight rows, or a difference (norm "NC − PONO"). cells: by column."""

    setting: Setting
    norm: str
    cells: dict[str, Cell]


def table_rows(reports: Mapping[PlannedTraining, StoredReport]) -> list[TableRow]:
    """All rows for which there is a training, each pair of norms followed by its difference."""
    rows: list[TableRow] = []
    for setting in SETTINGS:
        pair = []
        for norm, published in setting.published.items():
            found = [report for t, report in reports.items() if (t.setting, t.norm) == (setting, norm)]
            if found:
                pair.append({c: _cell(c, setting, found, n) for c, n in zip(COLUMNS, published, strict=True)})
                rows.append(TableRow(setting, NORMS[norm], pair[-1]))
        if len(pair) == 2:
            pono, nc = pair
            rows.append(TableRow(setting, "NC − PONO", {c: nc[c].minus(pono[c]) for c in COLUMNS}))
    return rows


def protocol_of(reports: Mapping[PlannedTraining, StoredReport]) -> str:
    """The one protocol id of all reports. UserError where there are several."""
    ids = {report["protocol"]["id"]: training.name for training, report in reports.items()}
    if len(ids) > 1:
        both = ", ".join(f"{identity} ({name})" for identity, name in ids.items())
        raise UserError("table 3", f"rows of different protocols: {both}", "name another --output")
    return str(next(iter(ids)))


def _cell(column: str, setting: Setting, reports: Sequence[StoredReport], published: float) -> Cell:
    metric, side = column.split("_")
    direction = list(setting.data.words)[side == "ba"]
    names = ("fid",) if metric == "fid" else ("lpips_target", "lpips_all_pairs")
    rows = [row for report in reports for row in report["rows"] if row["direction"] == direction]
    found = [(row, float(row["values"][name])) for row in rows for name in names if name in row["values"]]
    values = [value for _, value in found]
    mean = float(np.mean(values)) if values else None
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    counts = dict.fromkeys((int(row["n_fake"]), int(row["n_real"])) for row, _ in found)
    return Cell(mean, sd, published, tuple(counts))


def write_table(
    reports: Mapping[PlannedTraining, StoredReport],
    preset: Preset,
    output: Path,
    notes: Sequence[str],
    with_latex: bool,
) -> str:
    """table3.md, .csv (and .tex) of what there is so far. Returns the same for a terminal."""
    rows, protocol = table_rows(reports), protocol_of(reports)
    title = f"Table 3, protocol `{protocol}`, {preset.epochs} epochs"
    below = [
        "Lower is better everywhere; a negative difference is in favour of NC.",
        "LPIPS: to the target on paired data; over all pairs on Horse2Zebra.",
        *notes,
        *dict.fromkeys(text for report in reports.values() for text in report["remarks"]),
    ]
    if preset.synthetic:
        below.append("A miniature on invented data: its numbers say that everything runs, and nothing else.")
    texts = {"table3.md": f"# {title}\n\n{wide_table(rows, 'pipe')}\n\n" + "\n".join([*below, ""])}
    texts["table3.csv"] = csv_text(rows, protocol)
    if with_latex:
        texts["table3.tex"] = f"% protocol {protocol}\n{wide_table(rows, 'latex_booktabs')}\n"
    for name, text in texts.items():
        write_atomically(output / name, text.encode())
    return "\n".join([title, "", terminal_text(rows), "", *below])


def wide_table(rows: Sequence[TableRow], form: str) -> str:
    """The paper's layout: a line for each row, both directions beside each other."""
    heads = ["data, model", "norm"]
    for metric, kinds in (("FID", ("", " n_fake/n_real", " (published)")), ("LPIPS", ("", " (published)"))):
        heads += [f"{metric} {way}{kind}" for way in ("A→B", "B→A") for kind in kinds]
    lines = []
    for row in rows:
        data = row.setting.data
        label = f"{row.setting.title} (A→B: {data.a_to_b}, B→A: {data.b_to_a})"
        lines.append([label, row.norm, *(text for c in COLUMNS for text in row.cells[c].texts(c))])
    return as_table(heads, lines, form, texts=2)


def terminal_text(rows: Sequence[TableRow]) -> str:
    """A line for each direction, so that it fits a screen; what repeats the line above is left out."""
    lines: list[list[str]] = []
    above = ("", "")
    for setting in dict.fromkeys(row.setting for row in rows):
        for side, way in (("ab", f"A→B: {setting.data.a_to_b}"), ("ba", f"B→A: {setting.data.b_to_a}")):
            for row in (row for row in rows if row.setting == setting):
                numbers = [text for c in (f"fid_{side}", f"lpips_{side}") for text in row.cells[c].texts(c)]
                name, shown = setting.title, (setting.title, way)
                lines.append(
                    ["" if name == above[0] else name, "" if shown == above else way, row.norm, *numbers]
                )
                above = shown
    heads = ["", "", "", "FID", "n_fake/n_real", "published", "LPIPS", "published"]
    return as_table(heads, lines, "simple", texts=3)


def csv_text(rows: Sequence[TableRow], protocol: str) -> str:
    """table3.csv, full precision."""
    keys = {title: norm for norm, title in NORMS.items()}
    lines = []
    for row in rows:
        setting = row.setting
        line: dict[str, object] = {"protocol": protocol, "data": setting.data.name, "model": setting.model}
        line["norm"] = keys.get(row.norm, row.norm)
        for column, cell in row.cells.items():
            line |= {column: cell.mean, f"{column}_sd": cell.sd, f"{column}_published": cell.published}
            if column.startswith("fid"):
                line[f"{column}_n_fake"] = " ".join(str(fakes) for fakes, _ in cell.counts)
                line[f"{column}_n_real"] = " ".join(str(reals) for _, reals in cell.counts)
        lines.append(line)
    return as_csv([list(lines[0]), *(list(line.values()) for line in lines)])


def write_figures(pictures: Mapping[PlannedTraining, Sequence[Comparison]], count: int, output: Path) -> None:
    """figure3.png (CycleGAN) and figure4.png (Pix2Pix): columns input, PONO+MS, NC+MS, and the target if there is one.

    Of the first seed; `count` pictures, evenly spread over the test split.
    """
    figures: dict[int, list[Image.Image]] = {}
    for setting, way in ((one, way) for one in SETTINGS for way in one.data.words):
        rows: dict[str, Comparison] = {}
        for training, comparisons in pictures.items():
            for row in comparisons:
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


def _spread(pictures: Sequence[Picture], count: int) -> list[Image.Image]:
    """At most `count` pictures, from the first to the last."""
    shown = min(count, len(pictures))
    numbers = [round(i * (len(pictures) - 1) / max(shown - 1, 1)) for i in range(shown)]
    return [Image.fromarray(pictures[i].load()) for i in numbers]
