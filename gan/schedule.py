"""The learning rate as a pure function of the epoch: nothing to store, nothing to restore."""

import math
from collections.abc import Callable


def linear(epoch: int, n_epochs: int, n_epochs_decay: int, _decay_iters: int) -> float:
    """1 for n_epochs, then a straight line that would reach 0 one epoch after the last (SPEC section 3)."""
    return 1.0 - max(0, epoch - n_epochs) / (n_epochs_decay + 1)


def step(epoch: int, _n_epochs: int, _n_epochs_decay: int, decay_iters: int) -> float:
    """A tenth every `decay_iters` epochs."""
    return 0.1 ** ((epoch - 1) // decay_iters)


def cosine(epoch: int, n_epochs: int, n_epochs_decay: int, _decay_iters: int) -> float:
    """Half a cosine from 1 in epoch 1 towards 0 after the last epoch."""
    return 0.5 * (1 + math.cos(math.pi * (epoch - 1) / (n_epochs + n_epochs_decay)))


def constant(_epoch: int, _n_epochs: int, _n_epochs_decay: int, _decay_iters: int) -> float:
    """1 throughout."""
    return 1.0


LR_POLICIES: dict[str, Callable[[int, int, int, int], float]] = {
    "linear": linear,
    "step": step,
    "cosine": cosine,
    "constant": constant,
}
"""`--lr_policy` -> factor on the initial learning rate in epoch e (from 1)."""
