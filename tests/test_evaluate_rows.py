"""Statistics of more features than memory should hold: equal to those of all at once, and flat in memory."""

import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from evaluate_support import FastMeasurements, FewFeatures, write_pictures
from numpy.typing import NDArray
from torch import Tensor

from evaluate import fid, measure
from evaluate.comparisons import Comparison
from evaluate.fid import FeatureRows, gaussian_from_features, kid, resampled_mmd, squared_mmd
from evaluate.pictures import folder_pictures


def made(count: int, width: int, seed: int = 0) -> FeatureRows:
    """Rows that exist only while they are read."""

    def read(numbers: NDArray[np.int64]) -> NDArray:
        return np.stack([np.random.default_rng((seed, int(i))).standard_normal(width) for i in numbers])

    return FeatureRows(count, read)


def peak_memory(function: Callable[[], object]) -> int:
    """Bytes that were allocated at once, above those at the start."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("count", [3, 40, 41, 1500])  # singular, square, full rank, several blocks
def test_gaussian_of_rows_read_in_blocks(count: int) -> None:
    """Every row once, and with repeats, which count as often."""
    features = made(count, 40, count)
    numbers = np.random.default_rng(1).integers(0, count, count)
    expected = features.all()
    for rows, values in ((features, expected), (features.resampled(numbers), expected[numbers])):
        found = gaussian_from_features(rows)
        np.testing.assert_allclose(found.mean, values.mean(0), atol=1e-14)
        np.testing.assert_allclose(found.factor.T @ found.factor, np.cov(values, rowvar=False), atol=1e-12)


def test_kid_of_rows_is_kid_of_the_array() -> None:
    a, b = made(150, 16, 1), made(130, 16, 2)
    assert kid(a, b, subsets=20) == kid(FeatureRows.of(a.all()), FeatureRows.of(b.all()), subsets=20)


def test_kid_of_resamples_against_the_resampled_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fid, "BLOCK", 4)
    a, b = made(9, 5, 1).all(), made(11, 5, 2).all()
    draw = np.random.default_rng(3)
    drawn = [(draw.integers(0, 9, 9), draw.integers(0, 11, 11)) for _ in range(3)]
    u = np.stack([np.bincount(i, minlength=9) for i, _ in drawn], axis=1)
    v = np.stack([np.bincount(j, minlength=11) for _, j in drawn], axis=1)
    expected = [squared_mmd(a[i], b[j]) for i, j in drawn]
    np.testing.assert_allclose(
        resampled_mmd(FeatureRows.of(a), FeatureRows.of(b), u, v), expected, rtol=1e-12
    )


def test_memory_does_not_grow_with_the_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fid, "BLOCK", 64)
    few, many = made(300, 64), made(1_200, 64)

    def bootstrap(features: FeatureRows) -> object:
        repeats = np.ones((features.count, 1), np.uint16)
        return resampled_mmd(features, features, repeats, repeats)

    calls: list[Callable[[FeatureRows], object]] = [
        gaussian_from_features,
        lambda features: kid(features, few, subsets=3),
        bootstrap,
    ]
    for call in calls:
        call(few)  # what is imported at the first call does not count
        assert peak_memory(partial(call, many)) < 1.1 * peak_memory(partial(call, few))


def test_memory_of_a_report_is_flat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture costs its name, its hashes and its place in lists, far less than its features (8 KiB in earnest)."""
    monkeypatch.setattr(measure, "ROWS_IN_MEMORY", 16)
    monkeypatch.setattr(fid, "BLOCK", 16)

    class Wide(FewFeatures):
        def width(self, kind: str) -> int:
            return 2048

        def features(self, kind: str, images: Tensor) -> Tensor:
            return super().features(kind, images).repeat(1, 2048 // 8)

    def report(count: int) -> None:
        pictures = folder_pictures(tmp_path / str(count), None)
        measurements = FastMeasurements(batch_size=8, networks=Wide())
        measurements.values(Comparison("row", "", pictures, pictures), ("kid", "lpips"))
        blocks = measurements.features("fid", pictures).blocks()  # as an FID reads them, without its cost
        assert sum(len(block) for _, block in blocks) == count

    for count in (120, 360):
        write_pictures(tmp_path / str(count), count, 1)
    report(120)  # imports and caches
    growth = (peak_memory(lambda: report(360)) - peak_memory(lambda: report(120))) / 240
    assert growth < 4096, f"{growth:.0f} bytes a picture"


def test_intervals_do_not_depend_on_where_the_rows_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes, reals = (folder_pictures(write_pictures(tmp_path / str(seed), 9, seed), None) for seed in (1, 2))
    row = Comparison("row", "", fakes, reals)
    in_memory = FastMeasurements().widths(row, ("fid", "kid"), 20)
    monkeypatch.setattr(measure, "ROWS_IN_MEMORY", 0)
    monkeypatch.setattr(fid, "BLOCK", 2)
    assert FastMeasurements().widths(row, ("fid", "kid"), 20) == pytest.approx(in_memory, rel=1e-6)
    assert set(in_memory) == {"fid", "kid"}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak memory from Linux's /proc")
def test_a_cache_without_a_file_is_not_in_memory() -> None:
    """80 MB of features in the process that made them: its peak grows by far less."""
    program = """
import numpy as np
from evaluate.features import FeatureCache
cache, row = FeatureCache(None), np.zeros(2048, np.float32)
peak = lambda: int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
cache.put({"first": row})
before = peak()
for i in range(100):
    cache.put({f"{i} {j}": row + i + j for j in range(100)})
print(peak() - before, dict(cache.stream([("99 99", 2048)]))["99 99"][0])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    kilobytes, value = done.stdout.split()
    assert float(value) == 198.0
    assert int(kilobytes) < 20_000
