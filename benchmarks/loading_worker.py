"""Epochs of loading to be timed, in a process of their own: `python -m benchmarks.loading_worker SPEC`, SPEC is JSON.

Prints a line `ready` when its pictures are found, scanned and, with --cache_gb, kept. Then every line N on its standard
input makes it load epoch N and print the seconds of one pair. The line `kept` prints the seconds that keeping took.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import Any

Epoch = Callable[[int], Iterable[Any]]
"""The batches of an epoch, from 1."""


def ours(spec: dict[str, Any]) -> tuple[Epoch, float]:
    """As train.py loads, and the seconds that keeping the pictures took. spec: data, more (flags)."""
    from datasets.workers import start_server

    start_server()
    from gan.command_line import parse_train
    from gan.processes import ALONE
    from gan.setup import build_data, keep_pictures

    flags = ["--dataroot", spec["data"], "--model", "pix2pix", "--checkpoints_dir", tempfile.mkdtemp()]
    options, _ = parse_train([*flags, *spec["more"]])
    data = build_data(options)
    begin = time.perf_counter()
    keep_pictures(options, data, ALONE, spare=0)
    return lambda epoch: data.batches(epoch, 0), time.perf_counter() - begin


def peers(spec: dict[str, Any]) -> tuple[Epoch, float]:
    """As a checkout of pytorch-CycleGAN-and-pix2pix in the folder spec["peer"] loads."""
    sys.path.insert(0, spec["peer"])
    sys.argv = [
        "train.py",
        "--dataroot",
        spec["data"],
        "--name",
        "x",
        "--checkpoints_dir",
        tempfile.mkdtemp(),
    ]
    sys.argv += ["--model", "pix2pix", "--gpu_ids", "-1", *spec["more"]]
    from data import create_dataset
    from options.train_options import TrainOptions

    loader = create_dataset(TrainOptions().parse())
    return lambda epoch: loader, 0.0


def main() -> None:
    spec = json.loads(sys.argv[1])
    answer, sys.stdout = sys.stdout, sys.stderr  # the peer prints its options
    epoch, kept = peers(spec) if spec["peer"] else ours(spec)
    print("ready", file=answer, flush=True)
    for line in sys.stdin:
        if line.strip() == "kept":
            print(kept, file=answer, flush=True)
            continue
        begin = time.perf_counter()
        count = sum(len(batch["A"]) for batch in epoch(int(line)))
        print((time.perf_counter() - begin) / count, file=answer, flush=True)


if __name__ == "__main__":
    main()
