"""`make gpu` from end to end on the CPU: all of it runs, results are there once they are known, goals are judged."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu, steps
from benchmarks.steps import Variant, measure, table

ROOT = Path(__file__).resolve().parents[1]
SMALL = ("--ngf", "4", "--ndf", "4", "--netG", "resnet_6blocks")


def test_the_dry_run_goes_through_everything(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry_run", "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "gpu.json").read_text())
    assert content["tests"]["exit code"] == 0 and "skipped" in content["tests"]["summary"]
    told = {(row["model"], row["step"]) for row in content["rows"] if "ms" in row}
    assert told >= {("cycle_gan", "ours"), ("cycle_gan", "ours --batch_passes"), ("pix2pix", "ours nc_ms")}
    assert not [row for row in content["rows"] if "failure" in row]
    text = (tmp_path / "gpu.md").read_text()
    assert (
        "ours bf16" in text and "torch" in text and all(row["step"] in done.stdout for row in content["rows"])
    )


def test_a_run_that_is_cut_leaves_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {
        "model": "cycle_gan",
        "batch": 1,
        "step": "ours",
        "ms": 5.0,
        "range": [4.0, 6.0],
        "rounds": 2,
        "MiB": 7.0,
    }

    def one_then_the_end(model: str, *arguments: Any, **named: Any) -> list[dict[str, Any]]:
        if model == "pix2pix":
            raise KeyboardInterrupt
        return [row]

    monkeypatch.setattr(gpu, "measure", one_then_the_end)
    monkeypatch.setattr(
        gpu, "run_tests", lambda seconds, where: {"exit code": 1, "summary": "1 failed", "failed": ["a"]}
    )
    with pytest.raises(KeyboardInterrupt):
        gpu.main(["--dry_run", "--output", str(tmp_path)])
    assert json.loads((tmp_path / "gpu.json").read_text())["rows"] == [row]
    assert "- failed: a" in (tmp_path / "gpu.md").read_text()


def test_missing_packages_and_a_missing_gpu_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "NEEDED", {"no_such_module": "no-such-package", "no_such.module": "another"})
    assert gpu.main(["--output", str(tmp_path / "o")]) == 2
    assert "pip install no-such-package another" in capsys.readouterr().err
    monkeypatch.setattr(gpu, "NEEDED", {})
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert gpu.main(["--output", str(tmp_path / "o")]) == 2
    assert "no CUDA GPU" in capsys.readouterr().err and not (tmp_path / "o").exists()


def test_goals_are_judged_by_the_ratio_to_the_peer() -> None:
    def rows(model: str, ratios: dict[str, float]) -> list[dict[str, Any]]:
        return [{"model": model, "batch": 1, "step": step, "ratio": ratio} for step, ratio in ratios.items()]

    measured = rows("cycle_gan", {steps.PEER: 1.0, "ours graph": 0.9, "ours graph bf16": 0.3})
    assert [line.rsplit(": ", 1)[1] for line in gpu.goals(measured)] == ["NOT KEPT", "kept"]
    assert gpu.goals(rows("pix2pix", {"ours": 1.0, "ours graph bf16": 0.1})) == [], "no peer, no verdict"


def test_a_variant_that_fails_costs_its_own_figures_only() -> None:
    chosen = [Variant("ours"), Variant("wrong", ("--norm", "batch", "--batch_passes"))]
    good, bad = measure("cycle_gan", 1, 32, "cpu", chosen, rounds=2, small=SMALL)
    assert good["rounds"] == 2 and good["ms"] > 0 and good["MiB"] > 0
    assert "--batch_passes" in bad["failure"]
    assert "--batch_passes" in table([good, bad])
