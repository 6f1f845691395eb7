"""What can be had without learning any structure: the floor a trained network has to beat.

Two predictors, both fitted on the training pairs: the mean colour of all targets, and the affine map from input
colour to target colour with the least squared error.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluate.pictures import FilePicture, Pixels, Prediction


@dataclass(frozen=True)
class ColourFit:
    """mean: (3,) colour of the targets; affine: (4, 3), target = (input, 1) @ affine; both on the scale 0..255."""

    mean: NDArray[np.float64]
    affine: NDArray[np.float64]

    def mean_colour(self, picture: Pixels) -> Pixels:
        """(H, W, 3) in the mean colour, whatever the input shows."""
        return _to_uint8(np.broadcast_to(self.mean, picture.shape))

    def affine_colour(self, picture: Pixels) -> Pixels:
        """(H, W, 3): every pixel's colour mapped on its own."""
        return _to_uint8(picture.astype(np.float64) @ self.affine[:3] + self.affine[3])

    def predictions(self, inputs: Sequence[FilePicture]) -> dict[str, list[Prediction]]:
        """What both predictors make of these inputs, by the predictor's name."""
        fit = hashlib.sha256(self.mean.tobytes() + self.affine.tobytes()).hexdigest()[:16]
        functions = {"mean colour": self.mean_colour, "affine colour map": self.affine_colour}
        return {
            name: [Prediction(picture, function, f"{name} {fit}") for picture in inputs]
            for name, function in functions.items()
        }


def fit_colours(pairs: Iterable[tuple[Pixels, Pixels]]) -> ColourFit:
    """Fit both on (input, target) pictures (H, W, 3) uint8, one pair in memory at a time.

    Normal equations in float64; where inputs do not vary in some direction (grey pictures) the least-norm solution.
    ValueError for no pairs.
    """
    gram, cross = np.zeros((4, 4)), np.zeros((4, 3))
    for picture, target in pairs:
        x = np.concatenate([picture.reshape(-1, 3), np.ones((picture.size // 3, 1))], axis=1)
        y = target.reshape(-1, 3).astype(np.float64)
        gram += x.T @ x
        cross += x.T @ y
    if gram[3, 3] == 0:
        raise ValueError("no training pairs to fit a baseline on")
    return ColourFit(cross[3] / gram[3, 3], np.linalg.pinv(gram, rcond=1e-12, hermitian=True) @ cross)


def _to_uint8(picture: NDArray[np.float64]) -> Pixels:
    return np.rint(picture.clip(0, 255)).astype(np.uint8)
