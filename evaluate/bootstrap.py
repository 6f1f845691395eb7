"""How far a number would move with other pictures of the same kind: 95 % intervals by the bootstrap.

Pictures are drawn anew with replacement (both sides independently where there are no pairs), the metric is computed
again, and the interval is value ± 1.96 standard deviations of those. Only the deviation is used: the mean of resampled
FIDs is too high, because a resample holds fewer distinct pictures.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from evaluate.frechet import frechet_distance, gaussian_from_features
from evaluate.kid import mmd_from_kernels, polynomial_kernel
from evaluate.metrics import SEED, Comparison, Metric, pairs_of
from evaluate.passes import Measurements, Wanted
from evaluate.pictures import set_hash

NORMAL_95 = 1.959964  # standard deviations on each side of a normal distribution's middle 95 %

Draw = np.random.Generator
Resample = Callable[[Draw], float]


def half_intervals(
    row: Comparison, flags: Sequence[str], measurements: Measurements, resamples: int
) -> dict[str, float]:
    """Metric name -> half the width of its interval. Metrics that are infinite have none."""
    widths = {}
    for metric in row.metrics(flags):
        resample = _RESAMPLES.get(metric.name, _of_means)(row, metric, measurements)
        draw = np.random.default_rng(SEED)
        values = np.array([resample(draw) for _ in range(resamples)])
        if np.isfinite(values).all():
            widths[metric.name] = float(NORMAL_95 * values.std(ddof=1))
    return widths


def _indices(draw: Draw, count: int) -> NDArray[np.int64]:
    return draw.integers(0, count, count)


def _of_means(row: Comparison, metric: Metric, measurements: Measurements) -> Resample:
    values = measurements.pair_values(metric.flag, pairs_of(row, metric))
    return lambda draw: float(values[_indices(draw, len(values))].mean())


def _of_frechet(row: Comparison, metric: Metric, measurements: Measurements) -> Resample:
    name = "fid_clean" if metric.name == "fid_clean" else "fid"
    fakes = measurements.features(name, row.fakes)  # type: ignore[arg-type]
    reals = measurements.features(name, row.reals)  # type: ignore[arg-type]
    return lambda draw: frechet_distance(
        gaussian_from_features(fakes[_indices(draw, len(fakes))]),
        gaussian_from_features(reals[_indices(draw, len(reals))]),
    )


def _of_kid(row: Comparison, metric: Metric, measurements: Measurements) -> Resample:
    fakes = measurements.features("fid", row.fakes).astype(np.float64)
    reals = measurements.features("fid", row.reals).astype(np.float64)
    kernels = (
        polynomial_kernel(reals, reals),
        polynomial_kernel(fakes, fakes),
        polynomial_kernel(reals, fakes),
    )

    def resample(draw: Draw) -> float:
        i, j = _indices(draw, len(reals)), _indices(draw, len(fakes))
        return mmd_from_kernels(kernels[0][np.ix_(i, i)], kernels[1][np.ix_(j, j)], kernels[2][np.ix_(i, j)])

    return resample


def _of_all_pairs(row: Comparison, metric: Metric, measurements: Measurements) -> Resample:
    """To first order in both samples: each picture's mean distance to the other set (Hájek projection)."""
    fakes, reals = tuple(row.fakes), tuple(row.reals)
    fake_hash, real_hash = set_hash(fakes), set_hash(reals)
    fake_sum, real_sum = measurements.lpips_sum(fakes), measurements.lpips_sum(reals)
    measurements.compute(
        Wanted(
            lpips_to_sets=[(p, real_sum, real_hash) for p in fakes]
            + [(p, fake_sum, fake_hash) for p in reals]
        )
    )
    to_reals = measurements.lpips_to_set(fakes, real_hash)
    to_fakes = measurements.lpips_to_set(reals, fake_hash)
    return lambda draw: float(
        to_reals[_indices(draw, len(fakes))].mean()
        + to_fakes[_indices(draw, len(reals))].mean()
        - to_reals.mean()
    )


_RESAMPLES: Mapping[str, Callable[[Comparison, Metric, Measurements], Resample]] = {
    "fid": _of_frechet,
    "fid_clean": _of_frechet,
    "kid": _of_kid,
    "lpips_all_pairs": _of_all_pairs,
}
