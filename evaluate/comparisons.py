"""What is compared: runs, folders of any program and baselines, each as generated pictures against real ones.

Collecting reads file lists, hashes of files and the runs' options. A run is translated when its pictures are first
asked for: RUN/evaluation/epoch-E-step-S/DIRECTION/STEM.png, or .tif for more than 4 channels. Beside them
`outputs.json` says what made them (checkpoint, direction, mode) and from which inputs, by content. What is still right
is used again; an interrupted call leaves only whole files, and the next one makes the missing ones.
"""

import contextlib
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import torch

from datasets.errors import UserError
from datasets.files import read_json, require_writable, write_atomically
from datasets.layouts import Sources, Split, find_sources
from evaluate.features import FEATURES
from evaluate.options import EvaluateOptions, Protocol
from evaluate.pictures import (
    FilePicture,
    Part,
    Picture,
    all_stored_in_grey,
    content_of,
    fit_colours,
    folder_pictures,
    match_by_stem,
    pictures_of,
    require_one_size,
    role_of,
    tell_left_out,
)
from evaluate.statistics import Statistics, load_statistics
from gan.checkpoint import checkpoint_hash
from gan.options import PIXEL_METRICS, TrainOptions, channels, from_dict, stored_dict
from gan.pretrained import is_run, read_pretrained
from gan.processes import ALONE, Processes
from gan.run import RunFolder, read_yaml
from gan.show_bands import shown_bands
from gan.state import forked_random_state
from gan.translate import Translator, output_names, suffix_for, translate_pictures

MANIFEST = "outputs.json"
JSON_LIMIT = 2**26  # bytes of a file that is read: a manifest of 100,000 pictures has 2**24

OUTPUTS_VERSION = 2
"""Of the way outputs are made, raised when it changes: older ones are made again. 2: dropout seeded by the picture."""

NOTE_ON_STATISTICS = "--real is a file of statistics: only FID can be computed from it"
NOTE_ON_FOREIGN_ONES = (
    "; it does not say of which pictures, so their number, size and colours are not checked"
)

NOT_OF_A_CONFIGURATION = frozenset(
    {"name", "seed", "checkpoints_dir", "device", "num_threads", "print_freq", "display_freq", "save_epoch_freq",
     "save_step_freq", "keep", "eval_every", "eval_metrics", "compile", "nc_backend", "deterministic", "config",
      "show_bands", "grad_checkpoint", "tensorboard", "cache_gb"}
)  # fmt: skip
"""Options in which two runs may differ and still count as seeds of one configuration."""


@dataclass(frozen=True)
class Comparison:
    """The pictures of one row of the table: generated ones against real ones of the same domain.

    targets, inputs: where there are any, as long as fakes and in their order; only: the flags of the metrics that make
    sense here, None for all that apply; channels: of the pictures, which may be more than are compared; statistics: of
    real pictures, in the place of `reals`, which are then empty; details: for report.json.
    """

    label: str
    direction: str
    fakes: Sequence[Picture]
    reals: Sequence[Picture]
    targets: Sequence[Picture] | None = None
    inputs: Sequence[Picture] | None = None
    only: Collection[str] | None = None
    channels: int = 3
    statistics: Statistics | None = None
    details: Mapping[str, object] = field(default_factory=dict)

    @property
    def n_real(self) -> int:
        """Number of real pictures; 0 where a file of statistics does not say it."""
        return self.statistics.count if self.statistics else len(self.reals)

    @property
    def made_by(self) -> Mapping[str, object]:
        """The checkpoint and options that made a run's outputs, for report.json; empty for others."""
        return self.fakes.made[1] if isinstance(self.fakes, Outputs) else {}

    @property
    def checkpoint(self) -> str:
        """As in `last (epoch 4, step 412)`, or without the name of the choice where that is the epoch; else empty."""
        if not (made_by := self.made_by):
            return ""
        if not made_by["step"]:  # of weights that do not know how long they were trained
            return ""
        position, choice = f"epoch {made_by['epoch']}, step {made_by['step']}", str(made_by["checkpoint"])
        position += ", ema" * ("weights" in made_by)
        return position if choice.isdecimal() else f"{choice} ({position})"


def collect(
    options: EvaluateOptions, runs: Sequence[Path], processes: Processes = ALONE
) -> tuple[list[Comparison], Protocol]:
    """The comparisons asked for, and the one protocol that they share, for weights that are all verified.

    processes: share the translations.
    Raises UserError for runs of different protocols, empty folders, mixed sizes, and names without a partner.
    """
    if options.fake and options.real:
        return compare_folders(options, options.fake, options.real)
    for flag in ("size", "direction"):
        if getattr(options, flag) is not None and (of_runs := [run.name for run in runs if is_run(run)]):
            reason = f"is for folders and files of weights, and {of_runs[0]} is a run"
            raise UserError(f"--{flag}", reason, "leave it out")
    tested = [EvaluatedRun(run, options, processes) for run in runs]
    protocols = {run.protocol: run.folder.name for run in tested}
    if len(protocols) > 1:
        both = " and ".join(f"{run} ({protocol.id})" for protocol, run in protocols.items())
        raise UserError("evaluate", f"different protocols: {both}", "evaluate them one at a time")
    comparisons = [
        run.comparison(direction, epoch)
        for run in tested
        for epoch in options.epochs()
        for direction in run.directions
    ]
    tell_left_out(path for run in tested for path in (*run.sources().a, *run.sources().b))
    if options.baselines:
        comparisons += _baselines(tested, options.num_test)
    return comparisons, next(iter(protocols))


def evaluation_folder(source: Path) -> Path:
    """Where the outputs and the report of a run are, or those of weights, beside which nothing is written."""
    if is_run(source) or not source.exists():
        return source / "evaluation"
    path = source.resolve()
    return Path("results/evaluation") / f"{path.name}-{short_hash(str(path))}"


def short_hash(*texts: str) -> str:
    """Eight hexadecimal digits that keep places apart."""
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogateescape")).hexdigest()[:8]


@dataclass(frozen=True)
class EvaluatedRun:
    """A run, or weights from elsewhere, on test data. What cannot be read is a UserError of whatever needs it first."""

    folder: Path  # or file
    options: EvaluateOptions
    processes: Processes = ALONE

    @cached_property
    def trained(self) -> TrainOptions:
        """Its options; those of weights with the size and the direction that are asked for."""
        run = RunFolder(self.folder)
        if run.options.is_file():
            return from_dict(read_yaml(run.options))
        way, size = self.options.direction, self.options.size
        options = Translator.load(
            self.folder, epoch=self.options.epochs()[0], direction=way, device="cpu"
        ).options
        return replace(options, data=replace(options.data, crop_size=size)) if size else options

    @property
    def dataroot(self) -> Path:
        found = self.options.dataroot or self.trained.data.dataroot
        if not found:
            reason = f"is missing: {self.folder.name} does not know the data"
            raise UserError("--dataroot", reason, "name the data set")
        return Path(found)

    @cached_property
    def directions(self) -> tuple[str, ...]:
        """The directions that it can translate in, or the one that is asked for."""
        trained = self.trained
        if self.options.direction or trained.model.model != "cycle_gan":
            return (self.options.direction or trained.data.direction,)
        if is_run(self.folder):
            return "AtoB", "BtoA"
        networks = read_pretrained(self.folder, self.options.epochs()[0])[0]["networks"]
        return tuple(way for way, name in (("AtoB", "G_A"), ("BtoA", "G_B")) if name in networks)

    @property
    def protocol(self) -> Protocol:
        """Its training size, the mode of the networks, grey or colour: real pictures are seen as in training."""
        outputs = [channels(self.trained, way)[1] for way in reversed(self.directions)]  # domain A's first
        names = {1: "L", 3: "RGB"}
        colours = "-".join(
            dict.fromkeys(names.get(n) or f"bands{'+'.join(map(str, self.shown(n)))}" for n in outputs)
        )
        size, options = str(self.trained.data.crop_size), self.options
        return Protocol(size, options.test_mode, options.num_test, colours=colours)

    def shown(self, count: int) -> tuple[int, ...]:
        """The bands of pictures of `count` channels that are compared. UserError for those that are not there."""
        return shown_bands(count, self.options.show_bands or self.trained.viewer.show_bands)

    def sources(self, split: Split = "test") -> Sources:
        """The files of a split; of the training split as many as the run was trained on."""
        data = self.trained.data
        limit = data.max_dataset_size if split == "train" else None
        return find_sources(self.dataroot, split, data.dataset_mode, limit)

    def sides(self, direction: str, split: Split = "test") -> tuple[list[FilePicture], list[FilePicture]]:
        """(inputs, real pictures of the target domain) of a split for one direction, at the evaluated size."""
        data, sources = self.trained.data, self.sources(split)
        if direction == "BtoA":
            sources = sources.swapped()
        parts: tuple[Part, Part] = ("whole", "whole")
        if sources.layout == "aligned":
            parts = ("right", "left") if sources.is_swapped else ("left", "right")
        input_nc, output_nc = channels(self.trained, direction)
        ranges = data.value_ranges if direction == "AtoB" else data.value_ranges[::-1]
        sides = zip((sources.a, sources.b), (input_nc, output_nc), parts, ranges, strict=True)
        inputs, reals = (
            pictures_of(paths, data.crop_size, count, part, wanted, self.shown(count))
            for paths, count, part, wanted in sides
        )
        if not inputs or not reals:
            fix = "name the data set with --dataroot"
            raise UserError(sources.root, "no test pictures of both domains", fix)
        return inputs, reals

    def comparison(self, direction: str, epoch: str) -> Comparison:
        """Its outputs in one direction. --num_test cuts inputs and targets, never the real pictures."""
        sources, (inputs, reals), first = self.sources(), self.sides(direction), self.options.num_test
        return Comparison(
            label=self.folder.resolve().name,
            direction=direction,
            fakes=Outputs(self, inputs[:first], direction, epoch),
            reals=reals,
            targets=reals[:first] if sources.is_paired else None,
            inputs=inputs[:first],
            channels=channels(self.trained, direction)[1],
            details={"data": str(sources.root), "layout": sources.layout},
        )


def _baselines(runs: Sequence[EvaluatedRun], first: int | None) -> Iterator[Comparison]:
    """Three comparisons for every data set and direction among the runs that have training pairs."""
    seen = set()
    for run, direction in ((one, direction) for one in runs for direction in one.directions):
        data = (run.dataroot, direction, run.trained.data.crop_size, channels(run.trained, direction))
        if data in seen or not run.sources("train").is_paired:
            continue
        seen.add(data)
        inputs, reals = run.sides(direction)
        pairs = zip(*run.sides(direction, "train"), strict=True)
        fit = fit_colours((picture.load(), target.load()) for picture, target in pairs)
        for name, predictions in fit.predictions(inputs[:first]).items():
            yield Comparison(
                f"baseline: {name}",
                direction,
                predictions,
                reals,
                reals[:first],
                only=PIXEL_METRICS,  # networks are not made for pictures of one colour
            )


def compare_folders(options: EvaluateOptions, fake: Path, real: Path) -> tuple[list[Comparison], Protocol]:
    """Two folders of pictures, from any program, with the folder of the inputs if there is one: a row, its protocol."""

    def pictures(folder: Path, *roles: str) -> list[FilePicture]:
        return folder_pictures(folder, options.size, 1 if options.grey else 3, roles)

    fakes = pictures(fake, "fake_A", "fake_B", "synthesized_image")
    to_b = role_of(fakes[0].path)[1].endswith("B")
    statistics = load_statistics(real, FEATURES["fid"].width) if options.has_statistics else None
    reals = [] if statistics else pictures(real, "real_B" if to_b else "real_A", "real_image")
    targets = match_by_stem(fakes, reals, fake, real) if options.paired else None
    inputs = None
    if options.input:
        given = pictures(options.input, "real_A" if to_b else "real_B", "input_label")
        inputs = match_by_stem(fakes, given, fake, options.input)
    size = str(options.size)
    if options.size is None:
        size = "{}x{}".format(*require_one_size([fakes[0], *reals[:1], *(inputs or [])[:1]]))
    details = {"fake": str(fake), "real": str(real), "input": str(options.input or "")}
    protocol = Protocol(size, "files", options.num_test, colours="L" if options.grey else "RGB")
    if statistics:
        note = NOTE_ON_STATISTICS + (NOTE_ON_FOREIGN_ONES if not statistics.pictures else "")
        details |= {"statistics_sha256": content_of(real), "remark": note}
        if statistics.pictures not in ("", protocol.pictures):
            reason = f"holds statistics of {statistics.pictures}, and these pictures are {protocol.pictures}"
            raise UserError(real, reason, "use equal --size and --grey")
    elif not options.grey and all_stored_in_grey(fakes) != all_stored_in_grey(reals):
        details["remark"] = "one folder is grey, the other is not: --grey compares both in grey"
    tell_left_out(picture.path for picture in (*fakes, *reals, *(inputs or [])))
    first = options.num_test  # cuts all but the real pictures
    row = Comparison(
        label=fake.name or str(fake),
        direction="",
        fakes=fakes[:first],
        reals=reals,
        targets=None if targets is None else targets[:first],
        inputs=None if inputs is None else inputs[:first],
        statistics=statistics,
        details=details,
    )
    return [row], protocol


@dataclass(frozen=True, eq=False)
class Outputs(Sequence[FilePicture]):
    """The translations of a run's test inputs, in their order.

    Nothing is loaded or translated before the first picture, or what it was made by, is asked for: until then a call
    can be refused at no cost. Raises UserError then: unknown epoch, damaged checkpoint, what cannot be read or written.
    """

    run: EvaluatedRun
    inputs: Sequence[FilePicture]
    direction: str
    epoch: str

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> FilePicture:  # type: ignore[override]
        return self.made[0][index]

    @cached_property
    def made(self) -> tuple[list[FilePicture], Mapping[str, object]]:
        """The pictures; and for report.json the checkpoint, and the options that make two runs seeds of one
        configuration."""
        folder, options = self.run.folder, self.run.options
        translator = Translator.load(
            folder,
            epoch=self.epoch,
            direction=self.direction,
            device=options.device,
            test_mode=options.test_mode,
            weights=options.which,
        )
        made_by = {
            "run": str(folder),
            "seed": translator.options.run.seed,
            "epoch": translator.epoch,
            "step": translator.step,
            "checkpoint": self.epoch,
            **({"weights": "ema"} if translator.is_average else {}),
            "checkpoint_sha256": checkpoint_hash(translator.checkpoint),
            "configuration": {
                name: value
                for name, value in stored_dict(translator.options).items()
                if name not in NOT_OF_A_CONFIGURATION and not name.startswith("visdom")
            },
        }
        files = make_outputs(folder, translator, self.inputs, options.test_mode, self.run.processes)
        count = translator.output_nc
        return pictures_of(files, channels=3 if count == 1 else count, bands=self.run.shown(count)), made_by


def make_outputs(
    run: Path,
    translator: Translator,
    inputs: Sequence[FilePicture],
    mode: str,
    processes: Processes = ALONE,
) -> list[Path]:
    """The translation of every input, at the input's evaluated size. Returns their files, in the inputs' order.

    One picture at a time: batch statistics are then as published (mode "train"), and a call that resumes an
    interrupted one writes the same bytes, dropout included. processes: share what is missing.

    Raises UserError naming an input that cannot be read, an output that cannot be written, or a folder with pictures
    of somebody else: the manifest is written before the first output, so without it there are none of ours.
    """
    files, missing = processes.from_first(partial(_missing_outputs, run, translator, inputs, mode))
    if own := missing[processes.rank :: processes.world]:
        with _seeded(translator, [picture for picture, _ in own]):
            translate_pictures(translator, [(picture.load_image, file) for picture, file in own])
    processes.gather(list)  # all have written theirs
    return files


def _missing_outputs(
    run: Path, translator: Translator, inputs: Sequence[FilePicture], mode: str
) -> tuple[list[Path], list[tuple[FilePicture, Path]]]:
    """The files of all translations, and what is missing of them, in a folder that holds nothing else."""
    position = f"epoch-{translator.epoch}-step-{translator.step}" + "-ema" * translator.is_average
    position += "" if mode == "eval" else f"-{mode}"
    folder = evaluation_folder(run) / position / translator.direction
    require_writable(folder)
    suffix = suffix_for(translator.output_nc)
    files = [
        folder / name for name in output_names([picture.path for picture in inputs], suffix=lambda _: suffix)
    ]
    inputs_of = {file.name: picture.key for file, picture in zip(files, inputs, strict=True)}
    maker = [OUTPUTS_VERSION, checkpoint_hash(translator.checkpoint), translator.direction, mode]
    maker += ["ema"] * translator.is_average
    made_by = hashlib.sha256(json.dumps(maker).encode()).hexdigest()
    known: dict[str, str] = {}
    # no manifest yet, or no sound one
    with contextlib.suppress(UserError, LookupError, TypeError, ValueError):
        content = read_json(folder / MANIFEST, JSON_LIMIT)
        known = dict(content["inputs"]) if content["made_by"] == made_by else {}
    there = sorted(folder.glob(f"*{suffix}"))
    if there and not (folder / MANIFEST).exists():
        reason = f"holds pictures that this program has not made, such as {there[0].name}"
        raise UserError(folder, reason, "remove the folder, or the link to it")
    for file in there:
        if file.name not in known or inputs_of.get(file.name, known[file.name]) != known[file.name]:
            file.unlink()  # of another checkpoint, or of an input that has changed
    manifest = {"made_by": made_by, "inputs": known | inputs_of}
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
    return files, [(picture, file) for picture, file in zip(inputs, files, strict=True) if not file.exists()]


@contextlib.contextmanager
def _seeded(translator: Translator, pictures: Sequence[FilePicture]) -> Iterator[None]:
    """Inside, random numbers (dropout) depend on the picture alone. pictures: in the order they are translated."""
    seeds = (int.from_bytes(hashlib.sha256(p.key.encode()).digest()[:4]) for p in pictures)

    def seed(*_: object) -> None:
        torch.manual_seed(next(seeds))

    hook = translator.network.register_forward_pre_hook(seed)
    try:
        with forked_random_state():
            yield
    finally:
        hook.remove()
