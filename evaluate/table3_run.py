"""Table 3 carried out: data, trainings, evaluations. Every step that is done is not done again."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path

from datasets.errors import RunError, UserError
from datasets.files import cores, require_writable, write_atomically
from datasets.synthetic import write_dataset
from evaluate.command import advising_on_memory, prepare, weights_choice
from evaluate.comparisons import Comparison
from evaluate.metrics import DEFAULT_FLAGS, METRICS, networks_of, without_weights
from evaluate.options import EvaluateOptions, NetworkOptions
from evaluate.table3 import Table3Options, print_plan
from evaluate.table3_plan import (
    PRESETS,
    SETTINGS,
    PlannedTraining,
    Preset,
    count_notes,
    missing_data,
    parse_seeds,
    plan_trainings,
)
from evaluate.table3_report import write_figures, write_table
from evaluate.table3_result import Result, is_current, read_result, result_of, test_mode_of
from gan.run import RunFolder
from gan.viewers.console import duration

Execute = Callable[[Sequence[str]], int]
"""Runs train.py with these flags and returns its exit code."""


def run_table3(options: Table3Options, execute: Execute | None = None) -> int:
    """Print the plan or carry it out. Returns the exit code of a training that failed or was stopped, else 0."""
    preset = PRESETS[options.preset]
    seeds = parse_seeds(options.seeds or preset.seeds)
    plan, whole = plan_trainings(preset, seeds, options.only), plan_trainings(preset, seeds)
    data_dir = options.table_folder / "data" if preset.synthetic else options.data_dir
    if not options.run:
        print_plan(plan, options, data_dir)
        return 0
    results = {t: read_result(t, options) for t in whole if options.result_file(t).exists()}
    work = Work(options, preset, whole, data_dir, execute or partial(by_process, jobs=options.jobs), results)
    to_do = [training for training in plan if work.is_to_do(training)]
    refuse_before_training(to_do, options, data_dir)
    work.missing_weights = announce_missing_weights(work.evaluation, preset) if to_do else {}
    require_writable(options.table_folder)
    require_writable(options.result_file(plan[0]).parent)
    make_data(to_do, preset, data_dir)
    if code := work.carry_out(plan):
        return code
    if not results:
        print("\nno training has a result yet")
        return 0
    figures = write_figures(work.pictures, preset, options.pictures, options.table_folder)
    files = ", ".join(["table3.csv", *figures])
    print(f"\n{work.write_table()}\n\n{options.table_folder / 'table3.md'}, {files}")
    return 0


def refuse_before_training(to_do: Sequence[PlannedTraining], options: Table3Options, data_dir: Path) -> None:
    """Refuse, before hours of training, what could not be trained or evaluated after it. Raises UserError."""
    if options.epoch == "best" and any(training.setting.model == "cycle_gan" for training in to_do):
        fix = "leave it out, or --only pix2pix"
        raise UserError("--epoch", "cycle_gan trainings have no best checkpoint", fix)
    for flag in ("pictures", "jobs"):
        if getattr(options, flag) < 1:
            raise UserError(f"--{flag}", f"is {getattr(options, flag)}", "allowed: 1 or more")
    if options.preset != "smoke" and (missing := missing_data(to_do, data_dir)):
        raise UserError(missing[0], "no such data set", "python -m datasets.prepare, or see --data_dir")


def announce_missing_weights(options: EvaluateOptions, preset: Preset) -> dict[str, str]:
    """Find the weights before training, and say which columns will stay empty. UserError for unusable files.

    Returns by metric flag why its weights cannot be had.
    """
    wanted = preset.metrics or DEFAULT_FLAGS
    _, missing = weights_choice(options).find(networks_of(wanted))
    reasons = {flag: str(error) for flag, error in without_weights(wanted, missing).items()}
    for reason in dict.fromkeys(reasons.values()):
        flags = ", ".join(flag for flag, why in reasons.items() if why == reason)
        print(f"{flags} cannot be computed: {reason}; the table is filled in by a later call", flush=True)
    return reasons


def make_data(plan: Sequence[PlannedTraining], preset: Preset, data_dir: Path) -> None:
    """Draw the embedded data of a small preset where it is not there yet."""
    if preset.synthetic is None:
        return
    count, size = preset.synthetic
    names = list(dict.fromkeys(setting.data.name for setting in SETTINGS))
    layouts = {training.setting.data.name: training.setting.data.layout for training in plan}
    for folder in missing_data(plan, data_dir):
        write_dataset(folder, count, size, layouts[folder.name], seed=names.index(folder.name))


@dataclass
class Work:
    """One call that carries the plan out. Several threads may train at once; one at a time evaluates and writes.

    whole: all trainings of the table; results: of those that have one; pictures: what the figures show;
    missing_weights: by metric flag, why its weights cannot be had.
    """

    options: Table3Options
    preset: Preset
    whole: Sequence[PlannedTraining]
    data_dir: Path
    execute: Execute
    results: dict[PlannedTraining, Result]
    pictures: dict[PlannedTraining, Sequence[Comparison]] = field(default_factory=dict)
    missing_weights: Mapping[str, str] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)  # of whole trainings, by model
    evaluating: threading.Lock = field(default_factory=threading.Lock)

    @property
    def evaluation(self) -> EvaluateOptions:
        shared = {one.name: getattr(self.options, one.name) for one in fields(NetworkOptions)}
        return EvaluateOptions(**shared, epoch=self.options.epoch, test_mode=test_mode_of(self.options))

    def is_to_do(self, training: PlannedTraining) -> bool:
        """Whether it has to be trained or evaluated. A result without a finished checkpoint stands for itself."""
        may_train = not self.options.no_train and training not in self.results
        return may_train or training.is_trained(self.options.checkpoints_dir)

    def carry_out(self, plan: Sequence[PlannedTraining]) -> int:
        """Train and evaluate, --jobs trainings at a time. After a failure or a stop no other training is begun.

        Returns the first exit code that is not 0. Raises what a training or an evaluation raises.
        """
        stopped = threading.Event()

        def step(number: int) -> int:
            if stopped.is_set():
                return 0
            code = 1  # of an exception
            try:
                code = self.train_and_evaluate(plan, number)
            finally:
                if code:
                    stopped.set()
            return code

        if self.options.jobs == 1:  # in this thread, so that Ctrl-C reaches it
            return max(map(step, range(len(plan))))
        with ThreadPoolExecutor(self.options.jobs) as pool:
            try:
                return max(pool.map(step, range(len(plan))))
            finally:
                stopped.set()  # by Ctrl-C, which reaches the trainings as well: we wait until they have saved

    def train_and_evaluate(self, plan: Sequence[PlannedTraining], index: int) -> int:
        """Do what is not done of one training. Returns the exit code of train.py, 0 if it was not called."""
        training, checkpoints = plan[index], self.options.checkpoints_dir
        print(f"\n[{index + 1}/{len(plan)}] {training.name}", flush=True)
        if not self.is_to_do(training):
            print("its result is there" if training in self.results else "not trained yet", flush=True)
            return 0
        begun_before, start = RunFolder(checkpoints / training.name).exists, time.monotonic()
        flags = [*training.flags(self.data_dir, checkpoints), "--device", self.options.device]
        if code := train(training, flags, checkpoints, self.execute):
            return code
        if not begun_before:
            self.seconds.setdefault(training.setting.model, []).append(time.monotonic() - start)
            print(self.time_left(training, plan[index + 1 :]), flush=True)
        with self.evaluating, advising_on_memory("--device cpu, or end other programs"):
            self.evaluate(training)
            self.write_table()
        return 0

    def time_left(self, training: PlannedTraining, next_ones: Sequence[PlannedTraining]) -> str:
        """How long the training took, and as long as it how long the next ones will take."""
        means = {model: sum(found) / len(found) for model, found in self.seconds.items()}
        to_go = [one for one in next_ones if one not in self.results]
        left = sum(means.get(one.setting.model, max(means.values())) for one in to_go) / self.options.jobs
        took = duration(self.seconds[training.setting.model][-1])
        return f"{training.name} trained in {took}; {len(to_go)} trainings to go, about {duration(left)}"

    def evaluate(self, training: PlannedTraining) -> None:
        """Keep the result: the one there is, if nothing that it was computed from has changed, or a new one."""
        run = self.options.checkpoints_dir / training.name
        paired = training.setting.data.layout == "aligned"
        metrics = [
            flag
            for flag in self.preset.metrics
            if flag not in self.missing_weights
            and any(m.flag == flag and (paired or m.needs != "targets") for m in METRICS)
        ]
        data = self.data_dir / training.setting.data.name
        request = replace(self.evaluation, runs=(str(run),), dataroot=data, metrics=",".join(metrics))
        prepared = prepare(request, [run])
        # Weights that cannot be had now empty a column; the results of one table are of one protocol all the same.
        lite0 = any(flag.endswith("_lite0") for flag in self.preset.metrics)
        prepared = replace(prepared, protocol=replace(prepared.protocol, lite0=lite0))
        self.pictures[training] = prepared.comparisons
        stored = self.results.get(training)
        if stored and not stored["not_computed"] and is_current(stored, prepared):
            print("evaluated already", flush=True)
            return
        report = prepared.carry_out(request)
        lost = {flag: why for flag, why in self.missing_weights.items() if flag in self.preset.metrics}
        report = replace(
            report,
            not_computed={**report.not_computed, **lost},
            notes=[*report.notes, *count_notes([training], self.data_dir)],
        )
        result = result_of(training, report, self.options)
        content = (json.dumps(result, indent=1, ensure_ascii=False) + "\n").encode()
        write_atomically(self.options.result_file(training), content)
        self.results[training] = result

    def write_table(self) -> str:
        """The table of all results there are. Returns it for a terminal."""
        found = {training: self.results[training] for training in self.whole if training in self.results}
        return write_table(self.whole, found, self.preset, self.options.table_folder, self.options.latex)


def train(training: PlannedTraining, flags: list[str], checkpoints_dir: Path, execute: Execute) -> int:
    """Train, or resume an interrupted training, unless all its epochs are done. Returns the exit code."""
    if training.is_trained(checkpoints_dir):
        print("trained already", flush=True)
        return 0
    if RunFolder(checkpoints_dir / training.name).exists:
        flags = [*flags, "--continue_train"]
    code = execute(flags)
    if code in (0, 2) or code >= 128:  # done, refused with its own line, or stopped by a signal
        return code
    raise RunError(training.name, f"training ended with exit code {code}", "the same command resumes it")


def by_process(flags: Sequence[str], jobs: int = 1) -> int:
    """Run train.py as a process of its own. The terminal sends it Ctrl-C as well: it saves and ends, we wait.

    jobs: how many of them share the cores. Of several nothing is printed but the last line of one that fails.
    """
    command = [sys.executable, str(Path(__file__).resolve().parents[1] / "train.py"), *flags]
    share = {"OMP_NUM_THREADS": str(max(1, cores() // jobs))} if jobs > 1 else {}
    with tempfile.TemporaryFile() as said:
        output = said if jobs > 1 else None
        process = subprocess.Popen(command, env=share | os.environ, stdout=output, stderr=output)
        while True:
            try:
                code = process.wait()
                break
            except (
                KeyboardInterrupt
            ):  # nothing is sent on: a second signal would make it leave without saving
                print("waiting for the training to save", flush=True)
        if code and jobs > 1:
            said.seek(0)
            print(*said.read().decode(errors="replace").splitlines()[-1:], file=sys.stderr, flush=True)
    return code if code >= 0 else 128 - code
