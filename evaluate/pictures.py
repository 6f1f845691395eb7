"""The pictures of an evaluation: anything with a key and a `load()` - a file, an array, a prediction.

The predictions are the baselines, the floor that a trained network has to beat: the mean colour of all training
targets, the affine map from input colour to target colour with the least squared error, and a table of the mean target
colour for each input colour.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datasets.bands import Bands
from datasets.decoding import FORMATS, naming_problems
from datasets.errors import UserError, say
from datasets.files import require_file, sha256_of
from datasets.images import PLAIN, Part, WantedRange, find_images, inspect_image, load_image
from datasets.layouts import half, left_out
from datasets.transforms import evaluation_resize

DECODING = 2  # raised when datasets.images turns a file into other pixels than before

LEVELS = 32  # of each channel, in the baseline's table of colours

Pixels = NDArray[np.uint8]  # (H, W, 3)


@dataclass(frozen=True)
class FilePicture:
    """A file, or half of one.

    part: which half of a side-by-side file; size: side that it is stretched to, None as it is; channels: 1 is seen in
    grey, as a network with grey output is trained. bands: of more than three channels those that are compared, from 1.
    """

    path: Path
    content: str  # SHA-256 of the file
    part: Part = "whole"
    size: int | None = None
    channels: int = 3
    value_range: WantedRange = None
    bands: tuple[int, ...] = ()

    @property
    def key(self) -> str:
        """What determines the pixels of `load`."""
        key = f"{self.content}:{self.part}:{self.size}:{self.channels}:{DECODING}"
        key += f":{self.bands}" if self.channels not in PLAIN else ""
        return f"{key}:{self.value_range}" if self.value_range else key

    @property
    def name(self) -> str:
        """What messages call it."""
        return str(self.path)

    def load(self) -> Pixels:
        """(H, W, 3) uint8. Raises UserError naming the file."""
        picture = self.load_image()
        shown = picture.shown(self.bands) if isinstance(picture, Bands) else picture
        return np.asarray(shown.convert("RGB"))

    def load_image(self) -> Image.Image | Bands:
        """The picture with its channels, mode L or RGB, or bands. Raises UserError naming the file."""
        picture = load_image(self.path, self.channels, self.value_range)
        if self.part != "whole":
            picture = half(picture, self.path, right=self.part == "right")
        return picture if self.size is None else evaluation_resize(picture, self.size)


@dataclass(frozen=True, eq=False)
class ArrayPicture:
    """Pixels in memory, such as a sample of a training."""

    pixels: Pixels
    name: str

    @cached_property
    def key(self) -> str:
        return f"{self.pixels.shape}:{hashlib.sha256(self.pixels.tobytes()).hexdigest()}"

    def load(self) -> Pixels:
        return self.pixels


@dataclass(frozen=True)
class Prediction:
    """What a function makes of another picture. predictor: what identifies the function, in the cache's keys."""

    source: FilePicture
    function: Callable[[Pixels], Pixels]
    predictor: str

    @property
    def key(self) -> str:
        return f"{self.predictor}:{self.source.key}"

    @property
    def name(self) -> str:
        return self.source.name

    def load(self) -> Pixels:
        return self.function(self.source.load())


Picture = FilePicture | ArrayPicture | Prediction


def pictures_of(
    paths: Iterable[Path],
    size: int | None = None,
    channels: int = 3,
    part: Part = "whole",
    value_range: WantedRange = None,
    bands: tuple[int, ...] = (),
) -> list[FilePicture]:
    """Files, or the same half of every file, as pictures. bands: those compared, of other than 1 or 3 channels."""
    bands = () if channels in PLAIN else bands
    return [FilePicture(path, content_of(path), part, size, channels, value_range, bands) for path in paths]


_ROLE = re.compile(
    r"(?P<stem>.+?)_(?P<role>(?:real|fake|rec|idt)_[AB]|synthesized_image|input_label|real_image)"
)
"""The names that results pages give to inputs, translations and targets: NAME_fake_B.png."""


def role_of(path: Path) -> tuple[str, str]:
    """(stem without the role, role): ("x", "fake_B") for x_fake_B.png, ("x", "") for x.png."""
    found = _ROLE.fullmatch(path.stem)
    return (found["stem"], found["role"]) if found else (path.stem, "")


def folder_pictures(
    folder: Path, size: int | None, channels: int = 3, wanted: Sequence[str] = ()
) -> list[FilePicture]:
    """The pictures of one folder, sorted by name.

    wanted: roles, of which one is taken where the folder holds pictures of several, as a results page's does. Without
    a size all must have one size already. UserError names the first that differs, or the folder where there is none or
    where it is not clear which pictures are meant.
    """
    if not folder.is_dir():
        reason = "is a file, a folder is needed" if folder.exists() else "no such folder"
        raise UserError(folder, reason, "see --help")
    paths = find_images(folder)
    if not paths:
        raise UserError(folder, "no image in it", "name a folder with pictures directly in it")
    stems, found = zip(*map(role_of, paths), strict=True)
    roles = Counter(found)
    is_repeated = len(set(stems)) < len(stems) or any(count > 1 for role, count in roles.items() if role)
    if len(roles) > 1 and is_repeated:
        taken = [role for role in wanted if role in roles]
        if len(taken) != 1:
            there = ", ".join(f"{count} {role or 'without a role'}" for role, count in sorted(roles.items()))
            raise UserError(
                folder, f"holds pictures of several roles: {there}", "put those to compare into a folder"
            )
        say(f"{folder}: only the {roles[taken[0]]} pictures *_{taken[0]} are taken, of {len(paths)}")
        paths = [path for path in paths if role_of(path)[1] == taken[0]]
    pictures = pictures_of(paths, size, channels)
    if size is None:
        require_one_size(pictures)
    return pictures


def require_one_size(pictures: Sequence[FilePicture]) -> tuple[int, int]:
    """(width, height) that all of these pictures have, from their headers. UserError for mixed sizes."""
    first = _header(pictures[0].path).size
    for picture in pictures[1:]:
        found = _header(picture.path).size
        if found != first:
            raise UserError(
                picture.path,
                f"is {found[0]}x{found[1]}, {pictures[0].path} is {first[0]}x{first[1]}: mixed sizes",
                "--size N stretches all to NxN",
            )
    return first


def all_stored_in_grey(pictures: Iterable[FilePicture]) -> bool:
    """True if every header says greyscale. Raises UserError naming a file that cannot be read."""
    return all(_header(picture.path).mode.split(";")[0] in ("1", "L", "LA", "I", "F") for picture in pictures)


def tell_left_out(paths: Iterable[Path]) -> None:
    """Say what the folders of these pictures hold beside pictures, and how many have pages that are not compared."""
    paths = list(dict.fromkeys(paths))
    for folder in dict.fromkeys(path.parent for path in paths):
        if text := left_out(folder):
            say(f"left out: {folder}: {text}")
    several = [path for path in paths if _header(path).frames > 1]
    if several:
        number = f"{len(several)} file{'s' * (len(several) > 1)} with several frames or pages"
        say(f"{number} ({_header(several[0]).frames} in {several[0]}): the first is used")


class _Header(NamedTuple):
    size: tuple[int, int]  # (width, height) as it is shown
    mode: str  # Pillow's name
    frames: int


def _header(path: Path) -> _Header:
    """What a file says of itself, without decoding the picture where that can be avoided."""
    try:
        require_file(path)
        with Image.open(path, formats=FORMATS) as picture:
            (width, height), mode = picture.size, picture.mode
            # a photo and its previews
            frames = 1 if picture.format == "MPO" else getattr(picture, "n_frames", 1)
            if picture.format == "PNG" and "exif" not in picture.info:
                return _Header((width, height), mode, frames)  # asking for EXIF would decode the whole file
            turned = picture.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # EXIF: stands on its side
            return _Header((height, width) if turned else (width, height), mode, frames)
    except Exception:  # inspect_image knows how to say what is wrong with the file
        found = inspect_image(path, channels=None)
        return _Header(found.size, found.mode, found.frames)


def match_by_stem(
    a: Sequence[FilePicture], b: Sequence[FilePicture], folder_a: Path, folder_b: Path
) -> list[FilePicture]:
    """For every picture of a, the one of b with the same stem. UserError with the names that have no partner."""
    by_stem_a, by_stem_b = _by_stem(a, folder_a), _by_stem(b, folder_b)
    lonely = [f"{folder_a.name}/{p.path.name}" for stem, p in by_stem_a.items() if stem not in by_stem_b]
    lonely += [f"{folder_b.name}/{p.path.name}" for stem, p in by_stem_b.items() if stem not in by_stem_a]
    if lonely:
        shown = ", ".join(lonely[:3]) + (", ..." if len(lonely) > 3 else "")
        reason = f"{len(a)} images, {len(b)} in {folder_b}, {len(lonely)} without a partner: {shown}"
        raise UserError(folder_a, reason, "pairs have equal stems", lonely if len(lonely) > 3 else ())
    return [by_stem_b[role_of(picture.path)[0]] for picture in a]


def _by_stem(pictures: Sequence[FilePicture], folder: Path) -> dict[str, FilePicture]:
    """By stem without the role. UserError where two have the same."""
    found: dict[str, FilePicture] = {}
    for picture in pictures:
        stem = role_of(picture.path)[0]
        if stem in found:
            both = f"{found[stem].path.name} and {picture.path.name} have the same stem"
            raise UserError(folder, both, "pairs are found by stem: rename or remove one")
        found[stem] = picture
    return found


def set_hash(pictures: Iterable[Picture]) -> str:
    """SHA-256 of a list of pictures: their keys in order (64 hex digits)."""
    total = hashlib.sha256()
    for picture in pictures:
        total.update(picture.key.encode() + b"\n")
    return total.hexdigest()


def content_of(path: Path) -> str:
    """SHA-256 of a file; remembered while the file keeps its size and time of change."""
    with naming_problems(path):  # a pipe would be waited for
        stat = path.stat()
        return _content_of(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=100_000)
def _content_of(path: Path, size: int, changed: int) -> str:
    return sha256_of(path)


@dataclass(frozen=True)
class ColourFit:
    """Colours on the scale 0..255: mean, (3,), of the targets; affine, (4, 3), for target = (input, 1) @ affine.

    table: (LEVELS ** 3, 3), the target colour by the input colour's `_bin`.
    """

    mean: NDArray[np.float64]
    affine: NDArray[np.float64]
    table: NDArray[np.float64]

    def mean_colour(self, picture: Pixels) -> Pixels:
        """(H, W, 3) in the mean colour, whatever the input shows."""
        return _to_uint8(np.broadcast_to(self.mean, picture.shape))

    def affine_colour(self, picture: Pixels) -> Pixels:
        """(H, W, 3): every pixel's colour mapped on its own."""
        return _to_uint8(picture.astype(np.float64) @ self.affine[:3] + self.affine[3])

    def table_colour(self, picture: Pixels) -> Pixels:
        """(H, W, 3): every pixel's colour looked up: the best that can be had without looking at its neighbours."""
        return _to_uint8(self.table[_bin(picture)])

    def predictions(self, inputs: Sequence[FilePicture]) -> dict[str, list[Prediction]]:
        """What the predictors make of these inputs, by the predictor's name."""
        fitted = self.mean.tobytes() + self.affine.tobytes() + self.table.tobytes()
        fit = hashlib.sha256(fitted).hexdigest()[:16]
        functions = {
            "mean colour": self.mean_colour,
            "affine colour map": self.affine_colour,
            "colour table": self.table_colour,
        }
        return {
            name: [Prediction(picture, function, f"{name} {fit}") for picture in inputs]
            for name, function in functions.items()
        }


def fit_colours(pairs: Iterable[tuple[Pixels, Pixels]]) -> ColourFit:
    """Fit the baselines on (input, target) pictures (H, W, 3) uint8, one pair in memory at a time.

    Normal equations in float64; where inputs do not vary in some direction (grey pictures) the least-norm solution.
    A colour that no input has is looked up as the affine map of the middle of its bin. ValueError for no pairs.
    """
    gram, cross = np.zeros((4, 4)), np.zeros((4, 3))
    counts, sums = np.zeros((LEVELS**3, 1)), np.zeros((LEVELS**3, 3))
    for picture, target in pairs:
        x = np.concatenate([picture.reshape(-1, 3), np.ones((picture.size // 3, 1))], axis=1)
        y = target.reshape(-1, 3).astype(np.float64)
        gram += x.T @ x
        cross += x.T @ y
        np.add.at(sums, _bin(picture).ravel(), y)
        np.add.at(counts, _bin(picture).ravel(), 1.0)
    if gram[3, 3] == 0:
        raise ValueError("no training pairs to fit a baseline on")
    affine = np.linalg.pinv(gram, rcond=1e-12, hermitian=True) @ cross
    middles = (np.indices((LEVELS,) * 3).reshape(3, -1).T + 0.5) * 256 / LEVELS
    table = np.where(counts > 0, sums / counts.clip(1), middles @ affine[:3] + affine[3])
    return ColourFit(cross[3] / gram[3, 3], affine, table)


def _bin(picture: Pixels) -> NDArray[np.int64]:
    """(H, W, 3) -> (H, W): the number of each pixel's colour, LEVELS levels a channel."""
    return picture.astype(np.int64) * LEVELS // 256 @ np.array([LEVELS**2, LEVELS, 1])


def _to_uint8(picture: NDArray[np.float64]) -> Pixels:
    return np.rint(picture.clip(0, 255)).astype(np.uint8)
