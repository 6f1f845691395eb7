"""The start-up scan: every file is decoded before training starts, and every problem is told at once."""

import hashlib
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from datasets.errors import UserError, error_from_os
from datasets.images import ImageInfo, inspect_image
from datasets.layouts import Sources
from datasets.transforms import Geometry, Preprocess, Size, problem
from datasets.workers import cores

Progress = Callable[[int, int], None]  # (files done, files in all)
_BLOCK = 256  # files handed to the threads at once: bounds the wait after Ctrl-C


@dataclass(frozen=True)
class FileRecord:
    """A file that has been read completely."""

    bytes: int
    crc: int  # CRC-32 of the content
    info: ImageInfo | None  # None where the file is not a usable image
    error: UserError | None = None


@dataclass(frozen=True)
class ScanReport:
    """What the scan found in a split. Counts are of files; a side-by-side file counts once."""

    count_a: int  # samples left in A and in B
    count_b: int
    sizes: Mapping[Size, int]  # (width, height), upright, as on disk
    modes: Mapping[str, int]  # Pillow's names: L grey, RGB, P palette, ...
    converted: Mapping[str, int]  # rule of datasets.images -> files
    several_frames: int  # animations and multi-page files, of which the first frame is used
    same_files: bool  # A and B are the same files
    bad: tuple[str, ...]  # "name: reason" of what skip_bad has left out
    listing: tuple[str, ...]  # "name size crc" of every file found, left out or not

    @property
    def fingerprint(self) -> str:
        """Short identity of the data on disk: names below the root, sizes and CRC-32 of all files; no times."""
        digest = hashlib.sha256("\n".join(self.listing).encode("utf-8", "surrogateescape")).hexdigest()
        return f"{len(self.listing)} files, sha256 {digest[:32]}"

    def notes(self) -> list[str]:
        """One line for each kind of thing worth telling, none where all is plain."""
        lines = []
        if self.bad:
            lines.append(
                f"{_files(len(self.bad))} left out: {'; '.join(self.bad[:3])}{', ...' * (len(self.bad) > 3)}"
            )
        if self.same_files:
            lines.append("A and B are the same files")
        if self.several_frames:
            lines.append(f"{_files(self.several_frames)} with several frames or pages: the first is used")
        if self.converted:
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.converted.items()))
            lines.append(f"converted to 8 bits a channel: {kinds}")
        if 0 < self.modes.get("L", 0) < sum(self.modes.values()):
            lines.append(f"{_files(self.modes['L'])} grey among colour")
        return lines


def scan(
    sources: Sources,
    *,
    crop_size: int,
    preprocess: Preprocess = "resize_and_crop",
    load_size: int | None = None,
    independent: bool = False,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> tuple[Sources, ScanReport]:
    """Decode every file of a split; the sources that can be trained on, and the report.

    independent: A and B are not used as pairs, so their sizes may differ. skip_bad: leave unusable files out, in
    pairs together with the partner, instead of raising. load_size: where it is not crop_size.
    Raises one UserError that lists all unusable files: unreadable, of odd width, of another size than the partner,
    smaller than the crop or than 2x2.
    """
    geometry = Geometry(preprocess, load_size or crop_size, crop_size)
    files = sorted({*sources.a, *sources.b})
    records = survey(files, progress)
    errors = {path: record.error for path, record in records.items() if record.error}
    for path in files:
        if path not in errors and (error := _size_error(path, records[path], sources, geometry)):
            errors[path] = error
    if sources.layout == "paired" and not independent:
        errors |= _unequal_pairs(sources, records, errors)
    if errors and not skip_bad:
        raise _all_in_one(errors, len(files), sources.root)
    left = _without(sources, set(errors))
    if not left.a or (sources.b and not left.b):
        raise UserError(
            sources.root, "no usable image is left", "", [_entry(e, sources.root) for e in errors.values()]
        )
    return left, _report(sources, left, records, errors)


def survey(files: Sequence[Path], progress: Progress | None = None) -> dict[Path, FileRecord]:
    """Read and decode files in threads, one a core. What was read before and has not changed since is remembered."""
    records: dict[Path, FileRecord] = {}
    with ThreadPoolExecutor(cores()) as pool:
        for first in range(0, len(files), _BLOCK):
            block = files[first : first + _BLOCK]
            records.update(zip(block, pool.map(_remembered, block), strict=True))
            if progress:
                progress(len(records), len(files))
    return records


_memory: dict[tuple[Path, int, int], FileRecord] = {}


def _remembered(path: Path) -> FileRecord:
    try:
        state = path.stat()
    except OSError:
        return _read(path)
    key = (path.absolute(), state.st_mtime_ns, state.st_size)
    if key not in _memory:
        _memory[key] = _read(path)
    return _memory[key]


def _read(path: Path) -> FileRecord:
    try:
        info, error = inspect_image(path), None
    except UserError as bad:
        info, error = None, bad
    size = crc = 0
    if path.is_file():
        try:
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    size, crc = size + len(block), zlib.crc32(block, crc)
        except OSError as failure:
            error = (
                error
                or error_from_os(failure, path)
                or UserError(path, f"cannot be read: {failure.strerror}")
            )
    return FileRecord(size, crc, None if error else info, error)


def _size_error(path: Path, record: FileRecord, sources: Sources, geometry: Geometry) -> UserError | None:
    assert record.info is not None
    width, height = record.info.size
    if sources.layout == "aligned":
        if width % 2:
            reason = f"side-by-side image of odd width, {width}x{height}"
            return UserError(path, reason, "A and B need equal widths")
        width //= 2
    trouble = problem(geometry, (width, height))
    return UserError(path, *trouble) if trouble else None


def _unequal_pairs(
    sources: Sources, records: Mapping[Path, FileRecord], errors: Mapping[Path, UserError]
) -> dict[Path, UserError]:
    unequal = {}
    for a, b in zip(sources.a, sources.b, strict=True):
        info_a, info_b = records[a].info, records[b].info
        if a in errors or b in errors or info_a is None or info_b is None or info_a.size == info_b.size:
            continue
        (wa, ha), (wb, hb) = info_a.size, info_b.size
        unequal[a] = UserError(
            a, f"is {wa}x{ha}, its partner {_name(b, sources.root)} {wb}x{hb}", "make them equal"
        )
    return unequal


def _without(sources: Sources, bad: set[Path]) -> Sources:
    if sources.is_paired:
        good = [
            i for i, pair in enumerate(zip(sources.a, sources.b, strict=True)) if not bad.intersection(pair)
        ]
        return replace(sources, a=tuple(sources.a[i] for i in good), b=tuple(sources.b[i] for i in good))
    return replace(
        sources, a=tuple(p for p in sources.a if p not in bad), b=tuple(p for p in sources.b if p not in bad)
    )


def _all_in_one(errors: Mapping[Path, UserError], count: int, root: Path) -> UserError:
    if len(errors) == 1:
        [error] = errors.values()
        return UserError(
            error.subject, error.reason, f"{error.fix}; or --skip_bad" if error.fix else "--skip_bad"
        )
    entries = [_entry(errors[path], root) for path in sorted(errors)]
    return UserError(
        root,
        f"{len(errors)} of {count} images cannot be used",
        "mend them, or leave them out: --skip_bad",
        entries,
    )


def _entry(error: UserError, root: Path) -> str:
    return f"{_name(Path(error.subject), root)}: {error.reason}"


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def _report(
    sources: Sources, left: Sources, records: Mapping[Path, FileRecord], errors: Mapping[Path, UserError]
) -> ScanReport:
    used = {*left.a, *left.b}
    infos = [info for path, record in records.items() if path in used and (info := record.info)]
    return ScanReport(
        count_a=len(left.a),
        count_b=len(left.b),
        sizes=Counter(info.size for info in infos),
        modes=Counter(info.mode for info in infos),
        converted=Counter(info.conversion for info in infos if info.conversion),
        several_frames=sum(info.frames > 1 for info in infos),
        same_files=sources.layout != "aligned" and _same_files(sources),
        bad=tuple(_entry(errors[path], sources.root) for path in sorted(errors)),
        listing=tuple(
            f"{_name(path, sources.root)} {record.bytes} {record.crc:08x}" for path, record in records.items()
        ),
    )


def _same_files(sources: Sources) -> bool:
    return bool(sources.b) and {p.resolve() for p in sources.a} == {p.resolve() for p in sources.b}


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


def changes(before: Sequence[str], after: Sequence[str]) -> str:
    """What differs between two listings of a data set: counts and the first name; "" for equal ones."""
    if list(before) == list(after):
        return ""
    old, new = (dict(line.rsplit(" ", 2)[::2] for line in listing) for listing in (before, after))
    kinds = {
        "added": [name for name in new if name not in old],
        "removed": [name for name in old if name not in new],
        "altered": [name for name in new if name in old and new[name] != old[name]],
    }
    parts = [f"{len(names)} {kind} (first: {names[0]})" for kind, names in kinds.items() if names]
    return f"{len(old)} -> {len(new)} files; " + ", ".join(parts)
