"""Metrics while training: a function from the loop's fixed validation pictures to numbers (`--eval_every`).

The cost is bounded by the number of those pictures (`--val_count`): they were translated for the sample grid
anyway, and the features of the real ones are computed once. The trainer does not import this; train.py hands
the function to it.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from datasets.errors import say
from datasets.images import to_picture
from evaluate.comparisons import Comparison
from evaluate.features import FEATURES, FeatureCache, Networks
from evaluate.measure import Measurements, PictureFeatures
from evaluate.metrics import (
    METRICS,
    measure,
    metrics_of,
    networks_of,
    parse_metrics,
    problems_of,
    without_weights,
)
from evaluate.pictures import ArrayPicture
from evaluate.weights import WeightsChoice, cache_folder
from gan.loop import without_side
from gan.processes import ALONE, Processes
from gan.show_bands import shown_bands
from gan.step import find_device

Evaluator = Callable[[Mapping[str, Tensor]], dict[str, float]]


def make_evaluator(
    metrics: str,
    *,
    best_by: str | None = None,
    device: str = "auto",
    cache_dir: Path | None = None,
    offline: bool = False,
    show_bands: str = "",
    processes: Processes = ALONE,
) -> Evaluator:
    """A function from the pictures of `Trainer.sample` to metrics, e.g. {"fid": 80.1, "psnr": 14.2}.

    metrics: comma-separated (--eval_metrics). Pix2Pix pictures (`fake`, `target`) give `fid`, `psnr`, ...; CycleGAN
    ones (`fake_B` against `input_B`, and `fake_A`) give `fid_A`, `fid_B` and their mean `fid`, and no metric that needs
    targets. A metric whose weights cannot be had costs one warning now; UserError if it is best_by's. Global random
    states stay as they are. processes: call the function together, with the same pictures.
    """
    flags = parse_metrics(metrics, "--eval_metrics")
    choice = WeightsChoice(cache_dir or cache_folder(), offline=offline)
    weights, missing = processes.from_first(lambda: choice.find(networks_of(flags)))
    absent = without_weights(flags, missing)
    for flag, error in absent.items():
        if best_by is not None and without_side(best_by) == flag:
            raise error
    if absent:
        say(f"warning: {', '.join(absent)} left out of --eval_metrics: {next(iter(absent.values()))}")
    kept = [flag for flag in flags if flag not in absent]
    return TrainingMetrics(kept, Networks(weights, find_device(device)), show_bands, processes)


class TrainingMetrics:
    """Measures validation pictures by the metrics of these flags."""

    def __init__(
        self, flags: Sequence[str], networks: Networks, show_bands: str = "", processes: Processes = ALONE
    ) -> None:
        self.flags, self.networks, self.show_bands, self.processes = flags, networks, show_bands, processes
        self._reals: dict[str, NDArray] = {}  # features of the real pictures, which stay the same
        self._warned: set[str] = set()

    def __call__(self, images: Mapping[str, Tensor]) -> dict[str, float]:
        if "target" in images:
            return self._measure([self._comparison(images["fake"], images["target"], is_paired=True)])[0]
        a, b = self._measure(
            [self._comparison(images[f"fake_{side}"], images[f"input_{side}"]) for side in "AB"]
        )
        sides = {f"{name}_A": a[name] for name in a} | {f"{name}_B": b[name] for name in b}
        return sides | {name: (a[name] + b[name]) / 2 for name in a}

    def _comparison(self, fakes: Tensor, reals: Tensor, is_paired: bool = False) -> Comparison:
        """Outputs against real pictures, (N, C, H, W) in [-1, 1]."""
        count = fakes.shape[1]
        made, real = (
            as_pictures(images, name, self.show_bands)
            for images, name in ((fakes, "output"), (reals, "real"))
        )
        return Comparison("outputs", "", made, real, real if is_paired else None, channels=count)

    def _measure(self, comparisons: Sequence[Comparison]) -> list[dict[str, float]]:
        """The values of each comparison by flag."""
        side = min(comparisons[0].fakes[0].load().shape[:2])
        flags = [flag for flag in self.flags if metrics_of(comparisons[0], [flag])]
        problems = problems_of(flags, comparisons, side, {})
        for flag in [flag for flag in problems if flag not in self._warned]:
            fix = problems[flag].fix or "see --val_count and --crop_size"
            say(f"warning: {flag} left out: {problems[flag].reason}; {fix}")
        self._warned |= problems.keys()
        cache = FeatureCache(None)  # of this call: outputs of other epochs are other pictures
        cache.put(self._reals)
        measurements = Measurements(cache, self.networks, processes=self.processes)
        measured = measure(comparisons, [flag for flag in flags if flag not in problems], measurements)
        reals = [picture for comparison in comparisons for picture in comparison.reals]
        kinds = [kind for kind, how in FEATURES.items() if how.network in self.networks.weights]
        self._reals = dict(
            cache.stream(measurements.entry(PictureFeatures(kind, p)) for kind in kinds for p in reals)
        )
        names = {flag: [metric.name for metric in METRICS if metric.flag == flag] for flag in self.flags}
        return [
            {flag: found.values[name] for flag in names for name in names[flag] if name in found.values}
            for found in measured
        ]


def as_pictures(images: Tensor, name: str, show_bands: str = "") -> list[ArrayPicture]:
    """(N, C, H, W) in [-1, 1] -> pictures with the pixels that a file of them, or of the bands shown, would have."""
    bands = [band - 1 for band in shown_bands(images.shape[1], show_bands)]
    arrays = [np.asarray(to_picture(image[bands]).convert("RGB")) for image in images]
    return [ArrayPicture(array, f"{name} {number}") for number, array in enumerate(arrays, start=1)]
