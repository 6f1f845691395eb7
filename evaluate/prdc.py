"""Precision, recall, density and coverage of two sets of features, as one number a picture whose mean is the metric.

Around each picture of a set lies an open ball that ends at its K-th nearest neighbour in the same set. Precision and
recall as in Kynkäänniemi et al. 2019 ("Improved precision and recall metric for assessing generative models"), density
and coverage as in Naeem et al. 2020 ("Reliable fidelity and diversity metrics for generative models"), whose K is used.
"""

from collections.abc import Callable

import numpy as np

from evaluate.fid import Array, FeatureRows

K = 5
ROUNDING = 1e-12  # of squared lengths: features that are no farther apart are equal

PictureValues = Callable[[FeatureRows, FeatureRows], Array]  # of fakes and reals, one a picture of either


def precision(fakes: FeatureRows, reals: FeatureRows) -> Array:
    """(n_fake,): 1 for a fake that lies in the ball of some real picture, else 0."""
    return (ball_counts(reals, fakes)[0] > 0).astype(np.float64)


def recall(fakes: FeatureRows, reals: FeatureRows) -> Array:
    """(n_real,): 1 for a real picture that lies in the ball of some fake, else 0."""
    return precision(reals, fakes)


def density(fakes: FeatureRows, reals: FeatureRows) -> Array:
    """(n_fake,): in how many balls of real pictures a fake lies, divided by K."""
    return ball_counts(reals, fakes)[0] / K


def coverage(fakes: FeatureRows, reals: FeatureRows) -> Array:
    """(n_real,): 1 for a real picture in whose ball some fake lies, else 0."""
    return (ball_counts(reals, fakes)[1] > 0).astype(np.float64)


def ball_counts(centres: FeatureRows, points: FeatureRows, k: int = K) -> tuple[Array, Array]:
    """In how many balls each point lies, (points.count,), and how many points each ball holds, (centres.count,).

    >>> line, points = (FeatureRows.of(np.array(x, float)[:, None]) for x in ([0, 1, 3], [0.5, 2.5]))
    >>> [counts.tolist() for counts in ball_counts(line, points, k=1)]
    [[2.0, 1.0], [1.0, 1.0, 1.0]]
    """
    ends = squared_radii(centres, k)
    around, held = np.zeros(points.count), np.zeros(centres.count)
    for i, x in centres.blocks():
        for j, y in points.blocks():
            inside = squared_distances(x, y) < ends[i, None]
            around[j] += inside.sum(axis=0)
            held[i] += inside.sum(axis=1)
    return around, held


def squared_radii(rows: FeatureRows, k: int = K) -> Array:
    """(n,): each row's squared distance to its k-th nearest other row. ValueError for fewer than k + 1 rows."""
    if rows.count <= k:
        raise ValueError(f"{rows.count} images have no neighbour number {k}")
    ends = np.empty(rows.count)
    for i, x in rows.blocks():
        nearest = np.full((len(x), k), np.inf)
        for j, y in rows.blocks():
            distances = squared_distances(x, y)
            if i == j:
                np.fill_diagonal(distances, np.inf)  # a row is no neighbour of itself
            nearest = np.partition(np.hstack([nearest, distances]), k - 1, axis=1)[:, :k]
        ends[i] = nearest.max(axis=1)
    return ends


def squared_distances(x: Array, y: Array) -> Array:
    """(n, d), (m, d) -> (n, m)."""
    lengths = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1)
    distances = lengths - 2.0 * (x @ y.T)
    return np.where(distances > ROUNDING * lengths, distances, 0.0)
