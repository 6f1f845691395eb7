"""What CycleGAN and Pix2Pix share: device, precision, seeds, and the shape of a training step."""

import os
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from datasets.errors import UserError
from gan.losses import ImagePool
from gan.processes import ALONE, Processes

Batch = Mapping[str, Any]


@dataclass(frozen=True)
class Placement:
    """A device, a precision and a memory format; moves networks and batches there."""

    device: torch.device
    bf16: bool = False
    channels_last: bool = False

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)

    def put(self, images: Tensor) -> Tensor:
        images = images.to(self.device, non_blocking=True)
        return images.contiguous(memory_format=torch.channels_last) if self.channels_last else images

    def put_network(self, network: nn.Module) -> nn.Module:
        network.to(self.device)
        if self.channels_last:
            network.to(memory_format=torch.channels_last)
        return network


def find_device(name: str) -> torch.device:
    """The device of `--device`; UserError where it is not there."""
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in found.items() if there))
    if not found[name]:
        there = ", ".join(kind for kind, yes in found.items() if yes)
        raise UserError("--device", f"{name} is not available here", f"available: {there}")
    return torch.device(name)


def use_deterministic(on: bool) -> None:
    """Let torch use only algorithms that give the same bits every time, or whatever is fastest.

    An operation without such an algorithm raises torch's RuntimeError, which names it. Call before CUDA is
    used: cuBLAS reads its setting at its start.
    """
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(on)
    # New memory is not filled with NaN: a slow check for bugs, which the tests turn on.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic = on
    torch.backends.cudnn.benchmark = not on


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators (all devices); seed: 0 .. 2**32 - 1."""
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)


class StepResult(NamedTuple):
    """Losses by name (detached scalars) and the pictures of the step by kind, (N, C, H, W) in [-1, 1]."""

    losses: dict[str, Tensor]
    images: dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Trainer(ABC):
    """The networks of a model and what trains them, by name; `step` is all the loop needs to know of it.

    averages: of the generators, by name, with the decay `ema`; empty without --ema.
    """

    networks: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    pools: dict[str, ImagePool]
    placement: Placement
    gan_mode: str
    lambda_gp: float
    processes: Processes = ALONE
    batch_passes: bool = False
    averages: dict[str, nn.Module] = field(default_factory=dict)
    ema: float = 0.0

    def both(self, network: nn.Module, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """network(one) and network(other), as one batch where --batch_passes asks for it."""
        if not self.batch_passes or one.shape[1:] != other.shape[1:]:
            return network(one), network(other)
        first, second = network(torch.cat([one, other])).split([len(one), len(other)])
        return first, second

    @abstractmethod
    def step(self, batch: Batch) -> StepResult:
        """One update of all networks from a batch with "A" and "B"."""

    @contextmanager
    def updating(self, name: str, losses: Mapping[str, Tensor], batch: Batch) -> Iterator[None]:
        """One step of an optimiser, with the gradients that the backward passes inside give, in all processes.

        A parameter gets its gradient in one of these passes. losses: those that the gradients come from. No gradient is
        left afterwards.
        """
        optimizer = self.optimizers[name]
        if self.steps_in_backward:
            with stepping_in_backward(optimizer):
                yield
            return
        try:
            yield
            if self.processes.world > 1:
                parameters = (p for group in optimizer.param_groups for p in group["params"])
                own = [*(p.grad for p in parameters if p.grad is not None), *self._running_statistics()]
                self.processes.reduce(own, batch["counts"], losses.values())
            optimizer.step()
        finally:
            optimizer.zero_grad(set_to_none=True)

    @property
    def steps_in_backward(self) -> bool:
        """A GPU takes one step for all parameters sooner; several processes first put their gradients together."""
        return self.placement.device.type == "cpu" and self.processes.world == 1

    def _running_statistics(self) -> list[Tensor]:
        """Of batch norms, each process has those of its own pictures. SyncBatchNorm, on GPUs, has those of all."""
        layers = (layer for network in self.networks.values() for layer in network.modules())
        own = [layer for layer in layers if isinstance(layer, nn.BatchNorm2d)]
        return [buffer for layer in own for buffer in layer.buffers() if buffer.is_floating_point()]

    def pooled(self, images: Mapping[str, Tensor], batch: Batch) -> list[Tensor]:
        """What discriminators see of new translations, by the name of their pool: these or, half of the time, old ones.

        All processes have equal pools: every one queries them with the pictures of all, and takes its own answers.
        """
        if self.processes.world == 1 or not any(pool.size for pool in self.pools.values()):
            return [self.pools[name].query(new) for name, new in images.items()]
        counts, rank = batch["counts"], self.processes.rank
        first = sum(counts[:rank])
        everyone = self.processes.gather_images([new.detach() for new in images.values()], counts)
        answers = [self.pools[name].query(new) for name, new in zip(images, everyone, strict=True)]
        if not counts[rank]:  # what this process adds counts nothing
            return list(images.values())
        return [answer[first : first + counts[rank]] for answer in answers]

    @abstractmethod
    def sample(self, batch: Batch) -> dict[str, Tensor]:
        """Pictures of a fixed batch in eval mode; changes nothing."""

    def shown(self, name: str) -> nn.Module:
        """The generator of this name that `sample` uses: its average if there is one."""
        return self.averages.get(name, self.networks[name])

    def update_averages(self) -> None:
        """To be called after every step: average <- ema * average + (1 - ema) * weights.

        Buffers (running statistics) are copied: they are averages already.
        """
        average_weights = get_ema_multi_avg_fn(self.ema)
        for name, average in self.averages.items():
            network = self.networks[name]
            average_weights([*average.parameters()], [*network.parameters()], 0)
            for kept, current in zip(average.buffers(), network.buffers(), strict=True):
                kept.copy_(current)


LARGE = 1 << 16
"""Smaller parameters take their steps together afterwards: one at a time, the calls would cost more than they save."""


@contextmanager
def stepping_in_backward(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Inside, a large parameter takes its step as soon as a backward pass has its gradient, which is freed at once.

    The bits are those of one step for all. Such gradients never fill the memory, and are read while still in the cache.
    """
    (group,) = optimizer.param_groups
    everything = group["params"]

    def step(parameter: Tensor) -> None:
        group["params"] = [parameter]
        optimizer.step()
        parameter.grad = None

    hooks = [p.register_post_accumulate_grad_hook(step) for p in everything if p.numel() >= LARGE]
    try:
        yield
        group["params"] = [p for p in everything if p.numel() < LARGE]
        optimizer.step()
    finally:
        group["params"] = everything
        optimizer.zero_grad(set_to_none=True)
        for hook in hooks:
            hook.remove()


def set_learning_rate(trainer: Trainer, lr: float) -> None:
    for optimizer in trainer.optimizers.values():
        for group in optimizer.param_groups:
            if isinstance(group["lr"], Tensor):  # a static step reads it there
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr


def requires_grad(optimizer: torch.optim.Optimizer, on: bool) -> None:
    """Discriminators stand still while the generators learn: their weight gradients need not be computed.

    What is frozen is in no optimizer, and stays without gradients.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.requires_grad_(on)


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
