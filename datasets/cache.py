"""Training pictures as they are after the resize, in one file that is mapped into the memory of all loader workers.

Every `--preprocess` resizes a picture to what its size alone decides; only crop and flip are drawn. So the file holds
resized pictures, (C, H, W) uint8 one after the other, then a SHA-256. It is made before the first step, whole or not at
all. Its name is derived from the contents of the picture files, from how they are read and resized, and from the
decoders' versions. So a file of the right name holds the right pictures, whoever wrote it.
"""

import contextlib
import hashlib
import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from itertools import accumulate, groupby
from pathlib import Path
from typing import Literal, NamedTuple, cast

import numpy as np
from PIL import features
from tqdm import tqdm

from datasets import bands, decoding, images, tiff, transforms
from datasets.bands import Picture
from datasets.check import FileRecord
from datasets.decoding import Received
from datasets.errors import UserError, file_error, no_bar, say, warn
from datasets.files import ahead, as_mib, cores, free_space, remove_leftovers, replacing
from datasets.layouts import Sources
from datasets.transforms import Augmentation, Resized, Size, half_size, resize

Side = Literal["A", "B"]
Number = tuple[Side, int]
"""A picture of a `Sources`: of A or B, after `--direction`, and its index there."""

_DIGEST = 32  # bytes at the end of the file: SHA-256 of the key and all before


class Place(NamedTuple):
    """Where in the file a picture is."""

    offset: int
    shape: tuple[int, int, int]  # (C, H, W)
    size: Size  # of the picture before the resize


@dataclass(frozen=True)
class PictureCache:
    """The file, and the pictures in it. Small to pickle: every process maps the file itself."""

    path: Path
    bytes: int  # of the whole file
    places: Mapping[Number, Place]
    wanted: int  # pictures, with those that do not fit

    def find(self, side: Side, i: int) -> Resized | None:
        """Picture i of a side, or None if it has to be decoded: it does not fit, or the file is gone."""
        place = self.places.get((side, i))
        values = _mapped(self.path, self.bytes) if place else None
        if place is None or values is None:
            return None
        end = place.offset + math.prod(place.shape)
        return Resized(values[place.offset : end].reshape(place.shape), place.size)

    def __str__(self) -> str:
        left = self.wanted - len(self.places)
        rest = f"; {left} do not fit and are decoded in every epoch" if left else ""
        return f"{len(self.places)} of {self.wanted} pictures, {as_mib(self.bytes)}: {self.path}{rest}"


@lru_cache(maxsize=2)
def _mapped(path: Path, size: int) -> np.ndarray | None:
    with contextlib.suppress(OSError, ValueError):
        values = np.asarray(np.memmap(path, np.uint8, "r"))
        return values if len(values) == size else None
    return None


@dataclass(frozen=True)
class CacheMaker:
    """What decides the pictures of a training: the files, how they are read, and how they are resized.

    records: what the start-up scan found in each file.
    """

    sources: Sources
    augmentation: Augmentation
    channels: tuple[int, int]  # of A and B
    records: Mapping[Path, FileRecord]

    def cache(self, folder: Path, limit: int, spare: int = 0) -> PictureCache | None:
        """The cache of all pictures, or of as many of the first as fit in `limit` bytes; made if it is not there.

        spare: bytes that must stay free beside it. None, after a line that says why, where it cannot be made.
        """
        order = self._numbers()
        files = [list(numbers) for _, numbers in groupby(order, lambda number: self._path(*number))]
        costs = (sum(math.prod(self._shape(*number)) for number in numbers) for numbers in files)
        files = files[: sum(total + _DIGEST <= limit for total in accumulate(costs))]
        if not files:
            warn("--cache_gb", f"{limit / 1e9:g} GB hold none of the pictures")
            return None
        places, offset = {}, 0
        for number in (number for numbers in files for number in numbers):
            places[number] = Place(offset, self._shape(*number), self._size(*number))
            offset += math.prod(places[number].shape)
        key, kind = self._key(list(places)), self._kind()
        path = folder / f"pictures-{kind}-{key[:32]}.u8"
        cache = PictureCache(path, offset + _DIGEST, places, len(order))
        try:
            if not _is_whole(cache, key):
                self._make(cache, key, files, spare)
        except (UserError, OSError) as error:
            known = error if isinstance(error, UserError) else file_error(error, path, "written")
            warn("--cache_gb", f"{known}; pictures are decoded as they are needed")
            return None
        return cache

    def _numbers(self) -> list[Number]:
        """All pictures, pairs together; held out ones too, or runs of several seeds could not share them."""
        sizes: list[tuple[Side, int]] = [("A", len(self.sources.a)), ("B", len(self.sources.b))]
        return [(side, i) for i in range(max(sizes[0][1], sizes[1][1])) for side, count in sizes if i < count]

    def _make(self, cache: PictureCache, key: str, files: Sequence[list[Number]], spare: int) -> None:
        folder, digest = cache.path.parent, hashlib.sha256(key.encode())
        remove_leftovers(folder)
        for old in folder.glob(f"pictures-{self._kind()}-*.u8"):  # of other contents, or of another limit
            with contextlib.suppress(OSError):
                old.unlink()
        if (free := free_space(folder)) < cache.bytes + spare:
            needed = f"need {as_mib(cache.bytes)}" + f" and {as_mib(spare)} for checkpoints" * bool(spare)
            raise UserError(folder, f"no space: {needed}, free {as_mib(free)}")
        with (
            replacing(cache.path, durable=False) as write,
            closing(ahead(self._decoded, files, depth=2 * cores())) as decoded,
        ):
            for pictures in tqdm(decoded, "cache", len(files), unit="file", leave=False, disable=no_bar()):
                for pixels in pictures:
                    digest.update(pixels)
                    write(pixels)
            write(digest.digest())

    def _decoded(self, numbers: list[Number]) -> list[bytes]:
        """The pictures of one file, as the cache holds them."""
        path = self._path(*numbers[0])
        try:
            content = path.read_bytes()
        except OSError as error:
            raise file_error(error, path, "read") from error
        if hashlib.sha256(content).hexdigest() != self.records[path].sha256:
            raise UserError(path, "has changed since the start", "start again")
        file = cast(Path, Received(str(path), content))  # has all that is used of a path
        one = replace(self.sources, a=(file,), b=(file,))
        if len(numbers) == 2:
            pictures = one.load_pair(0, *self.channels)
            loaded = dict(zip(("A", "B"), pictures, strict=True))
        else:
            [(side, _)] = numbers
            load = one.load_a if side == "A" else one.load_b
            loaded = {side: load(0, self.channels["AB".index(side)])}
        return [self._resized(loaded[side]) for side, _ in numbers]

    def _resized(self, picture: Picture) -> bytes:
        return resize(picture, self.augmentation.resized(picture.size)).tobytes()

    def _path(self, side: Side, i: int) -> Path:
        return (self.sources.a if side == "A" else self.sources.b)[i]

    def _size(self, side: Side, i: int) -> Size:
        path = self._path(side, i)
        size = self.records[path].infos[0].size
        return half_size(size, path) if self.sources.layout == "aligned" else size

    def _shape(self, side: Side, i: int) -> tuple[int, int, int]:
        width, height = self.augmentation.resized(self._size(side, i))
        return self.channels["AB".index(side)], height, width

    def _kind(self) -> str:
        """A digest of what does not depend on the files: caches of one kind replace each other."""
        sources, rules = self.sources, replace(self.augmentation, flip=True)
        where = sources.root.resolve(), sources.split, sources.layout, sources.is_swapped
        return hashlib.sha256(repr((where, sources.ranges, self.channels, rules)).encode()).hexdigest()[:8]

    def _key(self, numbers: Sequence[Number]) -> str:
        digest = hashlib.sha256(_reader() + self._kind().encode())
        for side, i in numbers:
            content, shape = self.records[self._path(side, i)].sha256, self._shape(side, i)
            digest.update(repr((content, side, shape)).encode())
        return digest.hexdigest()


def _reader() -> bytes:
    """What reads and resizes pictures: our code, and the decoders. With a change of it, caches are made anew."""
    files = (__file__, *(module.__file__ for module in (bands, decoding, images, tiff, transforms)))
    code = [Path(file or "").read_bytes() for file in files]
    libraries = [f"{name} {version(name)}" for name in ("pillow", "tifffile", "imagecodecs", "torch")]
    codecs = [f"{name} {features.version(name)}" for name in features.get_supported_codecs()]
    return b"\0".join([*code, *(text.encode() for text in libraries + codecs)])


def _is_whole(cache: PictureCache, key: str) -> bool:
    """Whether the file is there, and holds all that its own SHA-256 speaks of."""
    if not cache.path.is_file():
        return False
    digest, left = hashlib.sha256(key.encode()), cache.bytes - _DIGEST
    with cache.path.open("rb") as file:
        while block := file.read(min(left, 1 << 22)):
            digest.update(block)
            left -= len(block)
        if file.read(_DIGEST + 1) == digest.digest():
            return True
    say(f"{cache.path} is damaged: it is made again")
    return False
