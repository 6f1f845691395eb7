"""Precision, recall, density and coverage against the authors' formulas written out, and against answers by hand."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from evaluate_support import FastMeasurements, write_pictures

from evaluate import fid, prdc
from evaluate.comparisons import Comparison
from evaluate.fid import FeatureRows
from evaluate.metrics import METRICS, problems_of
from evaluate.pictures import folder_pictures
from gan.loop import Training
from gan.options import PIXEL_METRICS

NAMES = ("precision", "recall", "density", "coverage")


def ours(fakes: np.ndarray, reals: np.ndarray, k: int, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The four means, with the metrics' K set to k."""
    monkeypatch.setattr(prdc.ball_counts, "__defaults__", (k,))
    monkeypatch.setattr(prdc, "K", k)
    sides = FeatureRows.of(fakes), FeatureRows.of(reals)
    return [float(np.mean(getattr(prdc, name)(*sides))) for name in NAMES]


def written_out(fakes: np.ndarray, reals: np.ndarray, k: int) -> list[float]:
    """Equations 1, 2, 4 and 5 of Naeem et al. 2020, picture by picture."""

    def radii(rows: np.ndarray) -> list[float]:
        others = [[math.dist(x, y) for j, y in enumerate(rows) if j != i] for i, x in enumerate(rows)]
        return [sorted(distances)[k - 1] for distances in others]

    real_radii, fake_radii = radii(reals), radii(fakes)
    near_real = [[math.dist(x, y) < r for x, r in zip(reals, real_radii, strict=True)] for y in fakes]
    near_fake = [[math.dist(x, y) < r for y, r in zip(fakes, fake_radii, strict=True)] for x in reals]
    return [
        sum(any(row) for row in near_real) / len(fakes),
        sum(any(row) for row in near_fake) / len(reals),
        sum(sum(row) for row in near_real) / (k * len(fakes)),
        sum(any(column) for column in zip(*near_real, strict=True)) / len(reals),
    ]


@pytest.mark.parametrize(
    ("n", "m", "width", "k", "block"), [(40, 30, 3, 5, 512), (17, 50, 8, 3, 7), (9, 9, 1, 1, 4)]
)
def test_against_the_formulas(
    n: int, m: int, width: int, k: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fid, "BLOCK", block)  # blocks that do not divide the sets give the same
    draw = np.random.default_rng(n)
    fakes, reals = draw.standard_normal((n, width)) * 0.8 + 0.5, draw.standard_normal((m, width))
    found = ours(fakes, reals, k, monkeypatch)
    assert found == pytest.approx(written_out(fakes, reals, k), abs=1e-12)
    assert 0 < min(found) < 1


def test_equal_and_disjoint_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where rounding is large beside the distances, and where the sets are cut into blocks."""
    monkeypatch.setattr(fid, "BLOCK", 16)
    a = np.random.default_rng(0).standard_normal((40, 12)).astype(np.float32) + 1000
    assert ours(a, a.copy(), 5, monkeypatch) == pytest.approx([1.0, 1.0, 1.0, 1.0], abs=1e-12)
    assert ours(a, a + 100, 5, monkeypatch) == [0.0, 0.0, 0.0, 0.0]


def test_a_line_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """k = 1. Reals 0, 1, 3, 10 have radii 1, 1, 2, 7; fakes 0.5, 4, 20 have 3.5, 3.5, 16.

    0.5 lies in the balls of 0 and 1, 4 in those of 3 and 10, 20 in none: precision 2/3, density 4/3, coverage 4/4.
    0, 1 and 3 lie in the ball of 0.5, 10 in that of 20: recall 4/4.
    """
    reals, fakes = (np.array(x, float)[:, None] for x in ([0, 1, 3, 10], [0.5, 4, 20]))
    assert ours(fakes, reals, 1, monkeypatch) == pytest.approx([2 / 3, 1.0, 4 / 3, 1.0])
    assert ours(reals, fakes, 1, monkeypatch) == pytest.approx([1.0, 2 / 3, 6 / 4, 1.0])


def test_a_ball_is_open_and_copies_have_no_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake on the edge is outside; outputs that are all equal have balls without content."""
    edge = np.array([[2.0], [50.0]])
    assert ours(edge, np.array([[0.0], [2.0], [-2.0]]), 1, monkeypatch)[2] == 0.5  # 2.0 in its own ball alone
    reals = np.random.default_rng(0).standard_normal((20, 30))
    collapsed = np.repeat(reals[:1], 8, axis=0)
    precision, recall, _, coverage = ours(collapsed, reals, 5, monkeypatch)
    assert (precision, recall) == (1.0, 0.0) and 1 / 20 <= coverage < 1
    with pytest.raises(ValueError, match="5 images have no neighbour number 5"):
        prdc.squared_radii(FeatureRows.of(reals[:5]), 5)


@pytest.fixture
def row(tmp_path: Path) -> Comparison:
    folders = write_pictures(tmp_path / "fake", 9, 1), write_pictures(tmp_path / "real", 12, 2)
    fakes, reals = (folder_pictures(folder, None) for folder in folders)
    return Comparison("row", "", fakes, reals)


@pytest.mark.parametrize(("suffix", "kind"), [("", "fid"), ("_lite0", "lite0")])
def test_the_table_has_them_on_both_features(suffix: str, kind: str, row: Comparison) -> None:
    measurements = FastMeasurements()
    found = measurements.values(row, tuple(name + suffix for name in NAMES))
    fakes, reals = (measurements.features(kind, side).all() for side in (row.fakes, row.reals))
    assert list(found.values()) == pytest.approx(written_out(fakes, reals, 5), abs=1e-12)
    assert measurements.networks.seen == {kind: 21}
    rows = [metric for metric in METRICS if metric.flag in found]
    assert all(m.by_name and not m.lower_is_better and m.least_count == 6 for m in rows)
    few = Comparison("few", "", row.fakes[:5], row.reals)
    assert "at least 6 images" in problems_of(["recall"], [few], 32, {})["recall"].reason


def test_intervals_are_those_of_a_mean_over_pictures(row: Comparison) -> None:
    """Of nine outputs, or of twelve real pictures: 1.96 sd / sqrt(n), within the scatter of 4000 resamples."""
    measurements = FastMeasurements()
    measurements.values(row, NAMES)
    sides = [measurements.features("fid", side) for side in (row.fakes, row.reals)]
    widths = measurements.widths(row, NAMES, 4000)
    for name in NAMES:
        values = getattr(prdc, name)(*sides)
        assert widths[name] == pytest.approx(1.96 * values.std() / len(values) ** 0.5, rel=0.1)


@pytest.mark.parametrize("name", ["precision_A", "coverage_lite0_B", "pixel_accuracy"])
def test_the_best_checkpoint_has_the_highest(name: str) -> None:
    options = SimpleNamespace(output=SimpleNamespace(best_by=name))
    training = SimpleNamespace(options=options, position=SimpleNamespace(best=0.5))
    assert Training._is_best(training, {name: 0.6}) and training.position.best == 0.6  # type: ignore[arg-type]
    assert not Training._is_best(training, {name: 0.4})  # type: ignore[arg-type]


def test_pixel_metrics_are_those_of_pairs_without_a_network() -> None:
    assert {m.flag for m in METRICS if m.needs == "targets" and not m.networks} == set(PIXEL_METRICS)
