"""The arithmetic of the GPU benchmark: what must move, and how the table answers the goals."""

import subprocess
import sys

import pytest
import torch

from benchmarks.nc_goals import CONV, IN, MISSING, minimum_bytes, summary, summary_table


def test_minimum_bytes_by_hand() -> None:
    shape = {
        "batch": 2,
        "channels": 3,
        "size": (4, 5),
        "outputs": 6,
        "out": (4, 5),
        "kernel": 3,
        "padding": 1,
    }
    x, padded, y, weight = 2 * 3 * 20, 6 * 7, 2 * 6 * 20, 6 * 3 * 9
    maps = 4 * 2 * (4 * padded + 8 * 20)
    assert minimum_bytes(**shape, item=2) == 2 * (4 * x + 5 * y + 4 * weight) + maps
    assert minimum_bytes(**shape, item=4) == 4 * (4 * x + 2 * 3 * padded + 5 * y + 4 * weight) + maps


def test_summary_takes_medians_of_the_right_rows() -> None:
    def row(batch: int, nc: float) -> dict[str, object]:
        ms = {"nc": nc, IN: 2.0, CONV: 1.0, "reference": 30.0}
        return {"batch": batch, "dtype": "bf16", "ms": ms, "peak": {"nc": 1, IN: 1, "reference": 10}}

    lines = summary([row(1, 4.0), row(4, 1.0), row(4, 1.2), row(16, 3.0)], {"nc": 90.0, IN: 100.0})
    found = {line["goal"]: (line["median"], line["rows"], line["verdict"]) for line in lines}
    assert found[f"nc / {IN}, time, batch 4 and 16"] == (0.6, 3, "met")
    assert found[f"nc / {IN}, time, batch 1 in a graph"] == (2.0, 1, "missed")
    assert found[f"nc / {CONV}, time, batch 4 and 16"] == (1.2, 3, "met")
    assert found["compiled direct / nc, time"] == (None, 0, MISSING)
    assert found[f"nc / {IN}, host time of one pass"] == (0.9, 1, "met")
    assert summary_table(lines).count(MISSING) == 4  # two goals, median and verdict each


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU: the benchmark would run")
def test_without_a_gpu_the_benchmark_says_so() -> None:
    command = [sys.executable, "benchmarks/nc_layer.py", "--device", "cuda"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --device cuda: torch finds no NVIDIA GPU")
    assert done.stderr.count("\n") == 1
