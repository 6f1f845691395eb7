"""What can be had without learning any structure: the floor a trained network has to beat.

Three predictors, all fitted on the training pairs: the mean colour of all targets, the affine map from input colour to
target colour with the least squared error, and a table of the mean target colour for each input colour.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluate.passes import PIXEL_METRICS
from evaluate.pictures import Picture
from evaluate.pixels import WINDOW

LEVELS = 32  # of each channel, in the table of colours
PicturePair = tuple[Picture, Picture]  # (input, target)


@dataclass(frozen=True)
class Baselines:
    """Colours on the scale 0..255: mean, (3,), of the targets; affine, (4, 3), for target = (input, 1) @ affine.

    table: (LEVELS ** 3, 3), the target colour by the input colour's `_bin`.
    """

    mean: NDArray[np.float64]
    affine: NDArray[np.float64]
    table: NDArray[np.float64]

    def mean_colour(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(H, W, 3) in the mean colour, whatever the input shows."""
        return _to_uint8(np.broadcast_to(self.mean, picture.shape))

    def affine_colour(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(H, W, 3): every pixel's colour mapped on its own."""
        return _to_uint8(picture.astype(np.float64) @ self.affine[:3] + self.affine[3])

    def table_colour(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(H, W, 3): every pixel's colour looked up: the best that can be had without looking at its neighbours."""
        return _to_uint8(self.table[_bin(picture)])


def fit_baselines(pairs: Iterable[tuple[NDArray[np.uint8], NDArray[np.uint8]]]) -> Baselines:
    """Fit all on (input, target) pictures (H, W, 3) uint8, one pair in memory at a time.

    Normal equations in float64; where inputs do not vary in some direction (grey pictures) the least-norm solution.
    A colour that no input has is looked up as the affine map of the middle of its bin.
    ValueError for no pairs.
    """
    gram, cross = np.zeros((4, 4)), np.zeros((4, 3))
    counts, sums = np.zeros((LEVELS**3, 1)), np.zeros((LEVELS**3, 3))
    for picture, target in pairs:
        x = np.concatenate([picture.reshape(-1, 3), np.ones((picture.size // 3, 1))], axis=1)
        y = target.reshape(-1, 3).astype(np.float64)
        gram += x.T @ x
        cross += x.T @ y
        np.add.at(sums, _bin(picture).ravel(), y)
        np.add.at(counts, _bin(picture).ravel(), 1.0)
    if gram[3, 3] == 0:
        raise ValueError("no training pairs to fit a baseline on")
    affine = np.linalg.pinv(gram, rcond=1e-12, hermitian=True) @ cross
    middles = (np.indices((LEVELS,) * 3).reshape(3, -1).T + 0.5) * 256 / LEVELS
    table = np.where(counts > 0, sums / counts.clip(1), middles @ affine[:3] + affine[3])
    return Baselines(cross[3] / gram[3, 3], affine, table)


def baselines(
    training_pairs: Sequence[PicturePair], test_pairs: Sequence[PicturePair]
) -> dict[str, dict[str, float]]:
    """ "mean colour", "affine colour map" and "colour table" -> psnr (dB), ssim, l1, means over the test pairs.

    Fitted on the training pairs. SSIM is left out where pictures are smaller than its window.
    """
    fitted = fit_baselines((a.load(), b.load()) for a, b in training_pairs)
    predictors = {
        "mean colour": fitted.mean_colour,
        "affine colour map": fitted.affine_colour,
        "colour table": fitted.table_colour,
    }
    values: dict[str, dict[str, list[float]]] = {name: {} for name in predictors}
    for a, b in test_pairs:
        picture, target = a.load(), b.load()
        for name, predict in predictors.items():
            prediction = predict(picture)
            for metric, function in PIXEL_METRICS.items():
                if metric != "ssim" or min(target.shape[:2]) >= WINDOW:
                    values[name].setdefault(metric, []).append(function(prediction, target))
    return {name: _means(found) for name, found in values.items()}


def _means(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {metric: float(np.mean(found)) for metric, found in values.items()}


def _bin(picture: NDArray[np.uint8]) -> NDArray[np.int64]:
    """(H, W, 3) -> (H, W): the number of each pixel's colour, LEVELS levels a channel."""
    levels = picture.astype(np.int64) * LEVELS // 256
    return levels @ np.array([LEVELS**2, LEVELS, 1])


def _to_uint8(picture: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.rint(picture.clip(0, 255)).astype(np.uint8)
