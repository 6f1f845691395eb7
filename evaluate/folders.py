"""Two folders of pictures, from any program, become a comparison."""

from pathlib import Path

from evaluate.metrics import Comparison
from evaluate.options import EvaluateOptions
from evaluate.pictures import all_stored_in_grey, folder_pictures, match_by_stem, require_one_size
from evaluate.protocol import Protocol


def compare_folders(options: EvaluateOptions, fake: Path, real: Path) -> tuple[list[Comparison], Protocol]:
    """The one row of --fake and --real, and its protocol: pictures as they are, or stretched to --size.

    Raises UserError for empty folders, mixed sizes without --size, and names without a partner.
    """
    channels = 1 if options.grey else 3
    fakes, reals = (folder_pictures(folder, options.size, channels) for folder in (fake, real))
    targets = match_by_stem(fakes, reals, fake, real) if options.paired else None
    inputs = None
    if options.input:
        found = folder_pictures(options.input, options.size, channels)
        inputs = match_by_stem(fakes, found, fake, options.input)
    size = str(options.size)
    if options.size is None:
        size = "{}x{}".format(*require_one_size([fakes[0], reals[0], *(inputs or [])[:1]]))
    first = slice(options.num_test)
    details = {"fake": str(fake), "real": str(real), "input": str(options.input or "")}
    if not options.grey and all_stored_in_grey(fakes) != all_stored_in_grey(reals):
        details["remark"] = "one folder is grey, the other is not: --grey compares both in grey"
    row = Comparison(
        label=fake.name or str(fake),
        direction="",
        fakes=fakes[first],
        reals=reals,
        targets=None if targets is None else targets[first],
        inputs=None if inputs is None else inputs[first],
        details=details,
    )
    return [row], Protocol(size, "files", options.num_test, colours="L" if options.grey else "RGB")
