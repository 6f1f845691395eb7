"""A training whose numbers are no longer numbers stops before they are saved: Adam would never recover."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from datasets.errors import RunError
from gan.checkpoint import list_checkpoints
from gan.run_folder import RunFolder


def finite_losses(losses: Mapping[str, Tensor], step: int, run: RunFolder) -> dict[str, float]:
    """Losses as numbers, in one transfer. RunError at the first that is NaN or infinite."""
    values = torch.stack([loss.float() for loss in losses.values()]).tolist()
    for name, value in zip(losses, values, strict=True):
        if not math.isfinite(value):
            raise _stop(f"loss {name} is {value} at step {step}", run)
    return dict(zip(losses, values, strict=True))


def require_finite_weights(networks: Mapping[str, nn.Module], step: int, run: RunFolder) -> None:
    """RunError for a NaN or an infinity that a finite loss has left in the weights; looked for before a save."""
    for name, network in networks.items():
        for key, value in network.state_dict().items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise _stop(f"{name}.{key} is not finite after step {step}", run)


def _stop(what: str, run: RunFolder) -> RunError:
    kept = list_checkpoints(run.path)
    good = f"last good checkpoint step {kept[0].step}" if kept else "no checkpoint yet"
    return RunError("training", f"{what}; {good}", "try a lower --lr")
