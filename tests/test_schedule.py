"""Learning rates against torch's schedulers, epoch by epoch."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, StepLR

from gan.options import ScheduleGroup


def rates(make: Callable[[torch.optim.Optimizer], LRScheduler], epochs: int, lr: float) -> list[float]:
    """The learning rate in epochs 1, 2, ... under a scheduler that steps at the end of each."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    scheduler = make(optimizer)
    seen = []
    for _ in range(epochs):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def ours(policy: str, n_epochs: int, n_epochs_decay: int, lr: float, decay_iters: int = 50) -> list[float]:
    schedule = ScheduleGroup(n_epochs, n_epochs_decay, lr, lr_policy=policy, lr_decay_iters=decay_iters)  # type: ignore[arg-type]
    return [schedule.learning_rate(epoch) for epoch in range(1, schedule.epochs + 1)]


@pytest.mark.parametrize(("constant", "decay"), [(100, 100), (3, 5), (0, 4), (4, 0)])
def test_linear(constant: int, decay: int) -> None:
    """base · (1 - max(0, e - n_epochs) / (n_epochs_decay + 1)), e from 1; LambdaLR counts from 0."""
    expected = rates(
        lambda o: LambdaLR(o, lambda done: 1 - max(0, done + 1 - constant) / (decay + 1)),
        constant + decay,
        2e-4,
    )
    assert ours("linear", constant, decay, 2e-4) == pytest.approx(expected, rel=1e-12)


def test_linear_by_hand() -> None:
    assert ours("linear", 2, 3, 1.0) == [1, 1, 0.75, 0.5, 0.25]


def test_step() -> None:
    expected = rates(lambda o: StepLR(o, step_size=3, gamma=0.1), 10, 0.2)
    assert ours("step", 5, 5, 0.2, decay_iters=3) == pytest.approx(expected, rel=1e-9)


def test_cosine() -> None:
    expected = rates(lambda o: CosineAnnealingLR(o, T_max=12), 12, 0.2)
    assert ours("cosine", 6, 6, 0.2) == pytest.approx(expected, rel=1e-9)


def test_constant() -> None:
    assert ours("constant", 2, 2, 0.2) == [0.2] * 4


@pytest.mark.parametrize("policy", ["linear", "step", "cosine", "constant"])
def test_the_rate_is_never_zero_nor_rises(policy: str) -> None:
    seen = ours(policy, 5, 7, 1.0, decay_iters=2)
    assert seen[0] == 1 and all(0 < later <= earlier for earlier, later in pairwise(seen))
