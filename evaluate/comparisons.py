"""What is compared: runs, folders of any program and baselines, each as generated pictures against real ones.

Collecting reads file lists, hashes of files and the runs' options; nothing is translated yet.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
        return compare_folders(options, options.fake, options.real)
    epochs = options.epochs()
    tested = [EvaluatedRun.open(run, epochs[0], options.dataroot) for run in runs]
    protocols = {run.protocol(options.test_mode, options.num_test): run.folder.name for run in tested}
    if len(protocols) > 1:
        both = " and ".join(f"{run} ({protocol.id})" for protocol, run in protocols.items())
        raise UserError("evaluate", f"different protocols: {both}", "evaluate them one at a time")
    comparisons = [
        run.comparison(direction, epoch, options.test_mode, options.num_test, options.device)
        for run in tested
        for epoch in epochs
        for direction in run.directions
    ]
    if options.baselines:
        comparisons += baseline_comparisons(tested, options.num_test)
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
    """A run of this program on its test data. dataroot: where the data is now."""

    folder: Path
    trained: TrainOptions
    dataroot: Path

    @classmethod
    def open(cls, folder: Path, epoch: str = "last", dataroot: Path | None = None) -> "EvaluatedRun":
        """The run in a folder, by its options.yaml, else by the checkpoint of this epoch. Raises UserError."""
        run = RunFolder(folder)
        if run.options.is_file():
            trained = from_dict(run.read_options())
        else:
            trained = load_translator(folder, epoch=epoch, device="cpu").options
        return cls(folder, trained, dataroot or Path(trained.data.dataroot))

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


def compare_folders(options: EvaluateOptions, fake: Path, real: Path) -> tuple[list[Comparison], Protocol]:
    """The one row of --fake and --real, and its protocol: pictures as they are, or stretched to --size."""
    nc = 1 if options.grey else 3
    fakes, reals = (folder_pictures(folder, options.size, nc) for folder in (fake, real))
    targets = match_by_stem(fakes, reals, fake, real) if options.paired else None
    inputs = None
    if options.input:
        found = folder_pictures(options.input, options.size, nc)
        inputs = match_by_stem(fakes, found, fake, options.input)
    size = str(options.size)
    if options.size is None:
        size = "{}x{}".format(*require_one_size([fakes[0], reals[0], *(inputs or [])[:1]]))
    first = slice(options.num_test)
    details = {"fake": str(fake), "real": str(real), "input": str(options.input or "")}
    if not options.grey and all_stored_in_grey(fakes) != all_stored_in_grey(reals):
        details["remark"] = "one folder is grey, the other is not: --grey compares both in grey"
    row = Comparison(
        label=fake.name or str(fake),
        direction="",
        fakes=fakes[first],
        reals=reals,
        targets=None if targets is None else targets[first],
        inputs=None if inputs is None else inputs[first],
        details=details,
    )
    return [row], Protocol(size, "files", options.num_test, colours="L" if options.grey else "RGB")
