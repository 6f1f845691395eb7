"""Table 3 carried out: data, trainings, evaluations, table, figures. Every step that is done is not done again."""

import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from datasets.errors import RunError, UserError
from datasets.files import require_writable, write_atomically
from datasets.synthetic import write_dataset
from evaluate.command import build_report, weights_for
from evaluate.metrics import FLAGS
from evaluate.options import EvaluateOptions
from evaluate.report import to_json
from evaluate.table3_figures import write_figures
from evaluate.table3_options import Table3Options
from evaluate.table3_plan import DATA_SETS, PRESETS, Preset, Training, command, options_of, trainings
from evaluate.table3_results import (
    csv_text,
    explanations,
    latex,
    markdown,
    protocol_of,
    read_row,
    table_rows,
    title,
)
from evaluate.table3_reuse import is_current
from evaluate.table3_terminal import terminal_text
from evaluate.table3_text import count_notes, missing_data, print_plan, progress
from gan.run import RunFolder

Execute = Callable[[Sequence[str]], int]
"""Runs train.py with these flags and returns its exit code."""


def run_table3(options: Table3Options, execute: Execute | None = None) -> int:
    """Print the plan or carry it out. Returns the exit code of a training that failed or was stopped, else 0."""
    preset = PRESETS[options.preset]
    plan = trainings(preset, parse_seeds(options.seeds), options.only)
    output = options.output or Path("results") / f"table3_{preset.name}"
    data_dir = output / "data" if preset.synthetic else options.data_dir
    if not options.run:
        print_plan(plan, options, data_dir)
        return 0
    check(plan, options)
    require_data(plan, data_dir)
    announce_missing_weights(options)
    require_writable(output / "rows")
    make_data(plan, preset, data_dir)
    notes = count_notes(plan, data_dir)
    reports: dict[Training, Mapping[str, object]] = {}
    for number, training in enumerate(plan, start=1):
        print(f"\n[{number}/{len(plan)}] {training.name}", flush=True)
        code = train(training, options, data_dir, execute or by_process)
        if code:
            return code
        reports[training] = evaluate(training, options, data_dir, output / "rows" / f"{training.name}.json")
        text = write_table(reports, preset, output, notes, options.latex)
    write_figures(reports, options, data_dir, output)
    print(f"\n{text}\n\n{output / 'table3.md'}, table3.csv, figure3.png, figure4.png")
    return 0


def parse_seeds(text: str) -> list[int]:
    """`0,1,2` -> [0, 1, 2]. UserError otherwise."""
    try:
        seeds = list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise UserError("--seeds", f"is {text!r}", "such as 0 or 0,1,2") from None
    if min(seeds) < 0:
        raise UserError("--seeds", f"is {text!r}", "0 or more")
    return seeds


def check(plan: Sequence[Training], options: Table3Options) -> None:
    """Refuse, before hours of training, what could not be evaluated after it. Raises UserError."""
    if options.epoch == "best" and any(training.setting.model == "cycle_gan" for training in plan):
        fix = "leave it out, or --only pix2pix"
        raise UserError("--epoch", "cycle_gan trainings have no best checkpoint", fix)
    if options.pictures < 1:
        raise UserError("--pictures", f"is {options.pictures}", "allowed: 1 or more")


def announce_missing_weights(options: Table3Options) -> None:
    """Find the weights before training, and say which columns will stay empty. UserError for unusable files."""
    _, missing = weights_for(FLAGS, evaluate_options(options))
    for reason in dict.fromkeys(str(error) for error in missing.values()):
        flags = ", ".join(flag for flag, error in missing.items() if str(error) == reason)
        print(f"{flags} cannot be computed: {reason}; the table is filled in by a later call", flush=True)


def evaluate_options(options: Table3Options) -> EvaluateOptions:
    """The flags that are handed on to the evaluation."""
    return EvaluateOptions(
        epoch=options.epoch,
        inception_weights=options.inception_weights,
        lpips_weights=options.lpips_weights,
        allow_unverified=options.allow_unverified,
        offline=options.offline,
        cache_dir=options.cache_dir,
        device=options.device,
    )


def require_data(plan: Sequence[Training], data_dir: Path) -> None:
    """UserError naming the first real data set that is missing."""
    missing = missing_data(plan, data_dir)
    if missing and plan[0].preset.synthetic is None:
        raise UserError(missing[0], "no such data set", "python -m datasets.prepare, or see --data_dir")


def make_data(plan: Sequence[Training], preset: Preset, data_dir: Path) -> None:
    """Draw the embedded data of a small preset where it is not there yet."""
    if preset.synthetic is None:
        return
    count, size = preset.synthetic
    layouts = {training.setting.data.name: training.setting.data.layout for training in plan}
    for folder in missing_data(plan, data_dir):
        write_dataset(folder, count, size, layouts[folder.name], seed=DATA_SETS.index(folder.name))


def train(training: Training, options: Table3Options, data_dir: Path, execute: Execute) -> int:
    """Train, or go on with an interrupted training, unless all its epochs are done. Returns the exit code."""
    flags = [*training.flags(data_dir, options.checkpoints_dir), "--device", options.device]
    done = progress(training, options.checkpoints_dir)
    if done >= training.preset.epochs:
        print("trained already", flush=True)
        return 0
    if RunFolder.at(options.checkpoints_dir, training.name).exists:
        flags.append("--continue_train")
    code = execute(flags)
    if code in (0, 2) or code >= 128:  # done, refused with its own line, or stopped by a signal
        return code
    raise RunError(
        training.name, f"training ended with exit code {code}", "the same command goes on from there"
    )


def by_process(flags: Sequence[str]) -> int:
    """Run train.py as a process of its own. The terminal sends it Ctrl-C as well: it saves and ends, we wait."""
    process = subprocess.Popen(command(flags))
    while True:
        try:
            code = process.wait()
            return code if code >= 0 else 128 - code
        except KeyboardInterrupt:  # nothing is sent on: a second signal would make it leave without saving
            print("waiting for the training to save", flush=True)


def evaluate(training: Training, options: Table3Options, data_dir: Path, path: Path) -> Mapping[str, object]:
    """The training's report, from its file where nothing that it was computed from has changed, else computed."""
    run = options.checkpoints_dir / training.name
    flags = [*training.flags(data_dir, options.checkpoints_dir), options.epoch]
    dataroot = data_dir / training.setting.data.name
    evaluation = replace(evaluate_options(options), runs=(str(run),), dataroot=dataroot)
    stored = read_row(path)
    trained = options_of(training.flags(data_dir, options.checkpoints_dir))
    if stored is not None and stored["flags"] == flags and is_current(stored, run, trained, evaluation):
        print("evaluated already", flush=True)
        return stored
    report = build_report(evaluation, elsewhere=True)
    content: dict[str, object] = {**json.loads(to_json(report)), "flags": flags, "remarks": report.remarks}
    write_atomically(path, json.dumps(content, indent=1).encode())
    return content


def write_table(
    reports: Mapping[Training, Mapping[str, object]],
    preset: Preset,
    output: Path,
    notes: Sequence[str],
    with_latex: bool,
) -> str:
    """table3.md, .csv (and .tex) of what there is so far. Returns the same for a terminal."""
    rows, protocol = table_rows(reports), protocol_of(reports)
    remarks = [*notes, *dict.fromkeys(text for report in reports.values() for text in report["remarks"])]  # type: ignore[attr-defined]
    write_atomically(output / "table3.md", markdown(rows, protocol, preset.epochs, remarks).encode())
    write_atomically(output / "table3.csv", csv_text(rows, protocol).encode())
    if with_latex:
        write_atomically(output / "table3.tex", latex(rows, protocol).encode())
    head, below = title(protocol, preset.epochs), explanations(preset.epochs, remarks)
    return "\n".join([head.strip("# "), "", terminal_text(rows), "", *below])
