"""The training loop: epochs, steps, records, samples, saves. Reads top to bottom."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from datasets.errors import RunError, UserError, is_out_of_memory, out_of_memory_error, say
from gan.checkpoint import list_checkpoints, save_checkpoint
from gan.run import MetricsLog, RunFolder
from gan.setup import TrainingData
from gan.signals import StopRequest
from gan.state import Position, capture
from gan.step import LR_POLICIES, Batch, Trainer, set_learning_rate
from gan.viewers import SAMPLE, SAVE, STOP, Viewers
from gan.viewers.samples import save_samples

HIGHER_IS_BETTER = frozenset({"psnr", "ssim"})

Evaluate = Callable[[Mapping[str, Tensor]], Mapping[str, float]]
"""Metrics of the pictures of `Trainer.sample`, handed in by train.py: the loop itself knows none."""


@dataclass(frozen=True)
class Plan:
    """How long, how fast, and how often something is written (see the options of the same names)."""

    n_epochs: int
    n_epochs_decay: int
    lr: float
    lr_policy: str = "linear"
    lr_decay_iters: int = 50
    print_freq: int = 100
    display_freq: int = 400
    save_epoch_freq: int = 1
    save_step_freq: int = 0
    keep: int = 2
    best_by: str | None = None
    eval_every: int = 0

    @property
    def epochs(self) -> int:
        return self.n_epochs + self.n_epochs_decay

    def lr_in(self, epoch: int) -> float:
        factor = LR_POLICIES[self.lr_policy](epoch, self.n_epochs, self.n_epochs_decay, self.lr_decay_iters)
        return self.lr * factor


@dataclass
class Training:
    """One training under way: its parts, where it stands, and the loop over them."""

    trainer: Trainer
    data: TrainingData
    plan: Plan
    run: RunFolder
    log: MetricsLog
    viewers: Viewers
    stop: StopRequest
    position: Position
    options: dict[str, Any]
    evaluate: Evaluate | None = None
    skipped: int = 0

    def train(self) -> bool:
        """Train to the last epoch, or until a signal or a viewer asks to stop: True if all epochs are done.

        Raises RunError for a non-finite loss or used-up memory, UserError where the last save fails.
        """
        at = self.position
        while at.epoch <= self.plan.epochs:
            lr = self.plan.lr_in(at.epoch)
            set_learning_rate(self.trainer, lr)
            stop_after_epoch = self._train_epoch(lr)
            if self.stop.requested:
                self.save()
                return False
            metrics = self._end_epoch()
            best_before = at.best
            is_best = self._is_best(metrics)
            at.epoch, at.batches = at.epoch + 1, 0
            last = at.epoch > self.plan.epochs or stop_after_epoch or bool(self.stop.requested)
            due = last or is_best or (at.epoch - 1) % self.plan.save_epoch_freq == 0
            if due and not self.save(best=is_best, must=last):
                at.best = best_before  # no file holds the new one
            if last:
                return at.epoch > self.plan.epochs
        return True

    def log_changes(self, saved: Mapping[str, Any] | None) -> None:
        """On resume: which options are no longer what they were."""
        changes = {name: value for name, value in self.options.items() if saved and saved.get(name) != value}
        if changes:
            self._record({"kind": "event", "message": "resumed with other options", "options": changes})

    def _train_epoch(self, lr: float) -> bool:
        """The rest of the current epoch; True if a viewer asked to stop after it."""
        at, plan = self.position, self.plan
        stop_after_epoch = False
        window = _Window()
        for batch in self._batches():
            window.data_arrived()
            self._report_skipped(batch["skipped"])
            step = at.step + 1
            try:
                result = self.trainer.step(batch)
                losses = finite_losses(result.losses, step, self.run)
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise out_of_memory_error(f"at step {step}") from error
                raise
            at.step, at.batches = step, at.batches + 1
            window.step_done(len(batch["A"]))
            if step % plan.print_freq == 0 or at.batches == self.data.steps_per_epoch:
                self._record({"kind": "train", "losses": losses, "lr": lr, "time": window.figures()})
            asked = self.viewers.commands()
            stop_after_epoch |= STOP in asked
            due = (
                step % plan.display_freq == 0 and at.batches < self.data.steps_per_epoch
            )  # its end draws too
            if due or SAMPLE in asked:
                self._sample()
            self.viewers.progress(step, at.epoch)
            if (plan.save_step_freq and step % plan.save_step_freq == 0) or SAVE in asked:
                self.save()
            if self.stop.requested:
                break
        return stop_after_epoch

    def _batches(self) -> Iterator[Batch]:
        """The rest of the epoch. A signal to the whole process group may take a worker along: that is a stop."""
        try:
            yield from self.data.batches(self.position.epoch, self.position.batches)
        except RunError:
            if not self.stop.requested:
                raise

    def _report_skipped(self, skipped: list[str]) -> None:
        """With --skip_bad: one warning for the run, every file in run.log."""
        for text in skipped:
            if not self.skipped:
                say(f"warning: {text}; a neighbour is taken instead, further ones are in {self.run.log}")
            self.skipped += 1
            with contextlib.suppress(OSError), self.run.log.open("a", encoding="utf-8") as log:
                log.write(f"step {self.position.step + 1}: skipped {text}\n")

    def _end_epoch(self) -> dict[str, float]:
        """Samples and metrics of the epoch that is done."""
        metrics, counts = {}, {}
        images = self._sample()
        if "target" in images:
            metrics["val_l1"] = _mean_distance(images["fake"], images["target"])
        if self.evaluate and self.plan.eval_every and self.position.epoch % self.plan.eval_every == 0:
            metrics |= self._evaluated(images)
            counts = dict.fromkeys(("n_fake", "n_real"), len(next(iter(images.values()))))
        if metrics:
            self._record({"kind": "metrics", "metrics": metrics, **counts})
        return metrics

    def _evaluated(self, images: Mapping[str, Tensor]) -> Mapping[str, float]:
        """The metrics of --eval_every; a metric that fails is no reason to lose an epoch."""
        assert self.evaluate is not None
        try:
            return self.evaluate(images)
        except (UserError, RuntimeError) as error:
            say(f"warning: metrics not computed: {error}; training goes on")
            return {}

    def _is_best(self, metrics: Mapping[str, float]) -> bool:
        name = self.plan.best_by
        if name is None or name not in metrics:
            return False
        value, best = metrics[name], self.position.best
        better = best is None or (value > best if name in HIGHER_IS_BETTER else value < best)
        if better:
            self.position.best = value
        return better

    def save(self, best: bool = False, must: bool = False) -> bool:
        """Write a checkpoint; False if that fails, and the next save tries again. UserError if it `must` be written."""
        at = self.position
        require_finite_weights(self.trainer.networks, at.step, self.run)
        state = capture(self.trainer, at, self.options, self.log.offset, self.data.report.listing)
        try:
            save_checkpoint(
                self.run.path, state, step=at.step, epoch=at.epoch - 1, keep=self.plan.keep, best=best
            )
            if (
                not self.run.options.exists()
            ):  # somebody deleted the run's folder; now it can be resumed again
                self.run.write_options(self.options)
        except (UserError, OSError) as error:
            if must or self.stop.requested:
                raise
            say(f"warning: checkpoint not saved: {error}; training goes on, the next save tries again")
            return False
        return True

    def _sample(self) -> dict[str, Tensor]:
        """Draw the fixed validation pictures, write them, and show them."""
        images = self.trainer.sample(self.data.validation)
        at = self.position
        folder = self.run.sample_folder(at.step)
        try:
            pictures = save_samples(folder, images)
        except (OSError, UserError) as error:
            say(f"warning: sample pictures not written: {error}; training goes on")
            return images
        names = {kind: path.name for kind, path in pictures.items()}
        record = {"kind": "samples", "folder": f"samples/{folder.name}", "pictures": names}
        self.viewers.samples(self._record(record), pictures)
        return images

    def _record(self, record: dict[str, Any]) -> dict[str, Any]:
        """Add step and epoch, write the line, show it."""
        kind = record.pop("kind")
        line = {"kind": kind, "step": self.position.step, "epoch": self.position.epoch, **record}
        self.log.append(line)
        self.viewers.record(line)
        return line


class _Window:
    """Speed and waiting time since the last record."""

    def __init__(self) -> None:
        self._begin = self._restart()

    def _restart(self) -> float:
        self.images, self.waited = 0, 0.0
        self._since = now = time.perf_counter()
        return now

    def data_arrived(self) -> None:
        self.waited += time.perf_counter() - self._since

    def step_done(self, images: int) -> None:
        self.images += images
        self._since = time.perf_counter()

    def figures(self) -> dict[str, float]:
        """Images per second and the share of the time spent waiting for data; starts a new window."""
        elapsed = max(time.perf_counter() - self._begin, 1e-9)
        figures = {"images_per_s": self.images / elapsed, "data_wait": self.waited / elapsed}
        self._begin = self._restart()
        return {name: round(value, 4) for name, value in figures.items()}


def _mean_distance(fake: Tensor, target: Tensor) -> float:
    """Mean absolute difference on the scale from 0 (equal) to 1 (black against white)."""
    return float((fake.float() - target.float()).abs().mean() / 2)


def finite_losses(losses: Mapping[str, Tensor], step: int, run: RunFolder) -> dict[str, float]:
    """Losses as numbers, in one transfer. RunError at the first that is NaN or infinite."""
    values = torch.stack([loss.float() for loss in losses.values()]).tolist()
    for name, value in zip(losses, values, strict=True):
        if not math.isfinite(value):
            raise _not_finite(f"loss {name} is {value} at step {step}", run)
    return dict(zip(losses, values, strict=True))


def require_finite_weights(networks: Mapping[str, nn.Module], step: int, run: RunFolder) -> None:
    """RunError for a NaN or an infinity that a finite loss has left in the weights; looked for before a save."""
    for name, network in networks.items():
        for key, value in network.state_dict().items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise _not_finite(f"{name}.{key} is not finite after step {step}", run)


def _not_finite(what: str, run: RunFolder) -> RunError:
    kept = list_checkpoints(run.path)
    good = f"last good checkpoint step {kept[0].step}" if kept else "no checkpoint yet"
    return RunError("training", f"{what}; {good}", "try a lower --lr")
