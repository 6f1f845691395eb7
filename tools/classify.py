"""`python -m tools.classify`: trains ResNet-18 with normalized convolution on CIFAR or on folders of classes.

SGD as in the paper's Table 1: the learning rate is divided by 10, here after a half and after three quarters of the
training; over the first twentieth it rises from 0. Batch norm sees `--ghost_batch` pictures at once, as with batches of
that size; no other norm sees the batch.
"""

import math
import sys
import time
from typing import Any

import torch
from torch.nn import functional as F
from torchvision.transforms import v2

from datasets.errors import RunError, UserError, run_command
from datasets.files import remove_leftovers
from datasets.images import to_unit_range
from gan.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from gan.run import MetricsLog, open_run, resume_command
from gan.signals import StopRequest, tolerate_closed_stdout
from gan.state import Position, not_finite
from gan.step import find_device, seed_everything
from gan.viewers import RunInfo, Viewers, shown_records
from gan.viewers.console import Console
from gan.viewers.page import Page
from models.classifier import resnet18_small
from tools.class_pictures import LabelledPictures, load_labelled
from tools.classify_options import ClassifyOptions, parse
from tools.classify_state import capture, restore


class Training:
    """One training of a classifier: its parts, its position, and the loop."""

    def __init__(self, options: ClassifyOptions, data: LabelledPictures) -> None:
        self.options, self.data, self.device = options, data, find_device(options.device)
        count = len(data.train.labels)
        self.steps = count // options.batch_size  # an epoch; what is left of its order is not seen
        if not self.steps:
            raise UserError("--batch_size", f"is above the {count} pictures", "lower it")
        seed_everything(options.seed)
        network = resnet18_small(len(data.classes), options.norm, options.width, options.ghost_batch)
        self.network, own = network.to(self.device), network.parameters()
        self.optimizer = torch.optim.SGD(own, options.lr, options.momentum, weight_decay=options.weight_decay)
        self.augment = v2.Compose([v2.RandomCrop(options.size, options.size // 8), v2.RandomHorizontalFlip()])
        self.log, self.viewers, self.at = MetricsLog(options.run.metrics), Viewers([]), Position()
        self.metrics: dict[str, float] = {}

    def train(self, viewers: Viewers, stop: StopRequest) -> None:
        """Train to the last epoch or to a signal, and save. Raises RunError for a loss that is not finite."""
        self.viewers = viewers
        while self.at.epoch <= self.options.n_epochs and stop.requested is None:
            self._train_epoch(stop)
            if self.at.batches == self.steps:
                self.metrics = self.evaluate()
                self.record("metrics", metrics=self.metrics)
                self.at.epoch, self.at.batches = self.at.epoch + 1, 0
            self.save()

    def _train_epoch(self, stop: StopRequest) -> None:
        at, batch, labels = self.at, self.options.batch_size, self.data.train.labels
        drawn = torch.Generator().manual_seed(self.options.seed * 1_000_003 + at.epoch)
        order = torch.randperm(len(labels), generator=drawn)
        begin, first = time.perf_counter(), at.step
        while at.batches < self.steps and stop.requested is None:
            chosen = order[at.batches * batch :][:batch]
            rate = self.options.learning_rate((at.step + 1) / (self.options.n_epochs * self.steps))
            self.optimizer.param_groups[0]["lr"] = rate
            pictures = torch.stack([self.augment(picture) for picture in self.data.train.pictures[chosen]])
            scores = self.network.train()(to_unit_range(pictures.to(self.device)))
            loss = F.cross_entropy(scores, labels[chosen].to(self.device))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            at.step, at.batches = at.step + 1, at.batches + 1
            if at.step % self.options.print_freq == 0 or at.batches == self.steps:
                if not math.isfinite(value := loss.item()):
                    raise RunError("training", f"the loss is {value} at step {at.step}", "try a lower --lr")
                speed = (at.step - first) * batch / (time.perf_counter() - begin)
                self.record("train", losses={"loss": value}, lr=rate, time={"images_per_s": round(speed, 1)})
                begin, first = time.perf_counter(), at.step
            self.viewers.progress(at.step, at.epoch)

    @torch.inference_mode()
    def evaluate(self) -> dict[str, float]:
        """Top-1 error in per cent and mean loss on the test pictures."""
        self.network.eval()
        wrong, loss, split, count = 0, 0.0, self.data.test, len(self.data.test.labels)
        for pictures, labels in zip(split.pictures.split(256), split.labels.split(256), strict=True):
            scores = self.network(to_unit_range(pictures.to(self.device))).cpu()
            wrong += int((scores.argmax(1) != labels).sum())
            loss += float(F.cross_entropy(scores, labels, reduction="sum"))
        return {"test_error": 100 * wrong / count, "test_loss": loss / count}

    def record(self, kind: str, **content: Any) -> None:
        """Log a record with its step and epoch, and show it."""
        line = {"kind": kind, "step": self.at.step, "epoch": self.at.epoch, **content}
        self.log.append(line)
        self.viewers.record(line)

    def save(self) -> None:
        """Write a checkpoint with the whole state of the training."""
        if bad := not_finite(self.network.state_dict()):
            raise RunError("training", f"{bad} after step {self.at.step}", "try a lower --lr")
        stored, written = self.options.stored, self.log.offset
        state = capture(self.network, self.optimizer, self.at, stored, written, self.data.fingerprint)
        save_checkpoint(self.options.run.path, state, step=self.at.step, epoch=self.at.epoch - 1, keep=2)

    def resume(self) -> None:
        """Go on where the newest good checkpoint was saved. Raises UserError for other options or pictures."""
        folder, length = self.options.run.path, 0
        remove_leftovers(folder)
        if list_checkpoints(folder):
            state, path = load_checkpoint(folder)
            stored, seen = self.options.stored, self.data.fingerprint
            self.at = restore(self.network, self.optimizer, state, stored, seen, path)
            length = state.get("metrics_bytes", 0)
        self.log.truncate(length)


def train(options: ClassifyOptions, data: LabelledPictures) -> tuple[int, dict[str, float]]:
    """Train a new run, or resume one; the exit code and the metrics of the last epoch. Raises UserError, RunError."""
    run = options.run
    with open_run(run, is_new=not options.continue_train):
        training = Training(options, data)
        if options.continue_train:
            training.resume()
        run.write_options(options.stored)
        host, total = f"{training.device}, torch {torch.__version__}", options.n_epochs * training.steps
        with StopRequest() as stop, Viewers([Page(), Console(options.n_epochs, training.steps)]) as viewers:
            info = RunInfo(run.name, run.path, options.stored, host, total, run.program)
            viewers.start(info, shown_records(run.path))
            training.train(viewers, stop)
    saved = f"stopped at step {training.at.step}; saved. To resume:\n  {resume_command(run)}"
    done = f"done: {training.at.step} steps. Page: {run.page}"
    print(done if stop.requested is None else saved, flush=True)
    return stop.exit_code, training.metrics


def main() -> int:
    options = parse(sys.argv[1:])
    tolerate_closed_stdout()
    return train(options, load_labelled(options.dataroot, options.size))[0]


if __name__ == "__main__":
    run_command(main, debug="--debug" in sys.argv)
