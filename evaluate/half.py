"""Whether Inception may run in float16 here: tried on the first pictures, never assumed.

The error of FID depends on the network, the pictures and the GPU, so it is measured before every report: FID of the
first pictures of both sides by features in float16 against float32. The features are kept, so little is computed twice.
"""

from collections.abc import Sequence
from dataclasses import replace

from datasets.errors import UserError
from evaluate.frechet import frechet_distance, gaussian_from_features
from evaluate.metrics import Comparison
from evaluate.networks import FeatureName
from evaluate.passes import Measurements, Wanted

PICTURES = 64  # of each side
LARGEST_ERROR = 1e-3  # relative, of FID


def error_of_half(
    rows: Sequence[Comparison], flags: Sequence[str], full: Measurements, half: Measurements
) -> float:
    """The largest relative error that float16 brings to FID of the first pictures of any row.

    Infinite where float16 gives no finite features. 0.0 where no metric among `flags` needs Inception.
    """
    names: dict[FeatureName, bool] = {
        "fid": "fid" in flags or "kid" in flags,
        "fid_clean": "fid_clean" in flags,
    }
    errors = [0.0]
    for row in rows:
        few = replace(row, fakes=row.fakes[:PICTURES], reals=row.reals[:PICTURES])
        for name in (name for name, wanted in names.items() if wanted):
            expected = _distance(name, few, full)
            try:
                found = _distance(name, few, half)
            except UserError:  # not finite: beyond the range of float16
                return float("inf")
            errors.append(abs(found - expected) / expected if expected else 0.0)
    return max(errors)


def _distance(name: FeatureName, row: Comparison, measurements: Measurements) -> float:
    measurements.compute(Wanted(features={name: [*row.fakes, *row.reals]}))
    fakes, reals = (
        gaussian_from_features(measurements.features(name, side)) for side in (row.fakes, row.reals)
    )
    return frechet_distance(fakes, reals)
