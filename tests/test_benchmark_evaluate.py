"""The benchmark of the evaluation: its page is written, in a folder that need not be there."""

import sys
from pathlib import Path

import pytest

from benchmarks import evaluate


def test_the_page_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluate, "bench_reports", lambda *_: ["| pytorch-fid | 1.0 | 1 | | 1.0 | 3 |"])
    monkeypatch.setattr(evaluate, "bench_distance", lambda: "Fréchet distance: 1 s")
    output = tmp_path / "new" / "results"
    monkeypatch.setattr(sys, "argv", ["evaluate", "--output", str(output)])
    evaluate.main()
    text = (output / "evaluate_cpu.md").read_text()
    assert "200 + 200 pictures of 64 pixels" in text and "| pytorch-fid | 1.0 |" in text
    assert text.endswith("Fréchet distance: 1 s\n")
