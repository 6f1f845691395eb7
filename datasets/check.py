"""The start-up scan: decodes every file before training starts and lists all problems at once."""

import hashlib
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from tqdm import tqdm

from datasets.decoding import PIXEL_LIMIT, pixel_limit
from datasets.errors import RunError, UserError, file_error
from datasets.files import ahead, cores
from datasets.images import PLAIN, ImageInfo, ValueRange, WantedRange, inspect_halves, inspect_image
from datasets.layouts import Sources, left_out, name_below
from datasets.transforms import Augmentation, Preprocess, Size, half_size


@dataclass(frozen=True)
class FileRecord:
    """What reading a whole file has found."""

    bytes: int
    crc: int  # CRC-32 of the content
    sha256: str  # of the content
    infos: tuple[
        ImageInfo, ...
    ]  # of the whole, or of the two halves of a side-by-side file; none after an error
    error: UserError | None = None


@dataclass(frozen=True)
class ValueUse:
    """How much of their number format the pictures of a domain use."""

    wanted: ValueRange | None  # the value range in use
    lowest: float  # of all pictures, in the file's own numbers, or on 0..255 where their formats differ
    highest: float
    full: float
    flat: tuple[str, ...]  # pictures of nearly one colour
    clipped: int  # values outside `wanted`
    count: int  # pictures

    def notes(self, domain: str) -> Iterator[str]:
        """What is worth telling about a domain's values."""
        if self.wanted:
            low, high = self.wanted
            if self.clipped:
                yield f"{domain}: {self.clipped} values outside the value range {low:g},{high:g} are clipped"
        elif self.highest - self.lowest < _SLIVER * self.full:
            spread = f"{self.lowest:g}..{self.highest:g} of {self.full:g}"
            fix = f"--value_range_{domain} {self.lowest:g},{self.highest:g} or auto stretches them"
            yield f"{domain}: values use {spread} ({fix if self.lowest < self.highest else 'one colour'})"
        if self.flat:
            yield f"{domain}: {len(self.flat)} of {_files(self.count)} of nearly one colour (first: {self.flat[0]})"


Wanted = tuple[WantedRange, int] | tuple[WantedRange, WantedRange, int]
"""Of a file, or of the two halves of a side-by-side file: value ranges, and the number of channels."""

Inspect = Callable[[Path, WantedRange, int], ImageInfo]
"""As `inspect_image`."""

_SLIVER = 1 / 4  # of the number format: a set that uses less is told
_FLAT = 1 / 64  # of the number format: a picture that uses less is nearly one colour


def fingerprint(listing: Sequence[str]) -> str:
    """Short identity of the data on disk: names below the root, sizes and CRC-32 of all files; no times."""
    digest = hashlib.sha256("\n".join(listing).encode("utf-8", "surrogateescape")).hexdigest()
    return f"{len(listing)} files, sha256 {digest[:32]}"


@dataclass(frozen=True)
class ScanReport:
    """What the scan found in a split. Counts are of files; a side-by-side file counts once."""

    layout_note: str  # see `Sources.note`
    sizes: Mapping[Size, int]  # (width, height), upright, as on disk
    modes: Mapping[str, int]  # Pillow's names: L grey, RGB, P palette, ...
    converted: Mapping[str, int]  # rule of datasets.images -> files
    several_frames: int  # animations and multi-page files, of which the first frame is used
    most_frames: tuple[int, str]  # the largest number in a file, and its name
    values: Mapping[str, "ValueUse"]  # by domain, A and B of the disk
    median_sizes: Mapping[
        str, tuple[float, float]
    ]  # (width, height) by domain; of a side-by-side file the half
    left_out: tuple[str, ...]  # what else the folders hold
    same_files: bool  # A and B are the same files
    bad: tuple[str, ...]  # "name: reason" of what skip_bad has left out
    listing: tuple[str, ...]  # "name size crc" of every file found, left out or not
    records: Mapping[Path, FileRecord]  # of every file found

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.listing)

    def notes(self) -> list[str]:
        """One line for each kind of thing worth telling, none where all is plain."""
        lines = [f"layout: {self.layout_note}"] if self.layout_note else []
        if self.bad:
            first = "; ".join(self.bad[:3]) + ", ..." * (len(self.bad) > 3)
            lines.append(f"{_files(len(self.bad))} left out: {first}")
        if self.same_files:
            lines.append("A and B are the same files")
        if self.several_frames:
            count, name = self.most_frames
            several = f"{_files(self.several_frames)} with several frames or pages ({count} in {name})"
            lines.append(f"{several}: the first is used")
        if self.converted:
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.converted.items()))
            lines.append(f"converted to 8 bits a channel: {kinds}")
        if 0 < self.modes.get("L", 0) < sum(self.modes.values()):
            lines.append(f"{_files(self.modes['L'])} grey among colour")
        for domain, use in self.values.items():
            lines += use.notes(domain)
        lines += [f"left out: {text}" for text in self.left_out]
        return lines


def scan(
    sources: Sources,
    *,
    crop_size: int,
    preprocess: Preprocess = "resize_and_crop",
    load_size: int | None = None,
    channels: tuple[int, int] = (3, 3),
    independent: bool = False,
    skip_bad: bool = False,
    inspect: Inspect = inspect_image,
) -> tuple[Sources, ScanReport]:
    """Decode every file of a split; returns the sources that can be trained on, and the report.

    channels: that pictures of A and B (after `swapped`) become. independent: A and B are not used as pairs, so their
    sizes may differ. skip_bad: leave unusable files out, in pairs together with the partner, instead of raising.
    inspect: says what a file holds that is not side by side. load_size: where it is not crop_size.
    Raises one UserError that lists all unusable files: unreadable, of odd width, of another size than the partner,
    smaller than the crop or than 2x2.
    """
    augmentation = Augmentation(preprocess, load_size or crop_size, crop_size)
    wanted = dict(zip("AB", sources.ranges, strict=True))
    if sources.layout == "aligned":
        if channels[0] != channels[1] and not {*channels} <= {*PLAIN}:
            reason = "differs from --input_nc, and a side-by-side file has as many bands on both sides"
            raise UserError("--output_nc", reason, "save A and B as files of their own")
        files: dict[Path, Wanted] = dict.fromkeys(sources.a, (*sources.ranges, channels[0]))
    else:
        counts = dict(zip("AB", channels[::-1] if sources.is_swapped else channels, strict=True))
        files = {
            path: (wanted[domain], counts[domain])
            for domain, paths in _by_domain(sources).items()
            for path in paths
        }
    records = _survey(dict(sorted(files.items())), inspect)
    errors: dict[Path, UserError] = {}
    for path, record in records.items():
        try:
            _refuse_unusable(path, record, sources, augmentation)
        except UserError as error:
            errors[path] = error
    if sources.layout == "paired" and not independent:
        errors |= _unequal_pairs(sources, records, errors)
    bad = tuple(f"{name_below(path, sources.root)}: {errors[path].reason}" for path in sorted(errors))
    if errors and not skip_bad:
        if len(errors) == 1:
            [only] = errors.values()
            fix = "; or ".join(filter(None, (only.fix, "--skip_bad")))
            raise UserError(only.subject, only.reason, fix)
        reason = f"{len(errors)} of {len(records)} images cannot be used"
        raise UserError(sources.root, reason, "mend them, or leave them out: --skip_bad", bad)
    left = _without(sources, set(errors))
    if not left.a or (sources.b and not left.b):
        raise UserError(sources.root, "no usable image is left", "", bad)
    domains = _by_domain(left)
    infos = {path: records[path].infos[0] for path in sorted({*left.a, *left.b})}
    part = {"A": 0, "B": 1 if sources.layout == "aligned" else 0}
    values = {
        domain: _value_use(
            {path: records[path].infos[part[domain]] for path in files}, wanted[domain], sources
        )
        for domain, files in domains.items()
    }
    range_a, range_b = (values[domain].wanted if domain in values else None for domain in "AB")
    left = replace(left, ranges=(range_a, range_b))
    most = max(infos, key=lambda path: infos[path].frames)
    folders = sorted({path.parent for path in files})
    return left, ScanReport(
        layout_note=sources.note,
        sizes=Counter(info.size for info in infos.values()),
        modes=Counter(info.mode for info in infos.values()),
        converted=Counter(info.conversion for info in infos.values() if info.conversion),
        several_frames=sum(info.frames > 1 for info in infos.values()),
        most_frames=(infos[most].frames, name_below(most, sources.root)),
        values=values,
        median_sizes={
            domain: _median_size([infos[path].size for path in files], sources)
            for domain, files in domains.items()
        },
        left_out=tuple(f"{folder.name}: {text}" for folder in folders if (text := left_out(folder))),
        same_files=sources.layout != "aligned"
        and {*map(Path.resolve, sources.a)} == {*map(Path.resolve, sources.b)},
        bad=bad,
        listing=tuple(
            f"{name_below(path, sources.root)} {record.bytes} {record.crc:08x}"
            for path, record in records.items()
        ),
        records=records,
    )


def _by_domain(sources: Sources) -> dict[str, tuple[Path, ...]]:
    """The files of A and of B as on disk, whatever the direction; without a domain that has none."""
    a, b = (sources.b, sources.a) if sources.is_swapped else (sources.a, sources.b)
    return {domain: files for domain, files in (("A", a), ("B", b)) if files}


def _value_use(pictures: Mapping[Path, ImageInfo], wanted: WantedRange, sources: Sources) -> ValueUse:
    """The values of a domain; resolves the range "auto". Raises UserError where that has no one meaning."""
    infos = pictures.values()
    fulls = {info.full for info in infos}
    scale = {full: 1.0 if len(fulls) == 1 else 255.0 / full for full in fulls}
    lowest = min(info.lowest * scale[info.full] for info in infos)
    highest = max(info.highest * scale[info.full] for info in infos)
    if wanted == "auto":
        if len(fulls) > 1:
            reason = f"is auto, but the pictures of {sources.root} have several number formats"
            raise UserError("--value_range", reason, "save them alike, or leave it out")
        if lowest == highest:
            reason = f"is auto, but all values of {sources.root} are {lowest:g}"
            raise UserError("--value_range", reason, "leave it out")
        wanted = (lowest, highest)
    return ValueUse(
        wanted,
        lowest,
        highest,
        full=fulls.pop() if len(fulls) == 1 else 255.0,
        flat=tuple(
            name_below(path, sources.root) for path, info in pictures.items() if _is_flat(info, wanted)
        ),
        clipped=sum(info.clipped for info in infos),
        count=len(infos),
    )


def _median_size(sizes: Sequence[Size], sources: Sources) -> tuple[float, float]:
    width, height = (median(lengths) for lengths in zip(*sizes, strict=True))
    return (width / 2 if sources.layout == "aligned" else width), height


def _is_flat(info: ImageInfo, wanted: ValueRange | None) -> bool:
    low, high = wanted or (0.0, info.full)
    return info.highest - info.lowest < _FLAT * (high - low)


def _survey(files: Mapping[Path, Wanted], inspect: Inspect) -> dict[Path, FileRecord]:
    """Read and decode files in threads, one a core. What was read before and has not changed since is remembered."""
    threads = cores() if pixel_limit() <= PIXEL_LIMIT else 1  # of larger pictures memory holds one
    records = ahead(lambda path: _remembered(path, files[path], inspect), files, depth=64, threads=threads)
    bar = tqdm(records, total=len(files), unit="file", desc="scan", leave=False, disable=None)
    return dict(zip(files, bar, strict=True))


_memory: dict[tuple[Path, int, int, Wanted, Inspect], FileRecord] = {}


def _remembered(path: Path, wanted: Wanted, inspect: Inspect) -> FileRecord:
    try:
        state = path.stat()
    except OSError:
        return _read(path, wanted, inspect)
    key = (path.absolute(), state.st_mtime_ns, state.st_size, wanted, inspect)
    if key not in _memory:
        _memory[key] = _read(path, wanted, inspect)
    return _memory[key]


def _read(path: Path, wanted: Wanted, inspect: Inspect) -> FileRecord:
    infos: tuple[ImageInfo, ...] = ()
    error = None
    try:
        infos = inspect_halves(path, *wanted) if len(wanted) == 3 else (inspect(path, *wanted),)
    except RunError:  # of memory: nothing is wrong with the file
        raise
    except UserError as unusable:
        error = unusable
    size, crc, digest = 0, 0, hashlib.sha256()
    try:
        if path.is_file():
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    size, crc = size + len(block), zlib.crc32(block, crc)
                    digest.update(block)
    except OSError as failure:
        error = error or file_error(failure, path, "read")
    return FileRecord(size, crc, digest.hexdigest(), () if error else infos, error)


def _refuse_unusable(path: Path, record: FileRecord, sources: Sources, augmentation: Augmentation) -> None:
    if record.error:
        raise record.error
    size = record.infos[0].size
    if sources.layout == "aligned":
        size = half_size(size, path)
    augmentation.refuse_too_small(size, path)


def _unequal_pairs(
    sources: Sources, records: Mapping[Path, FileRecord], errors: Mapping[Path, UserError]
) -> dict[Path, UserError]:
    unequal = {}
    for a, b in zip(sources.a, sources.b, strict=True):
        if a in errors or b in errors or records[a].infos[0].size == records[b].infos[0].size:
            continue
        (wa, ha), (wb, hb) = records[a].infos[0].size, records[b].infos[0].size
        reason = f"is {wa}x{ha}, its partner {name_below(b, sources.root)} {wb}x{hb}"
        unequal[a] = UserError(a, reason, "make them equal")
    return unequal


def _without(sources: Sources, bad: set[Path]) -> Sources:
    if sources.is_paired:  # a bad file takes its partner with it
        pairs = zip(sources.a, sources.b, strict=True)
        bad |= {path for pair in pairs if bad.intersection(pair) for path in pair}
    a, b = (tuple(path for path in side if path not in bad) for side in (sources.a, sources.b))
    return replace(sources, a=a, b=b)


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


def changes(before: Sequence[str], after: Sequence[str]) -> str:
    """What differs between two `ScanReport.listing`s: counts and the first name; "" for equal ones."""
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
