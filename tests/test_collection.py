"""Every process collects the same tests: pytest-xdist stops a whole run when two of its workers differ."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COLLECT = """
import sys, time
import pytest
clock = time.time
time.time = lambda: clock() + float(sys.argv[1])
sys.exit(pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", "tests"]))
"""


def start(hash_seed: str, seconds_ahead: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTEST_ADDOPTS": ""}
    command = [sys.executable, "-c", COLLECT, seconds_ahead]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


def test_ids_depend_on_no_clock_and_no_hash_seed() -> None:
    """Nor on memory addresses and random numbers, which differ between any two processes."""
    processes = [start("1", "0"), start("2", "1e6")]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs[0][-2000:]
    first, second = ([line for line in output.splitlines() if "::" in line] for output in outputs)
    assert len(first) > 1000
    assert first == second
