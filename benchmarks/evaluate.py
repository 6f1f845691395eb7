"""How long a report takes, against pytorch-fid's own command on the same pictures in the same run.

    python -m benchmarks.evaluate --count 200 --size 64 [--output benchmarks/results]

Both sides are fresh processes with the same randomly initialised Inception (its published weights need not be there:
the time does not depend on the values). Printed are seconds and ratios, and the time of the distance itself against
scipy's matrix square root; with --output also as evaluate_cpu.md in that folder.
"""

import argparse
import datetime
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from evaluate.features import build_inception
from evaluate.fid import Gaussian, frechet_distance

ROOT = Path(__file__).resolve().parents[1]

THEIRS = """
import sys, torch, pytorch_fid.inception as inception
state = torch.load(sys.argv.pop(1), weights_only=True)
inception.load_state_dict_from_url = lambda *args, **kwargs: state
from pytorch_fid.fid_score import main
main()
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=200, help="pictures on each side")
    parser.add_argument("--size", type=int, default=64, help="side of the pictures in pixels")
    parser.add_argument("--folder", type=Path, help="where to put them; default: a temporary folder")
    parser.add_argument("--output", type=Path, help="folder for evaluate_cpu.md")
    arguments = parser.parse_args()
    if arguments.output:  # now, not after minutes of measuring
        arguments.output.mkdir(parents=True, exist_ok=True)
    count, size = arguments.count, arguments.size
    heading = (
        f"# How long a report takes, on a CPU\n\n{datetime.date.today()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, torch {torch.__version__}, {count} + {count} pictures of {size} pixels\n"
        "(`python -m benchmarks.evaluate`). Fresh processes; pytorch-fid's is its own command."
    )
    lines = [
        heading,
        "",
        "| `--metrics fid` | wall s | against pytorch-fid | limit | CPU s | FID |",
        "|" + "---|" * 6,
    ]
    with tempfile.TemporaryDirectory() as temporary:
        for line in bench_reports(arguments.folder or Path(temporary), count, size):
            print(line, flush=True)
            lines.append(line)
    lines += ["", bench_distance()]
    print(lines[-1])
    if arguments.output:
        (arguments.output / "evaluate_cpu.md").write_text("\n".join(lines) + "\n")


def bench_reports(folder: Path, count: int, size: int) -> Iterator[str]:
    """Table rows: first report, new fakes against known reals, an unchanged report; each against pytorch-fid."""
    for name, seed in (("real", 1), ("fake", 2), ("other", 3)):
        write_pictures(folder / name, count, size, seed)
    weights = folder / "inception.pth"
    torch.save(random_state(), weights)
    real, fake, other = (str(folder / name) for name in ("real", "fake", "other"))
    theirs, their_cpu, their_value = timed([sys.executable, "-c", THEIRS, str(weights), fake, real])
    yield f"| pytorch-fid | {theirs:.1f} | 1 | | {their_cpu:.1f} | {their_value:.6g} |"
    for label, fakes, limit in (
        ("first report", fake, 1.1),
        ("new fakes against known reals", other, 0.6),
        ("unchanged report again", other, 0.1),
    ):
        wall, cpu, value = timed(
            [
                sys.executable, "-m", "evaluate", "--fake", fakes, "--real", real, "--metrics", "fid",
                "--inception_weights", str(weights), "--allow_unverified", "--cache_dir", str(folder / "cache"),
                "--output", str(folder / "report" / Path(fakes).name),
            ]
        )  # fmt: skip
        yield f"| {label} | {wall:.1f} | {wall / theirs:.2f} | {limit} | {cpu:.1f} | {value:.6g} |"


def bench_distance(width: int = 2048) -> str:
    """The Fréchet distance of two full-rank Gaussians against scipy.linalg.sqrtm."""
    import scipy.linalg

    draw = np.random.default_rng(0)
    moments = []
    for _ in range(2):
        factor = draw.standard_normal((width, width)) * np.logspace(0, -2, width)
        moments.append((draw.standard_normal(width), factor.T @ factor / width))
    (mean, first), (other_mean, second) = moments
    ours, our_cpu = float("inf"), float("inf")
    for _ in range(3):  # the fastest: other work on the machine only adds
        start, cpu = time.perf_counter(), time.process_time()
        factors = [np.asarray(np.linalg.cholesky(x).T, np.float64) for x in (first, second)]
        found = frechet_distance(Gaussian(mean, factors[0]), Gaussian(other_mean, factors[1]))
        ours, our_cpu = min(ours, time.perf_counter() - start), min(our_cpu, time.process_time() - cpu)
    start, cpu = time.perf_counter(), time.process_time()
    root = scipy.linalg.sqrtm(first @ second)
    theirs, their_cpu = time.perf_counter() - start, time.process_time() - cpu
    shift = mean - other_mean
    expected = float(shift @ shift + np.trace(first) + np.trace(second) - 2 * np.trace(root).real)
    return (
        f"Fréchet distance of {width} features: {ours:.2f} s ({our_cpu:.2f} s CPU, limit 1 s), with scipy's sqrtm "
        f"{theirs:.2f} s ({their_cpu:.2f} s CPU); they differ by {abs(found - expected) / expected:.1e} relative."
    )


def timed(command: list[str]) -> tuple[float, float, float]:
    """(wall seconds, CPU seconds, FID) of a process that computes one."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(done.stderr)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if "FID: " in done.stdout:
        return wall, cpu, float(done.stdout.split("FID: ")[1].split()[0])
    report = json.loads((Path(command[-1]) / "report.json").read_text())
    return wall, cpu, float(report["rows"][0]["values"]["fid"])


def random_state() -> dict[str, torch.Tensor]:
    """A state of pytorch-fid's network that keeps the scale of what passes through."""
    torch.manual_seed(0)
    net = build_inception()
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return dict(net.state_dict())


def write_pictures(folder: Path, count: int, size: int, seed: int) -> None:
    """Smooth random pictures as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    for i in range(count):
        coarse = Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(folder / f"{i:05}.png")


if __name__ == "__main__":
    main()
