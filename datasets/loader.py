"""The samples of an epoch, in an order and with an augmentation that depend on seeds and positions alone.

The order comes from (seed, epoch), the augmentation and the partner of a sample from (seed, epoch, index),
never from a global random state. So the batches are the same for any number of workers, and a run continues
in the middle of an epoch from nothing but its position.
"""

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
from torch import Tensor

from datasets import workers
from datasets.bands import Picture
from datasets.cache import PictureCache
from datasets.errors import RunError, UserError
from datasets.images import to_unit_range
from datasets.layouts import Sources
from datasets.transforms import Augmentation, Resized, resize

Sample = tuple[np.ndarray, np.ndarray, str, str]  # (C, H, W) uint8 of A and B, their files


RawBatch = dict[str, Any]
"""A `PairBatch` whose pictures are uint8 arrays (N, C, H, W)."""


class PairBatch(TypedDict):
    """A (the input, after `--direction`) and B, (N, C, H, W) float32 in [-1, 1], with their files."""

    A: Tensor
    B: Tensor
    paths_A: list[str]
    paths_B: list[str]
    skipped: list[str]  # with skip_bad: what was wrong with files that a neighbour has replaced
    counts: NotRequired[list[int]]  # where several processes share a step: how many of its pictures each has


class PairDataset:
    """Training samples, addressed by (epoch, index).

    independent: sample A and B independently also where they are pairs (CycleGAN on paired data); data without
    partners is always sampled so. Then an epoch has as many samples as the larger side has files; the index picks A's
    file and the sample's generator B's, or with serial the index both. exclude: indices kept out of training
    (`validation_indices`). skip_bad: a file that has become unreadable is replaced by the next sample; without it, it
    is a UserError naming the file.
    """

    def __init__(
        self,
        sources: Sources,
        augmentation: Augmentation,
        *,
        seed: int,
        channels_a: int = 3,
        channels_b: int = 3,
        independent: bool = False,
        serial: bool = False,
        exclude: Iterable[int] = (),
        skip_bad: bool = False,
    ) -> None:
        if not sources.a or not sources.b:
            raise UserError(sources.root, "a plain folder has no B", "training needs A and B, see --dataroot")
        self.sources, self.augmentation, self.seed = sources, augmentation, seed
        self.channels_a, self.channels_b = channels_a, channels_b
        self.paired = sources.is_paired and not independent
        self.serial, self.skip_bad = serial, skip_bad
        self.cache: PictureCache | None = None
        # Excluded indices count on from the start of a smaller side.
        count_a, count_b, exclude = len(sources.a), len(sources.b), set(exclude)
        self.indices_a = sorted({*range(count_a)} - {index % count_a for index in exclude})
        self.indices_b = sorted({*range(count_b)} - {index % count_b for index in exclude})
        if not self.indices_a or not self.indices_b:
            fix = "lower it or leave out --val_holdout"
            raise UserError("--val_count", "leaves no image to train on", fix)

    def __len__(self) -> int:
        return max(len(self.indices_a), len(self.indices_b))

    def raw_batch(self, keys: Sequence[tuple[int, int]]) -> RawBatch:
        """A batch of uint8 arrays, a quarter of the bytes to send between processes, by (epoch, index).

        Raises UserError naming the file that cannot be read, is too small, or differs in size from the others.
        """
        skipped: list[str] = []
        return _collate([self._sample(epoch, index, skipped) for epoch, index in keys], skipped)

    def _sample(self, epoch: int, index: int, skipped: list[str]) -> Sample:
        """The sample, or the next one that can be read; what was wrong with the others joins `skipped`."""
        failed = 0
        while True:
            try:
                return self._load(epoch, (index + failed) % len(self))
            except RunError:  # of memory: nothing is wrong with the file
                raise
            except UserError as error:
                failed += 1
                if not self.skip_bad or failed == len(self):
                    raise
                skipped.append(str(error))

    def _load(self, epoch: int, index: int) -> Sample:
        rng = random.Random(stable_hash(self.seed, epoch, index))
        i = self.indices_a[index % len(self.indices_a)]
        if self.paired:
            j = i
        else:
            k = index % len(self.indices_b) if self.serial else rng.randrange(len(self.indices_b))
            j = self.indices_b[k]
        a, b = self._kept_or_decoded(i, j)
        path_a, path_b = str(self.sources.a[i]), str(self.sources.b[j])
        if self.paired and a.size != b.size:
            sizes = "{}x{}, its partner {}x{} ({})".format(*a.size, *b.size, path_b)
            raise UserError(path_a, sizes, "pairs need equal sizes")
        transform_a = self.augmentation.draw(a.size, rng, path_a)
        transform_b = transform_a if self.paired else self.augmentation.draw(b.size, rng, path_b)
        return transform_a.apply(a), transform_b.apply(b), path_a, path_b

    def _kept_or_decoded(self, i: int, j: int) -> tuple[Picture | Resized, Picture | Resized]:
        a, b = (self.cache.find("A", i), self.cache.find("B", j)) if self.cache else (None, None)
        if a is None and b is None:
            return self.decoded(i, j)
        return a or self.sources.load_a(i, self.channels_a), b or self.sources.load_b(j, self.channels_b)

    def decoded(self, i: int, j: int) -> tuple[Picture, Picture]:
        """File i of A and file j of B as they are on disk."""
        if i == j:
            return self.sources.load_pair(i, self.channels_a, self.channels_b)
        return self.sources.load_a(i, self.channels_a), self.sources.load_b(j, self.channels_b)


def _collate(samples: Sequence[Sample], skipped: list[str]) -> RawBatch:
    paths_a, paths_b = [sample[2] for sample in samples], [sample[3] for sample in samples]
    return {
        "A": _stack([sample[0] for sample in samples], paths_a),
        "B": _stack([sample[1] for sample in samples], paths_b),
        "paths_A": paths_a,
        "paths_B": paths_b,
        "skipped": skipped,
    }


def _stack(pictures: list[np.ndarray], paths: list[str]) -> np.ndarray:
    (_, height, width), *_ = (pixels.shape for pixels in pictures)
    for pixels, path in zip(pictures, paths, strict=True):
        if pixels.shape[1:] != (height, width):
            sizes = f"{pixels.shape[2]}x{pixels.shape[1]} in a batch with {width}x{height} ({paths[0]})"
            raise UserError(path, sizes, "use --batch_size 1 or a --preprocess that crops")
    return np.stack(pictures)


def _in_unit_range(raw: RawBatch) -> PairBatch:
    """The batch with its pictures as float32 in [-1, 1]."""
    a, b = (to_unit_range(torch.from_numpy(raw[side])) for side in "AB")
    return PairBatch(A=a, B=b, paths_A=raw["paths_A"], paths_B=raw["paths_B"], skipped=raw["skipped"])


def stable_hash(*parts: int | str) -> int:
    """A 64-bit number from seeds and positions, the same on every machine and in every process."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def epoch_batches(
    dataset: PairDataset,
    *,
    epoch: int,
    seed: int,
    batch_size: int,
    shuffle: bool,
    num_threads: int,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
    pin_memory: bool = False,
    timeout: float = workers.TIMEOUT,
) -> Iterator[PairBatch]:
    """The batches of an epoch; the last one may be smaller.

    rank, world: this process takes the block of its rank from every batch_size * world samples. Where the last of
    these leave it none, it gets one that another process has, and the batch's `counts` say 0. start: batches already
    done, which are left out without being decoded. num_threads: worker processes, 0 for none; the batches do not depend
    on it. timeout: seconds without a batch after which workers count as hanging. Raises UserError for a bad file,
    RunError for workers that are lost or hang.
    """
    order = list(range(len(dataset)))
    if shuffle:
        random.Random(stable_hash(seed, epoch, "order")).shuffle(order)
    keys = [(epoch, index) for index in order]
    together = batch_size * world
    shared = [keys[first : first + together] for first in range(start * together, len(keys), together)]
    batches = [every[rank * batch_size : (rank + 1) * batch_size] or every[:1] for every in shared]
    raw: Iterator[RawBatch]
    if num_threads == 0:
        raw = map(dataset.raw_batch, batches)
    else:
        raw = workers.map_in_workers(dataset.raw_batch, batches, num_threads, timeout)
    for number, batch in enumerate(map(_in_unit_range, raw)):
        if world > 1:
            blocks = (len(shared[number]) - first for first in range(0, together, batch_size))
            batch["counts"] = [min(max(left, 0), batch_size) for left in blocks]
        if pin_memory:
            batch["A"], batch["B"] = batch["A"].pin_memory(), batch["B"].pin_memory()
        yield batch


def validation_indices(count: int, n: int, seed: int) -> list[int]:
    """A fixed slice of n of count samples (all where there are fewer), sorted, from the seed."""
    return sorted(random.Random(stable_hash(seed, "validation")).sample(range(count), min(n, count)))


def fixed_samples(dataset: PairDataset, indices: Sequence[int]) -> PairBatch:
    """One batch of these samples without augmentation: stretched to crop_size x crop_size, no crop, no flip.

    An index counts in all files, excluded ones too; without partners it counts on from the start of a smaller side.
    """
    sources, size = dataset.sources, dataset.augmentation.crop_size
    samples = []
    for index in indices:
        i, j = index % len(sources.a), index % len(sources.b)
        a, b = (resize(one, (size, size)) for one in dataset.decoded(i, j))
        samples.append((a, b, str(sources.a[i]), str(sources.b[j])))
    return _in_unit_range(_collate(samples, []))
