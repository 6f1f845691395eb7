"""Seconds from the command to the first finished step, beside another program's: rounds in which both take turns.

    python -m benchmarks.start_up --peer FOLDER [--data FOLDER] [--rounds 7] [--output FILE]

FOLDER of --peer is a checkout of pytorch-CycleGAN-and-pix2pix; its requirements (dominate) must be there. --data holds
trainA and trainB; without it, 200 pictures of 256 pixels are drawn. Both train their default CycleGAN at 64 pixels, so
that the step itself is short, with their default loader workers and no Visdom, and print every step. A command is ended
when its first line of losses is there.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tabulate import tabulate

from benchmarks.loading import about, shown
from benchmarks.sides import Side
from benchmarks.steps import PEER, ROOT

COMMON = "train.py --model cycle_gan --load_size 64 --crop_size 64 --print_freq 1 --name run"
FIRST_STEP = re.compile(r"\bG_A:? [0-9]")


def seconds_to_first_step(root: Path, flags: str) -> float:
    """By the clock, from the start of the process to its first line of losses. SystemExit if none comes."""
    with tempfile.TemporaryDirectory() as runs:
        command = [sys.executable, *f"{COMMON} {flags} --checkpoints_dir {runs}".split()]
        environment = os.environ | {"PYTHONUNBUFFERED": "1", "CUDA_VISIBLE_DEVICES": ""}
        begin = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert process.stdout
        said = []
        for line in process.stdout:
            said.append(line)
            if FIRST_STEP.search(line):
                break
        seconds = time.perf_counter() - begin
        process.terminate()
        rest, _ = process.communicate()
        if not said or not FIRST_STEP.search(said[-1]):
            raise SystemExit(f"{root}: no step was printed:\n{''.join(said)}{rest}")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", required=True, help="a checkout of pytorch-CycleGAN-and-pix2pix")
    parser.add_argument("--data", default="", help="a folder with trainA and trainB")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "start_up.md")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as drawn:
        data = Path(given.data or f"{drawn}/data").resolve()
        if not given.data:
            flags = f"--count 100 --size 256 --layout unaligned --output {data}"
            Side("ours", ROOT, Path(drawn)).run(f"-m datasets.synthetic {flags}")
        programs = {
            PEER: (Path(given.peer).resolve(), f"--dataroot {data} --gpu_ids -1 --display_id 0"),
            "ours": (ROOT, f"--dataroot {data} --device cpu --visdom off"),
        }
        for root, flags in programs.values():  # compiles modules, fills the file cache
            seconds_to_first_step(root, flags)
        rounds: list[dict[str, float]] = []
        while len(rounds) < given.rounds:
            turn = list(programs) if len(rounds) % 2 else list(programs)[::-1]
            rounds.append({name: seconds_to_first_step(*programs[name]) for name in turn})
        pictures = sum(len(list((data / f"train{side}").iterdir())) for side in "AB")
        facts = about(given.peer)
    rows = []
    for name in programs:
        ratios = [figures[name] / figures[PEER] for figures in rounds]
        rows.append([name, shown([figures[name] for figures in rounds], ".2f"), shown(ratios, ".2f")])
    table = tabulate(rows, ["train.py", "s", "ratio"], tablefmt="github", disable_numparse=True)
    text = (
        f"# From the command to the first step\n\n{facts}. {len(rounds)} rounds, {pictures} pictures, the default "
        f"CycleGAN at 64 pixels.\n`python -m benchmarks.start_up`. Medians and ranges; ratios are within a round.\n\n"
        f"{table}\n"
    )
    given.output.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
