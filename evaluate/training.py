"""Metrics while training: a function from the loop's fixed validation pictures to numbers (`--eval_every`).

The cost is bounded by the number of those pictures (`--val_count`): they were translated for the sample grid
anyway, and the features of the real ones are computed once. The trainer does not import this; train.py hands
the function to it.
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datasets.errors import UserError
from evaluate import lpips
from evaluate.batches import SMALLEST_LPIPS, resize_clean
from evaluate.frechet import frechet_distance, gaussian_from_features
from evaluate.kid import kid
from evaluate.metrics import SEED, parse_flags
from evaluate.networks import FeatureName, Networks
from evaluate.passes import PIXEL_METRICS
from evaluate.pixels import WINDOW
from evaluate.weights import INCEPTION_FLAGS, WeightsChoice, cache_folder, find_weights
from gan.step import find_device

Evaluator = Callable[[Mapping[str, Tensor]], dict[str, float]]

BATCH = 16  # pictures that pass a network together


def make_evaluator(
    metrics: str,
    *,
    best_by: str | None = None,
    device: str = "auto",
    cache_dir: Path | None = None,
    offline: bool = False,
) -> Evaluator:
    """A function from the pictures of `Trainer.sample` to metrics, e.g. {"fid": 80.1, "psnr": 14.2}.

    metrics: comma-separated (--eval_metrics). Pix2Pix pictures (`fake`, `target`) give `fid`, `psnr`, ...; CycleGAN
    ones (`fake_B` against `input_B`, and `fake_A`) give `fid_A`, `fid_B` and their mean `fid`, and no metric that needs
    targets. A metric whose weights cannot be had costs one warning now; UserError if it is best_by's. Global random
    states stay as they are.
    """
    flags = list(parse_flags(metrics, "--eval_metrics"))
    weights, missing = find_weights(flags, WeightsChoice(cache_dir or cache_folder(), offline=offline))
    for flag, error in missing.items():
        if best_by is not None and best_by.split("_")[0] == flag.split("_")[0]:
            raise error
    if missing:
        _warn(f"{', '.join(missing)} left out of --eval_metrics: {next(iter(missing.values()))}")
    kept = [flag for flag in flags if flag not in missing]
    networks = Networks(
        weights.get("inception"), weights.get("alexnet"), weights.get("heads"), find_device(device)
    )
    return _Evaluator(kept, networks)


class _Evaluator:
    def __init__(self, flags: list[str], networks: Networks) -> None:
        self.flags, self.networks = flags, networks
        self._reals: dict[
            tuple[str, str], tuple[NDArray, NDArray]
        ] = {}  # (kind, feature) -> pixels, features
        self._warned: set[str] = set()

    def __call__(self, images: Mapping[str, Tensor]) -> dict[str, float]:
        with torch.inference_mode():
            if "target" in images:
                return self._compare(images, "fake", "target", paired=True)
            sides = {
                side: self._compare(images, f"fake_{side}", f"input_{side}", paired=False) for side in "AB"
            }
        both = {f"{name}_{side}": value for side, found in sides.items() for name, value in found.items()}
        return both | {
            name: (sides["A"][name] + sides["B"][name]) / 2 for name in sides["A"] if name in sides["B"]
        }

    def _compare(self, images: Mapping[str, Tensor], fake: str, real: str, paired: bool) -> dict[str, float]:
        fakes, reals = to_bytes(images[fake]), to_bytes(images[real])
        return {
            flag: self._value(flag, fakes, reals, real, paired)
            for flag in self.flags
            if self._applies(flag, fakes, paired)
        }

    def _applies(self, flag: str, fakes: NDArray, paired: bool) -> bool:
        side = min(fakes.shape[1:3])
        if flag in PIXEL_METRICS and not paired:
            return False
        if flag in INCEPTION_FLAGS and len(fakes) < 2:
            return self._leave_out(flag, "needs at least 2 validation pictures: --val_count")
        if (flag == "lpips" and side < SMALLEST_LPIPS) or (flag == "ssim" and side < WINDOW):
            return self._leave_out(flag, f"pictures of {side} pixels are too small for it")
        return True

    def _leave_out(self, flag: str, reason: str) -> bool:
        if flag not in self._warned:
            self._warned.add(flag)
            _warn(f"{flag} left out: {reason}")
        return False

    def _value(self, flag: str, fakes: NDArray, reals: NDArray, real: str, paired: bool) -> float:
        if flag in PIXEL_METRICS:
            return float(np.mean([PIXEL_METRICS[flag](a, b) for a, b in zip(fakes, reals, strict=True)]))
        if flag == "lpips":
            return self._lpips(fakes, reals, paired)
        name: FeatureName = "fid_clean" if flag == "fid_clean" else "fid"
        ours, theirs = self._features(name, fakes), self._real_features(name, reals, real)
        if not np.isfinite(ours).all():
            raise UserError("--eval_metrics", f"features of {flag} are not finite", "check the weights")
        if flag == "kid":
            return kid(theirs, ours, seed=SEED)
        return frechet_distance(gaussian_from_features(ours), gaussian_from_features(theirs))

    def _features(self, name: FeatureName, pictures: NDArray) -> NDArray:
        rows = []
        for start in range(0, len(pictures), BATCH):
            part = pictures[start : start + BATCH]
            part = np.stack([resize_clean(p) for p in part]) if name == "fid_clean" else part
            rows.append(
                self.networks.inception_features(name, torch.from_numpy(part).permute(0, 3, 1, 2)).numpy()
            )
        return np.concatenate(rows)

    def _real_features(self, name: FeatureName, pictures: NDArray, kind: str) -> NDArray:
        known = self._reals.get((kind, name))
        if known is None or not np.array_equal(known[0], pictures):
            known = pictures, self._features(name, pictures)
            self._reals[kind, name] = known
        return known[1]

    def _lpips(self, fakes: NDArray, reals: NDArray, paired: bool) -> float:
        networks, heads = self.networks, self.networks.heads
        values, sums = [], []
        for start in range(0, max(len(fakes), len(reals)), BATCH):
            parts = [torch.from_numpy(x[start : start + BATCH]).permute(0, 3, 1, 2) for x in (fakes, reals)]
            maps = [networks.lpips_maps(part) for part in parts]
            if paired:
                values += lpips.distance(maps[0], maps[1], heads).tolist()
            else:
                sums.append([lpips.feature_sum(m, heads) for m in maps])
                sizes = [(x.shape[2], x.shape[3]) for x in maps[0]]
        if paired:
            return float(np.mean(values))
        totals = [sums[0][0], sums[0][1]]
        for more in sums[1:]:
            totals = [totals[0] + more[0], totals[1] + more[1]]
        return lpips.all_pairs_mean(totals[0], totals[1], lpips.head_vector(heads, sizes))


def to_bytes(images: Tensor) -> NDArray[np.uint8]:
    """(N, C, H, W) in [-1, 1], C 1 or 3 -> (N, H, W, 3) uint8, as pictures are written to files."""
    pixels = ((images.detach().float().clamp(-1, 1) + 1) * 127.5).round().to("cpu", torch.uint8)
    return np.ascontiguousarray(pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy())


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)
