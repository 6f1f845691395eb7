"""Which of the four folder layouts a data root has, and the files of a split.

| layout    | on disk                                                                     |
|-----------|-----------------------------------------------------------------------------|
| unaligned | trainA, trainB, testA, testB: two collections without partners              |
| aligned   | train, test: files that hold A (left half) and B (right half) side by side  |
| paired    | A/train, B/train, A/test, B/test: pairs by equal stem                       |
| folder    | pictures directly in the root: for translation only                         |

A `val` folder (valA, valB) is the test split where there is no `test` folder. Files are sorted by name, so
that their order does not depend on the machine.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from PIL import Image

from datasets.errors import UserError, error_from_os
from datasets.images import IMAGE_EXTENSIONS, find_images, load_image

Layout = Literal["aligned", "paired", "unaligned", "folder"]
Split = Literal["train", "test"]

_SPLIT_FOLDERS: dict[str, tuple[str, ...]] = {"train": ("train",), "test": ("test", "val")}
_LOOKED_FOR = "trainA and trainB, A/train and B/train, or train with side-by-side images"


@dataclass(frozen=True)
class Sources:
    """One split of a data root. A and B are the disk's, or exchanged after `swapped`."""

    layout: Layout
    root: Path
    split: str  # the name it was read from: train, test or val; "." for a plain folder
    a: tuple[Path, ...]  # aligned: the side-by-side files, in both a and b
    b: tuple[Path, ...]  # plain folder: empty
    is_swapped: bool = False

    @property
    def is_paired(self) -> bool:
        """Whether a[i] and b[i] belong together."""
        return self.layout in ("aligned", "paired")

    def swapped(self) -> "Sources":
        """A and B exchanged (`--direction BtoA`)."""
        return replace(self, a=self.b, b=self.a, is_swapped=not self.is_swapped)

    def load_a(self, i: int, channels: int = 3) -> Image.Image:
        """Picture i of A; of a side-by-side file its half. Raises UserError naming the file."""
        return self._load(self.a[i], channels, right=self.is_swapped)

    def load_b(self, i: int, channels: int = 3) -> Image.Image:
        """Picture i of B; of a side-by-side file its half. Raises UserError naming the file."""
        return self._load(self.b[i], channels, right=not self.is_swapped)

    def _load(self, path: Path, channels: int, right: bool) -> Image.Image:
        picture = load_image(path, channels)
        return half(picture, path, right) if self.layout == "aligned" else picture


def half(picture: Image.Image, path: Path, right: bool) -> Image.Image:
    """The left or right half of a side-by-side picture. Raises UserError where the width is odd."""
    width, height = picture.size
    if width % 2:
        raise UserError(
            path, f"side-by-side image of odd width, {width}x{height}", "A and B need equal widths"
        )
    return picture.crop((width // 2, 0, width, height) if right else (0, 0, width // 2, height))


def find_sources(root: Path, split: Split, layout: str = "auto", max_size: int | None = None) -> Sources:
    """The files of a split, its layout found by looking, or as told by layout.

    max_size: only the first so many of A and of B. Raises UserError that says what was looked for and what is
    there; also for the train split of a plain folder, unless that layout is asked for.
    """
    _refuse_non_folder(root)
    if layout == "auto":
        layout = _find_layout(root)
        if layout == "folder" and split == "train":
            raise UserError(root, f"pictures, but no train split: looked for {_LOOKED_FOR}", "see --dataroot")
    finders = {"unaligned": _find_unaligned, "paired": _find_paired, "aligned": _find_aligned}
    if layout == "folder":
        sources = Sources("folder", root, ".", tuple(_images_in(root)), ())
    elif layout in finders:
        sources = finders[layout](root, split)
    else:
        known = ", ".join(("auto", *finders, "folder"))
        raise UserError("--dataset_mode", f"unknown value {layout}", f"one of {known}")
    return replace(sources, a=sources.a[:max_size], b=sources.b[:max_size])


def find_inputs(path: Path) -> list[Path]:
    """The pictures to translate: the file itself, or those right in the folder. Raises UserError for none."""
    if not path.exists() and not path.is_symlink():
        raise UserError(path, "no such file or folder")
    return _images_in(path) if path.is_dir() else [path]


def _find_layout(root: Path) -> Layout:
    names = {name for names in _SPLIT_FOLDERS.values() for name in names}
    if any((root / f"{name}{side}").is_dir() for name in names for side in "AB"):
        return "unaligned"
    if any((root / side / name).is_dir() for name in names for side in "AB"):
        return "paired"
    if any((root / name).is_dir() for name in names):
        return "aligned"
    if find_images(root):
        return "folder"
    raise UserError(root, f"no data set here: looked for {_LOOKED_FOR}; {contents(root)}", "see --dataroot")


def _find_unaligned(root: Path, split: Split) -> Sources:
    name, a, b = _two_folders(root, split, lambda name, side: root / f"{name}{side}")
    return Sources("unaligned", root, name, tuple(_images_in(a)), tuple(_images_in(b)))


def _find_paired(root: Path, split: Split) -> Sources:
    name, a, b = _two_folders(root, split, lambda name, side: root / side / name)
    files_a, files_b = _images_in(a), _images_in(b)
    by_stem_a, by_stem_b = _by_stem(files_a, a), _by_stem(files_b, b)
    unmatched = [
        f"{path.parent.parent.name}/{path.parent.name}/{path.name}"
        for path in (*files_a, *files_b)
        if path.stem not in by_stem_a or path.stem not in by_stem_b
    ]
    if unmatched:
        counts = f"{len(files_a)} images in A, {len(files_b)} in B; without a partner of equal stem"
        first = ", ".join(unmatched[:3]) + (", ..." if len(unmatched) > 3 else "")
        details = unmatched if len(unmatched) > 3 else ()
        raise UserError(root, f"{counts}: {first}", "rename or remove them", details)
    stems = sorted(by_stem_a)
    return Sources(
        "paired", root, name, tuple(by_stem_a[s] for s in stems), tuple(by_stem_b[s] for s in stems)
    )


def _find_aligned(root: Path, split: Split) -> Sources:
    names = _SPLIT_FOLDERS[split]
    for name in names:
        if (root / name).is_dir():
            files = tuple(_images_in(root / name))
            return Sources("aligned", root, name, files, files)
    raise UserError(
        root, f"no folder {' or '.join(names)}; {contents(root)}", f"needed for the {split} split"
    )


def _two_folders(root: Path, split: Split, place: Callable[[str, str], Path]) -> tuple[str, Path, Path]:
    """(split name, folder of A, folder of B) of the first split name that is there."""
    names = _SPLIT_FOLDERS[split]
    for name in names:
        a, b = place(name, "A"), place(name, "B")
        there = [folder for folder in (a, b) if folder.is_dir()]
        if len(there) == 2:
            return name, a, b
        if there:
            missing = (b if there == [a] else a).relative_to(root)
            raise UserError(
                root, f"{there[0].relative_to(root)} without {missing}; {contents(root)}", f"add {missing}"
            )
    wanted = " or ".join(
        f"{place(n, 'A').relative_to(root)} and {place(n, 'B').relative_to(root)}" for n in names
    )
    raise UserError(root, f"no folders {wanted}; {contents(root)}", f"needed for the {split} split")


def _by_stem(files: Sequence[Path], folder: Path) -> dict[str, Path]:
    by_stem: dict[str, Path] = {}
    for path in files:
        if path.stem in by_stem:
            both = f"{by_stem[path.stem].name} and {path.name} have the same stem"
            raise UserError(folder, both, "pairs are found by stem: rename or remove one")
        by_stem[path.stem] = path
    return by_stem


def _images_in(folder: Path) -> list[Path]:
    files = find_images(folder)
    if not files:
        kinds = " ".join(sorted(IMAGE_EXTENSIONS))
        raise UserError(folder, f"no image in it; {contents(folder)}", f"looked for {kinds}")
    return files


def _refuse_non_folder(root: Path) -> None:
    if root.is_dir():
        return
    if root.exists():
        raise UserError(root, "is a file, a folder is needed", "see --dataroot")
    above = root.parent
    while not above.is_dir() and above != above.parent:
        above = above.parent
    raise UserError(root, f"no such folder; {contents(above, 'in ' + (str(above)))}", "see --dataroot")


def contents(folder: Path, where: str = "in it") -> str:
    """What is in a folder, for messages: "in it: folders testA, trainA; 12 files, first a.txt"."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise error_from_os(error, folder) or UserError(
            folder, f"cannot be listed: {error.strerror}"
        ) from error
    folders = [path.name for path in entries if path.is_dir()]
    files = [path.name for path in entries if not path.is_dir()]
    parts = []
    if folders:
        parts.append("folders " + ", ".join(folders[:8]) + (", ..." if len(folders) > 8 else ""))
    if files:
        parts.append(f"{len(files)} file{'s' if len(files) > 1 else ''}, first {files[0]}")
    return f"{where}: {'; '.join(parts)}" if parts else f"{where}: nothing"
