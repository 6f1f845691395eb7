"""The demo's command line; what it shows is measured by running it."""

import subprocess
import sys
from pathlib import Path

from conftest import ROOT

HELP_WITHOUT_TORCH = """
import runpy, sys
sys.argv = ["demo", "--help"]
try:
    runpy.run_module("tools.demo", run_name="__main__")
except SystemExit as end:
    assert end.code == 0
assert "torch" not in sys.modules
"""


def test_help_needs_no_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HELP_WITHOUT_TORCH], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "--output" in done.stdout


def test_earlier_demo_is_untouched(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.demo", "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path}: an earlier demo is there")
    assert list(tmp_path.iterdir()) == []
