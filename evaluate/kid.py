"""The kernel Inception distance: unbiased squared maximum mean discrepancy, fit for small sets.

Binkowski et al. 2018, "Demystifying MMD GANs", section 4: polynomial kernel k(x, y) = (x.y / d + 1)^3,
mean over random subsets of both sets. Its expectation does not depend on the number of images, unlike FID's.
"""

import numpy as np
from numpy.typing import NDArray

SUBSETS = 100  # random subsets of which the mean is taken
SUBSET_SIZE = 100  # images per subset, or all of the smaller set


def squared_mmd(x: NDArray, y: NDArray) -> float:
    """Unbiased estimate of the squared MMD between features (n, d) and (n, d); may be slightly negative.

    >>> squared_mmd(np.zeros((2, 1)), np.zeros((2, 1)))
    0.0
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if min(len(x), len(y)) < 2:
        raise ValueError("KID needs at least 2 images on both sides")
    return mmd_from_kernels(polynomial_kernel(x, x), polynomial_kernel(y, y), polynomial_kernel(x, y))


def mmd_from_kernels(within_x: NDArray, within_y: NDArray, across: NDArray) -> float:
    """The same from the kernel values (n, n), (m, m), (n, m)."""
    n, m = across.shape
    return float(
        (within_x.sum() - np.trace(within_x)) / (n * (n - 1))
        + (within_y.sum() - np.trace(within_y)) / (m * (m - 1))
        - 2.0 * across.mean()
    )


def polynomial_kernel(x: NDArray, y: NDArray) -> NDArray:
    """(n, d), (m, d) -> (n, m): (x.y / d + 1)^3."""
    return (x @ y.T / x.shape[1] + 1.0) ** 3


def kid(
    real: NDArray, fake: NDArray, *, subsets: int = SUBSETS, size: int = SUBSET_SIZE, seed: int = 0
) -> float:
    """Mean of `squared_mmd` over random subsets of min(size, n_real, n_fake) rows, drawn without replacement.

    ValueError for fewer than 2 rows or for values that are not finite.
    """
    if not (np.isfinite(real).all() and np.isfinite(fake).all()):
        raise ValueError("features are not finite")
    size = min(size, len(real), len(fake))
    if size == len(real) == len(fake):
        return squared_mmd(real, fake)  # every subset is the whole set
    draw = np.random.default_rng(seed)
    values = [
        squared_mmd(
            real[draw.choice(len(real), size, replace=False)],
            fake[draw.choice(len(fake), size, replace=False)],
        )
        for _ in range(subsets)
    ]
    return float(np.mean(values))
