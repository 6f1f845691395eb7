"""The samples of an epoch, in an order and with an augmentation that depend on seeds and positions alone.

The order comes from (seed, epoch), the augmentation and the partner of a sample from (seed, epoch, index),
never from a global random state. So the batches are the same for any number of workers, and a run continues
in the middle of an epoch from nothing but its position.
"""

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import TypedDict

import torch
from PIL import Image
from torch import Tensor

from datasets import transforms, workers
from datasets.errors import UserError
from datasets.images import to_bytes, to_unit_range
from datasets.layouts import Sources
from datasets.transforms import Geometry

Key = tuple[int, int]  # (epoch, index)


class Batch(TypedDict):
    """A (the input, after `--direction`) and B, (N, C, H, W) float32 in [-1, 1], with their files."""

    A: Tensor
    B: Tensor
    paths_A: list[str]
    paths_B: list[str]
    skipped: list[str]  # with skip_bad: what was wrong with files that a neighbour has replaced


class PairDataset(torch.utils.data.Dataset[Batch]):
    """Training samples by key (epoch, index), each a Batch of one.

    independent: sample A and B independently also where they are pairs (CycleGAN on paired data); data
    without partners is always sampled so. Then an epoch has as many samples as the larger side has files,
    the index picks A's file and the sample's generator B's, or with serial the index both. exclude: indices
    kept out of training (`validation_indices`). skip_bad: a file that has become unreadable is replaced by
    the next sample; without it, it is a UserError naming the file.
    """

    def __init__(
        self,
        sources: Sources,
        geometry: Geometry,
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
        self.sources, self.geometry, self.seed = sources, geometry, seed
        self.channels_a, self.channels_b = channels_a, channels_b
        self.paired = sources.is_paired and not independent
        self.serial, self.skip_bad = serial, skip_bad
        excluded = set(exclude)
        self.indices_a = _left(len(sources.a), excluded)
        self.indices_b = _left(len(sources.b), excluded)
        if not self.indices_a or not self.indices_b:
            raise UserError(
                "--val_count", "leaves no image to train on", "lower it or leave out --val_holdout"
            )

    def __len__(self) -> int:
        return max(len(self.indices_a), len(self.indices_b))

    def __getitem__(self, key: Key) -> Batch:
        return in_unit_range(self.raw_batch([key]))

    def raw_batch(self, keys: Sequence[Key]) -> Batch:
        """Batch of uint8 pictures, a quarter of the bytes to send between processes.

        Raises UserError naming the file that cannot be read, is too small, or differs in size from the
        others.
        """
        return _stack([self._sample(epoch, index) for epoch, index in keys])

    def _sample(self, epoch: int, index: int) -> Batch:
        skipped: list[str] = []
        while True:
            try:
                return {**self._load(epoch, index), "skipped": skipped}
            except UserError as error:
                if not self.skip_bad or len(skipped) + 1 >= len(self):
                    raise
                skipped.append(str(error))
                index = (index + 1) % len(self)

    def _load(self, epoch: int, index: int) -> Batch:
        rng = random.Random(stable_hash(self.seed, epoch, index))
        i, j = self._pick(index, rng)
        a = self.sources.load_a(i, self.channels_a)
        b = self.sources.load_b(j, self.channels_b)
        path_a, path_b = str(self.sources.a[i]), str(self.sources.b[j])
        placement_a = transforms.draw(self.geometry, a.size, rng, path_a)
        if not self.paired:
            placement_b = transforms.draw(self.geometry, b.size, rng, path_b)
        elif a.size == b.size:
            placement_b = placement_a
        else:
            sizes = f"{a.width}x{a.height}, its partner {b.width}x{b.height} ({path_b})"
            raise UserError(path_a, sizes, "pairs need equal sizes")
        a = transforms.apply(a, self.geometry, placement_a)
        b = transforms.apply(b, self.geometry, placement_b)
        return _one(a, b, path_a, path_b)

    def _pick(self, index: int, rng: random.Random) -> tuple[int, int]:
        """The files of A and B for an index."""
        i = self.indices_a[index % len(self.indices_a)]
        if self.paired:
            return i, i
        j = index % len(self.indices_b) if self.serial else rng.randrange(len(self.indices_b))
        return i, self.indices_b[j]


def _left(count: int, excluded: set[int]) -> list[int]:
    """Indices below count that are not excluded; excluded ones count on from the start of a smaller side."""
    excluded = {index % count for index in excluded}
    return [index for index in range(count) if index not in excluded]


def _one(a: Image.Image, b: Image.Image, path_a: str, path_b: str) -> Batch:
    return {
        "A": to_bytes(a)[None],
        "B": to_bytes(b)[None],
        "paths_A": [path_a],
        "paths_B": [path_b],
        "skipped": [],
    }


def _stack(samples: Sequence[Batch]) -> Batch:
    paths_a = [path for sample in samples for path in sample["paths_A"]]
    paths_b = [path for sample in samples for path in sample["paths_B"]]
    return {
        "A": _concatenate([sample["A"] for sample in samples], paths_a),
        "B": _concatenate([sample["B"] for sample in samples], paths_b),
        "paths_A": paths_a,
        "paths_B": paths_b,
        "skipped": [text for sample in samples for text in sample["skipped"]],
    }


def _concatenate(pictures: list[Tensor], paths: list[str]) -> Tensor:
    first = pictures[0].shape
    for picture, path in zip(pictures, paths, strict=True):
        if picture.shape != first:
            sizes = (
                f"{picture.shape[3]}x{picture.shape[2]} in a batch with {first[3]}x{first[2]} ({paths[0]})"
            )
            raise UserError(path, sizes, "use --batch_size 1 or a --preprocess that crops")
    return torch.cat(pictures)


def in_unit_range(batch: Batch) -> Batch:
    """The batch with its uint8 pictures as float32 in [-1, 1]."""
    return {**batch, "A": to_unit_range(batch["A"]), "B": to_unit_range(batch["B"])}


def stable_hash(*parts: int | str) -> int:
    """A 64-bit number from seeds and positions, the same on every machine and in every process."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def epoch_order(count: int, *, epoch: int, seed: int, shuffle: bool) -> list[int]:
    """The indices of an epoch, shuffled from (seed, epoch) or in order."""
    order = list(range(count))
    if shuffle:
        random.Random(stable_hash(seed, epoch, "order")).shuffle(order)
    return order


def epoch_batches(
    dataset: PairDataset,
    *,
    epoch: int,
    seed: int,
    batch_size: int,
    shuffle: bool,
    num_threads: int,
    start: int = 0,
    pin_memory: bool = False,
    timeout: float = workers.TIMEOUT,
) -> Iterator[Batch]:
    """The batches of an epoch; the last one may be smaller.

    start: batches already done, which are left out without being decoded. num_threads: worker processes, 0
    for none; the batches do not depend on it. timeout: seconds without a batch after which workers count as
    hanging. Raises UserError for a bad file, RunError for workers that are lost or hang.
    """
    order = epoch_order(len(dataset), epoch=epoch, seed=seed, shuffle=shuffle)
    keys = [(epoch, index) for index in order]
    batches = [keys[first : first + batch_size] for first in range(0, len(keys), batch_size)][start:]
    raw: Iterator[Batch]
    if num_threads == 0:
        raw = (dataset.raw_batch(batch) for batch in batches)
    else:
        raw = workers.map_in_workers(dataset.raw_batch, batches, num_threads, timeout)
    for batch in raw:
        ready = in_unit_range(batch)
        if pin_memory:
            ready["A"], ready["B"] = ready["A"].pin_memory(), ready["B"].pin_memory()
        yield ready


def validation_indices(count: int, n: int, seed: int) -> list[int]:
    """A fixed slice of n of count samples (all where there are fewer), sorted, from the seed."""
    return sorted(random.Random(stable_hash(seed, "validation")).sample(range(count), min(n, count)))


def fixed_samples(dataset: PairDataset, indices: Sequence[int]) -> Batch:
    """One batch of these samples without augmentation: stretched to crop_size x crop_size, no crop, no flip.

    An index counts in all files, excluded ones too; without partners it counts on from the start of a
    smaller side.
    """
    sources, size = dataset.sources, dataset.geometry.crop_size
    samples = []
    for index in indices:
        i, j = index % len(sources.a), index % len(sources.b)
        a = transforms.evaluation_resize(sources.load_a(i, dataset.channels_a), size)
        b = transforms.evaluation_resize(sources.load_b(j, dataset.channels_b), size)
        samples.append(_one(a, b, str(sources.a[i]), str(sources.b[j])))
    return in_unit_range(_stack(samples))
