"""The training loop: epochs, steps, records, samples, saves."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from datasets.errors import RunError, UserError, is_out_of_memory, log_text, out_of_memory_error, say, warn
from gan.checkpoint import list_checkpoints, save_checkpoint
from gan.options import TrainOptions, stored_dict
from gan.run import MetricsLog, RunFolder
from gan.setup import TrainingData, build_static_step
from gan.signals import StopRequest
from gan.state import Position, capture, not_finite
from gan.step import Batch, Trainer, set_learning_rate
from gan.viewers import SAMPLE, SAVE, STOP, Viewers
from gan.viewers.samples import save_samples

if TYPE_CHECKING:
    from gan.static_step import StaticStep

HIGHER_IS_BETTER = frozenset(
    ["psnr", "ssim", "pixel_accuracy"]
    + [name + on for name in ("precision", "recall", "density", "coverage") for on in ("", "_lite0")]
)
"""Metrics by flag; those of evaluate/metrics.py, which this package does not import."""

Evaluate = Callable[[Mapping[str, Tensor]], Mapping[str, float]]
"""Metrics of the pictures of `Trainer.sample`, handed in by train.py: the loop itself knows none."""


@dataclass
class Training:
    """One training: its parts, its position, and the loop over epochs and steps."""

    options: TrainOptions
    run: RunFolder
    trainer: Trainer
    data: TrainingData
    evaluate: Evaluate | None = None
    position: Position = field(default_factory=Position)

    def __post_init__(self) -> None:
        self.log = MetricsLog(self.run.metrics)
        self.viewers, self.stop, self.skipped = Viewers([]), StopRequest(), 0
        self._failing: set[str] = set()
        self._static: StaticStep | None = None
        found = zip("AB", self.options.data.value_ranges, self.data.sources.ranges, strict=True)
        self.stored: dict[str, Any] = stored_dict(self.options) | {
            f"value_range_{domain}": f"{wanted[0]:.17g},{wanted[1]:.17g}"
            for domain, asked, wanted in found
            if asked == "auto" and wanted and wanted != "auto"
        }
        """The options as options.yaml and checkpoints hold them, with the value ranges that `auto` has found."""

    def train(self, viewers: Viewers, stop: StopRequest) -> bool:
        """Train to the last epoch, or until a signal or a viewer asks to stop. True if all epochs are done.

        Raises RunError for a non-finite loss and for lack of memory, UserError where the last save fails.
        """
        self.viewers, self.stop = viewers, stop
        self._static = build_static_step(self.options, self.trainer)
        at, schedule, processes = self.position, self.options.schedule, self.trainer.processes
        scale = processes.world if schedule.scale_lr else 1
        while at.epoch <= schedule.epochs:
            asked = self._train_epoch(schedule.learning_rate(at.epoch) * scale)
            if stop.requested:
                self.save()
                return False
            stop_after_epoch = processes.from_first(partial(bool, asked))
            metrics = self._end_epoch()
            best_before = at.best
            is_best = self._is_best(metrics)
            at.epoch, at.batches = at.epoch + 1, 0
            is_last = at.epoch > schedule.epochs or stop_after_epoch or bool(stop.requested)
            is_due = is_last or is_best or (at.epoch - 1) % self.options.output.save_epoch_freq == 0
            if is_due and not self.save(best=is_best, must=is_last):
                at.best = best_before  # no file holds the new one
            if is_last:
                return at.epoch > schedule.epochs
        return True

    def _train_epoch(self, lr: float) -> bool:
        """Train the rest of the current epoch. True if a viewer asked to stop after it."""
        at, output = self.position, self.options.output
        stop_after_epoch, processes = False, self.trainer.processes
        set_learning_rate(self.trainer, lr)
        window = _Window()
        for batch in self._batches():
            window.data_arrived()
            self._report_skipped(batch["skipped"])
            step = at.step + 1
            is_epoch_end = at.batches + 1 == self.data.steps_per_epoch
            is_reported = step % output.print_freq == 0 or is_epoch_end
            counts = batch.get("counts", [len(batch["A"])])
            try:
                processes.begin_step(self.options.run.seed, step)
                losses = self._step(batch, step, must_look=is_reported)
                self.trainer.update_averages()
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise out_of_memory_error(f"at step {step}") from error
                raise
            at.step, at.batches = step, at.batches + 1
            window.step_done(sum(counts))
            if is_reported:
                self.record("train", losses=processes.mean(losses, counts), lr=lr, time=window.figures())
                window = _Window()
            asked = self.viewers.commands()
            stop_after_epoch |= STOP in asked
            if SAMPLE in asked or (step % output.display_freq == 0 and not is_epoch_end):
                self._sample()  # the end of the epoch draws samples too
            self.viewers.progress(step, at.epoch)
            if SAVE in asked or (output.save_step_freq and step % output.save_step_freq == 0):
                self.save()
            if self.stop.requested:
                break
        return stop_after_epoch

    def _step(self, batch: Batch, step: int, must_look: bool) -> dict[str, float]:
        """One step; its losses as numbers. A static step gives them, and stops at a bad one, only with `must_look`.

        Raises RunError for a loss that is not finite.
        """
        if self._static is None:
            losses = self.trainer.step(batch).losses
            if self.trainer.processes.world > 1:
                self.stop.requested = self.trainer.processes.agree()
            return finite_losses(losses, step, self.run)
        losses = self._static(batch, step)
        if not must_look:
            return {}
        self._require_finite()
        return finite_losses(losses, step, self.run)

    def _require_finite(self) -> None:
        """Raise RunError for the first bad loss of the static steps."""
        if self._static and (bad := self._static.first_bad()):
            step, name, value = bad
            raise _not_finite(f"loss {name} is {value} at step {step}", self.run)

    def _batches(self) -> Iterator[Batch]:
        """The rest of the epoch. A signal to the process group may end a worker too; that counts as a stop."""
        try:
            yield from self.data.batches(self.position.epoch, self.position.batches)
        except RunError:
            if not self.stop.requested:
                raise

    def _report_skipped(self, skipped: list[str]) -> None:
        """With --skip_bad: one warning for the run, every file in run.log."""
        for text in skipped:
            if not self.skipped and self.trainer.processes.is_first_to("skip"):
                line = f"warning: {text}; a neighbour is taken instead, further ones are in {self.run.log}"
                say(line, must=True)
            self.skipped += 1
            log_text(f"step {self.position.step + 1}: skipped {text}")

    def _end_epoch(self) -> dict[str, float]:
        """Draw samples and compute the metrics of a finished epoch."""
        metrics, counts = {}, {}
        images, every = self._sample(), self.options.output.eval_every
        if "target" in images:  # from 0 (equal) to 1 (black against white)
            metrics["val_l1"] = float((images["fake"] - images["target"]).abs().mean() / 2)
        if self.evaluate and every and self.position.epoch % every == 0:
            images = self.trainer.processes.share_images(images)
            counts = dict.fromkeys(("n_fake", "n_real"), len(next(iter(images.values()))))
            try:
                metrics |= self.evaluate(images)
            except (UserError, RuntimeError) as error:
                self._warn_once("metrics not computed", f"{error}; training continues")
        if metrics:
            self.record("metrics", metrics=metrics, **counts)
        return metrics

    def _is_best(self, metrics: Mapping[str, float]) -> bool:
        name = self.options.output.best_by
        if name is None or name not in metrics:
            return False
        value, best = metrics[name], self.position.best
        better = best is None or (value > best if without_side(name) in HIGHER_IS_BETTER else value < best)
        if better:
            self.position.best = value
        return better

    def save(self, best: bool = False, must: bool = False) -> bool:
        """Write a checkpoint. False if that fails: the next save tries again. With `must`, raise UserError instead.

        Of several processes, the first one writes it.
        """
        if not self.trainer.processes.is_first:
            return True
        at = self.position
        self._require_finite()
        for name, network in self.trainer.networks.items():  # a finite loss does not rule it out
            if bad := not_finite(network.state_dict()):
                raise _not_finite(f"{name}.{bad} after step {at.step}", self.run)
        scanned = self.data.report
        state = capture(self.trainer, at, self.stored, self.log.offset, scanned.listing, scanned.median_sizes)
        keep = self.options.output.keep
        try:
            self.run.require_ours()
            save_checkpoint(self.run.path, state, step=at.step, epoch=at.epoch - 1, keep=keep, best=best)
            if not self.run.options.exists():  # the run's folder was deleted; now it can be resumed again
                self.run.write_options(self.stored)
        except (UserError, OSError) as error:
            if must or self.stop.requested:
                raise
            self._warn_once("checkpoint not saved", f"{error}; training continues, every save tries again")
            return False
        self._failing.discard("checkpoint not saved")
        return True

    def _sample(self) -> dict[str, Tensor]:
        """Translate the fixed validation pictures, write the results, and show them. The first process does this."""
        if not self.trainer.processes.is_first:
            return {}
        self._require_finite()
        images = self.trainer.sample(self.data.validation)
        folder = self.run.sample_folder(self.position.step)
        try:
            pictures = save_samples(folder, images, self.options.viewer.show_bands)
        except (OSError, UserError) as error:
            self._warn_once("sample pictures not written", f"{error}; training continues")
            return images
        names = {kind: path.name for kind, path in pictures.items()}
        self.record("samples", folder=f"samples/{folder.name}", pictures=names)
        return images

    def _warn_once(self, what: str, why: str) -> None:
        """Warn of the first of a series of equal failures."""
        if what not in self._failing:
            warn(what, why)
        self._failing.add(what)

    def record(self, kind: str, **content: Any) -> None:
        """Log a record with its step and epoch, and show it; the first process does this."""
        if not self.trainer.processes.is_first:
            return
        line = {"kind": kind, "step": self.position.step, "epoch": self.position.epoch, **content}
        self.log.append(line)
        self.viewers.record(line)


def without_side(name: str) -> str:
    """A metric of one direction by its flag: `fid_A` -> `fid`."""
    return name[:-2] if name.endswith(("_A", "_B")) else name


class _Window:
    """Speed and waiting time since the last record."""

    def __init__(self) -> None:
        self._images, self._waited = 0, 0.0
        self._begin = self._since = time.perf_counter()

    def data_arrived(self) -> None:
        self._waited += time.perf_counter() - self._since

    def step_done(self, images: int) -> None:
        self._images += images
        self._since = time.perf_counter()

    def figures(self) -> dict[str, float]:
        """Images per second and the share of time spent waiting for data."""
        elapsed = max(time.perf_counter() - self._begin, 1e-9)
        figures = {"images_per_s": self._images / elapsed, "data_wait": self._waited / elapsed}
        return {name: round(value, 4) for name, value in figures.items()}


def finite_losses(losses: Mapping[str, Tensor], step: int, run: RunFolder) -> dict[str, float]:
    """Losses as numbers, in one transfer. RunError for the first that is NaN or infinite: Adam would never recover."""
    values = torch.stack([loss.float() for loss in losses.values()]).tolist()
    for name, value in zip(losses, values, strict=True):
        if not math.isfinite(value):
            raise _not_finite(f"loss {name} is {value} at step {step}", run)
    return dict(zip(losses, values, strict=True))


def _not_finite(what: str, run: RunFolder) -> RunError:
    kept = list_checkpoints(run.path)
    good = f"last good checkpoint step {kept[0].step}" if kept else "no checkpoint yet"
    return RunError("training", f"{what}; {good}", "try a lower --lr")
