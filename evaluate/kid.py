"""The kernel Inception distance: unbiased squared maximum mean discrepancy, fit for small sets.

Binkowski et al. 2018, "Demystifying MMD GANs", section 4: polynomial kernel k(x, y) = (x.y / d + 1)^3,
mean over random subsets of both sets. Its expectation does not depend on the number of images, unlike FID's.
"""

import numpy as np
from numpy.typing import NDArray

from evaluate.fid import FeatureRows

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
