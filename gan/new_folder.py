"""A folder for output that is proven writable first, and gone again if nothing came of it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from gan.run_folder import require_writable


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """Make a folder with those above it; after an error inside, remove those that were made and are empty.

    Raises UserError, before anything else is done, where it cannot be written to.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        require_writable(folder)
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # the first that is not empty ends it
            for place in made:
                place.rmdir()
        raise
