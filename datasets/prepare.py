"""Data sets from the net, from archives and from folders.

python -m datasets.prepare download maps                      a known set, verified and safely unpacked
python -m datasets.prepare download maps --from_archive FILE  the same from a file at hand
python -m datasets.prepare join --a DIR --b DIR --output DIR  pairs of equal stem to side-by-side A|B files
python -m datasets.prepare split --input DIR --output DIR     side-by-side files to A/ and B/
python -m datasets.prepare check DIR [--skip_bad]             is it usable, and what is in it
"""

import json
import re
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

if TYPE_CHECKING:  # these bring torch, and --help should answer at once
    from datasets.check import ScanReport
    from datasets.layouts import Sources

SPLITS = ("train", "val", "test")
MEANINGFUL_FOLDERS = (*SPLITS, "trainA", "trainB", "valA", "valB", "testA", "testB", "A", "B")
RECORD = "source.json"
MOST_SHOWN = 5  # sizes or modes in a line


@dataclass(frozen=True)
class KnownSet:
    """A public data set: `counts` are its pictures by folder; aligned folders hold side-by-side files.

    Counts are those of the published sets. Hashes of the archives are not published; source.json records the one of
    each download, to compare a later one with (`--sha256`).
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
    "a known set, or your own name for what --url or --from_archive gives. Known sets (for the terms of use see "
    "their authors' pages): " + "; ".join(f"{name} ({known.note})" for name, known in KNOWN_SETS.items())
)


def download(
    name: Annotated[Positional[str], tyro.conf.arg(metavar="NAME", help=_NAME_HELP)],
    output: Path | None = None,
    from_archive: Path | None = None,
    sha256: str | None = None,
    url: str | None = None,
    timeout: float = 30.0,
) -> list[str]:
    """Fetch a known data set, verify its counts, unpack it safely.

    Args:
        output: new or empty folder; without it data/NAME
        from_archive: tar, tar.gz or zip to use instead of the net; it is left as it is
        sha256: refuse an archive with another SHA-256
        url: fetch from this address
        timeout: seconds without data after which the download is given up
    """
    # The folder gets a source.json with address, bytes, SHA-256 and counts. A downloaded archive is removed once it is
    # unpacked or found to be bad. After a UserError the folder is as it was before.
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
            if error.subject != str(archive):  # the disk is to blame, so the download is kept
                raise
            discard(archive)
            raise UserError(address, error.reason, error.fix, error.details) from error
        discard(archive)
    return [f"{output}: {_listed(found)}; address and SHA-256 in {output / RECORD}"]


def _unpack_verified(
    name: str, archive: Path, source: str, output: Path, counts: Mapping[str, int], wanted: str | None
) -> dict[str, int]:
    """Verify an archive, unpack it to `output`; every fault of the archive is a UserError with it as subject."""
    archive_kind(archive)  # calls an HTML page by its name, before a hash says only that it differs
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
    """Join two folders of pictures, pairs by equal stem, to side-by-side A|B files.

    Args:
        a: pictures, or train/ val/ test/ with pictures; the output is arranged in the same way
        b: their partners
        output: new or empty folder, for PNG files
    """
    # Raises UserError for unmatched stems, pairs of different size, files that cannot be read, and folders without
    # pictures; then nothing is written.
    from datasets.images import load_image
    from datasets.layouts import match_pairs
    from datasets.transforms import side_by_side

    splits = _splits(a)
    if _splits(b) != splits:
        listed = [" ".join(found).replace(".", "none") for found in (splits, _splits(b))]
        reason = f"other sub-folders than A: {listed[0]} in A, {listed[1]} in B"
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
    """Split side-by-side A|B files to two folders A and B.

    Args:
        input: side-by-side pictures, or train/ val/ test/ with them, which become A/train B/train and so on
        output: new or empty folder, for PNG files
    """
    # Raises UserError for odd widths, files that cannot be read, two files of one stem, and folders without pictures;
    # then nothing is written.
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


def _splits(folder: Path) -> tuple[str, ...]:
    """The split folders in a folder, or "." where its pictures lie in itself."""
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
        folder: the root of the data set
        dataset_mode: the layout, where it is not what the folders' names say
        skip_bad: leave unusable files out instead of failing
    """
    # Every split is scanned as at the start of a training. A split that is not there is one of the lines. Raises
    # UserError where no split is there and, when all have been scanned, where one is not usable.
    from datasets.check import scan
    from datasets.layouts import NoSplit, find_sources

    missing: list[UserError] = []
    problems: dict[str, UserError] = {}  # by their line: a problem of the root is found for both splits
    for split in ("train", "test"):
        try:
            sources = find_sources(folder, split, dataset_mode)
            # 2 pixels are what no network can do without; larger crops are a training's choice.
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
        raise UserError(folder, f"{len(problems)} problems", "mend them one by one", details)
    if problems or len(missing) == 2:
        raise [*problems.values(), *missing][0]
    yield from (f"not there: {error.reason}" for error in missing)


def _described(sources: "Sources", report: "ScanReport") -> Iterator[str]:
    name = "pictures" if sources.layout == "folder" else sources.split
    if sources.is_paired:
        yield f"{name}: {report.count_a} pairs, {sources.layout}"
    elif sources.b:
        yield f"{name}: {report.count_a} in A, {report.count_b} in B, {sources.layout}"
    else:
        yield f"{name}: {report.count_a}, no A and B: for translation only"
    yield f"  sizes: {_most_frequent({f'{w}x{h}': n for (w, h), n in report.sizes.items()})}"
    yield f"  modes: {_most_frequent(report.modes)}"
    yield from (f"  note: {note}" for note in report.notes())


def _most_frequent(counts: Mapping[str, int]) -> str:
    """The most frequent first, with their numbers."""
    order = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{name} ({count})" for name, count in order[:MOST_SHOWN])
    return shown + (f" and {len(order) - MOST_SHOWN} more" if len(order) > MOST_SHOWN else "")


def main() -> None:
    """Parse the command line, do it, print what came of it."""
    commands: dict[str, Any] = {
        "download": download,
        "join": join_pairs,
        "split": split_pairs,
        "check": check_folder,
    }
    lines = tyro.extras.subcommand_cli_from_dict(
        commands,
        prog="python -m datasets.prepare",
        description="Data sets from the net, from archives and from folders.",
        use_underscores=True,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    for line in lines:
        print(line)


if __name__ == "__main__":
    run_command(main)
