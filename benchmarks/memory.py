"""How much memory a training takes: model x size x batch x precision, without and with --grad_checkpoint.

    python -m benchmarks.memory [--output docs/memory.md] [--only pix2pix]

Each figure comes from a fresh process that builds the networks as train.py does and makes two steps on a random batch
on the CPU. It is the highest resident memory of the process, less what it had after its imports. Two steps: Adam's
moments are there from the end of the first one on.
"""

import argparse
import datetime
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).resolve().parents[1]

PIX2PIX = "--model pix2pix"
CYCLEGAN = "--model cycle_gan"
ENTRIES = (
    (PIX2PIX, 256, 1, "fp32"),
    (PIX2PIX, 256, 1, "bf16"),
    (PIX2PIX, 256, 8, "fp32"),
    (f"{PIX2PIX} --norm nc_ms", 256, 1, "fp32"),
    (f"{PIX2PIX} --netG resnet_9blocks", 256, 1, "fp32"),
    (CYCLEGAN, 128, 1, "fp32"),
    (CYCLEGAN, 256, 1, "fp32"),
    (CYCLEGAN, 256, 1, "bf16"),
    (CYCLEGAN, 128, 4, "fp32"),
    (f"{CYCLEGAN} --norm nc_ms", 256, 1, "fp32"),
)
"""(flags of the model, --crop_size, --batch_size, --precision)."""

HEADING = """# Memory of a training

Measured on a **CPU** ({date}, {machine}, Python {python}, torch {torch}) by
`python -m benchmarks.memory`: the highest resident memory of a process that makes two training steps, less what it had
after its imports. Seconds are the CPU time of one step, on one thread. Data loading is not in these figures, and no GPU
has been measured.

`--grad_checkpoint` computes the activations of the generators' blocks again in the backward pass instead of keeping
them. On a CPU the training has the same bits. It saves little where weights and Adam's moments take most of
the memory, as in the U-Net of Pix2Pix at batch size 1.

A command keeps the memory that it frees for the next step. With `MALLOC_MMAP_MAX_=65536` in the environment it gives
large blocks back to Linux instead: a step then takes up to a quarter less memory and a quarter to a third more time.

| flags | size | batch | precision | MiB | s | MiB with `--grad_checkpoint` | s |
|---|---|---|---|---|---|---|---|
"""


class Figure(NamedTuple):
    """Of two steps: memory in MiB, and the CPU seconds of the second one."""

    mib: float
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    parser.add_argument("--only", default="", help="entries whose flags hold this text")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # flags: what the fresh process is asked to measure
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(json.dumps(measure(arguments.one.split())))
        return
    text = HEADING.format(
        date=datetime.date.today(),
        machine=processor(),
        python=platform.python_version(),
        torch=torch.__version__,
    )
    print(text, end="", flush=True)
    for line in lines(arguments.only):
        print(line, flush=True)
        text += f"{line}\n"
    if arguments.output:
        arguments.output.write_text(text, encoding="utf-8")


def lines(only: str) -> Iterator[str]:
    """The rows of the table."""
    for flags, size, batch, precision in ENTRIES:
        if only in flags:
            wanted = (
                f"{flags} --load_size {size} --crop_size {size} --batch_size {batch} --precision {precision}"
            )
            plain, saving = in_fresh_process(wanted), in_fresh_process(f"{wanted} --grad_checkpoint")
            figures = [f"{figure.mib:,.0f} | {figure.seconds:.1f}" for figure in (plain, saving)]
            yield f"| `{flags}` | {size} | {batch} | {precision} | {' | '.join(figures)} |"


def in_fresh_process(flags: str) -> Figure:
    """`measure` of these flags. SystemExit with its output where it fails."""
    command = [sys.executable, "-m", "benchmarks.memory", "--one", flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{flags}\n{done.stdout}{done.stderr}")
    return Figure(*json.loads(done.stdout))


def measure(flags: list[str]) -> Figure:
    """Two steps of a training with these flags, in this process."""
    from datasets.errors import prepare_for_torch
    from gan.command_line import parse_options
    from gan.options import channels
    from gan.setup import build_trainer

    prepare_for_torch()  # as every command does
    torch.set_num_threads(1)
    before = peak()
    options = parse_options([*flags, "--dataroot", "none", "--device", "cpu"])
    trainer, data = build_trainer(options), options.data
    shape = (data.batch_size, data.crop_size, data.crop_size)
    batch = {
        side: torch.rand(shape[0], count, *shape[1:]) * 2 - 1
        for side, count in zip("AB", channels(options, "AtoB"), strict=True)
    }
    for _ in range(2):
        begin = time.process_time()
        trainer.step(batch)
    return Figure((peak() - before) / 2**20, time.process_time() - begin)


def peak() -> int:
    """The highest resident memory of this process so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def processor() -> str:
    """The name of the processor, as far as the system tells it."""
    listed = Path("/proc/cpuinfo")
    names = (
        [line for line in listed.read_text().splitlines() if "model name" in line] if listed.exists() else []
    )
    return names[0].partition(":")[2].strip() if names else platform.machine()


if __name__ == "__main__":
    main()
