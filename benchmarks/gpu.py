"""`make gpu`: everything that waits for an NVIDIA GPU, in one run of under nine minutes, without a network.

The tests of the kernels on the device, the whole training step (eager, as a graph, with --batch_passes, bf16,
channels-last, and beside the peer where `--peer FOLDER` names its checkout), and the table of the NC layer. Every
result is written to benchmarks/results when it is known: a run that is cut leaves what it has.
"""

import argparse
import importlib.util
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import nc_layer_gpu, steps
from benchmarks.steps import ROOT, measure, table, variants

NEEDED = {
    "cuda.bindings": "cuda-bindings",
    "pytest": "pytest",
    "pytest_timeout": "pytest-timeout",
    "numpy": "numpy",
}
"""Module -> the package that brings it."""

TESTS_SHARE, STEPS_SHARE = 0.3, 0.75
"""Shares of the whole time after which tests and steps must be done; the layer has the rest."""

GOALS = {
    ("cycle_gan", 1, "ours graph"): 1.2,
    ("cycle_gan", 1, "ours graph bf16"): 3.0,
    ("pix2pix", 1, "ours graph bf16"): 3.0,
}
"""Model, batch, step -> how many times faster than the peer's step."""


def missing_packages() -> list[str]:
    def is_there(module: str) -> bool:
        try:
            return importlib.util.find_spec(module) is not None
        except ModuleNotFoundError:  # of the package above it
            return False

    return [package for module, package in NEEDED.items() if not is_there(module)]


def run_tests(seconds: float, where: str = "tests") -> dict[str, Any]:
    """The tests that need a GPU: exit code (None: cut), the summary line, and the names of those that failed."""
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "-q", "-p", "no:cacheprovider", where]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)
        output, code = done.stdout, done.returncode
    except subprocess.TimeoutExpired as error:
        output, code = (error.stdout or b"").decode(errors="replace"), None
    lines = [line for line in output.splitlines() if line.strip()]
    return {
        "exit code": code,
        "summary": lines[-1] if code is not None and lines else f"cut after {seconds:.0f} s",
        "failed": re.findall(r"^(?:FAILED|ERROR) (\S+)", output, re.M),
        "end of the output": lines[-40:] if code else [],
    }


def goals(rows: list[dict[str, Any]]) -> list[str]:
    """A line for every goal whose figures there are."""
    lines = []
    for row in rows:
        wanted = GOALS.get((row["model"], row["batch"], row["step"]))
        has_peer = any(r["step"] == steps.PEER and "ratio" in r for r in rows if r["model"] == row["model"])
        if wanted and has_peer and "ratio" in row:
            faster = 1 / row["ratio"]
            verdict = "kept" if faster >= wanted else "NOT KEPT"
            lines.append(
                f"{row['model']}, {row['step']}: {faster:.2f} times as fast, goal {wanted}: {verdict}"
            )
    return lines


class Report:
    """gpu.json and gpu.md, written anew with every result."""

    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        self.content: dict[str, Any] = {"machine": facts, "tests": {}, "rows": [], "goals": []}
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def write(self) -> None:
        content = self.content
        (self._folder / "gpu.json").write_text(json.dumps(content, indent=1, default=str) + "\n")
        tests = content["tests"]
        parts = [
            "# On a GPU",
            ", ".join(f"{name} {value}" for name, value in content["machine"].items()),
            f"Tests of the device: {tests.get('summary', 'not run yet')}",
            "\n".join(f"- failed: {name}" for name in tests.get("failed", [])),
            table(content["rows"]) if content["rows"] else "No training step was measured yet.",
            "\n".join(f"- {line}" for line in content["goals"]),
            "The layer: see nc_layer_cuda.md.",
        ]
        (self._folder / "gpu.md").write_text("\n\n".join(part for part in parts if part) + "\n")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--peer", default="", help="a checkout of pytorch-CycleGAN-and-pix2pix")
    parser.add_argument("--minutes", type=float, default=8.5)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument(
        "--dry_run", action="store_true", help="on the CPU, with small networks: whether it runs"
    )
    options = parser.parse_args(arguments)
    if missing := missing_packages():
        print(f"missing packages: {', '.join(missing)}; pip install {' '.join(missing)}", file=sys.stderr)
        if not options.dry_run:
            return 2
    if not options.dry_run and not torch.cuda.is_available():
        print("no CUDA GPU here; --dry_run goes through everything on the CPU", file=sys.stderr)
        return 2
    start, whole = time.monotonic(), 60 * options.minutes
    device, size, batches = ("cpu", 32, (1,)) if options.dry_run else ("cuda", 256, (1, 4, 16))
    small = ("--ngf", "4", "--ndf", "4", "--netG", "resnet_6blocks") if options.dry_run else ()
    peer = str(Path(options.peer).resolve()) if options.peer else ""
    report = Report(options.output, steps.machine(device))
    report.write()

    print("tests on the device ...", flush=True)
    report.content["tests"] = tests = run_tests(
        TESTS_SHARE * whole, "tests/test_cuda_device.py" if options.dry_run else "tests"
    )
    print(tests["summary"], *tests["failed"], sep="\n", flush=True)
    report.write()
    for batch in batches:
        for model in ("cycle_gan", "pix2pix"):
            if time.monotonic() - start > STEPS_SHARE * whole:
                print(f"not measured for lack of time: {model}, batch {batch}", flush=True)
                continue
            rows = measure(
                model, batch, size, device, list(variants(model, device, peer)),
                rounds=2 if options.dry_run else 7, steps=1 if options.dry_run else max(2, 20 // batch),
                small=small, until=start + STEPS_SHARE * whole,
            )  # fmt: skip
            report.content["rows"] += rows
            report.content["goals"] = goals(report.content["rows"])
            print(table(rows), "", sep="\n", flush=True)
            report.write()
    print(*report.content["goals"], sep="\n", flush=True)
    if not options.dry_run:
        nc_layer_gpu.run(options.output, (whole - (time.monotonic() - start)) / 60)
    return 0 if tests["exit code"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
