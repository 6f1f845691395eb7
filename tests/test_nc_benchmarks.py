"""The GPU benchmark from end to end, with a clock in place of a GPU: nonsense figures, whole tables."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu_timing, nc_goals, nc_layer_gpu
from benchmarks.nc_goals import CONV, IN, MISSING, kernel_bytes, minimum_bytes, summary, summary_table
from benchmarks.positions import Position

KERNELS = ("prepare", "pixels", "scale", "project", "collect", "finish")


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def elapsed_ms(run: Callable[[], None]) -> float:
        start = time.perf_counter()
        run()
        return (time.perf_counter() - start) * 1e3

    for name, value in {
        "elapsed_ms": elapsed_ms,
        "in_graph": gpu_timing.in_turn,
        "ROUNDS": 1,
        "ROUND_MS": 0.1,
    }.items():
        monkeypatch.setattr(gpu_timing, name, value)
    properties = SimpleNamespace(name="a clock", L2_cache_size=1000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    plain = nc_layer_gpu.nc
    for name, value in {
        "nc": lambda p, backend: plain(p, "direct"),
        "copy_bandwidth": lambda device: 1e9,
        "peak_bytes": lambda call: 7,
        "kernel_seconds": lambda call, sets: dict.fromkeys(KERNELS, 1e-5),
        "COMPILED_POSITIONS": 1,
        "generator_positions": lambda: [
            Position("a", 3, 8, 8, 4, 3, 1, 1),
            Position("b", 4, 2, 2, 6, 4, 2, 1),
        ],
    }.items():
        monkeypatch.setattr(nc_layer_gpu, name, value)
    monkeypatch.setattr(torch, "compile", lambda forward, **options: forward)
    before = torch.backends.cuda.matmul.allow_tf32  # the run sets it for the process
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def test_every_goal_gets_a_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = nc_layer_gpu.run(tmp_path, minutes=60, device="cpu")
    assert [line["goal"] for line in lines if line["verdict"] == MISSING] == []
    assert len(lines) == len(nc_goals.GOALS) + 1  # the host time
    content = json.loads((tmp_path / "nc_layer_cuda.json").read_text())
    assert len(content["rows"]) == 12  # one position (the other is 1 x 1), 3 batches, 2 types, 2 layouts
    assert content["left out"] == []
    text = (tmp_path / "nc_layer_cuda.md").read_text()
    assert text.count("3x8x8 -> 4") == 12
    assert text.count("(17%)") == 4 * len(KERNELS)  # of equal times, a sixth each
    assert text.rstrip().endswith("|")
    assert "0 of 12 settings not measured" in capsys.readouterr().out


def test_a_failing_candidate_costs_its_own_figures_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("no such luck\nmore words")

    monkeypatch.setattr(torch, "compile", lambda forward, **options: fail)
    monkeypatch.setattr(nc_layer_gpu, "kernel_seconds", fail)
    lines = nc_layer_gpu.run(tmp_path, minutes=60, device="cpu")
    assert [line["goal"] for line in lines if line["verdict"] == MISSING] == ["compiled direct / nc, time"]
    said = capsys.readouterr().err.splitlines()
    assert "compiled direct is left out: RuntimeError: no such luck" in said
    assert "the profiler does not work: no such luck" in said  # the bandwidth comes from the difference


def test_a_run_that_is_cut_short_leaves_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, calls = nc_layer_gpu.measure, []

    def measure(*arguments: object) -> dict[str, object]:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(nc_layer_gpu, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        nc_layer_gpu.run(tmp_path, minutes=60, device="cpu")
    assert len(json.loads((tmp_path / "nc_layer_cuda.json").read_text())["rows"]) == 2


def test_the_time_limit_is_kept(tmp_path: Path) -> None:
    lines = nc_layer_gpu.run(tmp_path, minutes=-1, device="cpu")
    assert sum(line["verdict"] == MISSING for line in lines) == len(nc_goals.GOALS)
    assert len(json.loads((tmp_path / "nc_layer_cuda.json").read_text())["left out"]) == 12


def test_bytes_that_must_move() -> None:
    batch, channels, outputs, kernel, padding = 2, 3, 6, 3, 1
    shape = (batch, channels, (4, 5), outputs, (4, 5), kernel, padding)
    x, padded, y, weight = 2 * 3 * 20, 6 * 7, 2 * 6 * 20, 6 * 3 * 9
    maps = 4 * 2 * (4 * padded + 8 * 20)
    assert minimum_bytes(*shape, item=2) == 2 * (4 * x + 5 * y + 4 * weight) + maps
    assert minimum_bytes(*shape, item=4) == 4 * (4 * x + 2 * 3 * padded + 5 * y + 4 * weight) + maps
    mirrored = 3 * x + 2 * 6 * padded + 5 * y + 4 * weight
    assert minimum_bytes(*shape, item=2, reflect=True) == 2 * mirrored + maps
    kernels = {item: kernel_bytes(*shape, item) for item in (2, 4)}
    assert kernels[4]["pixels"] - 2 * kernels[2]["pixels"] == 4 * 2 * 3 * 42 - 2 * 4 * 2 * 42


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
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --device cuda: torch finds no NVIDIA GPU")
    assert done.stderr.count("\n") == 1
