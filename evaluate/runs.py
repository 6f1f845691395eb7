"""A run of this program becomes comparisons: its outputs on the test split against the real pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from datasets.errors import UserError
from datasets.layouts import Sources, find_sources
from evaluate.metrics import Comparison
from evaluate.outputs import make_outputs
from evaluate.pictures import Picture, pictures_of, pictures_of_side
from evaluate.protocol import Protocol
from gan.checkpoint import checkpoint_hash
from gan.options import TrainOptions, channels, stored_dict
from gan.run import RunFolder
from gan.translate import Translator, load_translator

NOT_OF_A_CONFIGURATION = frozenset(
    {"name", "seed", "checkpoints_dir", "device", "num_threads", "print_freq", "display_freq", "save_epoch_freq",
     "save_step_freq", "keep", "eval_every", "eval_metrics", "compile", "nc_backend", "deterministic", "config"}
)  # fmt: skip
"""Options in which two runs may differ and still count as seeds of one configuration."""


@dataclass(frozen=True)
class RunChoice:
    """What of the runs is evaluated (flags of the same names)."""

    epoch: str = "last"
    test_mode: Literal["eval", "train"] = "eval"
    dataroot: Path | None = None
    num_test: int | None = None
    device: str = "auto"


def protocol_of(options: TrainOptions, choice: RunChoice, verified: bool = True) -> Protocol:
    """The protocol a run is evaluated by: its training size, the mode of the networks, grey or colour."""
    size = str(options.data.crop_size)
    return Protocol(size, choice.test_mode, choice.num_test, verified, colours=_colours(options))


def _colours(options: TrainOptions) -> str:
    """Of the domains that the run has outputs in; its real pictures go through the same conversion."""
    outputs = [channels(options, direction)[1] for direction in reversed(directions_of(options))]  # A's first
    return "-".join(dict.fromkeys({1: "L", 3: "RGB"}[count] for count in outputs))


def find_run(name: str, checkpoints_dir: Path) -> Path:
    """The folder of a run, given as a path or as a name under checkpoints_dir. UserError where there is none."""
    candidates = (Path(name), checkpoints_dir / name)
    for looks_right in (lambda folder: RunFolder(folder).exists, Path.is_dir):
        for candidate in candidates:
            if looks_right(candidate):
                return candidate
    raise UserError(name, f"no such run, here or in {checkpoints_dir}", "check the path or --checkpoints_dir")


def comparisons_of_run(run: Path, choice: RunChoice) -> tuple[list[Comparison], TrainOptions]:
    """One comparison for each direction the run was trained in; outputs that are missing are made.

    Raises UserError for an unknown run, missing test pictures, and what cannot be read or written.
    """
    translator = _load(run, choice, None)
    options = translator.options
    comparisons = []
    for direction in directions_of(options):
        if direction != translator.direction:
            translator = _load(run, choice, direction)
        comparisons.append(_comparison(run, translator, choice))
    return comparisons, options


def directions_of(options: TrainOptions) -> tuple[str, ...]:
    """The directions that a run can translate in."""
    return ("AtoB", "BtoA") if options.model.model == "cycle_gan" else (options.data.direction,)


def test_sides(
    options: TrainOptions, direction: str, choice: RunChoice
) -> tuple[Sources, list[Picture], list[Picture]]:
    """(sources, inputs, real pictures of the target domain) of the test split for one direction.

    All of them: --num_test cuts the inputs and their targets, never the real pictures a distribution is taken from.
    """
    root = choice.dataroot or Path(options.data.dataroot)
    return split_sides(options, direction, find_sources(root, "test", options.data.dataset_mode))


def split_sides(
    options: TrainOptions, direction: str, sources: Sources
) -> tuple[Sources, list[Picture], list[Picture]]:
    """The same for given sources (the disk's A and B)."""
    if direction == "BtoA":
        sources = sources.swapped()
    size = options.data.crop_size
    input_nc, output_nc = channels(options, direction)
    inputs = pictures_of_side(sources, "a", size, input_nc)
    reals = pictures_of_side(sources, "b", size, output_nc)
    if not inputs or not reals:
        raise UserError(sources.root, "no test pictures of both domains", "name the data set with --dataroot")
    return sources, inputs, reals


def configuration(options: TrainOptions) -> dict[str, object]:
    """The options that make two runs seeds of one configuration where they are equal."""
    return {
        name: value
        for name, value in stored_dict(options).items()
        if name not in NOT_OF_A_CONFIGURATION and not name.startswith("visdom")
    }


def _load(run: Path, choice: RunChoice, direction: str | None) -> Translator:
    return load_translator(
        run, epoch=choice.epoch, direction=direction, device=choice.device, test_mode=choice.test_mode
    )


def _comparison(run: Path, translator: Translator, choice: RunChoice) -> Comparison:
    options = translator.options
    sources, inputs, reals = test_sides(options, translator.direction, choice)
    inputs = inputs[: choice.num_test]
    outputs = pictures_of(make_outputs(run, translator, inputs, choice.test_mode))
    kind = "" if choice.epoch.isdecimal() else f"{choice.epoch} ("
    return Comparison(
        label=run.resolve().name,
        direction=translator.direction,
        fakes=outputs,
        reals=reals,
        targets=reals[: choice.num_test] if sources.is_paired else None,
        inputs=inputs,
        checkpoint=f"{kind}epoch {translator.epoch}, step {translator.step}" + (")" if kind else ""),
        details={
            "run": str(run),
            "seed": options.run.seed,
            "epoch": translator.epoch,
            "step": translator.step,
            "checkpoint": choice.epoch,
            "checkpoint_sha256": checkpoint_hash(translator.checkpoint),
            "data": str(sources.root),
            "layout": sources.layout,
            "configuration": configuration(options),
        },
    )


def training_pairs(
    options: TrainOptions, direction: str, dataroot: Path | None
) -> Sequence[tuple[Picture, Picture]] | None:
    """(input, target) pictures of the training split at the evaluated size, None where it has no pairs."""
    root = dataroot or Path(options.data.dataroot)
    sources = find_sources(root, "train", options.data.dataset_mode, options.data.max_dataset_size)
    if not sources.is_paired:
        return None
    _, inputs, targets = split_sides(options, direction, sources)
    return list(zip(inputs, targets, strict=True))
