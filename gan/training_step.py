"""What CycleGAN and Pix2Pix have in common: networks, optimisers and pools that step, sample and can be stored."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from gan.pool import ImagePool

Batch = Mapping[str, Any]


class StepResult(NamedTuple):
    """Losses by name (detached scalars) and the pictures of the step by kind, (N, C, H, W) in [-1, 1]."""

    losses: dict[str, Tensor]
    images: dict[str, Tensor]


class Trainer(Protocol):
    """One way to train: `step` is all the loop needs to know of it."""

    @property
    def networks(self) -> dict[str, nn.Module]: ...

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]: ...

    @property
    def pools(self) -> dict[str, ImagePool]: ...

    def step(self, batch: Batch) -> StepResult:
        """One update of all networks from a batch with "A" and "B"."""
        ...

    def sample(self, batch: Batch) -> dict[str, Tensor]:
        """Pictures of a fixed batch in eval mode; changes nothing."""
        ...


def set_learning_rate(trainer: Trainer, lr: float) -> None:
    for optimizer in trainer.optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = lr


def requires_grad(networks: Sequence[nn.Module], on: bool) -> None:
    """Discriminators stand still while the generators learn: their weight gradients need not be computed."""
    for network in networks:
        network.requires_grad_(on)


@contextmanager
def evaluating(networks: Sequence[nn.Module]) -> Iterator[None]:
    """Eval mode and no gradients inside, the previous mode afterwards."""
    before = [network.training for network in networks]
    try:
        for network in networks:
            network.eval()
        with torch.no_grad():
            yield
    finally:
        for network, mode in zip(networks, before, strict=True):
            network.train(mode)
