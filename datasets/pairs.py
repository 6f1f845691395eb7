"""Pairs of pictures: from two folders to side-by-side files, and back."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from datasets.errors import UserError
from datasets.images import find_images, load_image
from datasets.layouts import contents, half
from datasets.output_folder import whole_folder
from datasets.side_by_side import side_by_side

SPLITS = ("train", "val", "test")


def join(a: Path, b: Path, output: Path) -> dict[str, int]:
    """Write A|B side by side as PNG for every pair of equal stem; returns the number by split.

    The folders hold pictures, or train/ val/ test/ with pictures; the output is arranged in the same way ("." in
    the result where there are no splits). Raises UserError for unmatched stems, pairs of different size, files
    that cannot be read, and folders without pictures; then nothing is written.
    """
    splits = _splits(a)
    if _splits(b) != splits:
        both = f"{_listed(splits)} in A, {_listed(_splits(b))} in B"
        raise UserError(b, f"other sub-folders than A: {both}", "both need the same of train, val, test")
    pairs = {split: _matched(a / split, b / split) for split in splits}
    count = sum(map(len, pairs.values()))
    with whole_folder(output) as folder, tqdm(total=count, unit="pair", disable=None) as progress:
        for split, files in pairs.items():
            (folder / split).mkdir(exist_ok=True)
            for path_a, path_b in files:
                _joined(path_a, path_b).save(folder / split / f"{path_a.stem}.png")
                progress.update()
    return {split: len(files) for split, files in pairs.items()}


def split(source: Path, output: Path) -> dict[str, int]:
    """Write the halves of side-by-side files to A/ and B/ as PNG; returns the number by split.

    train/ val/ test/ in the source become A/train B/train and so on, which the loaders read as pairs. Raises
    UserError for odd widths, files that cannot be read, two files of one stem, and folders without pictures; then
    nothing is written.
    """
    files = {split: list(_by_stem(source / split).values()) for split in _splits(source)}
    count = sum(map(len, files.values()))
    with whole_folder(output) as folder, tqdm(total=count, unit="file", disable=None) as progress:
        for name, paths in files.items():
            for side in ("A", "B"):
                (folder / side / name).mkdir(parents=True, exist_ok=True)
            for path in paths:
                picture = load_image(path)
                half(picture, path, right=False).save(folder / "A" / name / f"{path.stem}.png")
                half(picture, path, right=True).save(folder / "B" / name / f"{path.stem}.png")
                progress.update()
    return {name: len(paths) for name, paths in files.items()}


def _joined(path_a: Path, path_b: Path) -> Image.Image:
    left, right = load_image(path_a), load_image(path_b)
    if left.size != right.size:
        (wa, ha), (wb, hb) = left.size, right.size
        reason = f"is {wa}x{ha}, its partner {path_b} {wb}x{hb}"
        raise UserError(path_a, reason, "make them equal")
    return side_by_side(left, right)


def _splits(folder: Path) -> tuple[str, ...]:
    """The split folders in a folder, or "." where its pictures lie in itself."""
    if not folder.is_dir():
        raise UserError(folder, "is a file" if folder.exists() else "no such folder", "a folder is needed")
    found = tuple(name for name in SPLITS if (folder / name).is_dir())
    return found or (".",)


def _listed(splits: Sequence[str]) -> str:
    return "none" if splits == (".",) else " ".join(splits)


def _by_stem(folder: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in find_images(folder):
        if path.stem in files:
            reason = f"{files[path.stem].name} and {path.name} have the same stem"
            raise UserError(folder, reason, "rename or remove one")
        files[path.stem] = path
    if not files:
        raise UserError(folder, f"no image in it; {contents(folder)}", "see --help")
    return files


def _matched(a: Path, b: Path) -> list[tuple[Path, Path]]:
    files_a, files_b = _by_stem(a), _by_stem(b)
    unmatched = [str(p) for p in _without_partner(files_a, files_b)]
    if unmatched:
        counts = f"{len(files_a)} images in A, {len(files_b)} in B; {len(unmatched)} without a partner"
        raise UserError(a, counts, "rename or remove them", unmatched)
    return [(files_a[stem], files_b[stem]) for stem in sorted(files_a)]


def _without_partner(files_a: dict[str, Path], files_b: dict[str, Path]) -> Iterator[Path]:
    for stem in sorted(files_a.keys() ^ files_b.keys()):
        yield files_a.get(stem) or files_b[stem]
