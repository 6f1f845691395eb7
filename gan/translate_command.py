"""What test.py does: translate a test split with a results page, or a folder of pictures."""

import html
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import quote

import torch

from datasets.bands import Bands, Picture
from datasets.check import Inspect, scan
from datasets.decoding import PIXEL_LIMIT, pixels_allowed
from datasets.errors import UserError, printable, say
from datasets.files import new_folder, remove_leftovers, write_atomically
from datasets.geotiff import PACKAGE, GeoTiff, has_package, inspect_placed, is_geotiff
from datasets.images import PLAIN, TIFF_EXTENSIONS, inspect_image, load_image, save_png
from datasets.layouts import Sources, find_inputs, find_sources, left_out
from gan.pretrained import find_pretrained
from gan.processes import ALONE, Processes
from gan.show_bands import about_shown_bands, shown_bands
from gan.step import find_device
from gan.tiling import Tiling
from gan.translate import (
    MOST_IN_PNG,
    Load,
    Translator,
    output_names,
    suffix_for,
    translate_pictures,
)
from gan.translation_options import TranslationOptions

Translate = Callable[[list[tuple[Load, Path]]], None]
"""Translates pictures, each a function that decodes one and the file to write."""

Columns = list[tuple[str, list[Path]]]
"""Of the results page: caption, pictures."""


def run_test(options: TranslationOptions, processes: Processes = ALONE) -> int:
    """Load the run and translate with it, as checked options say. Returns the exit code; raises UserError.

    processes: share the pictures; the first one does all else.
    """
    processes.take_gpu(find_device(options.device))
    runs = Path(options.checkpoints_dir)
    source = find_pretrained(options.weights, runs) if options.weights else runs / options.name
    title = options.name or (source.stem if source.is_file() else source.resolve().name)
    torch.manual_seed(0)  # --test_mode train draws dropout: the same pictures every time
    translator = Translator.load(
        source,
        epoch=options.epoch,
        direction=options.direction,
        device=options.device,
        test_mode=options.test_mode,
        weights=options.which,
    )
    scale, told = choose_scale(translator, options.scale or "trained", options.size)
    told += " (--scale native: not)" if scale != (1.0, 1.0) and options.scale is None else ""
    translate: Translate = partial(
        translate_pictures,
        translator,
        batch_size=options.batch_size,
        size=options.size,
        scale=scale,
        tiling=Tiling(options.tile, options.tile_inexact),
        depth=options.output_depth,
        # in train mode, dropout is drawn from one picture to the next
        processes=processes if options.test_mode == "eval" else ALONE,
    )
    chosen = options.show_bands or translator.options.viewer.show_bands
    shown = about_shown_bands((translator.input_nc, translator.output_nc), chosen)
    told += "; written in 16 bits a channel" if options.output_depth == 16 else ""
    told += f"; as TIFF, for {translator.output_nc} bands" if translator.output_nc > MOST_IN_PNG else ""
    limit, skip_bad = options.num_test, options.skip_bad
    with pixels_allowed(options.max_pixels or PIXEL_LIMIT):
        if not processes.is_first:
            translate([])  # its share of what the first one has found
            return 0
        if options.input:
            given, output = [Path(name) for name in options.input], Path(options.output)
            count, where = translate_files(translator, translate, given, output, limit, skip_bad)
        else:
            raw = "_raw" if options.which == "raw" else ""
            folder = Path(options.results_dir) / title / f"test_{options.epoch}{raw}_{translator.direction}"
            told += f"; the page shows {shown}" if shown else ""
            columns = translate_test_split(
                translator, translate, options.dataroot, folder, limit, skip_bad, chosen
            )
            count, where = len(columns[0][1]), folder / "index.html"
            write_atomically(where, _page(title, translator, told, columns).encode())
    say(told)
    print(f"{count} pictures translated {translator.direction} ({translator.position}): {where}")
    return 0


def choose_scale(translator: Translator, scale: str, size: int | None) -> tuple[tuple[float, float], str]:
    """The factors across and down for the network's input, and a line that says what is done.

    scale: `trained`, `native` or a factor; size: the side in pixels that is forced instead.
    """
    unchanged = (1.0, 1.0)
    if size:
        return unchanged, f"translated at {size} x {size} pixels"
    own = "translated at the pictures' own size"
    if scale == "native":
        return unchanged, own
    if scale != "trained":
        factor = float(scale)
        return (factor, factor), f"translated at {factor:g} times the pictures' size, then resized back"
    if translator.median_size is None:
        return unchanged, f"{own}: the size of the training pictures is not known"
    across, down = factors = translator.scale
    if factors == unchanged:
        return unchanged, f"{own}, which is near the size in training"
    how = f"{across:.3g} x {down:.3g}, then resized back"
    return factors, f"translated at the scale of training, {how}"


def translate_files(
    translator: Translator,
    translate: Translate,
    given: list[Path],
    output: Path,
    limit: int | None,
    skip_bad: bool,
) -> tuple[int, Path]:
    """Pictures, or a folder of them, become a folder: same subfolders, same stems, same sizes.

    Returns how many there are, and where. Raises UserError for an input that cannot be read, and where the output would
    replace it.
    """
    source, only_name = given[0], ""  # of the output, where that is a file
    if len(given) > 1 and (
        any(path.is_dir() for path in given) or len({path.name for path in given}) < len(given)
    ):
        raise UserError(
            "--input", "names several folders, or pictures of one name", "give the folder above them"
        )
    suffix, allowed = suffix_for(translator.output_nc), (".png", *TIFF_EXTENSIONS)

    def suffix_of(path: Path) -> str:
        return ".tif" if path in placed else suffix

    if len(given) == 1 and source.is_file() and output.suffix.lower() in allowed and not output.is_dir():
        if suffix != ".png" == output.suffix.lower():
            reason = f"is a PNG, which cannot hold {translator.output_nc} bands"
            raise UserError("--output", reason, "end its name in .tif")
        output, only_name = output.parent, output.name
    inputs = [picture for path in given for picture in find_inputs(path, output)][:limit]
    root = source if source.is_dir() else None
    placed = {path for path in inputs if is_geotiff(path)}
    if placed and not has_package():
        fix = f"`pip install {PACKAGE}` keeps their place on the map"
        say(f"{len(placed)} GeoTIFF files are read as pictures alone: {fix}")
        placed = set()

    # The names of all, before bad ones are left out: without them, names get shorter, and may be those of inputs.
    names = output_names(inputs, root, suffix_of)
    targets = {path: output / (only_name or name) for path, name in zip(inputs, names, strict=True)}
    same = output.exists() and output.resolve() == source.resolve()
    if same or {path.resolve() for path in targets.values()} & {path.resolve() for path in inputs}:
        fix = "choose another, so that no picture is overwritten"
        raise UserError("--output", "is the input folder", fix)
    for folder in sorted({path.parent for path in inputs}) if root else ():
        if text := left_out(folder, but_folders=True):
            say(f"left out: {folder}: {text}")
    with new_folder(output):
        sources = Sources("folder", root or source.parent, ".", tuple(inputs), ())
        sources = _readable(sources, translator, skip_bad, inspect_placed if placed else inspect_image)
        files = [targets[path] for path in sources.a]
        for folder in sorted({file.parent for file in files}):
            folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(folder)
        wanted = sources.ranges[sources.is_swapped]
        assert wanted != "auto"  # the scan has found it
        loads: list[Load] = [
            partial(GeoTiff, path, translator.input_nc, wanted)
            if path in placed
            else partial(sources.load_a, i, translator.input_nc)
            for i, path in enumerate(sources.a)
        ]
        translate(list(zip(loads, files, strict=True)))
    return len(files), output / only_name if only_name else output


def translate_test_split(
    translator: Translator,
    translate: Translate,
    dataroot: str,
    folder: Path,
    limit: int | None,
    skip_bad: bool,
    chosen: str,
) -> Columns:
    """The test split of the run's data becomes folder/images/STEM_real_A, STEM_fake_B (and STEM_real_B).

    Translations that no screen can show whole go to folder/bands; images/ then has their bands of --show_bands, which
    are `chosen`. dataroot: where the data is now; empty: where it was in training. Returns the columns of the results
    page. Raises UserError for data that is not there, and for pictures that cannot be read.
    """
    data, count = translator.options.data, translator.output_nc
    if not dataroot and not data.dataroot:
        raise UserError(
            "--dataroot", "is missing", "name the folder of the data, or give --input and --output"
        )
    sources = find_sources(Path(dataroot or data.dataroot), "test", data.dataset_mode, limit)
    source, target = translator.direction.split("to")
    images = folder / "images"
    written = images if count in PLAIN else folder / "bands"
    with new_folder(written), new_folder(images):
        sources = _readable(sources, translator, skip_bad)
        stems = [Path(name).stem for name in output_names(sources.a)]

        def pngs(kind: str) -> list[Path]:
            return [images / f"{stem}_{kind}.png" for stem in stems]

        real = [pngs(f"real_{source}"), *([pngs(f"real_{target}")] if sources.is_paired else [])]
        fakes = [written / f"{stem}_fake_{target}{suffix_for(count)}" for stem in stems]
        loads: list[Load] = [
            partial(_load_and_show, sources, i, (translator.input_nc, count), files, chosen)
            for i, files in enumerate(zip(*real, strict=True))
        ]
        translate(list(zip(loads, fakes, strict=True)))
    seen = fakes
    if written != images:
        seen = pngs(f"fake_{target}")
        for fake, path in zip(fakes, seen, strict=True):
            _show(load_image(fake, count), path, chosen)
    columns = [(f"input {source}", real[0]), (f"translated to {target}", seen)]
    return [*columns, *((f"target {target}", files) for files in real[1:])]


def _load_and_show(
    sources: Sources, i: int, channels: tuple[int, int], files: Sequence[Path], chosen: str
) -> Picture:
    """Picture i of A. What the page shows of it, and of its target, is written to `files`: threads do this ahead."""
    shown_a, shown_b = (3 if count in PLAIN else count for count in channels)
    if sources.is_paired:
        picture, target = sources.load_pair(i, channels[0], shown_b)
        _show(target, files[1], chosen)
    else:
        picture = sources.load_a(i, channels[0])
    _show(picture if channels[0] == shown_a else sources.load_a(i, shown_a), files[0], chosen)
    return picture


def _show(picture: Picture, path: Path, chosen: str) -> None:
    """Write a picture as PNG; of more than three bands, those of --show_bands, which are `chosen`."""
    if isinstance(picture, Bands):
        picture = picture.shown(shown_bands(len(picture.bands), chosen))
    save_png(picture, path)


def _readable(
    sources: Sources, translator: Translator, skip_bad: bool, inspect: Inspect = inspect_image
) -> Sources:
    """The sources in the direction of the translation, with the value ranges of the training.

    Prints what there is to say about the files. Raises UserError with all that cannot be read, unless they are to be
    skipped.
    """
    if translator.direction == "BtoA":  # a plain folder holds the input's domain, whichever it is
        sources = replace(sources, is_swapped=True) if sources.layout == "folder" else sources.swapped()
    if not sources.is_paired:
        sources = replace(sources, b=())  # the other domain is not shown
    sources = replace(sources, ranges=translator.options.data.value_ranges)
    counts = (translator.input_nc, translator.output_nc)
    sources, report = scan(
        sources, crop_size=2, channels=counts, independent=True, skip_bad=skip_bad, inspect=inspect
    )
    if sources.layout == "folder":
        report = replace(report, left_out=())
    for note in report.notes():
        say(note)
    return sources


def _page(name: str, translator: Translator, told: str, columns: Columns) -> str:
    """A table of pictures that works from a file, names escaped, images loaded as they come into view."""
    head = "".join(f"<th>{html.escape(caption)}</th>" for caption, _ in columns)
    rows = []
    for files in zip(*(files for _, files in columns), strict=True):
        cells = "".join(
            f'<td><img loading="lazy" src="images/{quote(os.fsencode(path.name))}" alt=""></td>'
            for path in files
        )
        stem = html.escape(printable(files[0].stem.rsplit("_real_", 1)[0]))
        rows.append(f"<tr>{cells}</tr><tr><td class=name colspan={len(columns)}>{stem}</td></tr>")
    title = html.escape(f"{name} {translator.direction}, {translator.position}")
    style = (
        ":root{color-scheme:light dark}body{font:16px system-ui;margin:1rem;max-width:90rem}"
        "table{border-spacing:4px;width:100%;table-layout:fixed}img{width:100%;image-rendering:auto}"
        "th{text-align:left;position:sticky;top:0;background:Canvas}.name{opacity:.7;overflow-wrap:anywhere}"
    )
    return (
        f'<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{title}</title><style>{style}</style><h1>{title}</h1>"
        f"<p>{html.escape(told)}</p>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>\n"
    )
