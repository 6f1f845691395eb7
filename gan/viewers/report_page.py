"""One HTML file that shows finished runs: result tables, pictures, samples over time, curves.

It needs no other file and no network.
"""

import base64
import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image
from tabulate import tabulate

from datasets.files import write_atomically
from gan.viewers import GRID, KEYS, Record, public_options, sample_file, shown_options, shown_records
from gan.viewers.page import about_run, embed, fill, subtitle

MOMENTS = 10
"""Samples shown of one run: first, last, and evenly between."""

CURVE_RECORDS = 2000
PNG_LIMIT = 60_000
"""Bytes above which a picture goes in as JPEG."""


@dataclass(frozen=True)
class Table:
    """Results as rows of cells; the first `texts` columns stand on the left, numbers on the right."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    note: str = ""
    texts: int = 1


@dataclass(frozen=True)
class Figure:
    """One picture with its caption."""

    caption: str
    picture: Path | Image.Image


def make_report_page(
    output: Path,
    title: str,
    runs: Sequence[Path],
    tables: Sequence[Table] = (),
    figures: Sequence[Figure] = (),
    intro: str = "",
    side_by_side: bool = False,
) -> Path:
    """Write the page to `output` and return it. `runs` are run folders (metrics.jsonl, samples/).

    Raises OSError if a figure cannot be read or the page cannot be written.
    """
    page = fill(
        "report.html",
        "report.js",
        title=escape(title),
        kind="compare" if side_by_side else "",
        intro=f'<p class="sub">{escape(intro)}</p>' if intro else "",
        tables="\n".join(_table(table) for table in tables),
        figures="\n".join(_figure(figure) for figure in figures),
        runs="\n".join(_run(run) for run in runs),
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, page.encode(), durable=False)
    return output


def _table(table: Table) -> str:
    sides = ["left" if index < table.texts else "right" for index in range(len(table.columns))]
    # it escapes every cell
    grid = tabulate(table.rows, table.columns, "html", missingval="–", disable_numparse=True, colalign=sides)
    note = f'<p class="hint">{escape(table.note)}</p>' if table.note else ""
    card = f'<div class="card wide"><div class="scroll">{grid}</div>{note}</div>'
    return f"<section><h2>{escape(table.title)}</h2>{card}</section>"


def _figure(figure: Figure) -> str:
    caption = escape(figure.caption)
    picture = f'<img alt="{caption}" src="{data_address(figure.picture)}">'
    return f'<figure class="card figure"><figcaption>{caption}</figcaption>{picture}</figure>'


def _run(folder: Path) -> str:
    options = public_options(shown_options(folder))
    records = thinned(shown_records(folder))
    blobs: dict[str, int] = {}  # fixed inputs are the same at every moment: they go in once
    for record in records:
        if record["kind"] == "samples":
            pictures = {}
            for kind in record["pictures"].keys() - {GRID}:  # it would show everything a second time
                with contextlib.suppress(OSError):
                    blob = data_address(sample_file(folder, record, kind))
                    pictures[kind] = blobs.setdefault(blob, len(blobs))
            record["pictures"] = pictures
    records = [record for record in records if record.get("pictures", True)]
    info = {**about_run(folder.name, options), "records": records, "blobs": list(blobs)}
    return (
        f'<section class="run"><h2>{escape(folder.name)}</h2><p class="sub">{escape(subtitle(options))}</p>'
        f'<script type="application/json" class="run">{embed(info)}</script></section>'
    )


def thinned(records: Sequence[Record]) -> list[Record]:
    """The records by kind: at most MOMENTS samples and CURVE_RECORDS training lines, first and last among them."""
    kept: list[Record] = []
    for kind in KEYS:
        found = [record for record in records if record["kind"] == kind]
        limit = {"samples": MOMENTS, "train": CURVE_RECORDS}.get(kind, len(found))
        if len(found) > limit:
            found = [found[round(i * (len(found) - 1) / (limit - 1))] for i in range(limit)]
        kept += found
    return kept


def data_address(picture: Path | Image.Image) -> str:
    """A picture, or a file of one, as a `data:` address; a large PNG becomes a JPEG of quality 90."""
    buffer = io.BytesIO()
    if isinstance(picture, Image.Image):
        picture.save(buffer, "PNG")
    else:
        buffer.write(picture.read_bytes())
    data, kind = buffer.getvalue(), "png"
    if len(data) > PNG_LIMIT:
        buffer = io.BytesIO()
        with Image.open(io.BytesIO(data)) as large:
            large.convert("RGB").save(buffer, "JPEG", quality=90)
        data, kind = buffer.getvalue(), "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
