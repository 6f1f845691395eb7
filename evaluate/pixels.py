"""PSNR, SSIM, L1 and pixel accuracy of two pictures: pure functions of arrays, computed in float64.

Pictures are (H, W, C) arrays of equal shape with values from 0 (black) to `data_range` (white): 255 for
uint8, 1 for floats in [0, 1].
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

WINDOW = 11  # pixels; SSIM's Gaussian window
SIGMA = 1.5  # pixels; its standard deviation
TOLERANCE = 16  # of 255; a pixel with a larger difference in some channel is wrong
STRIP = 2**18  # pixels that are in float64 at once: a picture of 64 megapixels would take gigabytes

Array = NDArray[np.float64]
PixelFunction = Callable[[NDArray, NDArray], float]


def _strips(a: NDArray, b: NDArray, margin: int = 0) -> Iterator[tuple[Array, Array]]:
    """Both pictures in float64, a few rows at a time; each strip has `margin` rows of the next one."""
    if a.shape != b.shape:
        raise ValueError(f"pictures of different shape: {a.shape} and {b.shape}")
    height = max(1, STRIP // a.shape[1])
    for top in range(0, a.shape[0] - margin, height):
        rows = slice(top, top + height + margin)
        yield a[rows].astype(np.float64), b[rows].astype(np.float64)


def psnr(a: NDArray, b: NDArray, data_range: float = 255.0) -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(range^2 / mean squared error); inf for equal pictures.

    >>> round(psnr(np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 255, np.uint8)), 3)
    0.0
    """
    error = sum(float(np.sum((x - y) ** 2)) for x, y in _strips(a, b)) / a.size
    return float("inf") if error == 0.0 else float(10.0 * np.log10(data_range**2 / error))


def l1(a: NDArray, b: NDArray, data_range: float = 255.0) -> float:
    """Mean absolute difference as a share of the range: 0 for equal pictures, 1 for black against white.

    >>> l1(np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 255, np.uint8))
    1.0
    """
    return sum(float(np.sum(np.abs(x - y))) for x, y in _strips(a, b)) / a.size / data_range


def pixel_accuracy(a: NDArray, b: NDArray, data_range: float = 255.0) -> float:
    """Share of pixels whose largest channel difference is at most 16 of 255; our own definition, for maps.

    >>> pixel_accuracy(np.zeros((1, 2, 3), np.uint8), np.array([[[0, 16, 0], [0, 17, 0]]], np.uint8))
    0.5
    """
    limit = TOLERANCE * data_range / 255.0
    right = sum(int(np.sum(np.abs(x - y).max(axis=2) <= limit)) for x, y in _strips(a, b))
    return right / (a.shape[0] * a.shape[1])


def ssim(a: NDArray, b: NDArray, data_range: float = 255.0) -> float:
    """Structural similarity, mean over channels and all window positions that lie inside the picture.

    Gaussian window of 11 x 11 pixels with sigma 1.5, K1 = 0.01, K2 = 0.03, population covariances, as in
    Wang et al. 2004 ("Image quality assessment", equations 13-17). ValueError where a side is under 11
    pixels.

    >>> picture = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
    >>> round(ssim(picture, picture), 6)
    1.0
    """
    if min(a.shape[:2]) < WINDOW:
        raise ValueError(f"SSIM needs at least {WINDOW}x{WINDOW} pixels, not {a.shape[1]}x{a.shape[0]}")
    sums = [float(np.sum(_similarity(x, y, data_range))) for x, y in _strips(a, b, WINDOW - 1)]
    return sum(sums) / ((a.shape[0] - WINDOW + 1) * (a.shape[1] - WINDOW + 1) * a.shape[2])


def _similarity(a: Array, b: Array, data_range: float) -> Array:
    """(H-10, W-10, C): the similarity at every window position."""
    mean_a, mean_b = _blur(a), _blur(b)
    variance_a = _blur(a * a) - mean_a**2
    variance_b = _blur(b * b) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    return luminance * structure


def _blur(x: Array) -> Array:
    """(H, W, C) -> (H-10, W-10, C): the Gaussian-weighted mean of every window, one axis after the other."""
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * SIGMA**2))
    weights /= weights.sum()
    height, width = x.shape[0] - WINDOW + 1, x.shape[1] - WINDOW + 1
    rows: Array = sum((w * x[i : i + height] for i, w in enumerate(weights)), start=np.zeros(()))
    return sum((w * rows[:, i : i + width] for i, w in enumerate(weights)), start=np.zeros(()))
