"""A checkpoint becomes a function from pictures to pictures; every option comes from the checkpoint."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.errors import UserError
from gan.checkpoint import load_checkpoint
from gan.network_state import load_network
from gan.options import TrainOptions, channels, from_dict
from gan.precision import Placement, find_device
from gan.setup import generators
from gan.training_state import check_format

Direction = Literal["AtoB", "BtoA"]
TestMode = Literal["eval", "train"]


@dataclass(frozen=True)
class Translator:
    """One generator of a run, ready for pictures of any size from 2x2."""

    network: nn.Module
    options: TrainOptions
    direction: str
    checkpoint: Path
    step: int
    epoch: int  # epochs that were finished
    placement: Placement

    @property
    def input_nc(self) -> int:
        return channels(self.options, self.direction)[0]

    def __call__(self, images: Tensor) -> Tensor:
        """(N, C, H, W) in [-1, 1] -> translations of the same size, float32 on the CPU.

        A size the network cannot take is padded (by reflection where the picture is large enough, else by its
        edge) and cropped back. Raises ValueError below 2x2.
        """
        height, width = images.shape[2:]
        if min(height, width) < 2:
            raise ValueError(f"image is {width}x{height}, needs at least 2x2")
        with torch.inference_mode(), self.placement.autocast():
            output = self.network(pad_to_fit(self.placement.put(images), self.network))
        return output[:, :, :height, :width].float().cpu()


def load_translator(
    run: Path,
    *,
    epoch: str | int = "last",
    direction: str | None = None,
    device: str = "auto",
    test_mode: TestMode = "eval",
) -> Translator:
    """The generator of a run's folder. epoch: last, best or a number; direction: default the trained one.

    test_mode "train" keeps dropout and batch statistics on (the published Pix2Pix protocol). Raises UserError for an
    unknown run or epoch, a damaged checkpoint, and a direction that was not trained.
    """
    which: Literal["last", "best"] | int = int(epoch) if str(epoch).isdecimal() else epoch  # type: ignore[assignment]
    if which not in ("last", "best") and not isinstance(which, int):
        raise UserError("--epoch", f"is {epoch}", "allowed: last, best or the number of a kept epoch")
    if not run.is_dir():
        there = sorted(p.name for p in run.parent.iterdir() if p.is_dir()) if run.parent.is_dir() else []
        known = f"runs there: {', '.join(there[:10])}" if there else "no run is there"
        raise UserError(run, "no such run", f"check --name and --checkpoints_dir; {known}")
    state, path = load_checkpoint(run, which)
    check_format(state, str(path))
    options = from_dict(
        state["options"] | {"nc_backend": "auto"}
    )  # this machine's, not the one it was trained on
    direction = direction or options.data.direction
    name = _generator_name(options, direction)
    network = generators(options)[name]
    load_network(network, state["networks"].get(name, {}), where=f"{path}: {name}", check_finite=True)
    placement = Placement(find_device(device))
    placement.put_network(network).train(test_mode == "train")
    position = state["position"]
    return Translator(network, options, direction, path, position["step"], position["epoch"] - 1, placement)


def pad_to_fit(images: Tensor, network: nn.Module) -> Tensor:
    """Images grown at the right and bottom to the next size that `network` takes."""
    multiple, least = getattr(network, "size_multiple", 1), getattr(network, "min_size", 1)

    def missing(length: int) -> int:
        return max(-(-length // multiple) * multiple, -(-least // multiple) * multiple) - length

    height, width = images.shape[2:]
    down, right = missing(height), missing(width)
    if not down and not right:
        return images
    mode = "reflect" if down < height and right < width else "replicate"
    return F.pad(images, (0, right, 0, down), mode)


def _generator_name(options: TrainOptions, direction: str) -> str:
    if options.model.model == "pix2pix":
        if direction != options.data.direction:
            trained = options.data.direction
            raise UserError("--direction", f"this pix2pix run was trained {trained} only", f"use {trained}")
        return "G"
    return "G_A" if direction == "AtoB" else "G_B"
