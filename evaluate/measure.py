"""One pass over the pictures for everything that is wanted of them.

What is wanted (`Quantity`: features of a picture, a value of a pair, a sum over a set) is looked up in the cache. The
pictures still needed are decoded once each, by threads, a few batches ahead. Pictures that are compared with each other
are in one batch, so nothing has to be kept beyond it. Results are in the cache afterwards.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from datasets.errors import RunError, UserError, no_bar
from datasets.files import ahead
from evaluate import lpips
from evaluate.features import FEATURES, FeatureCache, Networks
from evaluate.fid import FeatureRows
from evaluate.pictures import Picture, Pixels, set_hash
from evaluate.pixels import PixelFunction
from gan.processes import ALONE, Processes

BATCHES_AHEAD = 2
BATCH_PIXELS = 2**22
"""In a batch at most, 16 pictures of 512 x 512: of larger pictures there are fewer, so that memory stays flat."""
STORED_NUMBERS = 2**23  # of a sum in the cache at most, 64 MiB: sets of pictures of up to 900 pixels
ROWS_IN_MEMORY = 2048  # features of more pictures (8 KiB each) stay in the cache and are read in blocks


@dataclass(frozen=True)
class PictureFeatures:
    """A picture's features, (d,). kind: a key of FEATURES."""

    kind: str
    picture: Picture

    @property
    def pictures(self) -> Sequence[Picture]:
        return (self.picture,)

    def key(self, networks: Networks) -> str:
        """Where the cache has it."""
        return f"{self.kind}|{networks.digest(self.kind)}|{self.picture.key}"


@dataclass(frozen=True)
class PairValue:
    """A number between two pictures: by a function of their pixels, or LPIPS where there is none."""

    name: str
    pictures: tuple[Picture, Picture]
    function: PixelFunction | None = None

    def key(self, networks: Networks) -> str:
        network = "" if self.function else networks.lpips_digest
        a, b = self.pictures
        return f"{self.name}|{network}|{a.key}|{b.key}"


@dataclass(frozen=True, eq=False)
class LpipsSum:
    """The sum over a set of pictures that LPIPS over all pairs needs."""

    pictures: Sequence[Picture]

    def key(self, networks: Networks) -> str:
        return f"lpips_sum|{networks.lpips_digest}|{set_hash(self.pictures)}"


@dataclass(frozen=True, eq=False)
class LpipsToSet:
    """A picture's mean LPIPS to a set. total: the sum over that set; set_hash: of its pictures."""

    picture: Picture
    total: lpips.FeatureSum
    set_hash: str

    @property
    def pictures(self) -> Sequence[Picture]:
        return (self.picture,)

    def key(self, networks: Networks) -> str:
        return f"lpips_to_set|{networks.lpips_digest}|{self.picture.key}|{self.set_hash}"


Quantity = PictureFeatures | PairValue | LpipsSum | LpipsToSet


@dataclass
class PictureBatch:
    """Pictures that are decoded together, and what is computed from these alone."""

    pictures: list[Picture] = field(default_factory=list)
    quantities: list[Quantity] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Decoded:
    """A picture (H, W, 3) uint8, and what the kinds of features that resize it themselves have made of it."""

    pixels: Pixels
    resized: Mapping[str, NDArray]


class Measurements:
    """Computes what is wanted and reads it back; all numbers live in the cache. batch_size: pictures in a batch.

    processes: share the batches; afterwards each of them has all numbers.
    """

    def __init__(
        self,
        cache: FeatureCache,
        networks: Networks,
        batch_size: int = 16,
        num_threads: int = 2,
        progress: bool = False,
        processes: Processes = ALONE,
    ) -> None:
        self.cache, self.networks, self.processes = cache, networks, processes
        self.batch_size, self.num_threads, self.progress = batch_size, num_threads, progress
        self.pictures_decoded = 0
        self._sums: dict[str, lpips.FeatureSum] = {}  # by key: they are in memory anyway while they grow

    def entry(self, quantity: Quantity) -> tuple[str, int]:
        """Where the cache has it, and how many numbers it is."""
        length = 1
        if isinstance(quantity, PictureFeatures):
            length = self.networks.width(quantity.kind)
        elif isinstance(quantity, LpipsSum):
            height, width = quantity.pictures[0].load().shape[:2]
            sizes = zip(lpips.CHANNELS, lpips.map_sizes(height, width), strict=True)
            length += sum(channels * y * x for channels, (y, x) in sizes)
        return quantity.key(self.networks), length

    def read(self, quantities: Iterable[Quantity]) -> list[NDArray]:
        """What was computed before. RunError where an entry is gone: statistics of fewer pictures would be wrong."""
        wanted = [self.entry(quantity) for quantity in quantities]
        found = [value for _, value in self.cache.stream(wanted)]
        if len(found) < len(wanted):
            reason = f"{len(wanted) - len(found)} of {len(wanted)} computed entries cannot be read back"
            raise RunError("feature cache", reason, "the same command computes them again, or --no_cache")
        return found

    def numbers(self, quantities: Iterable[Quantity]) -> NDArray[np.float64]:
        """(n,) values of pairs, or of pictures to a set, that were computed before."""
        return np.array([value[0] for value in self.read(quantities)], np.float64)

    def features(self, kind: str, pictures: Iterable[Picture]) -> FeatureRows:
        """(n, d) features of pictures that were computed before, in their order; few enough of them in memory."""
        wanted = [PictureFeatures(kind, picture) for picture in pictures]
        rows = FeatureRows(len(wanted), lambda numbers: np.stack(self.read(wanted[i] for i in numbers)))
        return FeatureRows.of(rows.all()) if rows.count <= ROWS_IN_MEMORY else rows

    def lpips_sum(self, pictures: Sequence[Picture]) -> lpips.FeatureSum:
        """The sum over a set that was computed before."""
        wanted = LpipsSum(pictures)
        if (key := wanted.key(self.networks)) not in self._sums:
            total = torch.from_numpy(self.read([wanted])[0].copy())
            self._sums[key] = lpips.FeatureSum(total[1:], float(total[0]), len(pictures))
        return self._sums[key]

    def compute(self, quantities: Iterable[Quantity]) -> None:
        """Run the pass. Raises UserError naming a picture that cannot be read or gives values that are not finite."""
        by_entry = {self.entry(quantity): quantity for quantity in quantities}
        unknown = [entry for entry in by_entry if entry[0] not in self._sums]
        missing = set().union(*self.processes.gather(lambda: self.cache.missing(unknown)))
        due = {key: quantity for (key, _), quantity in by_entry.items() if key in missing}
        found = self.processes.gather(lambda: self._compute_own(due))
        totals: dict[str, lpips.FeatureSum] = {}
        for values, parts in found:
            self.cache.put(values)
            totals |= {key: totals[key] + part if key in totals else part for key, part in parts.items()}
        for key, total in totals.items():
            if not (math.isfinite(total.squares) and total.vector.isfinite().all()):
                raise UserError("LPIPS", "its features are not finite", "check the files of weights")
            self._sums[key] = total
            if len(total.vector) <= STORED_NUMBERS:
                self.cache.put({key: np.concatenate([[total.squares], total.vector.numpy()])})

    def _compute_own(
        self, due: Mapping[str, Quantity]
    ) -> tuple[dict[str, NDArray], dict[str, lpips.FeatureSum]]:
        """This process's share of a pass: values that others need, and parts of sums on the CPU, both by key."""
        needed: dict[str, NDArray] = {}
        sums = {key: set(total.pictures) for key, total in due.items() if isinstance(total, LpipsSum)}
        totals: dict[str, lpips.FeatureSum] = {}
        size = self._batch_size(due.values())
        batches = make_batches(due.values(), size)[self.processes.rank :: self.processes.world]
        pictures = [picture for batch in batches for picture in batch.pictures]
        wanted = {(q.kind, q.picture) for q in due.values() if isinstance(q, PictureFeatures)}
        resizes = {kind: how.resize for kind, how in FEATURES.items() if how.resize}

        def decode(picture: Picture) -> Decoded:
            pixels = picture.load()
            kinds = [kind for kind in resizes if (kind, picture) in wanted]
            return Decoded(pixels, {kind: resizes[kind](pixels) for kind in kinds})

        hidden = no_bar() if self.progress and pictures else True  # None: shown on a terminal only
        with (
            torch.inference_mode(),
            ThreadPoolExecutor(self.num_threads) as pool,
            closing(ahead(decode, pictures, BATCHES_AHEAD * size, self.num_threads)) as decoding,
            tqdm(
                total=len(pictures), unit="image", desc="measure", dynamic_ncols=True, disable=hidden
            ) as bar,
        ):
            for batch in batches:
                decoded = {picture: next(decoding) for picture in batch.pictures}
                _require_one_shape(decoded)
                by_pixels = {
                    quantity: pool.submit(quantity.function, *(decoded[p].pixels for p in quantity.pictures))
                    for quantity in batch.quantities
                    if isinstance(quantity, PairValue) and quantity.function
                }
                values = [
                    *self._features_of(batch, decoded, size),
                    *self._lpips_of(batch, decoded, sums, totals),
                ]
                values += [(quantity, np.array([value.result()])) for quantity, value in by_pixels.items()]
                by_key = {quantity.key(self.networks): value for quantity, value in values}
                self.cache.put(by_key)
                if self.processes.world > 1:
                    needed |= by_key
                self.pictures_decoded += len(batch.pictures)
                bar.update(len(batch.pictures))
        sums_on_cpu = {key: replace(total, vector=total.vector.cpu()) for key, total in totals.items()}
        return needed, sums_on_cpu

    def _batch_size(self, quantities: Iterable[Quantity]) -> int:
        """Pictures in a batch: all that are compared have one size, that of the first."""
        first = next((quantity.pictures[0] for quantity in quantities), None)
        fitting = BATCH_PIXELS // math.prod(first.load().shape[:2]) if first else 1
        return max(1, min(self.batch_size, fitting))

    def _features_of(
        self, batch: PictureBatch, decoded: Mapping[Picture, Decoded], size: int
    ) -> Iterator[tuple[Quantity, NDArray]]:
        """Features of the batch, `size` pictures at a time: more can hang together by pairs."""
        for kind in FEATURES:
            of_kind = [q for q in batch.quantities if isinstance(q, PictureFeatures) and q.kind == kind]
            for start in range(0, len(of_kind), size):
                group = of_kind[start : start + size]
                inputs = [decoded[q.picture].resized.get(kind, decoded[q.picture].pixels) for q in group]
                rows = self.networks.features(kind, _as_images(inputs)).numpy()
                for quantity, row in zip(group, rows, strict=True):
                    if not np.isfinite(row).all():
                        name, fix = quantity.picture.name, "check the files of weights"
                        raise UserError(name, "its features are not finite", fix)
                    yield quantity, row

    def _lpips_of(
        self,
        batch: PictureBatch,
        decoded: Mapping[Picture, Decoded],
        sums: Mapping[str, set[Picture]],
        totals: dict[str, lpips.FeatureSum],
    ) -> Iterator[tuple[Quantity, NDArray]]:
        """LPIPS of the batch; adds to `totals` what its pictures contribute to the `sums`, both by key."""
        pairs = [q for q in batch.quantities if isinstance(q, PairValue) and q.function is None]
        to_sets = [q for q in batch.quantities if isinstance(q, LpipsToSet)]
        seen = {picture for pair in pairs for picture in pair.pictures} | {item.picture for item in to_sets}
        group = [p for p in decoded if p in seen or any(p in members for members in sums.values())]
        if not group:
            return
        heads, place = self.networks.heads, {picture: i for i, picture in enumerate(group)}
        maps = self.networks.lpips_maps(_as_images([decoded[picture].pixels for picture in group]))
        if pairs:
            ours, theirs = ([place[q.pictures[side]] for q in pairs] for side in (0, 1))
            sides = (m[ours] for m in maps), (m[theirs] for m in maps)  # copies of one layer at a time
            values = lpips.distance(*sides, heads).cpu().numpy()
            yield from ((pair, values[i : i + 1]) for i, pair in enumerate(pairs))
        for quantity in to_sets:
            own = [m[place[quantity.picture]][None] for m in maps]
            yield quantity, np.array([lpips.mean_to_set(own, quantity.total, heads)])
        for key, members in sums.items():
            if rows := [place[picture] for picture in group if picture in members]:
                part = lpips.feature_sum([m[rows] for m in maps], heads)
                totals[key] = totals[key] + part if key in totals else part


def make_batches(quantities: Iterable[Quantity], size: int) -> list[PictureBatch]:
    """Batches of about `size` pictures, both sides of every pair in one batch: pairs first, in order of appearance.

    Pictures that pairs connect (an input, its outputs by several runs, its target) are never split up, so a batch can
    be larger than size by as many as hang together. A sum over a set belongs to no batch.
    """
    ordered = sorted(quantities, key=lambda quantity: not isinstance(quantity, PairValue))
    leader = {picture: picture for quantity in ordered for picture in quantity.pictures}

    def find(picture: Picture) -> Picture:
        while leader[picture] is not picture:
            leader[picture] = leader[leader[picture]]
            picture = leader[picture]
        return picture

    for quantity in ordered:
        if isinstance(quantity, PairValue):
            a, b = quantity.pictures
            leader[find(b)] = find(a)
    groups: dict[Picture, PictureBatch] = {}
    for picture in leader:
        groups.setdefault(find(picture), PictureBatch()).pictures.append(picture)
    for quantity in ordered:
        if not isinstance(quantity, LpipsSum):
            groups[find(quantity.pictures[0])].quantities.append(quantity)

    batches: list[PictureBatch] = []
    for group in groups.values():
        if not batches or len(batches[-1].pictures) + len(group.pictures) > size:
            batches.append(PictureBatch())
        batches[-1].pictures += group.pictures
        batches[-1].quantities += group.quantities
    return batches


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
