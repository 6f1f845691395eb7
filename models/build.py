"""A name becomes a network: the visible tables of constructors, and how fresh weights are drawn."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import init

from cuda_ops import Backend
from cuda_ops.layer import NormalizedConv2d
from models.names import DiscriminatorName, GeneratorName, InitName
from models.patchgan import PatchGAN, PixelDiscriminator
from models.resnet import ResnetGenerator
from models.unet import UnetGenerator

Generator = ResnetGenerator | UnetGenerator
Discriminator = PatchGAN | PixelDiscriminator

GENERATORS: dict[GeneratorName, Callable[..., Generator]] = {
    "resnet_9blocks": partial(ResnetGenerator, n_blocks=9),
    "resnet_6blocks": partial(ResnetGenerator, n_blocks=6),
    "unet_256": partial(UnetGenerator, num_downs=8),
    "unet_128": partial(UnetGenerator, num_downs=7),
}

DISCRIMINATORS: dict[DiscriminatorName, Callable[..., Discriminator]] = {
    "basic": partial(PatchGAN, n_layers=3),  # 70x70 patches
    "n_layers": PatchGAN,  # patches of a chosen size: takes n_layers
    "pixel": PixelDiscriminator,
}


def build_generator(
    name: GeneratorName, *, nc_backend: Backend = "auto", grad_checkpoint: bool = False, **named: Any
) -> Generator:
    """A generator with PyTorch's own initial weights; see `initialize`.

    Named arguments: input_nc, output_nc, ngf, norm, base_norm, dropout, upsample. nc_backend: that of every normalized
    convolution in it. grad_checkpoint: see `run_block`. Raises ValueError for a norm that does not go with its base
    norm.

    >>> build_generator("resnet_6blocks", ngf=8, norm="nc_ms").size_multiple
    4
    """
    network = GENERATORS[name](**named)
    network.grad_checkpoint = grad_checkpoint
    for layer in network.modules():
        if isinstance(layer, NormalizedConv2d):
            layer.backend = nc_backend
    return network


def build_discriminator(name: DiscriminatorName, *, n_layers: int = 3, **named: Any) -> Discriminator:
    """A discriminator with PyTorch's own initial weights; see `initialize`.

    Named arguments: input_nc, ndf, base_norm; `n_layers` has a meaning for the discriminator of that name only.

    >>> build_discriminator("n_layers", n_layers=2, ndf=8).min_size
    12
    """
    if name == "n_layers":
        named["n_layers"] = n_layers
    return DISCRIMINATORS[name](**named)


def initialize(
    module: nn.Module,
    init_type: InitName = "normal",
    gain: float = 0.02,
    generator: torch.Generator | None = None,
) -> None:
    """Draw the weights of every convolution, and of every affine batch norm around 1; set every bias to 0.

    `gain` is the standard deviation (normal), or the factor (xavier, orthogonal); kaiming has none.
    Batch-norm weights come from N(1, gain).
    Source: pix2pix, section 3.3 (N(0, 0.02)); Glorot 2010; He 2015; Saxe 2014.
    """
    draws: dict[InitName, Callable[[torch.Tensor], Any]] = {
        "normal": lambda weight: init.normal_(weight, 0.0, gain, generator=generator),
        "xavier": lambda weight: init.xavier_normal_(weight, gain, generator=generator),
        "kaiming": lambda weight: init.kaiming_normal_(weight, generator=generator),
        "orthogonal": lambda weight: init.orthogonal_(weight, gain, generator=generator),
    }
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            draws[init_type](layer.weight)
        elif isinstance(layer, nn.BatchNorm2d):
            init.normal_(layer.weight, 1.0, gain, generator=generator)
        else:
            continue
        if layer.bias is not None:
            init.zeros_(layer.bias)
