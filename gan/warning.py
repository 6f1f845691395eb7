"""A warning is one line on stderr."""

import contextlib
import sys
from pathlib import Path

from datasets.errors import printable


def warn(subject: str | Path, text: str) -> None:
    """Print `warning: <subject>: <text>`; a closed or full stderr is no reason to stop."""
    line = printable(f"warning: {subject}: {text}").encode("ascii", "backslashreplace").decode()
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)
