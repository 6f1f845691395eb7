"""The Fréchet distance of two Gaussians, exact for covariances of any rank.

    d^2 = |mu_1 - mu_2|^2 + tr S_1 + tr S_2 - 2 tr (S_1 S_2)^(1/2)        (Heusel et al. 2017, equation 6)

With S_1 = F_1^T F_1 and S_2 = F_2^T F_2 the eigenvalues of S_1 S_2 are the squared singular values of F_1
F_2^T, so the last trace is that matrix's nuclear norm. No matrix square root, hence no imaginary part to
drop and nothing to add to a diagonal; for n images of d features the matrix is min(n, d) on a side, which
is small for small sets.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluate.rows import Features, as_rows

Array = NDArray[np.float64]

SVD_LIMIT = (
    1024  # up to this side singular values are computed directly, above by the faster product with itself
)


@dataclass(frozen=True)
class Gaussian:
    """Mean (d,) and a factor (r, d) of the covariance, factor^T factor, estimated from `count` samples."""

    mean: Array
    factor: Array
    count: int


def gaussian_from_features(features: Features, repeats: NDArray[np.integer] | None = None) -> Gaussian:
    """The Gaussian of (n, d) features with the unbiased covariance (divisor n - 1).

    repeats: how often each row counts, (n,); once, if not given. Rows that are read from elsewhere are read
    twice, a block at a time: memory does not grow with n, only with the smaller of n and d. ValueError for fewer than 2
    rows or for values that are not finite.
    """
    rows = as_rows(features)
    weights = np.ones(rows.count) if repeats is None else np.asarray(repeats, np.float64)
    count = round(float(weights.sum()))
    if count < 2:
        raise ValueError("a covariance needs at least 2 images")
    mean: Array = np.sum([weights[which] @ block for which, block in rows.blocks()], axis=0) / count
    if not np.isfinite(mean).all():
        raise ValueError("features are not finite")
    width = len(mean)
    parts, covariance = [], np.zeros((width, width) if rows.count > width else (0, 0))
    for which, block in rows.blocks():
        centred = (block - mean) * np.sqrt(weights[which, None] / (count - 1))
        if rows.count > width:
            covariance += centred.T @ centred
        else:
            parts.append(centred)
    return Gaussian(mean, np.concatenate(parts) if parts else _factor(covariance), count)


def gaussian_from_moments(mean: NDArray, covariance: NDArray, count: int = 0) -> Gaussian:
    """The Gaussian of a given mean (d,) and symmetric positive semi-definite covariance (d, d)."""
    mean, covariance = np.asarray(mean, np.float64), np.asarray(covariance, np.float64)
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError("moments are not finite")
    return Gaussian(mean, _factor(covariance), count)


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Squared Fréchet distance (the number called FID) of two Gaussians of equal dimension; 0 or more.

    >>> identity = np.eye(3)
    >>> a, b = gaussian_from_moments(np.zeros(3), identity), gaussian_from_moments(np.full(3, 2.0), identity)
    >>> round(frechet_distance(a, b), 9)
    12.0
    """
    shift = a.mean - b.mean
    traces = float(np.sum(a.factor**2) + np.sum(b.factor**2))
    distance = float(shift @ shift) + traces - 2.0 * _nuclear_norm(a.factor @ b.factor.T)
    # The exact value is never negative; rounding leaves a few units of 1e-16 of the traces.
    return max(distance, 0.0)


def _factor(covariance: Array) -> Array:
    """F with F^T F = covariance; a Cholesky factor where there is one, else by eigenvalues, leaving out zeros."""
    try:
        return np.asarray(np.linalg.cholesky(covariance).T, np.float64)
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(covariance)
        kept = values > 0.0  # a covariance has no negative eigenvalues: those are zeros and rounding
        return (vectors[:, kept] * np.sqrt(values[kept])).T


def _nuclear_norm(matrix: Array) -> float:
    """Sum of the singular values.

    Large square matrices go by the eigenvalues of M M^T, four times faster; singular values below 1e-8 of the
    largest are then only known to that precision, which is 1e-5 of the largest for 2048 of them together.
    """
    if min(matrix.shape) <= SVD_LIMIT:
        return float(np.linalg.svd(matrix, compute_uv=False).sum())
    small_side = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    return float(np.sqrt(np.linalg.eigvalsh(small_side @ small_side.T).clip(min=0.0)).sum())
