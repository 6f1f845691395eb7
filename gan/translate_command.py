"""What test.py does: translate a test split with a results page, or a folder of pictures."""

import html
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from urllib.parse import quote

import torch

from datasets.check import scan
from datasets.errors import UserError, printable, say
from datasets.files import new_folder, write_atomically
from datasets.images import load_image, save_png
from datasets.layouts import Sources, find_inputs, find_sources, left_out
from gan.run import RunFolder
from gan.translate import (
    Load,
    TestMode,
    Translator,
    check_readable,
    load_translator,
    output_names,
    translate_pictures,
)
from gan.translation_options import TranslationOptions


def run_test(options: TranslationOptions) -> int:
    """Check the options, then translate. Returns the exit code; raises UserError."""
    options.check()
    job = TranslationJob(
        RunFolder.at(Path(options.checkpoints_dir), options.name).path,
        epoch=options.epoch,
        direction=options.direction,
        device=options.device,
        test_mode=options.test_mode,
        batch_size=options.batch_size,
        size=options.size,
        scale=options.scale or "trained",
        limit=options.num_test,
        skip_bad=options.skip_bad,
    )
    if options.input:
        FolderTranslation(job, Path(options.input), Path(options.output)).carry_out()
    else:
        SplitTranslation(job, options.dataroot, Path(options.results_dir)).carry_out()
    return 0


@dataclass(frozen=True)
class TranslationJob:
    """A generator of a run, and how it is to translate pictures.

    scale: `trained`, `native` or a factor; size: the side in pixels to translate at, instead; limit: the most pictures
    that are translated.
    """

    run: Path
    epoch: str
    direction: str | None
    device: str
    test_mode: TestMode
    batch_size: int
    size: int | None
    scale: str
    limit: int | None
    skip_bad: bool

    @cached_property
    def translator(self) -> Translator:
        torch.manual_seed(0)  # --test_mode train draws dropout: the same pictures every time
        return load_translator(
            self.run,
            epoch=self.epoch,
            direction=self.direction,
            device=self.device,
            test_mode=self.test_mode,
        )

    @cached_property
    def chosen_scale(self) -> tuple[tuple[float, float], str]:
        """The factors across and down for the network's input, and a line that says what is done."""
        unchanged = (1.0, 1.0)
        if self.size:
            return unchanged, f"translated at {self.size} x {self.size} pixels"
        own = "translated at the pictures' own size"
        if self.scale == "native":
            return unchanged, own
        if self.scale != "trained":
            factor = float(self.scale)
            return (factor, factor), f"translated at {factor:g} times the pictures' size, then resized back"
        if self.translator.median_size is None:
            return unchanged, f"{own}: this run does not know the size of its training pictures"
        across, down = scale = self.translator.trained_scale
        if all(1 / 1.25 <= factor <= 1.25 for factor in scale):
            return unchanged, f"{own}, which is near the size in training"
        factors = f"{across:.3g} x {down:.3g}"
        return (
            scale,
            f"translated at the scale of training, {factors}, then resized back (--scale native: not)",
        )

    def translate(self, pictures: Sequence[tuple[Load, Path]]) -> None:
        translate_pictures(self.translator, pictures, self.batch_size, self.size, self.chosen_scale[0])

    def say_done(self, count: int, where: Path) -> None:
        translator = self.translator
        print(f"{count} pictures translated {translator.direction} (epoch {translator.epoch}): {where}")


@dataclass(frozen=True)
class FolderTranslation:
    """A picture or a folder of them, translated into a folder: same subfolders, same stems, same sizes."""

    job: TranslationJob
    source: Path
    output: Path

    def carry_out(self) -> None:
        """Raises UserError for an input that cannot be read, and where the output would replace it."""
        job, translator = self.job, self.job.translator
        source, output = self.source, self.output
        if source.is_file() and output.suffix.lower() == ".png" and not output.is_dir():
            output, only_name = output.parent, output.name
        else:
            only_name = ""
        inputs = find_inputs(source, output)[: job.limit]
        root = source if source.is_dir() else source.parent

        def targets(inputs: list[Path]) -> list[Path]:
            return [output / (only_name or name) for name in output_names(inputs, root)]

        same = output.exists() and output.resolve() == source.resolve()
        if same or {path.resolve() for path in targets(inputs)} & {path.resolve() for path in inputs}:
            raise UserError(
                "--output", "is the input folder", "choose another, so that no picture is overwritten"
            )
        for folder in sorted({path.parent for path in inputs}) if source.is_dir() else ():
            if text := left_out(folder, but_folders=True):
                say(f"left out: {folder}: {text}")
        with new_folder(output):
            wanted = translator.value_ranges[translator.direction == "BtoA"]
            inputs = check_readable(inputs, job.skip_bad, wanted)
            pictures = [
                (partial(load_image, path, translator.input_nc, wanted), target)
                for path, target in zip(inputs, targets(inputs), strict=True)
            ]
            for folder in sorted({target.parent for _, target in pictures}):
                folder.mkdir(parents=True, exist_ok=True)
            job.translate(pictures)
        say(job.chosen_scale[1])
        job.say_done(len(pictures), output / only_name if only_name else output)


@dataclass(frozen=True)
class SplitTranslation:
    """The test split of the run's data: STEM_real_A, STEM_fake_B (and STEM_real_B), and a page of them.

    dataroot: where the data is now; empty: where it was in training.
    """

    job: TranslationJob
    dataroot: str
    results: Path

    def carry_out(self) -> None:
        """Raises UserError for data that is not there or cannot be read, unless the job skips such pictures."""
        job, translator = self.job, self.job.translator
        data = translator.options.data
        sources = find_sources(Path(self.dataroot or data.dataroot), "test", data.dataset_mode, job.limit)
        range_a, range_b = translator.value_ranges
        if sources.layout == "folder":  # of the input's domain, whichever it is
            range_a = range_b = range_b if translator.direction == "BtoA" else range_a
        sources = replace(sources, ranges=(range_a, range_b))
        source, target = translator.direction.split("to")
        if translator.direction == "BtoA" and sources.layout != "folder":
            sources = sources.swapped()
        if not sources.is_paired:
            sources = replace(sources, b=())  # the other domain is not shown
        folder = self.results / job.run.name / f"test_{job.epoch}_{translator.direction}"
        images = folder / "images"
        with new_folder(images):
            sources, report = scan(sources, crop_size=2, independent=True, skip_bad=job.skip_bad)
            for note in report.notes():
                say(note)
            stems = [Path(name).stem for name in output_names(sources.a)]
            fakes = [images / f"{stem}_fake_{target}.png" for stem in stems]
            job.translate(
                [(partial(sources.load_a, i, translator.input_nc), path) for i, path in enumerate(fakes)]
            )
        told = job.chosen_scale[1]
        say(told)
        columns = _save_originals(sources, stems, images, source, target)
        columns.insert(1, (f"translated to {target}", fakes))
        page = _page(job.run.name, translator, told, columns)
        write_atomically(folder / "index.html", page.encode())
        job.say_done(len(fakes), folder / "index.html")


def _save_originals(
    sources: Sources, stems: list[str], images: Path, source: str, target: str
) -> list[tuple[str, list[Path]]]:
    """Copies of inputs and targets beside the translations: (caption, files) a column."""
    columns = []
    for caption, load, side in (
        (f"input {source}", sources.load_a, source),
        (f"target {target}", sources.load_b, target),
    ):
        if side == target and not sources.is_paired:
            continue
        files = [images / f"{stem}_real_{side}.png" for stem in stems]
        for i, path in enumerate(files):
            save_png(load(i), path)
        columns.append((caption, files))
    return columns


def _page(name: str, translator: Translator, told: str, columns: list[tuple[str, list[Path]]]) -> str:
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
    title = html.escape(f"{name} {translator.direction}, epoch {translator.epoch}")
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
