"""What `python -m evaluate` does: collect comparisons, refuse a place of another protocol, measure, report."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from datasets.errors import RunError, UserError, is_out_of_memory
from datasets.files import new_folder
from evaluate.comparisons import Comparison, collect, evaluation_folder, short_hash
from evaluate.features import FeatureCache, Networks
from evaluate.measure import Measurements
from evaluate.metrics import (
    DEFAULT_FLAGS,
    MeanMetric,
    measure,
    metrics_of,
    networks_of,
    parse_metrics,
    problems_of,
)
from evaluate.options import EvaluateOptions, Protocol
from evaluate.per_image import PerImage
from evaluate.pictures import set_hash
from evaluate.report import Report, refuse_another_protocol, rows_of
from evaluate.statistics import require_new_statistics, save_statistics
from evaluate.weights import Weights, WeightsChoice, cache_folder
from gan.pretrained import find_pretrained
from gan.processes import ALONE, Processes
from gan.step import find_device

LONGEST = 80  # characters of a folder's name before a hash stands for the rest: many epochs

NO_BASELINES = "no baselines: they are fitted on training pairs, and these runs have none"


def run_evaluation(options: EvaluateOptions, processes: Processes = ALONE) -> int:
    """Evaluate, print the table, write the report. Returns the exit code; raises UserError.

    processes: share the pictures. All compute every number from these; the first one writes the report.
    """
    options.check()
    processes.take_gpu(find_device(options.device))
    runs = [find_pretrained(name, options.checkpoints_dir) for name in dict.fromkeys(options.runs)]
    place = output_folder(options, runs)
    smaller = "" if runs else ", or --size"
    with (
        # a call that is refused leaves nothing behind
        new_folder(place) if processes.is_first else contextlib.nullcontext(),
        advising_on_memory(f"--batch_size 1, --num_threads 1, or --device cpu{smaller}"),
    ):
        evaluation = prepare(options, runs, processes)
        refuse_another_protocol(place, evaluation.protocol)
        report = evaluation.carry_out(options)
        first, *others = report.write(place, options.latex) if processes.is_first else [place]
    print(report.table("simple"))
    print(f"\nprotocol {report.protocol.id}; {first}, {', '.join(path.name for path in others)}")
    for remark in report.remarks:
        print(remark)
    return 0


@contextlib.contextmanager
def advising_on_memory(fix: str) -> Iterator[None]:
    """Inside, used-up memory is a RunError with advice that fits the command, which train.py's does not."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error) and not is_out_of_memory(error.__cause__ or error):
            raise
        reason = error.reason if isinstance(error, RunError) else "out of memory"
        raise RunError("memory", reason, fix) from error


@dataclass(frozen=True)
class Evaluation:
    """What is compared, by which metrics and networks: everything but the numbers.

    flags: of the metrics; not_computed: by flag, why a metric that applies is left out; weights: of the networks that
    are used, by name.
    """

    comparisons: Sequence[Comparison]
    protocol: Protocol
    flags: Sequence[str]
    not_computed: Mapping[str, str]
    weights: Mapping[str, Weights]
    started: float
    processes: Processes = ALONE

    def carry_out(self, options: EvaluateOptions) -> Report:
        """Translate what is not translated yet, measure, and put the numbers together. Raises UserError."""
        kept = None if options.no_cache else (options.cache_dir or cache_folder()) / "features.sqlite"
        cache = FeatureCache(kept, writes=self.processes.is_first)
        networks, threads = Networks(self.weights, find_device(options.device)), options.num_threads
        measurements = Measurements(cache, networks, options.batch_size, threads, True, self.processes)
        measured = measure(self.comparisons, self.flags, measurements, options.bootstrap, options.per_image)
        if options.save_stats:
            features = measurements.features("fid", self.comparisons[0].reals)
            digest = self.weights["inception"].digest
            if self.processes.is_first:
                save_statistics(options.save_stats, features, self.protocol.pictures, digest)
        without = options.baselines and all(row.only is None for row in self.comparisons)
        return Report(
            self.protocol,
            rows_of(self.comparisons, measured, self.not_computed),
            self.not_computed,
            dataclasses.asdict(options),
            {name: {"sha256": w.digest, "verified": w.verified} for name, w in self.weights.items()},
            time.perf_counter() - self.started,
            notes=[NO_BASELINES] if without else [],
            per_image=PerImage.of(self.comparisons, measured) if options.per_image else None,
        )


def prepare(options: EvaluateOptions, runs: Sequence[Path], processes: Processes = ALONE) -> Evaluation:
    """Find pictures and weights, and choose the metrics. Raises UserError; for a metric asked for by name as well."""
    started = time.perf_counter()
    wanted = parse_metrics(options.metrics) if options.metrics else DEFAULT_FLAGS
    comparisons, protocol = collect(options, runs, processes)
    weights, missing = processes.from_first(partial(weights_choice(options).find, networks_of(wanted)))
    problems = problems_of(wanted, comparisons, protocol.smallest_side, missing)
    if options.metrics and problems:
        raise next(iter(problems.values()))
    flags = [flag for flag in wanted if flag not in problems]
    if options.per_image and not any(
        isinstance(metric, MeanMetric) for row in comparisons for metric in metrics_of(row, flags)
    ):
        reason = "none of the metrics has a value for a single picture"
        raise UserError("--per_image", reason, "add lpips, psnr, ssim or l1 to --metrics")
    if options.save_stats:
        require_new_statistics(options.save_stats)
        if "fid" not in flags:
            why = problems["fid"].reason if "fid" in problems else "fid is not computed"
            raise UserError("--save_stats", why, "add fid to --metrics")
        if len({set_hash(row.reals) for row in comparisons if row.only is None}) > 1:
            reason = "the rows have different real pictures"
            raise UserError(
                "--save_stats", reason, "name one folder with --real, or one run of one direction"
            )
    used = {network: weights[network] for network in networks_of(flags)}
    for row in comparisons if "inception" in used else ():
        if row.statistics and row.statistics.weights not in ("", used["inception"].digest):
            fix = "use the weights that they were computed with"
            raise UserError(str(options.real), "holds statistics by other Inception weights", fix)
    protocol = dataclasses.replace(
        protocol,
        verified=all(found.verified for found in used.values()),
        lite0="efficientnet_lite0" in used,
    )
    reasons = {
        flag: problem.reason if problem.subject == flag else str(problem)
        for flag, problem in problems.items()
        if any(metrics_of(comparison, [flag]) for comparison in comparisons)
    }
    return Evaluation(comparisons, protocol, flags, reasons, used, started, processes)


def weights_choice(options: EvaluateOptions) -> WeightsChoice:
    """Where the weights may come from."""
    return WeightsChoice(
        options.cache_dir or cache_folder(),
        {"inception": options.inception_weights, "alexnet": options.lpips_weights},
        options.offline,
        options.allow_unverified,
    )


def output_folder(options: EvaluateOptions, runs: Sequence[Path]) -> Path:
    """Where the report goes.

    A short hash keeps other runs and folders of the same names apart, a folder below it other checkpoints and other
    protocols of the same ones: `evaluation/best`, `evaluation/epoch-5-train`.
    """
    if options.output:
        return options.output
    kind = options.variant()
    if len(kind) > LONGEST:
        kind = f"{kind[:LONGEST]}-{short_hash(kind)}"
    if len(runs) == 1:
        return evaluation_folder(runs[0]) / kind
    if options.fake and options.real:
        compared = [options.fake.resolve(), options.real.resolve()]
        name = f"{compared[0].name}-{compared[1].name}"
    else:
        compared = sorted(run.resolve() for run in runs)
        name = f"{len(compared)}-runs"
    return Path("results/evaluation") / f"{name}-{short_hash(*map(str, compared))}" / kind
