"""Download, join, split and check data sets.

python -m datasets.prepare download maps                      fetch a known set, verify it, unpack it safely
python -m datasets.prepare download maps --from_archive FILE  the same from a local archive
python -m datasets.prepare join --a DIR --b DIR --output DIR  join pairs of equal stem to side-by-side A|B files
python -m datasets.prepare split --input DIR --output DIR     split side-by-side files to A/ and B/
python -m datasets.prepare split-test --input DIR --output DIR [--fraction 0.1]   make a test split
python -m datasets.prepare check DIR [--skip_bad]             check a folder and say what is in it
"""

import contextlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tqdm import tqdm
from tyro.conf import Positional

from datasets.archives import archive_kind, examine, unpack
from datasets.decoding import IMAGE_EXTENSIONS
from datasets.download import discard, fetch
from datasets.errors import UserError, run_command
from datasets.files import refuse_occupied, sha256_of, whole_folder

if TYPE_CHECKING:  # these import torch, and --help should answer at once
    from datasets.check import ScanReport
    from datasets.layouts import Sources

SPLITS = ("train", "val", "test")
MEANINGFUL_FOLDERS = (*SPLITS, "trainA", "trainB", "valA", "valB", "testA", "testB", "A", "B")
RECORD = "source.json"
MOST_SHOWN = 5  # sizes or modes in a line


@dataclass(frozen=True)
class KnownSet:
    """A public data set. `counts` are its pictures by folder; folders of aligned sets hold side-by-side files.

    The counts are those of the published sets. Hashes of the archives are not published. source.json records the hash
    of each download, so that a later download can be compared with it (`--sha256`).
    """

    url: str
    note: str
    counts: Mapping[str, int]


def _aligned(name: str, note: str, **counts: int) -> KnownSet:
    return KnownSet(f"{_SERVER}/pix2pix/datasets/{name}.tar.gz", note, counts)


def _unaligned(name: str, note: str, *counts: int) -> KnownSet:
    folders = ("trainA", "trainB", "testA", "testB")
    return KnownSet(f"{_SERVER}/cyclegan/datasets/{name}.zip", note, dict(zip(folders, counts, strict=True)))


_SERVER = "https://efrosgans.eecs.berkeley.edu"
KNOWN_SETS: dict[str, KnownSet] = {
    "maps": _aligned("maps", "A aerial photo, B street map", train=1096, val=1098),
    "facades": _aligned("facades", "A photo, B labels", train=400, val=100, test=106),
    "night2day": _aligned("night2day", "A night, B day", train=17823, test=2287),
    "edges2shoes": _aligned("edges2shoes", "A edges, B photo", train=49825, val=200),
    "edges2handbags": _aligned("edges2handbags", "A edges, B photo", train=138567, val=200),
    "horse2zebra": _unaligned("horse2zebra", "A horses, B zebras", 1067, 1334, 120, 140),
    "apple2orange": _unaligned("apple2orange", "A apples, B oranges", 995, 1019, 266, 248),
    "summer2winter_yosemite": _unaligned("summer2winter_yosemite", "A summer, B winter", 1231, 962, 309, 238),
    "monet2photo": _unaligned("monet2photo", "A paintings, B photos", 1072, 6287, 121, 751),
    "cezanne2photo": _unaligned("cezanne2photo", "A paintings, B photos", 525, 6287, 58, 751),
    "ukiyoe2photo": _unaligned("ukiyoe2photo", "A prints, B photos", 562, 6287, 263, 751),
    "vangogh2photo": _unaligned("vangogh2photo", "A paintings, B photos", 400, 6287, 400, 751),
}
_NAME_HELP = (
    "name of a known set, or your own name for the set of --url or --from_archive. Known sets (their authors' pages "
    "state the terms of use): " + "; ".join(f"{name} ({known.note})" for name, known in KNOWN_SETS.items())
)


def download(
    name: Annotated[Positional[str], tyro.conf.arg(metavar="NAME", help=_NAME_HELP)],
    output: Path | None = None,
    from_archive: Path | None = None,
    sha256: str | None = None,
    url: str | None = None,
    timeout: float = 30.0,
) -> list[str]:
    """Fetch a known data set, verify its counts, and unpack it safely.

    Args:
        output: new or empty folder (default: data/NAME)
        from_archive: tar, tar.gz or zip to use instead of a download; it is not changed
        sha256: refuse an archive with another SHA-256
        url: address of the archive (default: that of the known set)
        timeout: give up after this many seconds without data
    """
    # source.json in the folder records address, bytes, SHA-256 and counts. A downloaded archive is removed after it was
    # unpacked or found to be bad. A UserError leaves the folder as it was.
    output = output or Path("data") / name
    known = KNOWN_SETS.get(name)
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UserError(name, "is not a name for a data set", "use letters, digits, - and _")
    if known is None and from_archive is None and url is None:
        raise UserError(name, "is not a known data set", f"one of {', '.join(KNOWN_SETS)}; or give --url")
    if sha256 and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise UserError("--sha256", f"{sha256} is not a SHA-256", "64 hexadecimal digits")
    if not 0 < timeout <= 3600:
        raise UserError("--timeout", f"{timeout:g} is out of range", "more than 0, at most 3600 seconds")
    refuse_occupied(output)
    counts = known.counts if known else {}
    if from_archive is not None:
        if not from_archive.is_file():
            raise UserError(from_archive, "no such file", "see --from_archive")
        found = _unpack_verified(name, from_archive, from_archive.name, output, counts, sha256)
    else:
        address = url or (known.url if known else "")
        archive = output.parent / f"{name}.download"
        fetch(address, archive, timeout)
        try:
            found = _unpack_verified(name, archive, address, output, counts, sha256)
        except UserError as error:
            if error.subject != str(archive):  # the disk caused it, so the download is kept
                raise
            discard(archive)
            raise UserError(address, error.reason, error.fix, error.details) from error
        discard(archive)
    return [f"{output}: {_listed(found)}; address and SHA-256 in {output / RECORD}"]


def _unpack_verified(
    name: str, archive: Path, source: str, output: Path, counts: Mapping[str, int], wanted: str | None
) -> dict[str, int]:
    """Verify an archive and unpack it to `output`. A UserError about the archive has it as subject."""
    archive_kind(archive)  # names an HTML page as such; the hash would only say that it differs
    digest = sha256_of(archive)
    if wanted and digest != wanted.lower():
        reason = f"has SHA-256 {digest[:16]}..., wanted was {wanted[:16].lower()}..."
        raise UserError(archive, reason, "another version or a damaged file")
    listing = examine(archive, keep_tops=MEANINGFUL_FOLDERS)
    pictures = (path for path in listing.files if path.suffix.lower() in IMAGE_EXTENSIONS)
    found = dict(sorted(Counter(str(path.parent) for path in pictures).items()))
    if not found:
        raise UserError(archive, "holds no picture", "another archive")
    wrong = [f"{found.get(k, 0)} in {k} instead of {n}" for k, n in counts.items() if found.get(k) != n]
    if wrong:
        reason = f"holds other pictures than the published set: {', '.join(wrong)}"
        raise UserError(archive, reason, "get it again")
    record = {
        "name": name,
        "source": source,
        "bytes": archive.stat().st_size,
        "sha256": digest,
        "counts": found,
    }
    with whole_folder(output) as folder:
        unpack(listing, folder)
        (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n")
    return found


def join_pairs(a: Path, b: Path, output: Path) -> list[str]:
    """Join pairs of equal stem from two folders to side-by-side A|B files.

    Args:
        a: folder of pictures, or of train/ val/ test/ with pictures; the output has the same folders
        b: folder of their partners
        output: new or empty folder for the PNG files
    """
    # Raises UserError for unmatched stems, pairs of different size, unreadable files, and folders without pictures.
    # Then nothing is written.
    from datasets.images import load_image
    from datasets.layouts import match_pairs
    from datasets.transforms import side_by_side

    splits = _splits(a)
    if _splits(b) != splits:
        listed = [" ".join(found).replace(".", "none") for found in (splits, _splits(b))]
        reason = f"subfolders differ: {listed[0]} in A, {listed[1]} in B"
        raise UserError(b, reason, "both need the same of train, val, test")
    pairs = {split: match_pairs(a / split, b / split, a) for split in splits}
    count = sum(map(len, pairs.values()))
    with whole_folder(output) as folder, tqdm(total=count, unit="pair", disable=None) as bar:
        for split, files in pairs.items():
            (folder / split).mkdir(exist_ok=True)
            for path_a, path_b in files:
                left, right = load_image(path_a), load_image(path_b)
                if left.size != right.size:
                    sizes = (
                        f"is {left.width}x{left.height}, its partner {path_b} {right.width}x{right.height}"
                    )
                    raise UserError(path_a, sizes, "make them equal")
                side_by_side(left, right).save(folder / split / f"{path_a.stem}.png")
                bar.update()
    return [f"{output}: {_listed({k: len(v) for k, v in pairs.items()})} pairs, A left, B right"]


def split_pairs(input: Path, output: Path) -> list[str]:
    """Split side-by-side A|B files into two folders A and B.

    Args:
        input: folder of side-by-side pictures, or of train/ val/ test/, which become A/train B/train and so on
        output: new or empty folder for the PNG files
    """
    # Raises UserError for odd widths, unreadable files, two files of one stem, and folders without pictures.
    # Then nothing is written.
    from datasets.images import load_image
    from datasets.layouts import half, images_by_stem

    files = {split: images_by_stem(input / split) for split in _splits(input)}
    count = sum(map(len, files.values()))
    with whole_folder(output) as folder, tqdm(total=count, unit="file", disable=None) as bar:
        for split, paths in files.items():
            for side in "AB":
                (folder / side / split).mkdir(parents=True, exist_ok=True)
            for stem, path in paths.items():
                picture = load_image(path)
                for side in "AB":
                    half(picture, path, right=side == "B").save(folder / side / split / f"{stem}.png")
                bar.update()
    return [f"{output}: {_listed({k: len(v) for k, v in files.items()})} pairs in A and B"]


def split_test(
    input: Path,
    output: Path,
    fraction: float = 0.1,
    seed: int = 0,
    dataset_mode: Literal["auto", "aligned", "paired", "unaligned"] = "auto",
) -> list[str]:
    """Copy a data set that has no test split, with some of its pictures as the test split.

    Args:
        input: root of the data set; it is not changed
        output: new or empty folder for the copy
        fraction: share of the pictures that become the test split, of A and of B each
        seed: another seed, other pictures
        dataset_mode: layout of the folder; auto detects it
    """
    # Pairs stay together. The choice depends on seed and name alone, so a picture that joins changes few others.
    # Raises UserError for a set that has a test split, or too few pictures. Then nothing is written.
    from datasets.layouts import STANDARD, NoSplit, find_sources
    from datasets.loader import stable_hash

    if not 0 < fraction < 1:
        raise UserError("--fraction", f"{fraction:g} is out of range", "more than 0 and less than 1")
    if not 0 <= seed < 2**63:
        raise UserError("--seed", f"{seed} is out of range", f"use 0 to {2**63 - 1}")
    sources = find_sources(input, "train", dataset_mode)
    with contextlib.suppress(NoSplit):
        there = find_sources(input, "test", dataset_mode).split
        raise UserError(input, f"has a test split already: {there}", "use it as it is")
    sides = {"A": sources.a} if sources.layout == "aligned" else {"A": sources.a, "B": sources.b}
    standard = next(convention for convention in STANDARD if convention.layout == sources.layout)
    copies: dict[str, list[Path]] = {}  # by folder
    for side, files in sides.items():
        key = "" if sources.is_paired else side  # pairs have equal stems
        ranks = {path: stable_hash(seed, key, path.stem) for path in files}
        order = sorted(files, key=ranks.__getitem__)
        count = max(1, round(fraction * len(files)))
        if count == len(files):
            raise UserError(input, f"has too few pictures for a test split of {fraction:g}", "see --fraction")
        for split, chosen in (("train", order[count:]), ("test", order[:count])):
            copies[standard.places(split)["AB".index(side)]] = chosen
    total = sum(map(len, copies.values()))
    with whole_folder(output) as folder, tqdm(total=total, unit="file", disable=None) as bar:
        for place, chosen in copies.items():
            (folder / place).mkdir(parents=True)
            for path in chosen:
                shutil.copyfile(path, folder / place / path.name)
                bar.update()
    return [
        f"{output}: {_listed({place: len(chosen) for place, chosen in copies.items()})}, {sources.layout}"
    ]


def _splits(folder: Path) -> tuple[str, ...]:
    """The split folders in a folder, or "." if the folder itself holds the pictures."""
    if not folder.is_dir():
        raise UserError(folder, "is a file" if folder.exists() else "no such folder", "a folder is needed")
    return tuple(name for name in SPLITS if (folder / name).is_dir()) or (".",)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count}" if name == "." else f"{name} {count}" for name, count in counts.items())


def check_folder(
    folder: Positional[Path],
    dataset_mode: Literal["auto", "aligned", "paired", "unaligned", "folder"] = "auto",
    skip_bad: bool = False,
) -> Iterator[str]:
    """Check a data folder: counts, sizes, modes, unreadable files, unmatched pairs.

    Args:
        folder: root of the data set
        dataset_mode: layout of the folder; auto detects it
        skip_bad: skip unusable files instead of failing
    """
    # Every split is scanned as at the start of a training. A missing split is reported as a line. Raises UserError if
    # no split exists, and after the last scan if a split is unusable.
    from datasets.check import scan
    from datasets.layouts import NoSplit, find_sources

    missing: list[UserError] = []
    problems: dict[str, UserError] = {}  # by message: both splits find the same problem of the root
    for split in ("train", "test"):
        try:
            sources = find_sources(folder, split, dataset_mode)
            # Every network needs 2 pixels. A training may choose a larger crop.
            left, report = scan(sources, crop_size=2, preprocess="none", skip_bad=skip_bad)
        except NoSplit as error:
            missing.append(error)
        except UserError as error:
            problems[str(error)] = error
        else:
            yield from _described(left, report)
            if left.layout == "folder":
                return
    if len(problems) > 1:
        details = [line for line, e in problems.items() for line in (line, *(f"  {d}" for d in e.details))]
        raise UserError(folder, f"{len(problems)} problems", "fix them one by one", details)
    if problems or len(missing) == 2:
        raise [*problems.values(), *missing][0]
    yield from (f"not there: {error.reason}" for error in missing)


def _described(sources: "Sources", report: "ScanReport") -> Iterator[str]:
    name = "pictures" if sources.layout == "folder" else sources.split
    if sources.is_paired:
        yield f"{name}: {len(sources.a)} pairs, {sources.layout}"
    elif sources.b:
        yield f"{name}: {len(sources.a)} in A, {len(sources.b)} in B, {sources.layout}"
    else:
        yield f"{name}: {len(sources.a)}, no A and B: for translation only"
        yield "  note: side-by-side pairs are taken with --dataset_mode aligned"
    yield f"  sizes: {_most_frequent({f'{w}x{h}': n for (w, h), n in report.sizes.items()})}"
    yield f"  modes: {_most_frequent(report.modes)}"
    yield from (f"  note: {note}" for note in report.notes())


def _most_frequent(counts: Mapping[str, int]) -> str:
    """The most frequent keys with their counts, the most frequent first."""
    order = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{name} ({count})" for name, count in order[:MOST_SHOWN])
    return shown + (f" and {len(order) - MOST_SHOWN} more" if len(order) > MOST_SHOWN else "")


def main() -> None:
    """Parse the command line, run the command, print its lines."""
    commands: dict[str, Any] = {
        "download": download,
        "join": join_pairs,
        "split": split_pairs,
        "split-test": split_test,
        "check": check_folder,
    }
    lines = tyro.extras.subcommand_cli_from_dict(
        commands,
        prog="python -m datasets.prepare",
        description="Download, join, split and check data sets.",
        use_underscores=True,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    for line in lines:
        print(line)


if __name__ == "__main__":
    run_command(main)
