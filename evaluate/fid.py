"""The Fréchet distance of two Gaussians, exact for covariances of any rank, from features in blocks.

    d^2 = |mu_1 - mu_2|^2 + tr S_1 + tr S_2 - 2 tr (S_1 S_2)^(1/2)        (Heusel et al. 2017, equation 6)

With S_1 = F_1^T F_1 and S_2 = F_2^T F_2 the eigenvalues of S_1 S_2 are the squared singular values of F_1
F_2^T, so the last trace is that matrix's nuclear norm. No matrix square root, hence no imaginary part to
drop and nothing to add to a diagonal; for n images of d features the matrix is min(n, d) on a side, which
is small for small sets.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

BLOCK = 512  # rows of features that are in memory at once

SVD_LIMIT = 1024
"""Up to this side singular values are computed directly, above by the faster product with itself."""


@dataclass(frozen=True)
class FeatureRows:
    """`count` rows of features that need not be in memory together.

    read: gives the rows of some numbers, (k,) -> (k, d), in their order. weights: how often each row counts, (count,)
    with the sum `count`; None: once. Statistics over blocks cost the same memory for a hundred pictures and for a
    hundred thousand.
    """

    count: int
    read: Callable[[NDArray[np.int64]], NDArray]
    weights: Array | None = None

    @classmethod
    def of(cls, array: NDArray) -> "FeatureRows":
        """The rows of an array (n, d)."""
        return cls(len(array), lambda numbers: array[numbers])

    def all(self) -> NDArray:
        """(count, d): every row once."""
        return self.read(np.arange(self.count))

    def resampled(self, numbers: NDArray[np.int64]) -> "FeatureRows":
        """As many rows, those of these numbers (count,), with repeats."""
        return replace(self, weights=np.bincount(numbers, minlength=self.count).astype(np.float64))

    def blocks(self) -> Iterator[tuple[slice, Array]]:
        """All rows in order, in float64: (which, rows) for at most `BLOCK` of them at a time."""
        for start in range(0, self.count, BLOCK):
            which = slice(start, min(start + BLOCK, self.count))
            yield which, self.read(np.arange(which.start, which.stop)).astype(np.float64)


@dataclass(frozen=True)
class Gaussian:
    """Mean (d,) and a factor (r, d) of the covariance factor^T factor."""

    mean: Array
    factor: Array


def fid(fakes: FeatureRows, reals: FeatureRows | Gaussian) -> float:
    """The Fréchet distance of the Gaussians of two sets of features. ValueError as `gaussian_from_features`."""
    theirs = reals if isinstance(reals, Gaussian) else gaussian_from_features(reals)
    return frechet_distance(gaussian_from_features(fakes), theirs)


def gaussian_from_features(features: FeatureRows) -> Gaussian:
    """The Gaussian of (n, d) features with the unbiased covariance (divisor n - 1).

    Rows are read twice, a block at a time: memory does not grow with n, only with the smaller of n and d. ValueError
    for fewer than 2 rows or for values that are not finite.
    """
    if features.count < 2:
        raise ValueError("a covariance needs at least 2 images")
    weights = np.ones(features.count) if features.weights is None else features.weights
    mean: Array = (
        np.sum([weights[which] @ block for which, block in features.blocks()], axis=0) / features.count
    )
    if not np.isfinite(mean).all():
        raise ValueError("features are not finite")
    width = len(mean)
    many = features.count > width
    rows, covariance = [], np.zeros((width, width) if many else (0, 0))
    for which, block in features.blocks():
        centred = (block - mean) * np.sqrt(weights[which, None] / (features.count - 1))
        if many:
            covariance += centred.T @ centred
        else:
            rows.append(centred)
    return Gaussian(mean, factor_of(covariance) if many else np.concatenate(rows))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Squared Fréchet distance (the number called FID) of two Gaussians of equal dimension; 0 or more.

    >>> a, b = Gaussian(np.zeros(3), np.eye(3)), Gaussian(np.full(3, 2.0), np.eye(3))
    >>> round(frechet_distance(a, b), 9)
    12.0
    """
    shift = a.mean - b.mean
    traces = float(np.sum(a.factor**2) + np.sum(b.factor**2))
    distance = float(shift @ shift) + traces - 2.0 * _nuclear_norm(a.factor @ b.factor.T)
    # The exact value is never negative; rounding leaves a few units of 1e-16 of the traces.
    return max(distance, 0.0)


def factor_of(covariance: Array) -> Array:
    """F with F^T F = covariance: a Cholesky factor if there is one, else by eigenvalues, zeros left out."""
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


SUBSETS = 100  # random subsets of which the mean is taken
SUBSET_SIZE = 100  # images per subset, or all of the smaller set


def squared_mmd(x: NDArray, y: NDArray) -> float:
    """Unbiased estimate of the squared MMD between features (n, d) and (m, d); may be slightly negative.

    >>> squared_mmd(np.zeros((2, 1)), np.zeros((2, 1)))
    0.0
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if min(len(x), len(y)) < 2:
        raise ValueError("KID needs at least 2 images on both sides")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("features are not finite")
    n, m = len(x), len(y)
    within_x, within_y = polynomial_kernel(x, x), polynomial_kernel(y, y)
    return float(
        (within_x.sum() - np.trace(within_x)) / (n * (n - 1))
        + (within_y.sum() - np.trace(within_y)) / (m * (m - 1))
        - 2.0 * polynomial_kernel(x, y).mean()
    )


def polynomial_kernel(x: NDArray, y: NDArray) -> NDArray:
    """(n, d), (m, d) -> (n, m): (x.y / d + 1)^3."""
    return (x @ y.T / x.shape[1] + 1.0) ** 3


def kid(
    fakes: FeatureRows,
    reals: FeatureRows,
    *,
    subsets: int = SUBSETS,
    size: int = SUBSET_SIZE,
    seed: int = 0,
) -> float:
    """Mean of `squared_mmd` over random subsets of min(size, n_real, n_fake) rows, drawn without replacement.

    ValueError for fewer than 2 rows or for values that are not finite.
    """
    size = min(size, reals.count, fakes.count)
    if size == reals.count == fakes.count:
        return squared_mmd(reals.all(), fakes.all())  # every subset is the whole set
    draw = np.random.default_rng(seed)
    values = [
        squared_mmd(
            reals.read(draw.choice(reals.count, size, replace=False)),
            fakes.read(draw.choice(fakes.count, size, replace=False)),
        )
        for _ in range(subsets)
    ]
    return float(np.mean(values))


def resampled_mmd(
    x: FeatureRows, y: FeatureRows, x_repeats: NDArray[np.integer], y_repeats: NDArray[np.integer]
) -> NDArray[np.float64]:
    """`squared_mmd` of R resamples of both sets at once -> (R,).

    x_repeats (n, R), y_repeats (m, R): how often each row is in each resample; every column has the sum n, or m. Kernel
    values are made in blocks and never kept. The pairs of a row with a copy of itself count, as in a set of n.
    """
    within = [
        _kernel_sums(rows, rows, u, u) - _kernel_diagonals(rows, u)
        for rows, u in ((x, x_repeats), (y, y_repeats))
    ]
    across = _kernel_sums(x, y, x_repeats, y_repeats)
    n, m = len(x_repeats), len(y_repeats)
    return within[0] / (n * (n - 1)) + within[1] / (m * (m - 1)) - 2.0 * across / (n * m)


def _kernel_sums(x: FeatureRows, y: FeatureRows, u: NDArray, v: NDArray) -> NDArray[np.float64]:
    """(R,): u_r^T k(x, y) v_r."""
    total = np.zeros(u.shape[1])
    for i, rows in x.blocks():
        for j, columns in y.blocks():
            total += np.einsum("ir,ir->r", u[i].astype(np.float64), polynomial_kernel(rows, columns) @ v[j])
    return total


def _kernel_diagonals(x: FeatureRows, u: NDArray) -> NDArray[np.float64]:
    """(R,): sum over rows of u_r k(x, x)."""
    return sum(((rows**2).mean(axis=1) + 1.0) ** 3 @ u[i] for i, rows in x.blocks())
