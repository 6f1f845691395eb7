"""Where and in which precision a step runs."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from datasets.errors import UserError


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
