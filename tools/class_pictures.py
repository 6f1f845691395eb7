"""Labelled pictures in memory: CIFAR-10 and CIFAR-100 as torchvision keeps them, or a folder for each class."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100

from datasets.errors import UserError, file_error
from datasets.images import find_images, load_image
from gan.checkpoint_format import raw_bytes


@dataclass(frozen=True)
class Split:
    """pictures: (N, 3, size, size) uint8; labels: (N) int64, numbers of classes."""

    pictures: Tensor
    labels: Tensor


@dataclass(frozen=True)
class LabelledPictures:
    """A data set; `classes` are names, sorted for class folders."""

    train: Split
    test: Split
    classes: Sequence[str]

    @cached_property
    def fingerprint(self) -> str:
        """Tells whether a run is resumed with the pictures that it began with."""
        digest = hashlib.sha256("\0".join(self.classes).encode())
        for split in (self.train, self.test):
            digest.update(raw_bytes(split.pictures))
            digest.update(raw_bytes(split.labels))
        return digest.hexdigest()


def load_labelled(root: Path, size: int) -> LabelledPictures:
    """The pictures of a data folder, as RGB; those of another size are resized. Raises UserError.

    root: holds cifar-10-batches-py or cifar-100-python, or train/CLASS/* and test/CLASS/*.
    """
    for kind in (CIFAR10, CIFAR100):
        if (root / kind.base_folder).is_dir():
            try:  # it compares the MD5 of every file before it reads one
                found = [kind(root, train=is_train) for is_train in (True, False)]
            except RuntimeError:
                folder = root / kind.base_folder
                raise UserError(folder, "is incomplete or damaged", "unpack the archive again") from None
            train, test = (
                _split([_fitted(Image.fromarray(pixels), size) for pixels in one.data], one.targets)
                for one in found
            )
            return LabelledPictures(train, test, found[0].classes)
    for folder in (root, root / "train", root / "test"):
        if not folder.is_dir():
            fix = "give a folder with train/CLASS and test/CLASS, or cifar-10-batches-py or cifar-100-python"
            raise UserError(folder, "no such folder", fix)
    there, tested = (_class_folders(root / name) for name in ("train", "test"))
    if odd := sorted(there ^ tested):
        reason = f"the class {odd[0]} is in {'train' if odd[0] in there else 'test'} only"
        raise UserError(root, reason, "both need the same classes")
    if len(there) < 2:
        raise UserError(root / "train", f"folders of classes in it: {len(there)}", "two or more are needed")
    train, test = (_of_folders(root / name, sorted(there), size) for name in ("train", "test"))
    return LabelledPictures(train, test, sorted(there))


def _class_folders(folder: Path) -> set[str]:
    try:
        return {path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}
    except OSError as error:
        raise file_error(error, folder, "listed") from error


def _of_folders(folder: Path, classes: Sequence[str], size: int) -> Split:
    pictures, labels = [], []
    for number, name in enumerate(classes):
        files = find_images(folder / name)
        if not files:
            raise UserError(folder / name, "holds no picture", "add pictures or remove the folder")
        pictures += [_fitted(load_image(file), size) for file in files]
        labels += [number] * len(files)
    return _split(pictures, labels)


def _fitted(picture: Image.Image, size: int) -> np.ndarray:
    """(size, size, 3) uint8: as it is, or the largest square in the middle, resized."""
    if picture.size != (size, size):
        picture = ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(picture)


def _split(pixels: Sequence[np.ndarray], labels: Sequence[int]) -> Split:
    """pixels: (H, W, 3) uint8 each."""
    return Split(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels))
