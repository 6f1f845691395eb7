"""How far a number would move with other pictures of the same kind: 95 % intervals by the bootstrap.

Pictures are drawn anew with replacement (both sides independently where there are no pairs), the metric is computed
again, and the interval is value ± 1.96 standard deviations of those. Only the deviation is used: the mean of resampled
FIDs is too high, because a resample holds fewer distinct pictures.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from evaluate.frechet import frechet_distance, gaussian_from_features
from evaluate.kid import resampled_mmd
from evaluate.metrics import SEED, Comparison, Metric, features_of, pairs_of
from evaluate.passes import Measurements, Wanted
from evaluate.pictures import set_hash

NORMAL_95 = 1.959964  # standard deviations on each side of a normal distribution's middle 95 %

Values = NDArray[np.float64]  # of one metric, one a resample


def half_intervals(
    row: Comparison, flags: Sequence[str], measurements: Measurements, resamples: int
) -> dict[str, float]:
    """Metric name -> half the width of its interval. Metrics that are infinite have none."""
    widths = {}
    for metric in row.metrics(flags):
        values = _RESAMPLES.get(metric.name, _of_means)(row, metric, measurements, resamples)
        if np.isfinite(values).all():
            widths[metric.name] = float(NORMAL_95 * values.std(ddof=1))
    return widths


def _draws(resamples: int, *counts: int) -> Iterator[list[NDArray[np.int64]]]:
    """For each resample, which pictures it has: numbers of the first set, of the second, ..., with repeats."""
    draw = np.random.default_rng(SEED)
    for _ in range(resamples):
        yield [draw.integers(0, count, count) for count in counts]


def _repeats(numbers: NDArray[np.int64]) -> NDArray[np.uint16]:
    """How often each picture was drawn."""
    return np.bincount(numbers, minlength=len(numbers)).astype(np.uint16)


def _of_means(row: Comparison, metric: Metric, measurements: Measurements, resamples: int) -> Values:
    values = measurements.pair_values(metric.flag, pairs_of(row, metric))
    return np.array([values[drawn].mean() for (drawn,) in _draws(resamples, len(values))])


def _of_frechet(row: Comparison, metric: Metric, measurements: Measurements, resamples: int) -> Values:
    fakes, reals = features_of(row, metric, measurements)
    return np.array(
        [
            frechet_distance(
                gaussian_from_features(fakes, _repeats(ours)), gaussian_from_features(reals, _repeats(theirs))
            )
            for ours, theirs in _draws(resamples, fakes.count, reals.count)
        ]
    )


def _of_kid(row: Comparison, metric: Metric, measurements: Measurements, resamples: int) -> Values:
    fakes, reals = features_of(row, metric, measurements)
    drawn = [list(map(_repeats, both)) for both in _draws(resamples, reals.count, fakes.count)]
    theirs, ours = (np.stack(repeats, axis=1) for repeats in zip(*drawn, strict=True))
    return resampled_mmd(reals, fakes, theirs, ours)


def _of_all_pairs(row: Comparison, metric: Metric, measurements: Measurements, resamples: int) -> Values:
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
    return np.array(
        [
            to_reals[ours].mean() + to_fakes[theirs].mean() - to_reals.mean()
            for ours, theirs in _draws(resamples, len(fakes), len(reals))
        ]
    )


_RESAMPLES: Mapping[str, Callable[[Comparison, Metric, Measurements, int], Values]] = {
    "fid": _of_frechet,
    "fid_clean": _of_frechet,
    "kid": _of_kid,
    "lpips_all_pairs": _of_all_pairs,
}
