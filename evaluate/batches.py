"""Which pictures are decoded together, and decoding them ahead of the network."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datasets.errors import UserError
from evaluate.pictures import Picture
from evaluate.pixels import WINDOW

Pair = tuple[Picture, Picture]

BATCHES_AHEAD = 2
INCEPTION_SIDE = 299  # pixels
SMALLEST_LPIPS = 31  # pixels: AlexNet's second pooling needs them


@dataclass
class Batch:
    """Pictures, and all wanted values of pairs among them as (name, pair)."""

    pictures: list[Picture] = field(default_factory=list)
    pairs: list[tuple[str, Pair]] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Loaded:
    """A decoded picture: (H, W, 3) uint8, and (299, 299, 3) float32 in [0, 255] where the clean resize is wanted."""

    pixels: NDArray[np.uint8]
    clean: NDArray[np.float32] | None


def make_batches(singles: Iterable[Picture], pairs: Sequence[tuple[str, Pair]], size: int) -> list[Batch]:
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
    groups: dict[Picture, Batch] = {}
    for picture in ordered:
        groups.setdefault(find(picture), Batch()).pictures.append(picture)
    for name, pair in pairs:
        groups[find(pair[0])].pairs.append((name, pair))

    batches: list[Batch] = []
    for group in groups.values():
        if not batches or len(batches[-1].pictures) + len(group.pictures) > size:
            batches.append(Batch())
        batches[-1].pictures += group.pictures
        batches[-1].pairs += group.pairs
    return batches


def prefetched(
    batches: Sequence[Batch], clean: Collection[Picture], pool: Executor
) -> Iterator[tuple[Batch, dict[Picture, Loaded]]]:
    """Each batch with its decoded pictures, while the pool decodes the next ones."""

    def submit(batch: Batch) -> dict[Picture, Future[Loaded]]:
        return {picture: pool.submit(load, picture, picture in clean) for picture in batch.pictures}

    ahead = [submit(batch) for batch in batches[:BATCHES_AHEAD]]
    try:
        for number, batch in enumerate(batches):
            current = {picture: future.result() for picture, future in ahead.pop(0).items()}
            if number + BATCHES_AHEAD < len(batches):
                ahead.append(submit(batches[number + BATCHES_AHEAD]))
            yield batch, current
    finally:
        for futures in ahead:
            for future in futures.values():
                future.cancel()


def load(picture: Picture, clean: bool) -> Loaded:
    """Decode one picture, with the second resize if asked for."""
    pixels = picture.load()
    return Loaded(pixels, resize_clean(pixels) if clean else None)


def resize_clean(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(H, W, 3) uint8 -> (299, 299, 3) float32 in [0, 255]: antialiased bicubic, never rounded to 8 bits.

    As in Parmar et al. 2022, "On Aliased Resizing and Surprising Subtleties in GAN Evaluation".
    """
    side = (INCEPTION_SIDE, INCEPTION_SIDE)
    planes = [
        np.asarray(Image.fromarray(pixels[:, :, c].astype(np.float32)).resize(side, Image.Resampling.BICUBIC))
        for c in range(3)
    ]
    return np.stack(planes, axis=2).clip(0.0, 255.0)


def equal_shapes(pictures: Iterable[Picture], loaded: Mapping[Picture, Loaded]) -> list[list[Picture]]:
    """The pictures grouped by their height and width: a network takes one shape at a time."""
    groups: dict[tuple[int, ...], list[Picture]] = {}
    for picture in pictures:
        groups.setdefault(loaded[picture].pixels.shape, []).append(picture)
    return list(groups.values())


def require_comparable(name: str, a: Picture, b: Picture, loaded: Mapping[Picture, Loaded]) -> None:
    """UserError where a pair differs in size or is too small for the metric."""
    (height, width), (other_height, other_width) = loaded[a].pixels.shape[:2], loaded[b].pixels.shape[:2]
    if (height, width) != (other_height, other_width):
        reason = f"is {width}x{height}, {b.path} is {other_width}x{other_height}"
        raise UserError(a.path, reason, "--size N stretches all to NxN")
    if name == "ssim" and min(height, width) < WINDOW:
        reason = f"is {width}x{height}, SSIM needs {WINDOW}x{WINDOW}"
        raise UserError(a.path, reason, "leave ssim out of --metrics")


def require_lpips_size(picture: Picture, loaded: Mapping[Picture, Loaded]) -> None:
    height, width = loaded[picture].pixels.shape[:2]
    if min(height, width) < SMALLEST_LPIPS:
        reason = f"is {width}x{height}, LPIPS needs {SMALLEST_LPIPS}x{SMALLEST_LPIPS}"
        raise UserError(picture.path, reason, "leave lpips out of --metrics")
