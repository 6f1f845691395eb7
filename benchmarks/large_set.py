"""A set of the size and layout of Day2Night (17,823 side-by-side pairs): scan, order of an epoch, loading, memory.

    python -m benchmarks.large_set [--count 17823] [--size 256] [--folder DIR] [--output DIR]

Day2Night cannot be handed out, so towns by day and by night are drawn, and a few of them are written again and again as
JPEG files that differ in noise: reading them costs what reading photos costs.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tabulate import tabulate

from benchmarks.steps import ROOT, machine
from datasets.synthetic import write_dataset

PAIRS, TEST_PAIRS = 17823, 2287
DIFFERENT = 24
MEASURE = """
import json, resource, sys, time
from gan.command_line import parse_train
from gan.setup import build_data
begin = time.perf_counter()
options = parse_train(sys.argv[1:])[0]
data = build_data(options)
scanned = time.perf_counter()
batches = iter(data.batches(1, 0))
next(batches)
first = time.perf_counter()
loaded = sum(1 for _, batch in zip(range(1000), batches))
done = time.perf_counter()
batches.close()
orders = [time.perf_counter()]
for epoch in (2, 3):
    next(iter(data.batches(epoch, data.steps_per_epoch - 1)))
    orders.append(time.perf_counter())
print(json.dumps({
    "pairs": len(data.dataset), "scan": scanned - begin, "first batch": first - scanned,
    "loading 1,000 pairs": (done - first) / loaded * 1000, "order of an epoch": (orders[2] - orders[0]) / 2,
    "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
}))
"""


def write_pairs(folder: Path, count: int, size: int) -> None:
    """folder/train and folder/test with side-by-side JPEG files. What is there already stays."""
    drawn = folder / "drawn"
    if not drawn.is_dir():
        write_dataset(drawn, DIFFERENT, size, "aligned", seed=0, task="night")
    pictures = [np.asarray(Image.open(path), np.int16) for path in sorted((drawn / "train").iterdir())]
    draws = np.random.default_rng(0)
    for split, wanted in (("train", count), ("test", count * TEST_PAIRS // PAIRS)):
        (folder / split).mkdir(exist_ok=True)
        for number, picture in zip(range(wanted), itertools.cycle(pictures)):
            path = folder / split / f"{number:05}.jpg"
            if not path.exists():
                noisy = picture + draws.integers(-6, 7, picture.shape, np.int16)
                Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def measure(folder: Path, count: int | None, size: int, workers: int) -> dict[str, Any]:
    """In a process of its own, so that its memory can be told. Times in seconds, memory in MiB."""
    flags = [
        "--dataroot",
        str(folder),
        "--model",
        "pix2pix",
        "--direction",
        "BtoA",
        "--num_threads",
        str(workers),
    ]
    flags += [
        "--load_size",
        str(size * 286 // 256),
        "--crop_size",
        str(size),
        "--netG",
        "unet_128",
        "--device",
        "cpu",
    ]
    flags += ["--max_dataset_size", str(count)] if count else []
    code = f"if __name__ == '__main__':\n{''.join(f'    {line}' for line in MEASURE.splitlines(True))}"
    program = Path(tempfile.mkdtemp(prefix="large-set-")) / "measure.py"
    program.write_text(code)
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(program), *flags], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {"whole process": time.perf_counter() - begin}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--count", type=int, default=PAIRS)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where the pictures stay; default: a temporary folder")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="large-set-") as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        write_pairs(folder, options.count, options.size)
        rows = [
            measure(folder, count, options.size, options.workers)
            for count in (options.count // 16, options.count)
        ]
    facts = machine("cpu") | {"workers": options.workers}
    names = list(rows[0])
    cells = [
        [name, *(f"{row[name]:,}" if name == "pairs" else f"{row[name]:.2f}" for row in rows)]
        for name in names
    ]
    text = "\n\n".join(
        [
            "# A set of the size of Day2Night",
            ", ".join(f"{name} {value}" for name, value in facts.items()),
            f"Side-by-side JPEG files of twice {options.size} pixels. Seconds; peak: MiB of the process that trains.",
            tabulate(cells, ["", "a sixteenth", "all"], tablefmt="github", disable_numparse=True),
        ]
    )
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "large_set_cpu.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
