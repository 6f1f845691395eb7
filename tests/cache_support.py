"""For tests of the cache: pictures found, scanned and kept as a training does it, and their batches."""

from pathlib import Path
from typing import Any

import torch
from conftest import noise

from datasets.cache import CacheMaker
from datasets.check import scan
from datasets.layouts import find_sources
from datasets.loader import PairBatch, PairDataset, epoch_batches
from datasets.transforms import Augmentation

SMALL = Augmentation("resize_and_crop", load_size=20, crop_size=16)
GB = 10**9


def write_pairs(root: Path) -> Path:
    """Four side-by-side pictures of 48x18 pixels."""
    for i in range(4):
        noise(root / "train" / f"{i}.jpg", (48, 18), seed=i)
    return root


def prepare(
    root: Path,
    augmentation: Augmentation = SMALL,
    *,
    channels: tuple[int, int] = (3, 3),
    independent: bool = False,
    swapped: bool = False,
    **options: Any,
) -> tuple[PairDataset, CacheMaker]:
    """Pictures that are found and scanned as a training does it."""
    sources = find_sources(root, "train")
    sources = sources.swapped() if swapped else sources
    load, crop, preprocess = augmentation.load_size, augmentation.crop_size, augmentation.preprocess
    sources, report = scan(
        sources,
        load_size=load,
        crop_size=crop,
        preprocess=preprocess,
        channels=channels,
        independent=independent,
    )
    dataset = PairDataset(
        sources,
        augmentation,
        seed=3,
        channels_a=channels[0],
        channels_b=channels[1],
        independent=independent,
        **options,
    )
    return dataset, CacheMaker(sources, augmentation, channels, report.records)


def keep(root: Path, folder: Path, limit: int = GB, spare: int = 0, **options: Any) -> PairDataset:
    folder.mkdir(exist_ok=True)
    dataset, maker = prepare(root, **options)
    dataset.cache = maker.cache(folder, limit, spare)
    return dataset


def batches(dataset: PairDataset, num_threads: int = 0) -> list[PairBatch]:
    options: dict[str, Any] = {"seed": 5, "batch_size": 1, "shuffle": True, "num_threads": num_threads}
    return [batch for number in (1, 2) for batch in epoch_batches(dataset, epoch=number, **options)]


def assert_equal(one: list[PairBatch], other: list[PairBatch]) -> None:
    assert [batch["paths_B"] for batch in one] == [batch["paths_B"] for batch in other]
    for mine, its in zip(one, other, strict=True):
        assert torch.equal(mine["A"], its["A"]) and torch.equal(mine["B"], its["B"])


def caches(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file()]
