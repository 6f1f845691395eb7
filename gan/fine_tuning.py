"""Start a training from other weights (`--init_from`).

Generators are always taken, discriminators where they are there and judge the same kind of thing. Optimisers, pools and
the learning rate start fresh. A generator is taken for its direction: G of a Pix2Pix from A to B becomes G_A of a
CycleGAN, and G_A or G_B becomes G of a Pix2Pix.
"""

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from torch import Tensor, nn

from datasets.errors import UserError
from gan.options import TrainOptions, from_dict, to_dict
from gan.pretrained import find_pretrained, read_pretrained
from gan.state import check_format, load_network, plain_key, refuse_malformed
from gan.step import Trainer

GENERATOR = ("netG", "ngf", "norm", "base_norm", "upsample")
DISCRIMINATOR = ("netD", "ndf")
"""Options that must be those of the source. The channels may differ."""


def initialize_from(trainer: Trainer, options: TrainOptions) -> str:
    """Put the weights that --init_from names into freshly drawn networks. Returns what was taken from where.

    Of a run with averages (--ema), the weights themselves are taken: the discriminators were trained against these. A
    layer for other numbers of channels stays as it was drawn. Raises UserError where there is no such source, where
    it is damaged or hostile, and for other networks, naming the flags that would make it fit.
    """
    source, epoch = parse_source(options.model.init_from, Path(options.run.checkpoints_dir))
    state, path = read_pretrained(source, epoch, discriminators=True)
    check_format(state, str(path))
    saved = from_dict({"direction": options.data.direction} | state["options"])
    with refuse_malformed(str(path)):
        chosen = _chosen(saved, options, state["networks"].keys())
    _refuse_others(saved, options, any(name.startswith("D") for name in chosen), path)
    taken, fresh = [], [name for name in trainer.networks if name not in chosen]
    for name, there in chosen.items():
        fresh += _take(trainer.networks[name], name, state["networks"][there], f"{path}: {there}")
        taken.append(name if name == there else f"{name} (from {there})")
    for name, average in trainer.averages.items():
        average.load_state_dict(trainer.networks[name].state_dict())
    at = state["position"]
    trained = f" (epoch {at['epoch'] - 1}, step {at['step']})" if at["step"] else ""
    return f"{', '.join(taken)} of {path}{trained}" + (f"; fresh: {', '.join(fresh)}" if fresh else "")


def parse_source(text: str, runs: Path) -> tuple[Path, str]:
    """`RUN@best` -> the run's folder and the checkpoint; without @ the last. Raises UserError where there is none."""
    name, at, epoch = text.rpartition("@")
    if not at or Path(text).exists():
        name, epoch = text, "last"
    if not re.fullmatch(r"last|best|\d{1,18}", epoch, re.ASCII):
        raise UserError(
            "--init_from", f"{text} names no checkpoint", "allowed: RUN, RUN@last, RUN@best, RUN@EPOCH"
        )
    return find_pretrained(name, runs), epoch


def _chosen(saved: TrainOptions, wanted: TrainOptions, there: Collection[str]) -> dict[str, str]:
    """Network of the run that starts -> network of the source. Raises ValueError where there is no generator."""
    of_direction = {"AtoB": "G_A", "BtoA": "G_B"}
    asked = of_direction[wanted.data.direction]
    if saved.model.model == wanted.model.model:
        chosen = {name: name for name in ("G_A", "G_B", "G", "D_A", "D_B", "D") if name in there}
    elif wanted.model.model == "cycle_gan":
        chosen = {of_direction[saved.data.direction]: "G"}
    else:
        chosen = {
            "G": asked if asked in there else next(name for name in of_direction.values() if name != asked)
        }
    if not any(name.startswith("G") for name in chosen) or not set(chosen.values()) <= set(there):
        raise ValueError("no generator")
    return chosen


def _refuse_others(saved: TrainOptions, wanted: TrainOptions, discriminators: bool, path: Path) -> None:
    there, here = to_dict(saved), to_dict(wanted)
    names = [*GENERATOR, *(DISCRIMINATOR if discriminators else ())]
    if discriminators and there["netD"] == "n_layers":
        names.append("n_layers_D")
    if different := [name for name in names if there[name] != here[name]]:
        found = ", ".join(f"{name} {there[name]}, not {here[name]}" for name in different)
        flags = " ".join(f"--{name} {there[name]}" for name in different)
        raise UserError("--init_from", f"{path.name} has {found}", f"add {flags}")


def _take(network: nn.Module, name: str, weights: Mapping[str, Tensor], where: str) -> list[str]:
    """Load weights, but those of the first or last layer where it has other channels: these are named."""
    own = {plain_key(key): value for key, value in network.state_dict().items()}
    given = {plain_key(key): value for key, value in weights.items()}
    fresh = []
    for layer in (next(iter(own)).removesuffix(".weight"), "out"):
        here, there = own[f"{layer}.weight"].shape, getattr(given.get(f"{layer}.weight"), "shape", ())
        changed = [(a, b) for a, b in zip(here, there, strict=False) if a != b]
        if len(here) == len(there) and len(changed) == 1:
            given |= {key: value for key, value in own.items() if key.rpartition(".")[0] == layer}
            fresh.append(f"{name}.{layer} ({changed[0][0]} channels, not {changed[0][1]})")
    load_network(network, given, where=where, check_finite=True)
    return fresh
