"""The formats of `python -m gan.export`: what writes each, what reads it back, and the comparison with the run.

An export takes its place only after it was read back, by the program that reads this format elsewhere, and translated
pictures as the run does.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from datasets.errors import RunError, UserError
from datasets.files import as_mib, whole_file, whole_folder
from datasets.images import to_unit_range
from gan.export import ExportOptions
from gan.export_graph import INPUT, export_graph, read_pt2, size_rule, write_onnx, write_pt2
from gan.export_hub import CONFIG, write_hub
from gan.export_web import MODEL, write_page
from gan.generator_file import FILE_NAME, describe, write_generator
from gan.pretrained import find_pretrained
from gan.translate import Translator
from models.build import build_generator

LARGEST_DIFFERENCE = 1e-4  # of the values from -1 to 1; a grey level is 8e-3

Translate = Callable[[Tensor], Tensor]
"""Pictures (N, C, H, W) uint8 -> translations (N, O, H, W) in [-1, 1]."""


class Format(NamedTuple):
    """One way to write a generator.

    write: takes the place to write at, and the options; read: makes a function of what is there; packages: optional
    ones that it needs.
    """

    write: Callable[[Translator, Path, ExportOptions], None]
    read: Callable[[Translator, Path], Translate]
    is_folder: bool = False
    packages: tuple[str, ...] = ()


def export(options: ExportOptions) -> None:
    """Write what the options ask for, compare it with the run, and print both.

    Raises UserError for a missing package, an unknown run and an output that is there already, RunError where the
    export differs from the run; nothing is left at the output then.
    """
    assert options.format is not None
    form, output = FORMATS[options.format], Path(options.output)
    _require(options.format, form.packages)
    source = find_pretrained(options.run, Path(options.checkpoints_dir))
    translator = Translator.load(
        source, epoch=options.epoch, direction=options.direction, device="cpu", weights=options.which
    )
    with (whole_folder if form.is_folder else whole_file)(output) as place:
        form.write(translator, place, options)
        for size, difference in differences(translator, form.read(translator, place)):
            if not difference <= LARGEST_DIFFERENCE:  # NaN too
                reason = (
                    f"differs from the run by {difference:.1e} at {size}, more than {LARGEST_DIFFERENCE:.0e}"
                )
                raise RunError(output, reason, "nothing was written; try other versions of the packages")
            print(f"compared with the run at {size}: largest difference {difference:.1e}")
        files = [file for file in place.rglob("*") if file.is_file()] if form.is_folder else [place]
        size = as_mib(sum(file.stat().st_size for file in files))
    print(f"written {translator.direction} ({translator.position}), {size}: {output}")


def differences(translator: Translator, translate: Translate) -> Iterator[tuple[str, float]]:
    """The largest difference between two translations of noise, at a size that the network takes and one that is
    padded. Values are in [-1, 1]."""
    multiple, _ = size_rule(translator.network)
    side = -(-64 // multiple) * multiple
    draws = torch.Generator().manual_seed(0)
    for count, height, width in ((1, side, 2 * side), (2, side + 3, 2 * side - 1)):
        shape = (count, translator.input_nc, height, width)
        pictures = torch.randint(0, 256, shape, dtype=torch.uint8, generator=draws)
        found, expected = translate(pictures), translator(to_unit_range(pictures))
        if found.shape != expected.shape:
            raise RunError("export", f"gives {tuple(found.shape)} for {shape}", "please report it")
        yield " x ".join(map(str, shape)), (found - expected).abs().max().item()


def _require(name: str, packages: tuple[str, ...]) -> None:
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        reason = f"needs {' and '.join(missing)}, not installed"
        raise UserError(f"--format {name}", reason, "pip install -r requirements-export.txt")


def _write_file(translator: Translator, place: Path, _: ExportOptions) -> None:
    write_generator(translator, place)


def _write_graph(
    write: Callable[[torch.export.ExportedProgram, Path, dict[str, str]], None],
    translator: Translator,
    place: Path,
    _: ExportOptions,
) -> None:
    ranges = {"value_range": json.dumps({"image": [0, 255], "translation": [0, 255], "values": [0, 1]})}
    program = export_graph(translator.network, translator.input_nc)
    write(program, place, describe(translator) | ranges)


def _write_hub(translator: Translator, place: Path, _: ExportOptions) -> None:
    write_hub(translator, place)


def _write_web(translator: Translator, place: Path, options: ExportOptions) -> None:
    write_page(translator, place, options.ort)  # first: it fails sooner than a graph is made
    _write_graph(write_onnx, translator, place / MODEL, options)


def _read_file(_: Translator, place: Path) -> Translate:
    return _of_pictures(Translator.load(place, device="cpu"))


def _read_hub(translator: Translator, place: Path) -> Translate:
    """As the model card tells others to do it."""
    from safetensors.torch import load_file

    network: nn.Module = build_generator(**json.loads((place / CONFIG).read_text(encoding="utf-8")))
    network.load_state_dict(load_file(place / FILE_NAME))
    return _of_pictures(replace(translator, network=network.eval()))


def _of_pictures(translator: Translator) -> Translate:
    return lambda pictures: translator(to_unit_range(pictures))


def _read_onnx(_: Translator, place: Path) -> Translate:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(place), providers=["CPUExecutionProvider"])
    return lambda pictures: torch.from_numpy(session.run(["values"], {INPUT: pictures.numpy()})[0]) * 2 - 1


def _read_pt2(_: Translator, place: Path) -> Translate:
    module = read_pt2(place)
    return lambda pictures: module(pictures)[1] * 2 - 1


def _read_web(translator: Translator, place: Path) -> Translate:
    return _read_onnx(translator, place / MODEL)


ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")

FORMATS: dict[str, Format] = {
    "safetensors": Format(_write_file, _read_file),
    "onnx": Format(partial(_write_graph, write_onnx), _read_onnx, packages=ONNX_PACKAGES),
    "pt2": Format(partial(_write_graph, write_pt2), _read_pt2),
    "hub": Format(_write_hub, _read_hub, is_folder=True),
    "web": Format(_write_web, _read_web, is_folder=True, packages=ONNX_PACKAGES),
}
