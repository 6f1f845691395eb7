"""Which layout a data root has, and the files of a split.

| layout    | on disk                                                                     |
|-----------|-----------------------------------------------------------------------------|
| unaligned | trainA, trainB, testA, testB: two collections without partners              |
| aligned   | train, test: files that hold A (left half) and B (right half) side by side  |
| paired    | A/train, B/train, A/test, B/test: pairs by equal stem                       |
| folder    | pictures directly in the root: for translation only                         |

Folders that other programs use are found too, see `_CONVENTIONS`. A `val` folder (valA, valB) is the test split where
there is no `test` folder. Files are sorted by name, so that their order does not depend on the machine.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, cast, get_args

from datasets.bands import Picture
from datasets.errors import UserError, file_error
from datasets.images import IMAGE_EXTENSIONS, WantedRange, find_images, load_image
from datasets.transforms import half

Layout = Literal["aligned", "paired", "unaligned", "folder"]
Split = Literal["train", "test"]

_SPLIT_NAMES: dict[Split, tuple[str, ...]] = {"train": ("train",), "test": ("test", "val")}


class _Convention(NamedTuple):
    """Where a layout has A and B: folders below the root. Without a split in them, all is for training."""

    layout: Layout | None  # None: told by the stems of the pictures
    a: str
    b: str

    def names(self, split: Split) -> tuple[str, ...]:
        """The names that the split may have; none for a test split that this convention does not know."""
        return _SPLIT_NAMES[split] if "{split}" in self.a or split == "train" else ()

    def places(self, name: str) -> tuple[str, str]:
        return self.a.format(split=name), self.b.format(split=name)


STANDARD = (
    _Convention("unaligned", "{split}A", "{split}B"),
    _Convention("paired", "A/{split}", "B/{split}"),
    _Convention("aligned", "{split}", "{split}"),
)
_CONVENTIONS = (
    *STANDARD[:2],
    _Convention(None, "{split}_A", "{split}_B"),
    _Convention("paired", "{split}_label", "{split}_img"),
    _Convention("paired", "{split}/input", "{split}/target"),
    _Convention("paired", "input/{split}", "target/{split}"),
    _Convention(None, "{split}/A", "{split}/B"),
    STANDARD[2],
    _Convention("paired", "input", "target"),
    _Convention(None, "A", "B"),
)
"""In the order in which they are looked for."""

_LOOKED_FOR = "trainA and trainB, A/train and B/train, or train with side-by-side images"
_MAKE_SPLIT = "python -m datasets.prepare split-test makes one"


class NoSplit(UserError):
    """A data root has no folder for the wanted split."""


@dataclass(frozen=True)
class Sources:
    """One split of a data root. A and B are the disk's, or exchanged after `swapped`."""

    layout: Layout
    root: Path
    split: str  # the name it was read from: train, test or val; "." for a plain folder
    a: tuple[Path, ...]  # aligned: the side-by-side files, in both a and b
    b: tuple[Path, ...]  # plain folder: empty
    note: str = ""  # which folders were taken, where they are not those of the table
    is_swapped: bool = False
    ranges: tuple[WantedRange, WantedRange] = (None, None)  # value ranges of the disk's A and B

    @property
    def is_paired(self) -> bool:
        """Whether a[i] and b[i] belong together."""
        return self.layout in ("aligned", "paired")

    def swapped(self) -> "Sources":
        """A and B exchanged (`--direction BtoA`)."""
        return replace(self, a=self.b, b=self.a, is_swapped=not self.is_swapped)

    def load_a(self, i: int, channels: int = 3) -> Picture:
        """Picture i of A; of a side-by-side file its half. Raises UserError naming the file."""
        return self._load(self.a[i], channels, right=self.is_swapped)

    def load_b(self, i: int, channels: int = 3) -> Picture:
        """Picture i of B; of a side-by-side file its half. Raises UserError naming the file."""
        return self._load(self.b[i], channels, right=not self.is_swapped)

    def load_pair(self, i: int, channels_a: int = 3, channels_b: int = 3) -> tuple[Picture, Picture]:
        """Pictures i of A and B. A side-by-side file is decoded once, if its halves are read alike."""
        if self.layout != "aligned" or channels_a != channels_b or self.ranges[0] != self.ranges[1]:
            return self.load_a(i, channels_a), self.load_b(i, channels_b)
        path = self.a[i]
        both = load_image(path, channels_a, self.ranges[0])
        return half(both, path, right=self.is_swapped), half(both, path, right=not self.is_swapped)

    def _load(self, path: Path, channels: int, right: bool) -> Picture:
        picture = load_image(path, channels, self.ranges[right])
        return half(picture, path, right) if self.layout == "aligned" else picture


def find_sources(root: Path, split: Split, layout: str = "auto", max_size: int | None = None) -> Sources:
    """The files of a split, in the layout found by looking or in the one named.

    max_size: at most this many of A and of B. Raises UserError that says what was looked for and what is there
    (NoSplit where only this split is missing), also for the train split of a plain folder found by looking.
    """
    _refuse_non_folder(root)
    if layout not in ("auto", *get_args(Layout)):
        known = ", ".join(("auto", *get_args(Layout)))
        raise UserError("--dataset_mode", f"unknown value {layout}", f"one of {known}")
    convention = _find_convention(root, layout)
    if convention is None and layout in ("auto", "folder"):
        if split == "train" and layout == "auto":
            fix = "side-by-side pairs are taken with --dataset_mode aligned"
            raise NoSplit(root, f"pictures, but no train split: looked for {_LOOKED_FOR}", fix)
        return Sources("folder", root, ".", tuple(images_in(root)[:max_size]), ())
    if convention is None and layout == "aligned" and find_images(root):
        convention = _Convention("aligned", ".", ".")
    wanted = cast(Layout, layout)
    convention = convention or next(standard for standard in STANDARD if standard.layout == wanted)
    name, folder_a, folder_b = _split_folders(root, split, convention)
    found = convention.layout or (_told_by_stems(folder_a, folder_b, root) if layout == "auto" else wanted)
    if found == "paired":
        a, b = map(list, zip(*match_pairs(folder_a, folder_b, root), strict=True))
    else:
        a, b = images_in(folder_a), images_in(folder_b)  # aligned: twice the same folder
    note = ""
    if convention not in STANDARD:
        places = "A is {}, B is {}".format(*convention.places(name))
        note = f"{'the folder itself' if found == 'aligned' else places}: {found}"
    return Sources(found, root, name, tuple(a[:max_size]), tuple(b[:max_size]), note)


def find_inputs(path: Path, output: Path) -> list[Path]:
    """The pictures to translate: the file itself, or those in the folder and in the folders below it, sorted.

    Hidden folders, links to folders, and `output` where it is below `path` are left out. Raises UserError for no
    picture.
    """
    if not path.exists() and not path.is_symlink():
        raise UserError(path, "no such file or folder")
    if not path.is_dir():
        return [path]
    found = []
    for folder, below, _ in os.walk(path, onerror=_not_listed):
        below[:] = sorted(
            name for name in below if name[0] != "." and Path(folder, name).resolve() != output.resolve()
        )
        found += find_images(Path(folder))
    return found or images_in(path)


def _not_listed(error: OSError) -> None:
    raise file_error(error, error.filename, "listed") from error


def match_pairs(folder_a: Path, folder_b: Path, root: Path) -> list[tuple[Path, Path]]:
    """The pictures of two folders as pairs of equal stem, sorted by it.

    Raises UserError for a folder without pictures, pictures of one stem in a folder, and pictures without a partner,
    which are listed by their names below `root`.
    """
    a, b = images_by_stem(folder_a), images_by_stem(folder_b)
    alone = [*(a[stem] for stem in a if stem not in b), *(b[stem] for stem in b if stem not in a)]
    if alone:
        names = [name_below(path, root) for path in alone]
        counts = f"{len(a)} images in A, {len(b)} in B; without a partner of equal stem"
        first = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        details = names if len(names) > 3 else ()
        raise UserError(root, f"{counts}: {first}", "rename or remove them", details)
    return [(a[stem], b[stem]) for stem in sorted(a)]


def images_by_stem(folder: Path) -> dict[str, Path]:
    """The pictures of a folder by stem. Raises UserError for none, and where two have the same stem."""
    by_stem: dict[str, Path] = {}
    for path in images_in(folder):
        if path.stem in by_stem:
            both = f"{by_stem[path.stem].name} and {path.name} have the same stem"
            raise UserError(folder, both, "pairs are found by stem: rename or remove one")
        by_stem[path.stem] = path
    return by_stem


def images_in(folder: Path) -> list[Path]:
    """The pictures right in a folder, sorted by name. Raises UserError for none."""
    files = find_images(folder)
    if not files:
        kinds = " ".join(sorted(IMAGE_EXTENSIONS))
        raise UserError(folder, f"no image in it; {_contents(folder)}", f"looked for {kinds}")
    return files


def left_out(folder: Path, but_folders: bool = False) -> str:
    """What a folder holds beside its pictures, in words; "" for nothing. Hidden files do not count.

    but_folders: the folders in it are not left out, links to folders are.
    """
    others = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    others = [path for path in others if path.suffix.lower() not in IMAGE_EXTENSIONS]
    folders = [path.name for path in others if path.is_dir() and (path.is_symlink() or not but_folders)]
    files = [path for path in others if not path.is_dir()]
    parts = []
    if folders:
        parts.append(f"{len(folders)} folder{'s' * (len(folders) > 1)} (first: {folders[0]})")
    if files:
        kinds = " ".join(sorted({path.suffix.lower() or path.name for path in files})[:6])
        parts.append(f"{len(files)} file{'s' * (len(files) > 1)} of other kinds ({kinds})")
    return ", ".join(parts)


def name_below(path: Path, root: Path) -> str:
    """A path as seen from `root`; the whole path where it is not below it."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _find_convention(root: Path, layout: str) -> _Convention | None:
    """The first convention that fits the root and, unless that is "auto", the layout; None for a plain folder.

    Both sides must be there, or one side of a split. Raises UserError where nothing fits "auto".
    """
    names = [name for names in _SPLIT_NAMES.values() for name in names]
    for fits in (all, any):
        for convention in _CONVENTIONS:
            if layout not in ("auto", convention.layout) and (
                convention.layout or layout not in ("paired", "unaligned")
            ):
                continue
            if fits is any and "{split}" not in convention.a:
                continue
            if any(fits((root / place).is_dir() for place in convention.places(name)) for name in names):
                return convention
    if layout == "auto" and not find_images(root):
        raise UserError(
            root, f"no data set here: looked for {_LOOKED_FOR}; {_contents(root)}", "see --dataroot"
        )
    return None


def _told_by_stems(folder_a: Path, folder_b: Path, root: Path) -> Layout:
    """Whether two folders hold pairs, which their names do not tell. Raises UserError if only some have partners."""
    a, b = ({path.stem for path in images_in(folder)} for folder in (folder_a, folder_b))
    if a != b and a & b:
        places = f"{name_below(folder_a, root)} and {name_below(folder_b, root)}"
        reason = f"{places} share {len(a & b)} of {len(a | b)} stems, so they may hold pairs or not"
        raise UserError(root, reason, "--dataset_mode unaligned takes them without pairs")
    return "paired" if a == b else "unaligned"


def _split_folders(root: Path, split: Split, convention: _Convention) -> tuple[str, Path, Path]:
    """(split name, folder of A, folder of B) of the first split name that is there."""
    wanted = []
    for name in convention.names(split):
        a, b = convention.places(name)
        there = [place for place in (a, b) if (root / place).is_dir()]
        if len(there) == 2:
            return name, root / a, root / b
        if there:
            missing = b if there == [a] else a
            raise UserError(root, f"{there[0]} without {missing}; {_contents(root)}", f"add {missing}")
        wanted.append(a if a == b else f"{a} and {b}")
    if not wanted:
        raise NoSplit(root, "no test split: all pictures are for training", _MAKE_SPLIT)
    kind = "folder" if convention.layout == "aligned" else "folders"
    reason = f"no {kind} {' or '.join(wanted)}; {_contents(root)}"
    raise NoSplit(root, reason, _MAKE_SPLIT if split == "test" else "needed for the train split")


def _refuse_non_folder(root: Path) -> None:
    if root.is_dir():
        return
    if root.exists():
        raise UserError(root, "is a file, a folder is needed", "see --dataroot")
    above = next(folder for folder in root.absolute().parents if folder.is_dir())
    raise UserError(root, f"no such folder; {_contents(above, f'in {above}')}", "see --dataroot")


def _contents(folder: Path, where: str = "in it") -> str:
    """What is in a folder, for messages: "in it: folders testA, trainA; 12 files, first a.txt"."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise file_error(error, folder, "listed") from error
    folders = [path.name for path in entries if path.is_dir()]
    files = [path.name for path in entries if not path.is_dir()]
    parts = []
    if folders:
        parts.append("folders " + ", ".join(folders[:8]) + ", ..." * (len(folders) > 8))
    if files:
        parts.append(f"{len(files)} file{'s' * (len(files) > 1)}, first {files[0]}")
    return f"{where}: {'; '.join(parts) or 'nothing'}"
