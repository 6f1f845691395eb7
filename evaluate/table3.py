"""`python -m evaluate.table3`: the plan of Table 3; with --run the table itself, resumably."""

import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from datasets.errors import run_command
from evaluate.options import NetworkOptions
from evaluate.table3_plan import NORMS, PlannedTraining, count_notes, missing_data
from gan.command_line import parse_flags, parse_options


@dataclass(frozen=True)
class Table3Options(NetworkOptions):
    """Table 3: PONO+MS and NC+MS on Maps, Horse2Zebra and Day2Night. Prints the plan; --run carries it out."""

    preset: Literal["full", "small", "smoke"] = "full"
    """full: the published protocol on the real data. small: real data at 64 pixels, for a CPU and several seeds.
    smoke: all rows in miniature on the embedded data."""
    run: bool = False
    """Train, evaluate, write the table and the figures. What is done is skipped, what was interrupted is resumed."""
    seeds: str = ""
    """Seeds, with commas; several give mean ± sd. Default: 0, with the preset small 0,1,2,3,4."""
    only: str = ""
    """Only trainings whose name contains this, such as maps or cycle_gan_nc."""
    data_dir: Path = Path("data")
    """Folder that holds maps/, horse2zebra/ and night2day/."""
    checkpoints_dir: Path = Path("checkpoints")
    """Folder of all runs."""
    output: Path | None = None
    """Folder for the table and the figures. Default: results/table3_PRESET."""
    results_dir: Path | None = None
    """Folder for the result of each training, a small JSON. A training whose result is there is not done again, even
    if its checkpoint is gone. Default: OUTPUT/trainings."""
    jobs: int = 1
    """Number of trainings at a time. Several share the cores of the processor and print nothing."""
    no_train: bool = False
    """With --run: train nothing, evaluate what is trained."""
    epoch: Literal["last", "best"] = "last"
    """Which checkpoint is evaluated; best exists for pix2pix (validation L1)."""
    test_mode: Literal["eval", "train"] | None = None
    """train: use dropout and batch statistics, as the published Pix2Pix protocol does. Default: eval, with the preset
    small train."""
    pictures: int = 5
    """Test pictures in the figures."""
    latex: bool = False
    """Write table3.tex as well."""
    no_estimate: bool = False
    """Do not time a training step for the plan (on a CPU at full size that takes minutes)."""
    debug: bool = False
    """Show the traceback of an error as well."""

    @property
    def table_folder(self) -> Path:
        return self.output or Path("results") / f"table3_{self.preset}"

    def result_file(self, training: PlannedTraining) -> Path:
        """Where the result of a training is kept."""
        return (self.results_dir or self.table_folder / "trainings") / f"{training.name}.json"


def print_plan(plan: Sequence[PlannedTraining], options: Table3Options, data_dir: Path) -> None:
    """The rows, their commands, the data that is missing, and how long it takes on this machine."""
    from gan.viewers.console import duration

    preset = plan[0].preset
    rows = len({(training.setting, training.norm) for training in plan})
    print(f"Table 3, preset {preset.name}: {rows} rows, {len(plan)} trainings")
    costs: dict[tuple[str, str], float] = {}
    total = 0.0
    for training in plan:
        setting = training.setting
        ways = [training.direction] if setting.model == "pix2pix" else setting.data.words
        words = ", ".join(f"{setting.data.words[way]} ({way} on disk)" for way in ways)
        flags = training.flags(data_dir, options.checkpoints_dir)
        print(f"\n{setting.title}, {NORMS[training.norm]}, seed {training.seed}: {words}")
        print(f"  {shlex.join(['python', 'train.py', *flags])}")
        if options.result_file(training).exists():
            print("  done: its result is there")
            continue
        steps = training.steps_to_go(data_dir, options.checkpoints_dir)
        line = f"{training.epochs_done(options.checkpoints_dir)} of {preset.epochs} epochs done; {steps} steps to go"
        if not options.no_estimate:
            kind = setting.model, training.norm
            if kind not in costs:
                costs[kind] = seconds_per_step(flags, options.device)
            total += steps * costs[kind]
            line += f", about {duration(steps * costs[kind])}"
        print(f"  {line}")
    if not options.no_estimate:
        print(
            f"\nabout {duration(total)} of training on this machine, one after the other, and the evaluation"
        )
    for note in count_notes(plan, data_dir):
        print(f"\n{note}")
    if (missing := missing_data(plan, data_dir)) and not preset.synthetic:
        print(f"\nnot there yet: {', '.join(map(str, missing))}; see python -m datasets.prepare")
    print("\nto carry it out (an interrupted call is resumed where it stopped): add --run")


def seconds_per_step(flags: Sequence[str], device: str) -> float:
    """One training step of these flags on this machine, after one to warm up, with random pictures."""
    import torch

    from gan.setup import build_trainer

    options = parse_options([*flags, "--device", device])
    trainer = build_trainer(options)
    side = options.data.crop_size
    batch = {
        "A": torch.rand(1, options.model.input_nc, side, side) * 2 - 1,
        "B": torch.rand(1, options.model.output_nc, side, side) * 2 - 1,
    }
    for _ in range(2):
        start = time.perf_counter()
        torch.stack(list(trainer.step(batch).losses.values())).tolist()  # waits for the device
    return time.perf_counter() - start


def main() -> int:
    description = "Plan, and with --run carry out, the comparison of PONO+MS and NC+MS."
    options = parse_flags(Table3Options, sys.argv[1:], "python -m evaluate.table3", description)
    from evaluate.table3_run import run_table3

    return run_table3(options)


if __name__ == "__main__":
    run_command(main, debug="--debug" in sys.argv)
