"""Pages of results: a script writes its part anew, and keeps what a reader wrote below it."""

from pathlib import Path

from datasets.files import write_atomically

READING = "## What it shows"
"""From this heading on, a page is written by hand."""


def write_page(path: Path, text: str) -> None:
    """Write `text` as the page `path`, and keep what stands there from the heading `READING` on. Raises OSError."""
    _, heading, reading = path.read_text().partition(READING) if path.exists() else ("", "", "")
    write_atomically(path, (text + (f"\n{heading}{reading}" if heading else "")).encode())
