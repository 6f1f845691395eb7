"""Two folders of pictures, from any program, become a comparison."""

from pathlib import Path

from evaluate.metrics import Comparison
from evaluate.options import EvaluateOptions
from evaluate.pictures import folder_pictures, match_by_stem, require_one_size
from evaluate.protocol import Protocol


def compare_folders(options: EvaluateOptions, fake: Path, real: Path) -> tuple[list[Comparison], Protocol]:
    """The one row of --fake and --real, and its protocol: pictures as they are, or stretched to --size.

    Raises UserError for empty folders, mixed sizes without --size, and names without a partner.
    """
    fakes, reals = folder_pictures(fake, options.size), folder_pictures(real, options.size)
    targets = match_by_stem(fakes, reals, fake, real) if options.paired else None
    inputs = None
    if options.input:
        inputs = match_by_stem(fakes, folder_pictures(options.input, options.size), fake, options.input)
    size = str(options.size)
    if options.size is None:
        size = "{}x{}".format(*require_one_size([fakes[0], reals[0], *(inputs or [])[:1]]))
    first = slice(options.num_test)
    row = Comparison(
        label=fake.name or str(fake),
        direction="",
        fakes=fakes[first],
        reals=reals,
        targets=None if targets is None else targets[first],
        inputs=None if inputs is None else inputs[first],
        details={"fake": str(fake), "real": str(real), "input": str(options.input or "")},
    )
    return [row], Protocol(size, "files", options.num_test)
