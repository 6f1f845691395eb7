"""What a checkpoint of a classifier holds, and how it is put back."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from datasets.errors import UserError
from gan.state import Position, check_format, load_network, random_state, refuse_malformed, set_random_state
from tools.classify_options import MAY_CHANGE


def capture(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    position: Position,
    options: dict[str, Any],
    metrics_bytes: int,
    data: str,
) -> dict[str, Any]:
    """The whole state. metrics_bytes: the length of metrics.jsonl now; data: the fingerprint of the pictures."""
    return {
        "options": options,
        "position": asdict(position),
        "metrics_bytes": metrics_bytes,
        "data": data,
        "networks": {"classifier": network.state_dict()},
        "optimizers": {"classifier": optimizer.state_dict()},
        "rng": random_state(),
    }


def restore(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    options: dict[str, Any],
    data: str,
    path: Path,
) -> Position:
    """Put a captured state back. Raises UserError for other options or pictures than those of the training so far."""
    check_format(state, str(path))
    if "classifier" not in state["networks"]:
        raise UserError(path, "is not a classifier's checkpoint", "name a run of this command")
    with refuse_malformed(str(path)):
        for name, now in options.items():
            if name not in MAY_CHANGE and (was := state["options"].get(name)) != now:
                raise UserError(f"--{name}", f"is {now}, the run was trained with {was}", "leave it out")
        if state["data"] != data:
            raise UserError(path.parent, "the run was trained with other pictures", "name its own --dataroot")
        load_network(network, state["networks"]["classifier"], where=str(path))
        optimizer.load_state_dict(state["optimizers"]["classifier"])
        for weight in network.parameters():
            moment = optimizer.state[weight].get("momentum_buffer")
            if moment is not None and moment.shape != weight.shape:
                raise ValueError("the momentum does not fit the weights")
        set_random_state(state["rng"])
        return Position(**state["position"])
