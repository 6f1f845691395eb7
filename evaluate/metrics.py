"""Which metrics there are, which of them apply to a comparison, and their values.

A comparison is one row of the table: generated pictures against real ones of the same domain. Where every
output has a target the pairing stands in the column's name, as it does where it has none.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from datasets.errors import UserError
from evaluate.batches import SMALLEST_LPIPS, Pair
from evaluate.frechet import frechet_distance, gaussian_from_features
from evaluate.kid import kid
from evaluate.lpips import all_pairs_mean, head_vector, map_sizes
from evaluate.networks import FeatureName
from evaluate.passes import Measurements, Wanted
from evaluate.pictures import Picture
from evaluate.pixels import WINDOW
from evaluate.rows import FeatureRows
from evaluate.weights import INCEPTION_FLAGS

SEED = 0  # of KID's subsets and of the bootstrap


@dataclass(frozen=True)
class Metric:
    """One column. name: in report.json; flag: its name in --metrics; digits: decimals in tables."""

    name: str
    flag: str
    title: str
    digits: int
    lower_is_better: bool = True


METRICS = (
    Metric("fid", "fid", "FID", 2),
    Metric("fid_clean", "fid_clean", "FID (clean)", 2),
    Metric("kid", "kid", "KID", 5),
    Metric("lpips_target", "lpips", "LPIPS (to target)", 4),
    Metric("lpips_all_pairs", "lpips", "LPIPS (all pairs)", 4),
    Metric("lpips_input", "lpips", "LPIPS (to input)", 4),
    Metric("psnr", "psnr", "PSNR (to target)", 2, lower_is_better=False),
    Metric("ssim", "ssim", "SSIM (to target)", 4, lower_is_better=False),
    Metric("l1", "l1", "L1 (to target)", 4),
)
FLAGS = tuple(dict.fromkeys(metric.flag for metric in METRICS))


@dataclass(frozen=True)
class Comparison:
    """The pictures of one row. targets and inputs, where there are any, are as long as fakes and in their order."""

    label: str
    direction: str
    fakes: Sequence[Picture]
    reals: Sequence[Picture]
    targets: Sequence[Picture] | None = None
    inputs: Sequence[Picture] | None = None
    checkpoint: str = ""  # "last (epoch 4, step 412)"
    details: Mapping[str, object] = field(default_factory=dict)  # for report.json

    def metrics(self, flags: Sequence[str]) -> list[Metric]:
        """The columns that apply here among those chosen."""
        paired = self.targets is not None
        applies = {
            "lpips_target": paired,
            "lpips_all_pairs": not paired,
            "lpips_input": not paired and self.inputs is not None,
            "psnr": paired,
            "ssim": paired,
            "l1": paired,
        }
        return [m for m in METRICS if m.flag in flags and applies.get(m.name, True)]


@dataclass(frozen=True)
class Choice:
    """The metrics to compute, and for those left out the sentence that says why (by flag)."""

    flags: tuple[str, ...]
    reasons: Mapping[str, str] = field(default_factory=dict)


def parse_flags(text: str, option: str = "--metrics") -> tuple[str, ...]:
    """`fid,psnr` -> ("fid", "psnr"). UserError, naming the option, for an unknown name."""
    flags = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for flag in flags:
        if flag not in FLAGS:
            raise UserError(option, f"unknown metric {flag}", "allowed: " + ",".join(FLAGS))
    if not flags:
        raise UserError(option, "names no metric", "allowed: " + ",".join(FLAGS))
    return flags


def choose(
    asked: Sequence[str] | None,
    comparisons: Sequence[Comparison],
    smallest_side: int,
    unavailable: Mapping[str, UserError],
) -> Choice:
    """Decide what is computed. asked None: all that apply, and what cannot be computed gets its reason.

    unavailable: by flag, why its weights cannot be had. A metric that was asked for by name and cannot be computed
    raises the error instead.
    """
    problems: dict[str, UserError] = dict(unavailable)
    paired = any(c.targets is not None for c in comparisons)
    fewest = min(min(len(c.fakes), len(c.reals)) for c in comparisons)
    for flag in FLAGS:
        if flag in problems:
            continue
        if flag in ("psnr", "ssim", "l1") and not paired:
            problems[flag] = UserError(f"--metrics {flag}", "outputs have no targets", "folders: --paired")
        elif flag == "ssim" and smallest_side < WINDOW:
            problems[flag] = UserError("ssim", f"needs {WINDOW}x{WINDOW} pixels, not {smallest_side}")
        elif flag == "lpips" and smallest_side < SMALLEST_LPIPS:
            needed = f"needs {SMALLEST_LPIPS}x{SMALLEST_LPIPS} pixels, not {smallest_side}"
            problems[flag] = UserError("lpips", needed)
        elif flag in INCEPTION_FLAGS and fewest < 2:
            problems[flag] = UserError(flag, f"needs at least 2 images on both sides, there is {fewest}")
    if asked is not None:
        for flag in asked:
            if flag in problems:
                raise problems[flag]
        return Choice(tuple(asked))
    silent = {"psnr", "ssim", "l1"} if not paired else set()
    reasons = {
        flag: error.reason if error.subject == flag else str(error)
        for flag, error in problems.items()
        if flag not in silent
    }
    return Choice(tuple(flag for flag in FLAGS if flag not in problems), reasons)


def wanted_by(comparisons: Sequence[Comparison], flags: Sequence[str]) -> Wanted:
    """Everything these rows need, for one pass over the files."""
    wanted = Wanted()
    for row in comparisons:
        for metric in row.metrics(flags):
            if metric.name in ("fid", "kid"):
                wanted.features.setdefault("fid", []).extend([*row.fakes, *row.reals])
            elif metric.name == "fid_clean":
                wanted.features.setdefault("fid_clean", []).extend([*row.fakes, *row.reals])
            elif metric.name == "lpips_all_pairs":
                wanted.lpips_sums += [tuple(row.fakes), tuple(row.reals)]
            else:
                wanted.pairs.setdefault(metric.flag, []).extend(pairs_of(row, metric))
    return wanted


def evaluate_row(row: Comparison, flags: Sequence[str], measurements: Measurements) -> dict[str, float]:
    """Metric name -> value, from measurements that were computed before. UserError for one that is no number."""
    values = {}
    for metric in row.metrics(flags):
        value = _VALUES.get(metric.name, _mean)(row, metric, measurements)
        if math.isnan(value):
            reason = f"{metric.title} is not a number: the features are not finite"
            raise UserError(row.label, reason, "check the files of weights")
        values[metric.name] = value
    return values


def pairs_of(row: Comparison, metric: Metric) -> list[Pair]:
    partners = row.inputs if metric.name == "lpips_input" else row.targets
    assert partners is not None
    return list(zip(row.fakes, partners, strict=True))


def _mean(row: Comparison, metric: Metric, measurements: Measurements) -> float:
    return float(np.mean(measurements.pair_values(metric.flag, pairs_of(row, metric))))


def features_of(
    row: Comparison, metric: Metric, measurements: Measurements
) -> tuple[FeatureRows, FeatureRows]:
    """(fakes, reals): what fid, fid_clean and kid are computed from."""
    name: FeatureName = "fid_clean" if metric.name == "fid_clean" else "fid"
    return measurements.features(name, row.fakes), measurements.features(name, row.reals)


def _frechet(row: Comparison, metric: Metric, measurements: Measurements) -> float:
    fakes, reals = features_of(row, metric, measurements)
    return frechet_distance(gaussian_from_features(fakes), gaussian_from_features(reals))


def _kid(row: Comparison, metric: Metric, measurements: Measurements) -> float:
    fakes, reals = features_of(row, metric, measurements)
    return kid(reals, fakes, seed=SEED)


def _all_pairs(row: Comparison, metric: Metric, measurements: Measurements) -> float:
    height, width = row.fakes[0].load().shape[:2]
    weights = head_vector([h.cpu() for h in measurements.networks.heads], map_sizes(height, width))
    return all_pairs_mean(measurements.lpips_sum(row.fakes), measurements.lpips_sum(row.reals), weights)


_VALUES: Mapping[str, Callable[[Comparison, Metric, Measurements], float]] = {
    "fid": _frechet,
    "fid_clean": _frechet,
    "kid": _kid,
    "lpips_all_pairs": _all_pairs,
}
