"""One pass over the files for everything that is wanted of them.

What is wanted (features of pictures, values of pairs, sums over sets) is compared with the cache; the
pictures still needed are decoded once each, by threads, a few batches ahead; pictures that are compared
with each other are in one batch, so nothing has to be kept beyond it. Results are in the cache afterwards.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from datasets.errors import RunError, UserError
from evaluate import lpips, pixels
from evaluate.batches import (
    Batch,
    Loaded,
    Pair,
    equal_shapes,
    make_batches,
    prefetched,
    require_comparable,
    require_lpips_size,
)
from evaluate.cache import FeatureCache
from evaluate.networks import FeatureName, Networks
from evaluate.pictures import Picture, set_hash
from evaluate.rows import FeatureRows, as_rows

PIXEL_METRICS: Mapping[str, Callable[[NDArray, NDArray], float]] = {
    "psnr": pixels.psnr,
    "ssim": pixels.ssim,
    "l1": pixels.l1,
}

ROWS_IN_MEMORY = 2048  # features of more pictures (8 KiB each) stay in the cache and are read in blocks

T = TypeVar("T")


@dataclass
class Wanted:
    """What to compute. Asking twice for the same thing costs nothing."""

    features: dict[FeatureName, list[Picture]] = field(default_factory=dict)
    pairs: dict[str, list[Pair]] = field(default_factory=dict)  # psnr, ssim, l1, lpips -> pairs
    lpips_sums: list[tuple[Picture, ...]] = field(default_factory=list)
    lpips_to_sets: list[tuple[Picture, lpips.FeatureSum, str]] = field(default_factory=list)
    """(picture, sum over a set, that set's hash): the picture's mean LPIPS to the set's pictures."""


class Measurements:
    """Computes what is wanted and reads it back; all numbers live in the cache."""

    def __init__(
        self,
        cache: FeatureCache,
        networks: Networks,
        *,
        batch_size: int = 16,
        num_threads: int = 2,
        progress: bool = False,
    ) -> None:
        self.cache, self.networks = cache, networks
        self.batch_size, self.num_threads, self.progress = batch_size, num_threads, progress
        self.pictures_decoded = 0

    def features(self, name: FeatureName, pictures: Sequence[Picture]) -> FeatureRows:
        """(n, 2048) features of pictures that were computed before, in their order; few enough of them in memory."""
        keys = [self._feature_key(name, picture) for picture in pictures]
        rows = FeatureRows(len(keys), lambda numbers: np.stack(self._stored([keys[i] for i in numbers])))
        return as_rows(rows.all()) if rows.count <= ROWS_IN_MEMORY else rows

    def pair_values(self, name: str, pairs: Sequence[Pair]) -> NDArray[np.float64]:
        """(n,) values of pairs that were computed before, in their order."""
        keys = [self._pair_key(name, pair) for pair in pairs]
        return np.array([value[0] for value in self._stored(keys)], np.float64)

    def lpips_sum(self, pictures: Sequence[Picture]) -> lpips.FeatureSum:
        """The sum over a set that was computed before."""
        key = self._sum_key(pictures)
        value = torch.from_numpy(self._stored([key])[0].copy())
        return lpips.FeatureSum(value[1:], float(value[0]), len(pictures))

    def lpips_to_set(self, pictures: Sequence[Picture], other: str) -> NDArray[np.float64]:
        """(n,) mean LPIPS of each picture to the set of this hash, computed before."""
        keys = [self._to_set_key(picture, other) for picture in pictures]
        return np.array([value[0] for value in self._stored(keys)], np.float64)

    def _stored(self, keys: Sequence[str]) -> list[NDArray]:
        """The entries of all keys. RunError where one is gone: statistics of fewer pictures would be wrong."""
        found = [value for _, value in self.cache.stream(keys)]
        if len(found) < len(keys):
            reason = f"{len(keys) - len(found)} of {len(keys)} computed entries cannot be read back"
            raise RunError("feature cache", reason, "the same command computes them again, or --no_cache")
        return found

    def compute(self, wanted: Wanted) -> None:
        """Run the pass. Raises UserError naming a file that cannot be read or gives values that are not finite."""
        features = {
            name: self._without_known(pictures, partial(self._feature_key, name))
            for name, pictures in wanted.features.items()
        }
        pairs = [
            (name, pair)
            for name, candidates in wanted.pairs.items()
            for pair in self._without_known(candidates, partial(self._pair_key, name))
        ]
        sets = self._without_known(wanted.lpips_sums, self._sum_key)
        to_sets: dict[Picture, list[tuple[lpips.FeatureSum, str]]] = {}
        for picture, total, other in wanted.lpips_to_sets:
            if self.cache.missing([self._to_set_key(picture, other)]):
                to_sets.setdefault(picture, []).append((total, other))
        singles = [p for pictures in features.values() for p in pictures] + [p for s in sets for p in s]
        singles += to_sets
        batches = make_batches(singles, pairs, self.batch_size)
        needs = {name: set(pictures) for name, pictures in features.items()}
        members = [(pictures, set(pictures)) for pictures in sets]
        sums: list[lpips.FeatureSum | None] = [None] * len(sets)
        count = len({p for batch in batches for p in batch.pictures})
        with (
            torch.inference_mode(),
            ThreadPoolExecutor(max(1, self.num_threads)) as pool,
            _progress_bar(count if self.progress else 0) as bar,
        ):
            for batch, loaded in prefetched(batches, needs.get("fid_clean", set()), pool):
                entries = self._features_of(batch, loaded, needs)
                entries |= self._pairs_of(batch, loaded, pool, members, sums, to_sets)
                self.cache.put(entries)
                self.pictures_decoded += len(batch.pictures)
                bar.update(len(batch.pictures))
        self.cache.put(
            {
                self._sum_key(pictures): np.concatenate([[total.squares], total.vector.cpu().numpy()])
                for pictures, total in zip(sets, sums, strict=True)
                if total is not None
            }
        )

    def _features_of(
        self, batch: Batch, loaded: dict[Picture, Loaded], needs: Mapping[FeatureName, set[Picture]]
    ) -> dict[str, NDArray]:
        entries: dict[str, NDArray] = {}
        for name, pictures in needs.items():
            for group in equal_shapes([p for p in batch.pictures if p in pictures], loaded):
                stack = np.stack([_inception_input(loaded[p], name) for p in group])
                images = torch.from_numpy(stack).permute(0, 3, 1, 2)
                rows = self.networks.inception_features(name, images).numpy()
                for picture, row in zip(group, rows, strict=True):
                    if not np.isfinite(row).all():
                        raise UserError(
                            picture.path, "its Inception features are not finite", "check --inception_weights"
                        )
                    entries[self._feature_key(name, picture)] = row
        return entries

    def _pairs_of(
        self,
        batch: Batch,
        loaded: dict[Picture, Loaded],
        pool: Executor,
        members: Sequence[tuple[Sequence[Picture], set[Picture]]],
        sums: list[lpips.FeatureSum | None],
        to_sets: Mapping[Picture, Sequence[tuple[lpips.FeatureSum, str]]],
    ) -> dict[str, NDArray]:
        for name, (a, b) in batch.pairs:
            require_comparable(name, a, b, loaded)
        tasks = [
            (name, pair, pool.submit(PIXEL_METRICS[name], loaded[pair[0]].pixels, loaded[pair[1]].pixels))
            for name, pair in batch.pairs
            if name in PIXEL_METRICS
        ]
        entries: dict[str, NDArray] = {}
        lpips_pairs = [pair for name, pair in batch.pairs if name == "lpips"]
        in_sums = {p for p in batch.pictures if any(p in pictures for _, pictures in members)}
        in_pairs = {p for pair in lpips_pairs for p in pair}
        in_sums |= {p for p in batch.pictures if p in to_sets}
        for group in equal_shapes([p for p in batch.pictures if p in in_sums | in_pairs], loaded):
            require_lpips_size(group[0], loaded)
            stack = np.stack([loaded[p].pixels for p in group])
            maps = self.networks.lpips_maps(torch.from_numpy(stack).permute(0, 3, 1, 2))
            place = {picture: i for i, picture in enumerate(group)}
            entries |= self._lpips_values([pair for pair in lpips_pairs if pair[0] in place], maps, place)
            for number, (_, pictures) in enumerate(members):
                if rows := [i for p, i in place.items() if p in pictures]:
                    part = lpips.feature_sum([m[rows] for m in maps], self.networks.heads)
                    sums[number] = _added(sums[number], part, group[0])
            for picture, i in place.items():
                for total, other in to_sets.get(picture, ()):
                    value = lpips.mean_to_set([m[i : i + 1] for m in maps], total, self.networks.heads)
                    entries[self._to_set_key(picture, other)] = np.array([value], np.float64)
        for name, pair, task in tasks:
            entries[self._pair_key(name, pair)] = np.array([task.result()], np.float64)
        return entries

    def _lpips_values(
        self, pairs: Sequence[Pair], maps: list[torch.Tensor], place: Mapping[Picture, int]
    ) -> dict[str, NDArray]:
        if not pairs:
            return {}
        first, second = [place[a] for a, _ in pairs], [place[b] for _, b in pairs]
        values = lpips.distance([m[first] for m in maps], [m[second] for m in maps], self.networks.heads)
        return {
            self._pair_key("lpips", pair): np.array([value], np.float64)
            for pair, value in zip(pairs, values.cpu().tolist(), strict=True)
        }

    def _without_known(self, items: Iterable[T], key: Callable[[T], str]) -> list[T]:
        by_key = {key(item): item for item in items}
        return [by_key[k] for k in self.cache.missing(by_key)]

    def _feature_key(self, name: FeatureName, picture: Picture) -> str:
        return f"{name}|{self.networks.inception_digest}|{picture.key}"

    def _pair_key(self, name: str, pair: Pair) -> str:
        network = self.networks.lpips_digest if name == "lpips" else ""
        return f"{name}|{network}|{pair[0].key}|{pair[1].key}"

    def _to_set_key(self, picture: Picture, other: str) -> str:
        return f"lpips_to_set|{self.networks.lpips_digest}|{picture.key}|{other}"

    def _sum_key(self, pictures: Sequence[Picture]) -> str:
        return f"lpips_sum|{self.networks.lpips_digest}|{set_hash(pictures)}"


def _progress_bar(count: int) -> tqdm:
    """Shown on a terminal only, and only where there is something to do."""
    return tqdm(
        total=count, unit="image", desc="measure", dynamic_ncols=True, disable=None if count else True
    )


def _inception_input(loaded: Loaded, name: FeatureName) -> NDArray:
    if name == "fid":
        return loaded.pixels
    assert loaded.clean is not None
    return loaded.clean


def _added(total: lpips.FeatureSum | None, part: lpips.FeatureSum, first: Picture) -> lpips.FeatureSum:
    if total is None:
        return part
    if total.vector.shape != part.vector.shape:
        reason = "LPIPS compares pictures of one size, this folder has several"
        raise UserError(first.path.parent, reason, "--size N stretches all to NxN")
    return total + part
