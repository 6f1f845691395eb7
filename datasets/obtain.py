"""A known data set from its server or from an archive at hand: fetched, verified, unpacked, counted."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from datasets import archives
from datasets.archive_members import kind
from datasets.download import IDLE_SECONDS, discard, fetch
from datasets.errors import UserError
from datasets.files import sha256_of
from datasets.images import IMAGE_EXTENSIONS
from datasets.known_sets import KNOWN_SETS
from datasets.output_folder import refuse_occupied, whole_folder

SPLITS = ("train", "val", "test", "trainA", "trainB", "valA", "valB", "testA", "testB", "A", "B")
RECORD = "source.json"


def obtain(
    name: str,
    output: Path,
    *,
    archive: Path | None = None,
    url: str | None = None,
    hash_wanted: str | None = None,
    idle_seconds: float = IDLE_SECONDS,
) -> dict[str, int]:
    """Make `output` the data set `name`; returns its numbers of pictures by folder.

    archive: use this file, which is left as it is, instead of downloading. url: download from there. A name that
    is not in KNOWN_SETS needs one of both, and its counts are not verified. A downloaded file is removed once it
    is unpacked or found to be bad. `output` gets a source.json with address, bytes, SHA-256 and counts.
    Raises UserError; then `output` is as it was before.
    """
    known = KNOWN_SETS.get(name)
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UserError(name, "is not a name for a data set", "use letters, digits, - and _")
    if known is None and archive is None and url is None:
        raise UserError(name, "is not a known data set", f"one of {', '.join(KNOWN_SETS)}; or give --url")
    if hash_wanted and not re.fullmatch("[0-9a-fA-F]{64}", hash_wanted):
        raise UserError("--sha256", f"{hash_wanted} is not a SHA-256", "64 hexadecimal digits")
    refuse_occupied(output)
    counts = known.counts if known else {}
    if archive is not None:
        if not archive.is_file():
            raise UserError(archive, "no such file", "see --from_archive")
        return _unpack(name, archive, str(archive.name), output, counts, hash_wanted)
    address = url or (known.url if known else "")
    downloaded = output.parent / f"{name}.download"
    fetch(address, downloaded, idle_seconds)
    try:
        found = _unpack(name, downloaded, address, output, counts, hash_wanted)
    except UserError as error:
        if error.subject == str(downloaded):  # the file is to blame, not the disk
            discard(downloaded)
            raise UserError(address, error.reason, error.fix, error.details) from error
        raise
    discard(downloaded)
    return found


def _unpack(
    name: str, archive: Path, origin: str, output: Path, counts: Mapping[str, int], hash_wanted: str | None
) -> dict[str, int]:
    """Verify an archive, unpack it to `output`; every fault of the archive is a UserError with it as subject."""
    kind(archive)  # says what an HTML page is before a hash says only that it differs
    digest = sha256_of(archive)
    if hash_wanted and digest != hash_wanted.lower():
        reason = f"has SHA-256 {digest[:16]}..., wanted was {hash_wanted[:16].lower()}..."
        raise UserError(archive, reason, "another version or a damaged file")
    plan = archives.plan(archive, keep_tops=SPLITS)
    found = _pictures_by_folder(plan.files)
    _compare(archive, found, counts)
    record = {
        "name": name,
        "source": origin,
        "bytes": archive.stat().st_size,
        "sha256": digest,
        "counts": found,
    }
    with whole_folder(output) as folder, tqdm(total=len(plan.files), unit="file", disable=None) as progress:
        archives.write(plan, folder, progress=progress.update)
        (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n")
    return found


def _pictures_by_folder(files: list[PurePosixPath]) -> dict[str, int]:
    pictures = (path for path in files if path.suffix.lower() in IMAGE_EXTENSIONS)
    return dict(sorted(Counter(str(path.parent) for path in pictures).items()))


def _compare(archive: Path, found: Mapping[str, int], wanted: Mapping[str, int]) -> None:
    if not found:
        raise UserError(archive, "holds no picture", "another archive")
    wrong = [
        f"{found.get(name, 0)} in {name} instead of {n}" for name, n in wanted.items() if found.get(name) != n
    ]
    if wrong:
        raise UserError(
            archive, f"holds other pictures than the published set: {', '.join(wrong)}", "get it again"
        )
