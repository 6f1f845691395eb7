"""Feature rows that need not be in memory together: read in blocks, or by number.

Statistics over them then cost the same memory for a hundred pictures and for a hundred thousand.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK = 512  # rows that are in memory at once


@dataclass(frozen=True)
class FeatureRows:
    """`count` rows of features; `read` gives those of some numbers, (k,) -> (k, d), in their order."""

    count: int
    read: Callable[[NDArray[np.int64]], NDArray]

    def all(self) -> NDArray:
        """(count, d): every row."""
        return self.read(np.arange(self.count))

    def blocks(self) -> Iterator[tuple[slice, NDArray[np.float64]]]:
        """All rows in order, in float64: (which, rows) for at most `BLOCK` of them at a time."""
        for start in range(0, self.count, BLOCK):
            which = slice(start, min(start + BLOCK, self.count))
            yield which, self.read(np.arange(which.start, which.stop)).astype(np.float64)


Features = NDArray | FeatureRows


def as_rows(features: Features) -> FeatureRows:
    """Rows that are read from elsewhere as they are; an array (n, d) as its rows."""
    if isinstance(features, FeatureRows):
        return features
    array = np.asarray(features)
    return FeatureRows(len(array), lambda numbers: array[numbers])
