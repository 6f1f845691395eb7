"""The metrics in one table: what they are called, what they compare, how they are computed.

A new metric is one row, and one pure function: of two sets of features (`SetMetric`) or of two pictures
(`PairMetric`). Where every output has a target the pairing stands in the column's name, as it does where it has none.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np

from datasets.errors import UserError
from evaluate import pixels, prdc
from evaluate.bootstrap import (
    Resampler,
    Values,
    half_width,
    of_all_pairs,
    of_distance,
    of_kid,
    of_mean,
    of_picture_values,
)
from evaluate.comparisons import Comparison
from evaluate.fid import FeatureRows, fid, kid
from evaluate.lpips import SMALLEST_SIDE, all_pairs_mean, head_vector, map_sizes
from evaluate.measure import LpipsSum, LpipsToSet, Measurements, PairValue, PictureFeatures, Quantity
from evaluate.pictures import Picture, set_hash

Needs = Literal["", "targets", "no targets", "inputs"]

SEED = 0  # of KID's subsets and of the bootstrap


@dataclass(frozen=True, kw_only=True)
class Metric(ABC):
    """One column.

    name: in report.json; flag: its name in --metrics, shared by columns that differ in what is compared; digits:
    decimals in tables; definition: one line for reports. It needs the weights of `networks` (keys of
    `weights.SOURCES`), pictures of `least_side` pixels, `least_count` of them on each side, and by `needs` outputs with
    targets, without targets, or without targets but with inputs. by_name: computed only where --metrics names it;
    needs_reals: statistics of real pictures do not do.
    """

    name: str
    flag: str
    title: str
    digits: int
    definition: str
    lower_is_better: bool = True
    networks: tuple[str, ...] = ()
    least_side: int = 1
    least_count: int = 1
    needs: Needs = ""
    by_name: bool = False
    needs_reals: bool = True

    def applies(self, comparison: Comparison) -> bool:
        """Whether the comparison has what is compared, and the metric makes sense there."""
        if comparison.only is not None and self.flag not in comparison.only:
            return False
        if comparison.statistics and self.needs_reals:
            return False
        has_targets = comparison.targets is not None
        if self.needs == "inputs":  # says how far a translation moves away, where no target says where to
            return not has_targets and comparison.inputs is not None
        return not self.needs or has_targets == (self.needs == "targets")

    @abstractmethod
    def quantities(self, comparison: Comparison) -> Sequence[Quantity]:
        """What it is computed from: all that the pass over the pictures has to find."""

    @abstractmethod
    def value(self, comparison: Comparison, measured: Measurements) -> float:
        """Its value, from what the pass has computed."""

    @abstractmethod
    def resampled(self, comparison: Comparison, measured: Measurements, resamples: int) -> Values:
        """Its values on resamples of the pictures."""


@dataclass(frozen=True, kw_only=True)
class SetMetric(Metric):
    """A distance, or another number, of two sets of features.

    features: a key of `FEATURES`; distance and resampler: of fakes and reals.
    """

    features: str
    distance: Callable[[FeatureRows, FeatureRows], float]
    resampler: Resampler
    networks: tuple[str, ...] = ("inception",)
    least_count: int = 2

    def quantities(self, comparison: Comparison) -> Sequence[Quantity]:
        return [PictureFeatures(self.features, p) for p in (*comparison.fakes, *comparison.reals)]

    def _sides(self, comparison: Comparison, measured: Measurements) -> tuple[FeatureRows, FeatureRows]:
        fakes = measured.features(self.features, comparison.fakes)
        return fakes, measured.features(self.features, comparison.reals)

    def value(self, comparison: Comparison, measured: Measurements) -> float:
        if comparison.statistics:
            return fid(measured.features(self.features, comparison.fakes), comparison.statistics.gaussian)
        return self.distance(*self._sides(comparison, measured))

    def resampled(self, comparison: Comparison, measured: Measurements, resamples: int) -> Values:
        return self.resampler(*self._sides(comparison, measured), resamples)


class MeanMetric(Metric):
    """A mean over the outputs, each of which has a value."""

    @abstractmethod
    def per_picture(self, comparison: Comparison, measured: Measurements) -> Values:
        """(n,) its values of the single outputs, in their order."""


@dataclass(frozen=True, kw_only=True)
class PairMetric(MeanMetric):
    """A mean over (output, its target), or (output, its input). function: of two pictures, None for LPIPS."""

    function: pixels.PixelFunction | None = None
    needs: Needs = "targets"

    def quantities(self, comparison: Comparison) -> Sequence[Quantity]:
        partners = comparison.inputs if self.needs == "inputs" else comparison.targets
        pairs = zip(comparison.fakes, partners or (), strict=True)
        return [PairValue(self.flag, pair, self.function) for pair in pairs]

    def value(self, comparison: Comparison, measured: Measurements) -> float:
        return float(np.mean(self.per_picture(comparison, measured)))

    def resampled(self, comparison: Comparison, measured: Measurements, resamples: int) -> Values:
        return of_mean(self.per_picture(comparison, measured), resamples)

    def per_picture(self, comparison: Comparison, measured: Measurements) -> Values:
        return measured.numbers(self.quantities(comparison))


@dataclass(frozen=True, kw_only=True)
class AllPairsLpips(MeanMetric):
    """The mean LPIPS over every (output, real picture)."""

    def quantities(self, comparison: Comparison) -> Sequence[Quantity]:
        return [LpipsSum(comparison.fakes), LpipsSum(comparison.reals)]

    def value(self, comparison: Comparison, measured: Measurements) -> float:
        height, width = comparison.fakes[0].load().shape[:2]
        heads = head_vector([head.cpu() for head in measured.networks.heads], map_sizes(height, width))
        return all_pairs_mean(
            measured.lpips_sum(comparison.fakes), measured.lpips_sum(comparison.reals), heads
        )

    def resampled(self, comparison: Comparison, measured: Measurements, resamples: int) -> Values:
        to_reals = self._to_set(comparison.fakes, comparison.reals, measured)
        to_fakes = self._to_set(comparison.reals, comparison.fakes, measured)
        measured.compute([*to_reals, *to_fakes])
        return of_all_pairs(measured.numbers(to_reals), measured.numbers(to_fakes), resamples)

    def per_picture(self, comparison: Comparison, measured: Measurements) -> Values:
        to_reals = self._to_set(comparison.fakes, comparison.reals, measured)
        measured.compute(to_reals)
        return measured.numbers(to_reals)

    def _to_set(
        self, pictures: Sequence[Picture], others: Sequence[Picture], measured: Measurements
    ) -> list[LpipsToSet]:
        """The mean distance of each picture to all others."""
        total, key = measured.lpips_sum(others), set_hash(others)
        return [LpipsToSet(picture, total, key) for picture in pictures]


LPIPS = ("alexnet", "heads")
LITE0 = ("efficientnet_lite0",)
LITE0_FEATURES = (
    "1280 pooled features of EfficientNet-Lite0 (ImageNet), antialiased bicubic resize to 224 in floating point (PIL), "
    "(x - 127) / 128"
)

PRDC: dict[str, tuple[prdc.PictureValues, str]] = {
    "precision": (prdc.precision, "share of outputs in the ball of some real picture"),
    "recall": (prdc.recall, "share of real pictures in the ball of some output"),
    "density": (
        prdc.density,
        f"mean number of balls of real pictures that hold an output, divided by {prdc.K}",
    ),
    "coverage": (prdc.coverage, "share of real pictures whose ball holds an output"),
}
BALL = f"a ball ends at the {prdc.K}th nearest neighbour in its own set"


def _neighbour_metric(
    name: str, features: str, networks: tuple[str, ...], suffix: str, title: str, described: str
) -> SetMetric:
    """The row of a metric of `PRDC` on these features."""
    function, meaning = PRDC[name]
    return SetMetric(
        name=name + suffix, flag=name + suffix, title=name.capitalize() + title, digits=3, lower_is_better=False,
        features=features, networks=networks, least_count=prdc.K + 1, by_name=True,
        distance=lambda fakes, reals: float(np.mean(function(fakes, reals))),
        resampler=of_picture_values(function),
        definition=f"{meaning}; {BALL}, {described}",
    )  # fmt: skip


METRICS: tuple[Metric, ...] = (
    SetMetric(
        name="fid", flag="fid", title="FID", digits=2, features="fid", distance=fid, needs_reals=False,
        resampler=of_distance(fid),
        definition="TF-2015 Inception pool features, torch bilinear resize to 299 without antialiasing, "
        "float64 statistics",
    ),
    SetMetric(
        name="fid_clean", flag="fid_clean", title="FID (clean)", digits=2, features="fid_clean", distance=fid,
        resampler=of_distance(fid),
        definition="as FID, with an antialiased bicubic resize to 299 in floating point (PIL)",
    ),
    SetMetric(
        name="kid", flag="kid", title="KID", digits=5, features="fid", distance=partial(kid, seed=SEED),
        resampler=of_kid,
        definition="unbiased squared MMD, kernel (x.y/d + 1)^3, mean of 100 subsets of min(100, n) images, "
        "FID's features",
    ),
    SetMetric(
        name="fd_lite0", flag="fd_lite0", title="FD (EfficientNet-Lite0)", digits=2, features="lite0", distance=fid,
        resampler=of_distance(fid), networks=LITE0, by_name=True,
        definition=f"Fréchet distance as in FID, {LITE0_FEATURES}",
    ),
    SetMetric(
        name="kd_lite0", flag="kd_lite0", title="KD (EfficientNet-Lite0)", digits=5, features="lite0",
        distance=partial(kid, seed=SEED), resampler=of_kid, networks=LITE0, by_name=True,
        definition=f"squared MMD as in KID, {LITE0_FEATURES}",
    ),
    *(_neighbour_metric(name, "fid", ("inception",), "", "", "FID's features") for name in PRDC),
    *(
        _neighbour_metric(name, "lite0", LITE0, "_lite0", " (EfficientNet-Lite0)", LITE0_FEATURES) for name in PRDC
    ),
    PairMetric(
        name="lpips_target", flag="lpips", title="LPIPS (to target)", digits=4, networks=LPIPS,
        least_side=SMALLEST_SIDE,
        definition="LPIPS v0.1, AlexNet, inputs in [-1, 1], mean over (output, its target)",
    ),
    AllPairsLpips(
        name="lpips_all_pairs", flag="lpips", title="LPIPS (all pairs)", digits=4, networks=LPIPS,
        least_side=SMALLEST_SIDE, needs="no targets",
        definition="LPIPS v0.1, AlexNet, mean over all (output, real image of the target domain) pairs",
    ),
    PairMetric(
        name="lpips_input", flag="lpips", title="LPIPS (to input)", digits=4, networks=LPIPS,
        least_side=SMALLEST_SIDE, needs="inputs", needs_reals=False,
        definition="LPIPS v0.1, AlexNet, mean over (output, its input)",
    ),
    PairMetric(
        name="psnr", flag="psnr", title="PSNR (to target)", digits=2, lower_is_better=False, function=pixels.psnr,
        definition="8-bit pixels, data range 255, mean of the pictures' values in dB",
    ),
    PairMetric(
        name="ssim", flag="ssim", title="SSIM (to target)", digits=4, lower_is_better=False, function=pixels.ssim,
        least_side=pixels.WINDOW,
        definition="8-bit pixels, Gaussian window 11x11 with sigma 1.5, mean over channels, window positions, pictures",
    ),
    PairMetric(
        name="l1", flag="l1", title="L1 (to target)", digits=4, function=pixels.l1,
        definition="mean absolute difference; black against white is 1",
    ),
    PairMetric(
        name="pixel_accuracy", flag="pixel_accuracy", title="Pixel accuracy (to target)", digits=4,
        lower_is_better=False, function=pixels.pixel_accuracy, by_name=True,
        definition="share of pixels whose largest channel difference is at most 16 of 255; for maps, our definition",
    ),
)  # fmt: skip
FLAGS = tuple(dict.fromkeys(metric.flag for metric in METRICS))
DEFAULT_FLAGS = tuple(dict.fromkeys(metric.flag for metric in METRICS if not metric.by_name))


def parse_metrics(text: str, option: str = "--metrics") -> tuple[str, ...]:
    """`fid,psnr` -> ("fid", "psnr"). UserError, naming the option, for an unknown name."""
    flags = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for flag in flags:
        if flag not in FLAGS:
            raise UserError(option, f"unknown metric {flag}", "allowed: " + ",".join(FLAGS))
    if not flags:
        raise UserError(option, "names no metric", "allowed: " + ",".join(FLAGS))
    return flags


def metrics_of(comparison: Comparison, flags: Iterable[str]) -> list[Metric]:
    """The columns that a comparison has among those chosen, in their fixed order."""
    return [metric for metric in METRICS if metric.flag in flags and metric.applies(comparison)]


def networks_of(flags: Iterable[str]) -> list[str]:
    """Whose weights the metrics of these flags need, each once."""
    chosen = [metric for metric in METRICS if metric.flag in flags]
    return list(dict.fromkeys(network for metric in chosen for network in metric.networks))


def without_weights(flags: Iterable[str], missing: Mapping[str, UserError]) -> dict[str, UserError]:
    """By flag, why a metric's weights cannot be had. missing: by network, as `WeightsChoice.find` says it."""
    return {flag: missing[n] for flag in flags for n in reversed(networks_of([flag])) if n in missing}


def problems_of(
    flags: Sequence[str], comparisons: Sequence[Comparison], side: int, missing: Mapping[str, UserError]
) -> dict[str, UserError]:
    """By flag, why a metric cannot be computed for these comparisons.

    side: the smaller one of the compared pictures, in pixels; missing: by network, why its weights cannot be had.
    """
    problems = without_weights(flags, missing)
    odd = [comparison.channels for comparison in comparisons if comparison.channels not in (1, 3)]
    for flag in flags if odd else ():
        if networks_of([flag]):
            reason = f"is defined for pictures of 1 or 3 channels, and these have {odd[0]}"
            problems[flag] = UserError(flag, reason, "psnr, ssim and l1 measure the bands of --show_bands")
    sides = [side for row in comparisons for side in (row.fakes, row.reals) if side or not row.statistics]
    fewest = min(map(len, sides))
    for flag in (flag for flag in flags if flag not in problems):
        columns = [metric for metric in METRICS if metric.flag == flag]
        least_side = max(metric.least_side for metric in columns)
        least_count = max(metric.least_count for metric in columns)
        if not any(metrics_of(comparison, [flag]) for comparison in comparisons):
            if comparisons[0].statistics:
                reason = "needs pictures that are not given, as --real is a file of statistics"
                problems[flag] = UserError(f"--metrics {flag}", reason, "use --metrics fid")
                continue
            problems[flag] = UserError(f"--metrics {flag}", "outputs have no targets", "folders: --paired")
        elif side < least_side:
            problems[flag] = UserError(flag, f"needs {least_side}x{least_side} pixels, not {side}")
        elif fewest < least_count:
            reason = f"needs at least {least_count} images on both sides, there is {fewest}"
            problems[flag] = UserError(flag, reason)
    return problems


@dataclass(frozen=True)
class MeasuredValues:
    """The numbers of one comparison by metric name; widths: half of the 95 % intervals, without infinite ones.

    per_picture: the values of its outputs, where they are asked for.
    """

    values: Mapping[str, float]
    widths: Mapping[str, float]
    per_picture: Mapping[str, Values] = field(default_factory=dict)


def measure(
    comparisons: Sequence[Comparison],
    flags: Sequence[str],
    measurements: Measurements,
    resamples: int = 0,
    per_image: bool = False,
) -> list[MeasuredValues]:
    """All numbers of these comparisons, after one pass over their pictures.

    Raises UserError naming a picture that cannot be read, or a metric that is not a number.
    """
    chosen = [metrics_of(comparison, flags) for comparison in comparisons]
    pairs = zip(comparisons, chosen, strict=True)
    measurements.compute(
        q for comparison, metrics in pairs for m in metrics for q in m.quantities(comparison)
    )
    found = []
    for comparison, metrics in zip(comparisons, chosen, strict=True):
        values = {metric.name: metric.value(comparison, measurements) for metric in metrics}
        if wrong := [metric.title for metric in metrics if math.isnan(values[metric.name])]:
            reason = f"{wrong[0]} is not a number: the features are not finite"
            raise UserError(comparison.label, reason, "check the files of weights")
        widths = {}
        if resamples and comparison.only is None:  # baselines are bounds: no intervals
            drawn = {m.name: half_width(m.resampled(comparison, measurements, resamples)) for m in metrics}
            widths = {name: width for name, width in drawn.items() if width is not None}
        singles = {
            metric.name: metric.per_picture(comparison, measurements)
            for metric in metrics
            if per_image and isinstance(metric, MeanMetric)
        }
        found.append(MeasuredValues(values, widths, singles))
    return found
