"""The paper's Table 1 on CIFAR-10 in small: five norms, seed after seed, resumable.

    python -m benchmarks.classify DATAROOT [--seeds 0,1,2] [--norms gn,nc,gn_nc,bn,bn_nc] [--epochs 10] [--every 1]

Trains what is not there yet, in this order: all norms with the first seed, then all with the next. So whatever stops
it leaves whole rounds. Two processes with different `--norms` or `--seeds` share the work. Each finished training
becomes a file in `benchmarks/results/classify/`; after each one the table `benchmarks/results/classify.md` is written
anew, up to its heading "What it shows". The pictures are decoded once.
"""

import argparse
import json
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from textwrap import fill
from typing import Any

from benchmarks.result_pages import write_page
from benchmarks.steps import machine
from datasets.errors import UserError, run_command
from datasets.files import write_atomically
from gan.run import read_records
from tools.class_pictures import LabelledPictures, Split, load_labelled
from tools.classify import train
from tools.classify_options import ClassifyOptions, parse

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
NORMS = {"gn": "GN", "nc": "NC", "gn_nc": "GN+NC", "bn": "BN", "bn_nc": "BN+NC"}
PUBLISHED = {"gn": 10.14, "nc": 8.52, "gn_nc": 6.98}
"""Top-1 error of the paper's Table 1, CIFAR-10, in per cent."""

SAME = ("epochs", "width", "batch_size", "ghost_batch", "lr", "every", "train_pictures")
"""What trainings of one table have in common."""

TABLE = """# CIFAR-10 with each norm, on a CPU

ResNet-18 at {width:g} of its width, {epochs} epochs, batch {batch_size}, SGD with a learning rate of {lr:g}; batch norm
sees ghost batches of {ghost_batch}. {train_pictures:,} training and {test_pictures:,} test pictures. {dates}, {CPU},
1 thread, Python {python}, torch {torch}. To train what is missing and write this page:

    python -m benchmarks.classify DATAROOT --seeds {seeds} --epochs {epochs} --width {width:g} --lr {lr:g} \\
        --batch_size {batch_size} --every {every} --output {output}

| norm | top-1 error, % | by seed | paper, % |
|---|---|---|---|
{rows}

{missing}

The paper's figures are of full trainings, so only the order of the rows can be compared. What differs: the epochs (a
full training takes hundreds), the number of pictures, the width (groups of group norm then hold 1 to 4 channels),
the batch (the paper trains with batch 2; here it is {batch_size}, and batch norm alone is kept to {ghost_batch}
pictures), the learning rate and its warm-up, our reading of which convolutions are replaced (`models/convert.py`), and
the pictures, which were stored as JPEG. The error is that of the last epoch, and nothing was chosen by it.
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.classify", description=__doc__.splitlines()[0]
    )
    parser.add_argument("dataroot", type=Path, help="CIFAR-10: see python -m tools.classify --help")
    parser.add_argument("--seeds", default="0,1,2", help="with commas (default: %(default)s)")
    parser.add_argument("--norms", default=",".join(NORMS), help="with commas (default: %(default)s)")
    parser.add_argument(
        "--epochs", type=int, default=10, help="epochs of each training (default: %(default)s)"
    )
    parser.add_argument(
        "--width", type=float, default=0.25, help="factor of the channels (default: %(default)s)"
    )
    parser.add_argument("--batch_size", type=int, default=128, help="pictures a step (default: %(default)s)")
    parser.add_argument("--every", type=int, default=1, help="train with every n-th picture (default: all)")
    parser.add_argument("--lr", type=float, default=0.05, help="learning rate (default: %(default)s)")
    parser.add_argument(
        "--checkpoints_dir", type=Path, default=Path("checkpoints"), help="folder of the runs"
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the table and of classify/")
    arguments = parser.parse_args()
    data = load_labelled(arguments.dataroot, 32)
    part = Split(
        data.train.pictures[:: arguments.every],
        data.train.labels[:: arguments.every],
    )
    data = LabelledPictures(part, data.test, data.classes)
    wanted = {
        **{key: getattr(arguments, key) for key in ("epochs", "width", "batch_size", "lr", "every")},
        "ghost_batch": ClassifyOptions().ghost_batch,
        "train_pictures": len(data.train.labels),
    }
    (arguments.output / "classify").mkdir(parents=True, exist_ok=True)
    for seed in map(int, arguments.seeds.split(",")):
        for norm in arguments.norms.split(","):
            name = f"classify_{norm}_{seed}"
            target = arguments.output / "classify" / f"{norm}_{seed}.json"
            if target.exists():
                require_same(target, wanted)
                continue
            flags = [
                "--dataroot", arguments.dataroot, "--name", name, "--norm", norm, "--seed", seed,
                "--n_epochs", arguments.epochs, "--width", arguments.width, "--lr", arguments.lr,
                "--batch_size", arguments.batch_size, "--checkpoints_dir", arguments.checkpoints_dir, "--device", "cpu",
            ]  # fmt: skip
            if (arguments.checkpoints_dir / name / "options.yaml").exists():
                flags.append("--continue_train")
            options = parse(list(map(str, flags)))
            code, _ = train(options, data)
            if code:
                return code
            records = list(read_records(options.run.metrics))
            errors = [record["metrics"] for record in records if record["kind"] == "metrics"]
            found = {
                "norm": norm,
                "seed": seed,
                **errors[-1],
                "error_by_epoch": [metrics["test_error"] for metrics in errors],
                **wanted,
                "test_pictures": len(data.test.labels),
                "date": time.strftime("%Y-%m-%d"),
                "machine": machine("cpu"),
            }
            write_atomically(target, json.dumps(found, indent=1).encode() + b"\n")
            write_table(arguments.output, arguments.seeds)
    write_table(arguments.output, arguments.seeds)  # of results that others have brought, too
    return 0


def require_same(result: Path, wanted: Mapping[str, Any]) -> None:
    """Raises UserError for a result of other settings than `wanted`."""
    found = json.loads(result.read_text())
    others = [f"{key} {found[key]}, not {value}" for key, value in wanted.items() if found[key] != value]
    if others:
        fix = "name folders of their own for these results with --output and --checkpoints_dir"
        raise UserError(result, f"is the result of other settings: {', '.join(others)}", fix)


def write_table(folder: Path, seeds: str) -> Path:
    """Write `classify.md` of all results, and keep what a reader wrote below it.

    seeds: those that are wanted besides. Raises UserError for results that differ in `SAME`.
    """
    files = sorted((folder / "classify").glob("*.json"))
    results: list[dict[str, Any]] = [json.loads(path.read_text()) for path in files]
    newest = max(results, key=lambda result: result["date"])
    for path in files:
        require_same(path, {key: newest[key] for key in SAME})
    dates = sorted(result["date"] for result in results)
    wanted = sorted({*map(int, seeds.split(",")), *(result["seed"] for result in results)})
    rows, missing = [], []
    for norm, title in NORMS.items():
        own = {result["seed"]: result for result in results if result["norm"] == norm}
        missing += [f"{title} seed {seed}" for seed in wanted if seed not in own]
        errors = [result["test_error"] for result in own.values()]
        if not errors:
            rows.append(f"| {title} | | | {PUBLISHED.get(norm, '')} |")
            continue
        spread = f" ± {statistics.stdev(errors):.2f}" if len(errors) > 1 else ""
        each = ", ".join(f"{own[seed]['test_error']:.2f}" for seed in sorted(own))
        rows.append(
            f"| {title} | {statistics.mean(errors):.2f}{spread} | {each} | {PUBLISHED.get(norm, '')} |"
        )
    text = TABLE.format(
        **newest | newest["machine"],
        rows="\n".join(rows),
        seeds=",".join(map(str, wanted)),
        output=folder.resolve().relative_to(ROOT) if folder.resolve().is_relative_to(ROOT) else folder,
        dates=" to ".join(sorted({dates[0], dates[-1]})),
        missing=fill(f"Missing: {', '.join(missing)}." if missing else "Nothing is missing.", 119),
    )
    path = folder / "classify.md"
    write_page(path, text)
    return path


if __name__ == "__main__":
    run_command(main)
