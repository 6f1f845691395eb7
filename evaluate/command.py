"""What `python -m evaluate` does: collect comparisons, find weights, one pass, a table, a report."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from datasets.errors import UserError
from datasets.files import new_folder
from evaluate.baseline_rows import baseline_rows
from evaluate.bootstrap import half_intervals
from evaluate.cache import FeatureCache
from evaluate.folders import compare_folders
from evaluate.half import LARGEST_ERROR, PICTURES, error_of_half
from evaluate.metrics import (
    FLAGS,
    SEED,
    Choice,
    Comparison,
    choose,
    evaluate_row,
    parse_flags,
    wanted_by,
)
from evaluate.networks import Networks
from evaluate.options import EvaluateOptions
from evaluate.passes import Measurements
from evaluate.pictures import set_hash
from evaluate.places import epochs, find_runs, output_folder
from evaluate.protocol import Protocol
from evaluate.report import Report, Row, check_place, with_groups, write_report
from evaluate.runs import RunChoice, comparisons_of_run, protocol_of
from evaluate.tables import terminal_table
from evaluate.weights import INCEPTION_FLAGS, Weights, WeightsChoice, cache_folder, find_weights
from gan.options import TrainOptions, from_dict
from gan.run import RunFolder
from gan.step import find_device


def run_evaluation(options: EvaluateOptions) -> int:
    """Evaluate, print the table, write the report. Returns the exit code; raises UserError."""
    check(options)
    folder = output_folder(options)
    with new_folder(folder):  # a call that is refused leaves nothing behind
        report = build_report(options)
        paths = write_report(report, folder, options.latex)
    print(terminal_table(report.rows, report.columns))
    first, *others = paths
    print(f"\nprotocol {report.protocol.id}; {first}, {', '.join(path.name for path in others)}")
    for remark in report.remarks:
        print(remark)
    return 0


def build_report(options: EvaluateOptions, elsewhere: bool = False) -> Report:
    """Everything but printing and writing. Raises UserError.

    A report of another protocol in its place is told before anything is translated; elsewhere: it goes to no place
    that is known here.
    """
    started = time.perf_counter()
    check(options)
    asked = parse_flags(options.metrics) if options.metrics else None
    weights, missing = weights_for(FLAGS if asked is None else asked, options)
    for flag in asked or ():
        if flag in missing:
            raise missing[flag]
    place = None if elsewhere else output_folder(options)
    expected = protocol_of_runs(options)
    if place and expected:
        known = [expected]  # whether weights are used depends on the pictures, and whether float16 serves
        if not all(found.verified for found in weights.values()):
            known.append(dataclasses.replace(expected, verified=False))
        if options.half:
            known += [dataclasses.replace(protocol, half=True) for protocol in known]
        check_place(place, *known)
    rows, protocol, run_options = collect(options)
    choice = choose(asked, rows, smallest_side(protocol), missing)
    report = measure(options, choice, rows, protocol, weights, place)
    if options.baselines:
        extra = baseline_rows(run_options, run_choice(options, "last"), asked)
        note = [] if extra else ["no baselines: they are fitted on training pairs, and these runs have none"]
        report = dataclasses.replace(report, rows=[*report.rows, *extra], notes=[*report.notes, *note])
    return dataclasses.replace(report, seconds=time.perf_counter() - started)


def weights_for(
    flags: Sequence[str], options: EvaluateOptions
) -> tuple[dict[str, Weights], dict[str, UserError]]:
    """The weights that these metrics need, by network, and by metric why some cannot be had."""
    choice = WeightsChoice(
        options.cache_dir or cache_folder(),
        options.inception_weights,
        options.lpips_weights,
        options.offline,
        options.allow_unverified,
    )
    return find_weights(flags, choice)


def check(options: EvaluateOptions) -> None:
    """Refuse flags that do not go together or are out of range. Raises UserError."""
    if bool(options.runs) == bool(options.fake or options.real):
        raise UserError("evaluate", "name runs, or --fake and --real", "see --help")
    if bool(options.fake) != bool(options.real):
        missing = "--real" if options.fake else "--fake"
        raise UserError(missing, "is missing", "--fake and --real go together")
    if options.metrics:
        parse_flags(options.metrics)
    for flag, low in (("size", 2), ("num_test", 1), ("bootstrap", 0), ("batch_size", 1), ("num_threads", 1)):
        value = getattr(options, flag)
        low = 20 if flag == "bootstrap" and value else low
        if value is not None and value < low:
            raise UserError(f"--{flag}", f"is {value}", f"allowed: {low} or more")
    for_folders = [flag for flag in ("size", "paired", "input", "grey") if getattr(options, flag)]
    if options.runs and for_folders:
        raise UserError(f"--{for_folders[0]}", "is for folders, not for runs", "leave it out")
    if options.half and (device := find_device(options.device)).type != "cuda":
        raise UserError("--half", f"is for CUDA GPUs, the device is {device.type}", "leave it out")
    if options.baselines and not options.runs:
        raise UserError("--baselines", "needs a run, for its training pairs", "leave it out")


def collect(options: EvaluateOptions) -> tuple[list[Comparison], Protocol, list[TrainOptions]]:
    """The comparisons asked for, the one protocol they share, and the options of the runs."""
    if options.fake and options.real:
        return *compare_folders(options, options.fake, options.real), []
    runs = find_runs(options)
    choices = [run_choice(options, epoch) for epoch in epochs(options)]
    comparisons: list[Comparison] = []
    run_options: list[TrainOptions] = []
    for run in runs:
        for choice in choices:
            found, trained = comparisons_of_run(run, choice)
            comparisons += found
        run_options.append(trained)
    return comparisons, protocol_of(run_options[0], choices[0]), run_options


def protocol_of_runs(options: EvaluateOptions) -> Protocol | None:
    """The protocol that the runs' stored options lead to, None without any. UserError where there are several."""
    protocols: dict[Protocol, str] = {}
    for run in find_runs(options):
        if RunFolder(run).options.is_file():
            trained = from_dict(RunFolder(run).read_options())
            protocols[protocol_of(trained, run_choice(options, "last"))] = run.name
    if len(protocols) > 1:
        both = " and ".join(f"{run} ({protocol.id})" for protocol, run in protocols.items())
        raise UserError("evaluate", f"different protocols: {both}", "evaluate them one at a time")
    return next(iter(protocols), None)


def run_choice(options: EvaluateOptions, epoch: str) -> RunChoice:
    """The flags that concern runs."""
    return RunChoice(epoch, options.test_mode, options.dataroot, options.num_test, options.device)


def smallest_side(protocol: Protocol) -> int:
    """Of the compared pictures, in pixels."""
    return min(int(side) for side in protocol.size.split("x"))


def measure(
    options: EvaluateOptions,
    choice: Choice,
    rows: Sequence[Comparison],
    protocol: Protocol,
    weights: Mapping[str, Weights],
    place: Path | None = None,
) -> Report:
    """Make one pass over the files, and put the numbers together."""
    used = {name: found for name, found in weights.items() if uses(name, choice)}
    protocol = dataclasses.replace(protocol, verified=all(found.verified for found in used.values()))
    cache = FeatureCache(
        None if options.no_cache else (options.cache_dir or cache_folder()) / "features.sqlite"
    )
    measurements = measurements_by(weights, cache, options)
    note = ""
    if options.half and "inception" in used:
        half = measurements_by(weights, cache, options, half=True)
        error = error_of_half(rows, choice.flags, measurements, half)
        note = f"Inception in float16 moves FID of the first {PICTURES} pictures by {error:.1e} of its value"
        if error <= LARGEST_ERROR:
            measurements, protocol = half, dataclasses.replace(protocol, half=True)
        else:
            note += ": too much, computed in float32"
    if place:
        check_place(place, protocol)
    measurements.compute(wanted_by(rows, choice.flags))
    return Report(
        protocol,
        with_groups([to_row(row, choice, measurements, options.bootstrap) for row in rows]),
        choice.reasons,
        dataclasses.asdict(options),
        {name: {"sha256": found.digest, "verified": found.verified} for name, found in used.items()},
        SEED,
        notes=[note] if note else [],
    )


def measurements_by(
    weights: Mapping[str, Weights], cache: FeatureCache, options: EvaluateOptions, half: bool = False
) -> Measurements:
    """What computes and keeps the numbers, with the networks of these weights; half: Inception in float16."""
    networks = Networks(
        weights.get("inception"),
        weights.get("alexnet"),
        weights.get("heads"),
        find_device(options.device),
        half,
    )
    return Measurements(
        cache, networks, batch_size=options.batch_size, num_threads=options.num_threads, progress=True
    )


def uses(network: str, choice: Choice) -> bool:
    """Whether any chosen metric is computed by this network."""
    return any(flag in choice.flags for flag in (INCEPTION_FLAGS if network == "inception" else ("lpips",)))


def to_row(row: Comparison, choice: Choice, measurements: Measurements, resamples: int = 0) -> Row:
    """The values of one comparison, with its counts and hashes."""
    hashes = {"fake": set_hash(row.fakes), "real": set_hash(row.reals)}
    if row.inputs is not None:
        hashes["input"] = set_hash(row.inputs)
    return Row(
        row.label,
        row.direction,
        row.checkpoint,
        len(row.fakes),
        len(row.reals),
        evaluate_row(row, choice.flags, measurements),
        half_intervals(row, choice.flags, measurements, resamples) if resamples else {},
        missing=[metric.name for metric in row.metrics(list(choice.reasons))],
        hashes=hashes,
        details=row.details,
    )
