"""Where the runs of a call are, and where its report goes."""

import hashlib
from pathlib import Path

from evaluate.options import EvaluateOptions
from evaluate.runs import find_run


def find_runs(options: EvaluateOptions) -> list[Path]:
    """The folders of the runs, each once."""
    return [find_run(name, options.checkpoints_dir) for name in dict.fromkeys(options.runs)]


def output_folder(options: EvaluateOptions) -> Path:
    """Where the report goes. A short hash keeps other runs and folders of the same names apart."""
    if options.output:
        return options.output
    runs = find_runs(options)
    if len(runs) == 1:
        return runs[0] / "evaluation"
    if options.fake and options.real:
        compared = [options.fake.resolve(), options.real.resolve()]
        name = f"{compared[0].name}-{compared[1].name}"
    else:
        compared = sorted(run.resolve() for run in runs)
        name = f"{len(compared)}-runs"
    digest = hashlib.sha256("\0".join(map(str, compared)).encode("utf-8", "surrogateescape")).hexdigest()
    return Path("results/evaluation") / f"{name}-{digest[:8]}"
