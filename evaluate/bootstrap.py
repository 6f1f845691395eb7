"""How far a number would move with other pictures of the same kind: 95 % intervals by the bootstrap.

Pictures are drawn anew with replacement (both sides independently where there are no pairs), the metric is computed
again, and the interval is value ± 1.96 standard deviations of those. Only the deviation is used: the mean of resampled
FIDs is too high, because a resample holds fewer distinct pictures.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from evaluate.fid import FeatureRows, resampled_mmd

NORMAL_95 = 1.959964  # standard deviations on each side of a normal distribution's middle 95 %
SEED = 0

Values = NDArray[np.float64]  # of one metric, one a resample
Resampler = Callable[[FeatureRows, FeatureRows, int], Values]  # fakes, reals, number of resamples


def half_width(values: Values) -> float | None:
    """Half the width of the interval; None for a metric that is infinite somewhere."""
    return float(NORMAL_95 * values.std(ddof=1)) if np.isfinite(values).all() else None


def half_width_of_few(values: Values, resamples: int) -> float | None:
    """Of the mean of few values (n,), such as those of five seeds.

    Resamples of n values spread too little, by sqrt((n - 1) / n), and their deviation is itself uncertain: Student's t
    with n - 1 degrees of freedom stands for 1.96. Without both, five seeds would have an interval of 85 %.
    """
    n, width = len(values), half_width(of_mean(values, resamples))
    student = float(stats.t.ppf(0.975, n - 1)) / NORMAL_95
    return None if width is None else width * student * (n / (n - 1)) ** 0.5


def draws(resamples: int, *counts: int) -> Iterator[list[NDArray[np.int64]]]:
    """For each resample, which pictures it has: numbers of the first set, of the second, ..., with repeats."""
    draw = np.random.default_rng(SEED)
    for _ in range(resamples):
        yield [draw.integers(0, count, count) for count in counts]


def of_mean(values: Values, resamples: int) -> Values:
    """Means of resampled values (n,)."""
    return np.array([values[drawn].mean() for (drawn,) in draws(resamples, len(values))])


def of_distance(distance: Callable[[FeatureRows, FeatureRows], float]) -> Resampler:
    """For any distance of two sets: it is computed again for every resample."""

    def resampled(fakes: FeatureRows, reals: FeatureRows, resamples: int) -> Values:
        return np.array(
            [
                distance(fakes.resampled(ours), reals.resampled(theirs))
                for ours, theirs in draws(resamples, fakes.count, reals.count)
            ]
        )

    return resampled


def of_picture_values(function: Callable[[FeatureRows, FeatureRows], Values]) -> Resampler:
    """For the mean of one number a picture that the other set decides: the pictures are resampled, that set stays.

    Repeated pictures would be each other's nearest neighbours, so neighbours are those in the whole sets.
    """
    return lambda fakes, reals, resamples: of_mean(function(fakes, reals), resamples)


def of_kid(fakes: FeatureRows, reals: FeatureRows, resamples: int) -> Values:
    """The squared MMD of whole resamples, all at once."""
    drawn = [
        [np.bincount(numbers, minlength=len(numbers)).astype(np.uint16) for numbers in both]
        for both in draws(resamples, reals.count, fakes.count)
    ]
    theirs, ours = (np.stack(repeats, axis=1) for repeats in zip(*drawn, strict=True))
    return resampled_mmd(reals, fakes, theirs, ours)


def of_all_pairs(to_reals: Values, to_fakes: Values, resamples: int) -> Values:
    """To first order in both samples: each picture's mean distance to the other set (Hájek projection)."""
    return np.array(
        [
            to_reals[ours].mean() + to_fakes[theirs].mean() - to_reals.mean()
            for ours, theirs in draws(resamples, len(to_reals), len(to_fakes))
        ]
    )
