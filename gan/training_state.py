"""Everything a training is made of at one moment, as plain types and tensors: what a checkpoint holds."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from datasets.errors import UserError
from gan import rng
from gan.network_state import load_network
from gan.training_step import Trainer
from gan.warning import warn

FORMAT = 1
"""Version of the layout below; a file with a higher one was made by a newer program."""


@dataclass
class Position:
    """How far the training is: `batches` of epoch `epoch` (from 1) are done, `step` steps in all."""

    epoch: int = 1
    batches: int = 0
    step: int = 0
    best: float | None = None
    """Best value so far of the metric that chooses the best checkpoint."""


def capture(
    trainer: Trainer,
    position: Position,
    options: dict[str, Any],
    metrics_bytes: int,
    data_listing: Sequence[str],
) -> dict[str, Any]:
    """The whole state. metrics_bytes: the length of metrics.jsonl now; data_listing: the data's files, a line each."""
    return {
        "format": FORMAT,
        "options": options,
        "position": asdict(position),
        "metrics_bytes": metrics_bytes,
        "data": "\0".join(data_listing),  # one text: a list would be thousands of pickle operations
        "networks": {name: network.state_dict() for name, network in trainer.networks.items()},
        "optimizers": {name: optimizer.state_dict() for name, optimizer in trainer.optimizers.items()},
        "pools": {name: pool.state_dict() for name, pool in trainer.pools.items()},
        "rng": rng.get_state(),
        "machine": _machine(trainer),
    }


def restore(trainer: Trainer, state: dict[str, Any], where: str) -> Position:
    """Put a captured state back into freshly built objects; `where` names the checkpoint in messages.

    One warning where the machine is another one in a way that changes the last bits of what is computed.
    """
    check_format(state, where)
    device = _device(trainer)
    for name, network in trainer.networks.items():
        load_network(network, state["networks"].get(name, {}), where=f"{where}: {name}")
    for name, optimizer in trainer.optimizers.items():
        betas = [group["betas"] for group in optimizer.param_groups]
        optimizer.load_state_dict(state["optimizers"][name])
        for group, own in zip(optimizer.param_groups, betas, strict=True):
            group["betas"] = own  # those of the options, which --override may have changed
    for name, pool in trainer.pools.items():
        pool.load_state_dict(state["pools"][name], device)
    rng.set_state(state["rng"])
    was, now = state.get("machine", {}), _machine(trainer)
    if changes := [
        f"{name} {was[name]} -> {now[name]}" for name in now if name in was and was[name] != now[name]
    ]:
        warn(where, f"not bit-identical from here on: {', '.join(changes)}")
    return Position(**state["position"])


def checkpoint_size(trainer: Trainer) -> int:
    """Bytes of a checkpoint, nearly: the weights and the two moments that Adam keeps of each."""
    parameters = (p for network in trainer.networks.values() for p in network.parameters())
    return 3 * sum(p.numel() * p.element_size() for p in parameters)


def _machine(trainer: Trainer) -> dict[str, Any]:
    """What the bits of a training depend on beside its options."""
    return {
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "device": _device(trainer).type,
    }


def _device(trainer: Trainer) -> torch.device:
    return next(next(iter(trainer.networks.values())).parameters()).device


def check_format(state: dict[str, Any], where: str) -> None:
    """Raises UserError unless `state` was written by this version of the program or an older one."""
    version = state.get("format")
    if not isinstance(version, int) or "networks" not in state or "options" not in state:
        raise UserError(where, "is not a checkpoint of this program", "choose a run that train.py has made")
    if version > FORMAT:
        reason = f"was made by a newer version (format {version}, this is {FORMAT})"
        raise UserError(where, reason, "update this program")
