"""One pass over the pictures for everything that is wanted of them.

What is wanted (features of pictures, values of pairs, sums over sets) is compared with the cache; the
pictures still needed are decoded once each, by threads, a few batches ahead; pictures that are compared
with each other are in one batch, so nothing has to be kept beyond it. Results are in the cache afterwards.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from datasets.errors import RunError, UserError
from datasets.files import ahead
from evaluate import lpips
from evaluate.features import FEATURES, FeatureCache, Networks
from evaluate.fid import FeatureRows
from evaluate.pictures import Picture, PicturePair, Pixels, set_hash

BATCHES_AHEAD = 2
ROWS_IN_MEMORY = 2048  # features of more pictures (8 KiB each) stay in the cache and are read in blocks

PixelFunction = Callable[[NDArray, NDArray], float]
Entries = dict[str, NDArray]  # of the cache
T = TypeVar("T")


@dataclass
class Wanted:
    """What to compute. Asking twice for the same thing costs nothing."""

    features: dict[str, list[Picture]] = field(default_factory=dict)  # by a key of FEATURES
    pairs: dict[str, list[PicturePair]] = field(default_factory=dict)  # "lpips" or a name in `functions`
    functions: dict[str, PixelFunction] = field(default_factory=dict)
    lpips_sums: list[Sequence[Picture]] = field(default_factory=list)
    lpips_to_sets: list[tuple[Picture, lpips.FeatureSum, str]] = field(default_factory=list)
    """(picture, sum over a set, that set's hash): the picture's mean LPIPS to the set's pictures."""


@dataclass
class PictureBatch:
    """Pictures that are decoded together, and all wanted values of pairs among them as (name, pair)."""

    pictures: list[Picture] = field(default_factory=list)
    pairs: list[tuple[str, PicturePair]] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Decoded:
    """A picture (H, W, 3) uint8, and what the kinds of features that resize it themselves have made of it."""

    pixels: Pixels
    resized: Mapping[str, NDArray]


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

    def features(self, kind: str, pictures: Iterable[Picture]) -> FeatureRows:
        """(n, d) features of pictures that were computed before, in their order; few enough of them in memory."""
        keys = [self.feature_key(kind, picture) for picture in pictures]
        rows = FeatureRows(len(keys), lambda numbers: np.stack(self._stored([keys[i] for i in numbers])))
        return FeatureRows.of(rows.all()) if rows.count <= ROWS_IN_MEMORY else rows

    def pair_values(self, name: str, pairs: Iterable[PicturePair]) -> NDArray[np.float64]:
        """(n,) values of pairs that were computed before, in their order."""
        return self._numbers(self._pair_key(name, pair) for pair in pairs)

    def lpips_sum(self, pictures: Sequence[Picture]) -> lpips.FeatureSum:
        """The sum over a set that was computed before."""
        value = torch.from_numpy(self._stored([self._sum_key(pictures)])[0].copy())
        return lpips.FeatureSum(value[1:], float(value[0]), len(pictures))

    def lpips_to_set(self, pictures: Iterable[Picture], other: str) -> NDArray[np.float64]:
        """(n,) mean LPIPS of each picture to the set of this hash, computed before."""
        return self._numbers(self._to_set_key(picture, other) for picture in pictures)

    def _numbers(self, keys: Iterable[str]) -> NDArray[np.float64]:
        return np.array([value[0] for value in self._stored(list(keys))], np.float64)

    def _stored(self, keys: Sequence[str]) -> list[NDArray]:
        """The entries of all keys. RunError where one is gone: statistics of fewer pictures would be wrong."""
        found = [value for _, value in self.cache.stream(keys)]
        if len(found) < len(keys):
            reason = f"{len(keys) - len(found)} of {len(keys)} computed entries cannot be read back"
            raise RunError("feature cache", reason, "the same command computes them again, or --no_cache")
        return found

    def compute(self, wanted: Wanted) -> None:
        """Run the pass. Raises UserError naming a picture that cannot be read or gives values that are not finite."""
        features = {
            kind: dict.fromkeys(self._unknown(pictures, partial(self.feature_key, kind)))
            for kind, pictures in wanted.features.items()
        }
        pairs = [
            (name, pair)
            for name, candidates in wanted.pairs.items()
            for pair in self._unknown(candidates, partial(self._pair_key, name))
        ]
        sums = [_SetSum(self._sum_key(s), s) for s in self._unknown(wanted.lpips_sums, self._sum_key)]
        to_sets = self._unknown(wanted.lpips_to_sets, lambda item: self._to_set_key(item[0], item[2]))
        singles = [picture for pictures in features.values() for picture in pictures]
        singles += [picture for total in sums for picture in total.pictures]
        singles += [picture for picture, _, _ in to_sets]
        batches = make_batches(singles, pairs, self.batch_size)

        def decode(picture: Picture) -> Decoded:
            pixels = picture.load()
            resizes = {kind: FEATURES[kind].resize for kind in features if picture in features[kind]}
            return Decoded(pixels, {kind: resize(pixels) for kind, resize in resizes.items() if resize})

        pictures = [picture for batch in batches for picture in batch.pictures]
        with (
            torch.inference_mode(),
            ThreadPoolExecutor(self.num_threads) as pool,
            closing(ahead(decode, pictures, BATCHES_AHEAD * self.batch_size, self.num_threads)) as decoding,
            _progress_bar(len(pictures) if self.progress else 0) as bar,
        ):
            for batch in batches:
                decoded = {picture: next(decoding) for picture in batch.pictures}
                _require_one_shape(decoded)
                pixel_values = _pixel_values(batch, decoded, wanted.functions, pool)
                entries = self._features_of(decoded, features) | self._lpips_of(batch, decoded, sums, to_sets)
                entries |= {self._pair_key(*pair): np.array([value()]) for pair, value in pixel_values}
                self.cache.put(entries)
                self.pictures_decoded += len(batch.pictures)
                bar.update(len(batch.pictures))
        self.cache.put({total.key: total.packed() for total in sums})

    def _features_of(
        self, decoded: Mapping[Picture, Decoded], wanted: Mapping[str, Iterable[Picture]]
    ) -> Entries:
        entries: Entries = {}
        for kind, pictures in wanted.items():
            group = [picture for picture in decoded if picture in pictures]
            if not group:
                continue
            inputs = [decoded[picture].resized.get(kind, decoded[picture].pixels) for picture in group]
            rows = self.networks.features(kind, _as_images(inputs)).numpy()
            for picture, row in zip(group, rows, strict=True):
                if not np.isfinite(row).all():
                    raise UserError(picture.name, "its features are not finite", "check the files of weights")
                entries[self.feature_key(kind, picture)] = row
        return entries

    def _lpips_of(
        self,
        batch: PictureBatch,
        decoded: Mapping[Picture, Decoded],
        sums: Sequence["_SetSum"],
        to_sets: Sequence[tuple[Picture, lpips.FeatureSum, str]],
    ) -> Entries:
        pairs = [pair for name, pair in batch.pairs if name == "lpips"]
        to_sets = [item for item in to_sets if item[0] in decoded]
        seen = {p for pair in pairs for p in pair} | {picture for picture, _, _ in to_sets}
        group = [p for p in decoded if p in seen or any(p in total.members for total in sums)]
        if not group:
            return {}
        heads, place = self.networks.heads, {picture: i for i, picture in enumerate(group)}
        maps = self.networks.lpips_maps(_as_images([decoded[picture].pixels for picture in group]))
        entries: Entries = {}
        if pairs:
            ours, theirs = ([m[[place[pair[side]] for pair in pairs]] for m in maps] for side in (0, 1))
            values = lpips.distance(ours, theirs, heads).cpu().numpy()
            entries |= {self._pair_key("lpips", pair): values[i : i + 1] for i, pair in enumerate(pairs)}
        for total in sums:
            if rows := [place[picture] for picture in group if picture in total.members]:
                total.add(lpips.feature_sum([m[rows] for m in maps], heads))
        for picture, other, other_hash in to_sets:
            own = [m[place[picture]][None] for m in maps]
            value = lpips.mean_to_set(own, other, heads)
            entries[self._to_set_key(picture, other_hash)] = np.array([value])
        return entries

    def _unknown(self, items: Iterable[T], key: Callable[[T], str]) -> list[T]:
        by_key = {key(item): item for item in items}
        return [by_key[k] for k in self.cache.missing(by_key)]

    def feature_key(self, kind: str, picture: Picture) -> str:
        """Where the cache has a picture's features of this kind."""
        return f"{kind}|{self.networks.feature_digest(kind)}|{picture.key}"

    def _pair_key(self, name: str, pair: PicturePair) -> str:
        network = self.networks.lpips_digest if name == "lpips" else ""
        return f"{name}|{network}|{pair[0].key}|{pair[1].key}"

    def _to_set_key(self, picture: Picture, other: str) -> str:
        return f"lpips_to_set|{self.networks.lpips_digest}|{picture.key}|{other}"

    def _sum_key(self, pictures: Sequence[Picture]) -> str:
        return f"lpips_sum|{self.networks.lpips_digest}|{set_hash(pictures)}"


class _SetSum:
    """A sum over a set of pictures in the making, batch by batch."""

    def __init__(self, key: str, pictures: Sequence[Picture]) -> None:
        self.key, self.pictures, self.members = key, pictures, set(pictures)
        self.total: lpips.FeatureSum | None = None

    def add(self, part: lpips.FeatureSum) -> None:
        self.total = part if self.total is None else self.total + part

    def packed(self) -> NDArray[np.float64]:
        assert self.total is not None
        return np.concatenate([[self.total.squares], self.total.vector.cpu().numpy()])


def make_batches(
    singles: Iterable[Picture], pairs: Sequence[tuple[str, PicturePair]], size: int
) -> list[PictureBatch]:
    """Batches of about `size` pictures, both sides of every pair in one batch, in the order of appearance.

    Pictures that pairs connect (an input, its outputs by several runs, its target) are never split up, so
    a batch can be larger than size by as many as hang together.
    """
    ordered = dict.fromkeys([p for _, pair in pairs for p in pair] + list(singles))
    leader = {picture: picture for picture in ordered}

    def find(picture: Picture) -> Picture:
        while leader[picture] is not picture:
            leader[picture] = leader[leader[picture]]
            picture = leader[picture]
        return picture

    for _, (a, b) in pairs:
        leader[find(b)] = find(a)
    groups: dict[Picture, PictureBatch] = {}
    for picture in ordered:
        groups.setdefault(find(picture), PictureBatch()).pictures.append(picture)
    for name, pair in pairs:
        groups[find(pair[0])].pairs.append((name, pair))

    batches: list[PictureBatch] = []
    for group in groups.values():
        if not batches or len(batches[-1].pictures) + len(group.pictures) > size:
            batches.append(PictureBatch())
        batches[-1].pictures += group.pictures
        batches[-1].pairs += group.pairs
    return batches


def _pixel_values(
    batch: PictureBatch,
    decoded: Mapping[Picture, Decoded],
    functions: Mapping[str, PixelFunction],
    pool: Executor,
) -> list[tuple[tuple[str, PicturePair], Callable[[], float]]]:
    """For every pair that a function of pixels compares, a call that waits for its value."""
    return [
        ((name, (a, b)), pool.submit(functions[name], decoded[a].pixels, decoded[b].pixels).result)
        for name, (a, b) in batch.pairs
        if name in functions
    ]


def _as_images(pictures: Sequence[NDArray]) -> torch.Tensor:
    """N arrays (H, W, 3) -> (N, 3, H, W)."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


def _require_one_shape(decoded: Mapping[Picture, Decoded]) -> None:
    """UserError where two pictures differ in size."""
    (first, one), *others = decoded.items()
    for picture, other in others:
        (height, width), (other_height, other_width) = one.pixels.shape[:2], other.pixels.shape[:2]
        if (height, width) != (other_height, other_width):
            reason = f"is {width}x{height}, {picture.name} is {other_width}x{other_height}"
            raise UserError(first.name, reason, "--size N stretches all to NxN")


def _progress_bar(count: int) -> tqdm:
    """Shown on a terminal only, and only where there is something to do."""
    return tqdm(
        total=count, unit="image", desc="measure", dynamic_ncols=True, disable=None if count else True
    )
