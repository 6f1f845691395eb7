"""What is compared: runs, folders of any program and baselines, each as generated pictures against real ones.

Collecting reads file lists, hashes of files and the runs' options; nothing is translated yet.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from datasets.errors import UserError
from datasets.layouts import Sources, find_sources
from evaluate.baselines import fit_colours
from evaluate.options import EvaluateOptions
from evaluate.outputs import Outputs
from evaluate.pictures import (
    FilePicture,
    Picture,
    all_stored_in_grey,
    folder_pictures,
    match_by_stem,
    pictures_of_side,
    require_one_size,
)
from evaluate.protocol import Protocol
from gan.options import TrainOptions, channels, from_dict
from gan.run import RunFolder
from gan.translate import TestMode, load_translator

PIXEL_METRICS = ("psnr", "ssim", "l1")
"""What baselines are measured by: networks are not made for pictures of one colour."""


@dataclass(frozen=True)
class Comparison:
    """The pictures of one row of the table: generated ones against real ones of the same domain.

    targets, inputs: where there are any, as long as fakes and in their order; only: the flags of the metrics that make
    sense here, None for all that apply; details: for report.json.
    """

    label: str
    direction: str
    fakes: Sequence[Picture]
    reals: Sequence[Picture]
    targets: Sequence[Picture] | None = None
    inputs: Sequence[Picture] | None = None
    only: Collection[str] | None = None
    details: Mapping[str, object] = field(default_factory=dict)

    @property
    def made_by(self) -> Mapping[str, object]:
        """The checkpoint and options that made a run's outputs, for report.json; empty for others."""
        return self.fakes.made_by if isinstance(self.fakes, Outputs) else {}

    @property
    def checkpoint(self) -> str:
        """As in `last (epoch 4, step 412)`; empty where there is none."""
        return self.fakes.checkpoint if isinstance(self.fakes, Outputs) else ""


def collect(options: EvaluateOptions, runs: Sequence[Path]) -> tuple[list[Comparison], Protocol]:
    """The comparisons asked for, and the one protocol that they share, for weights that are all verified.

    Raises UserError for runs of different protocols, empty folders, mixed sizes, and names without a partner.
    """
    if options.fake and options.real:
        folders = EvaluatedFolders(options.fake, options.real, options.input, options.size, options.grey)
        return folders.compared(options.paired, options.num_test)
    epochs, first = options.epochs(), options.num_test
    tested = [EvaluatedRun(run, options.dataroot, epochs[0]) for run in runs]
    protocols = {run.protocol(options.test_mode, first): run.folder.name for run in tested}
    if len(protocols) > 1:
        both = " and ".join(f"{run} ({protocol.id})" for protocol, run in protocols.items())
        raise UserError("evaluate", f"different protocols: {both}", "evaluate them one at a time")
    comparisons = [
        run.comparison(direction, epoch, options.test_mode, first, options.device)
        for run in tested
        for epoch in epochs
        for direction in run.directions
    ]
    if options.baselines:
        comparisons += baseline_comparisons(tested, first)
    return comparisons, next(iter(protocols))


def find_run(name: str, checkpoints_dir: Path) -> Path:
    """The folder of a run, given as a path or as a name under checkpoints_dir. UserError where there is none."""
    candidates = (Path(name), checkpoints_dir / name)
    for looks_right in (lambda folder: RunFolder(folder).exists, Path.is_dir):
        for candidate in candidates:
            if looks_right(candidate):
                return candidate
    raise UserError(name, f"no such run, here or in {checkpoints_dir}", "check the path or --checkpoints_dir")


@dataclass(frozen=True)
class EvaluatedRun:
    """A run of this program on its test data.

    moved_to: where the data is now, None where it was; epoch: of the checkpoint that knows the options of a run
    without options.yaml. What cannot be read is a UserError of whatever needs it first.
    """

    folder: Path
    moved_to: Path | None = None
    epoch: str = "last"

    @cached_property
    def trained(self) -> TrainOptions:
        run = RunFolder(self.folder)
        if run.options.is_file():
            return from_dict(run.read_options())
        return load_translator(self.folder, epoch=self.epoch, device="cpu").options

    @property
    def dataroot(self) -> Path:
        return self.moved_to or Path(self.trained.data.dataroot)

    @property
    def directions(self) -> tuple[str, ...]:
        """The directions that the run can translate in."""
        return ("AtoB", "BtoA") if self.trained.model.model == "cycle_gan" else (self.trained.data.direction,)

    def protocol(self, mode: TestMode = "eval", first: int | None = None) -> Protocol:
        """Its training size, the mode of the networks, grey or colour: real pictures are seen as in training."""
        outputs = [channels(self.trained, way)[1] for way in reversed(self.directions)]  # domain A's first
        colours = "-".join(dict.fromkeys({1: "L", 3: "RGB"}[count] for count in outputs))
        return Protocol(str(self.trained.data.crop_size), mode, first, colours=colours)

    def sides(self, direction: str) -> tuple[Sources, list[FilePicture], list[FilePicture]]:
        """(sources, inputs, real pictures of the target domain) of the test split for one direction, all of them."""
        return self._sides(direction, find_sources(self.dataroot, "test", self.trained.data.dataset_mode))

    def training_pairs(self, direction: str) -> list[tuple[FilePicture, FilePicture]]:
        """(input, target) of the training split at the evaluated size; empty where it has no pairs."""
        data = self.trained.data
        sources = find_sources(self.dataroot, "train", data.dataset_mode, data.max_dataset_size)
        if not sources.is_paired:
            return []
        _, inputs, targets = self._sides(direction, sources)
        return list(zip(inputs, targets, strict=True))

    def _sides(
        self, direction: str, sources: Sources
    ) -> tuple[Sources, list[FilePicture], list[FilePicture]]:
        if direction == "BtoA":
            sources = sources.swapped()
        size = self.trained.data.crop_size
        input_nc, output_nc = channels(self.trained, direction)
        inputs = pictures_of_side(sources, "a", size, input_nc)
        reals = pictures_of_side(sources, "b", size, output_nc)
        if not inputs or not reals:
            reason = "no test pictures of both domains"
            raise UserError(sources.root, reason, "name the data set with --dataroot")
        return sources, inputs, reals

    def comparison(
        self, direction: str, epoch: str, mode: TestMode, first: int | None, device: str
    ) -> Comparison:
        """Its outputs in one direction. first: cuts inputs and targets, never the real pictures."""
        sources, inputs, reals = self.sides(direction)
        return Comparison(
            label=self.folder.resolve().name,
            direction=direction,
            fakes=Outputs(self.folder, inputs[:first], direction, epoch, mode, device),
            reals=reals,
            targets=reals[:first] if sources.is_paired else None,
            inputs=inputs[:first],
            details={"data": str(sources.root), "layout": sources.layout},
        )


def baseline_comparisons(runs: Sequence[EvaluatedRun], first: int | None) -> Iterator[Comparison]:
    """Two comparisons for every data set and direction among the runs that have training pairs."""
    seen = set()
    for run, direction in ((one, direction) for one in runs for direction in one.directions):
        trained = run.trained
        data = (run.dataroot, direction, trained.data.crop_size, channels(trained, direction))
        pairs = [] if data in seen else run.training_pairs(direction)
        seen.add(data)
        if not pairs:
            continue
        _, inputs, reals = run.sides(direction)
        fit = fit_colours((a.load(), b.load()) for a, b in pairs)
        for name, predictions in fit.predictions(inputs[:first]).items():
            yield Comparison(
                f"baseline: {name}", direction, predictions, reals, reals[:first], only=PIXEL_METRICS
            )


@dataclass(frozen=True)
class EvaluatedFolders:
    """Two folders of pictures, from any program, and the folder of the inputs if there is one.

    size: side that all are stretched to, None as they are: all must then have one size; grey: they are seen in grey.
    """

    fake: Path
    real: Path
    input: Path | None = None
    size: int | None = None
    grey: bool = False

    def compared(self, paired: bool, first: int | None) -> tuple[list[Comparison], Protocol]:
        """The one row and its protocol. paired: by equal stems; first: cuts all but the real pictures."""
        fakes, reals = self._pictures(self.fake), self._pictures(self.real)
        targets = match_by_stem(fakes, reals, self.fake, self.real) if paired else None
        inputs = (
            match_by_stem(fakes, self._pictures(self.input), self.fake, self.input) if self.input else None
        )
        size = str(self.size)
        if self.size is None:
            size = "{}x{}".format(*require_one_size([fakes[0], reals[0], *(inputs or [])[:1]]))
        details = {"fake": str(self.fake), "real": str(self.real), "input": str(self.input or "")}
        if not self.grey and all_stored_in_grey(fakes) != all_stored_in_grey(reals):
            details["remark"] = "one folder is grey, the other is not: --grey compares both in grey"
        row = Comparison(
            label=self.fake.name or str(self.fake),
            direction="",
            fakes=fakes[:first],
            reals=reals,
            targets=None if targets is None else targets[:first],
            inputs=None if inputs is None else inputs[:first],
            details=details,
        )
        return [row], Protocol(size, "files", first, colours="L" if self.grey else "RGB")

    def _pictures(self, folder: Path) -> list[FilePicture]:
        return folder_pictures(folder, self.size, 1 if self.grey else 3)
