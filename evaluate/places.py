"""Where the runs of a call are, and where its report goes."""

import hashlib
from pathlib import Path

from datasets.errors import UserError
from evaluate.options import EvaluateOptions
from evaluate.runs import find_run

LONGEST = 80  # characters of a folder's name before a hash stands for the rest: many epochs


def find_runs(options: EvaluateOptions) -> list[Path]:
    """The folders of the runs, each once."""
    return [find_run(name, options.checkpoints_dir) for name in dict.fromkeys(options.runs)]


def epochs(options: EvaluateOptions) -> list[str]:
    """--epoch as a list without repetitions: "last", "best" or digits. UserError for anything else."""
    found = list(dict.fromkeys(part.strip() for part in options.epoch.split(",")))
    for epoch in found:
        if epoch not in ("last", "best") and not (epoch.isascii() and epoch.isdecimal()):
            allowed = "allowed: last, best, the number of a kept epoch, or several with commas"
            raise UserError("--epoch", f"is {options.epoch!r}", allowed)
    return found


def output_folder(options: EvaluateOptions) -> Path:
    """Where the report goes.

    A short hash keeps other runs and folders of the same names apart, a folder below it other checkpoints and other
    protocols of the same ones: `evaluation/best`, `evaluation/epoch-5-train`.
    """
    if options.output:
        return options.output
    kind = "-".join(_differences(options))
    if len(kind) > LONGEST:
        kind = f"{kind[:LONGEST]}-{_short_hash(kind)}"
    runs = find_runs(options)
    if len(runs) == 1:
        return runs[0] / "evaluation" / kind
    if options.fake and options.real:
        compared = [options.fake.resolve(), options.real.resolve()]
        name = f"{compared[0].name}-{compared[1].name}"
    else:
        compared = sorted(run.resolve() for run in runs)
        name = f"{len(compared)}-runs"
    return Path("results/evaluation") / f"{name}-{_short_hash(*map(str, compared))}" / kind


def _short_hash(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogateescape")).hexdigest()[:8]


def _differences(options: EvaluateOptions) -> list[str]:
    """What is asked for beyond the defaults and makes other numbers, as parts of a folder's name."""
    wanted = epochs(options)
    parts = [f"epoch-{epoch}" if epoch.isdecimal() else epoch for epoch in wanted if wanted != ["last"]]
    if options.test_mode != "eval":
        parts.append(options.test_mode)
    if options.num_test is not None:
        parts.append(f"first-{options.num_test}")
    if options.size is not None:
        parts.append(f"size-{options.size}")
    parts += [flag for flag in ("grey", "half") if getattr(options, flag)]
    return parts
