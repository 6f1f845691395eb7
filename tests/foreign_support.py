"""The networks of the published Pix2Pix and CycleGAN, in the layout in which the widely used implementation saves them.

Written from the papers (Isola et al. 2017, appendix 6.1; Zhu et al. 2017, appendix 7.2) as plain lists of layers, so
that nothing but the numbering of the layers is shared with `models`. The numbers are what its files hold as keys.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

Norm = str  # batch, instance or none


def norm_of(norm: Norm, channels: int) -> nn.Module:
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    return nn.InstanceNorm2d(channels) if norm == "instance" else nn.Identity()


def numbered(**layers: nn.Module) -> nn.Module:
    """Layers under numbers of our choice: `_4=...` becomes the child "4"."""
    module = nn.Module()
    for name, layer in layers.items():
        module.add_module(name.strip("_"), layer)
    return module


class Chain(nn.Module):
    """`model.0`, `model.1`, ... one after the other."""

    def __init__(self, *layers: nn.Module, attribute: str = "model") -> None:
        super().__init__()
        self.attribute = attribute
        self.add_module(attribute, nn.Sequential(*layers))

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, self.attribute)(x)


class Block(nn.Module):
    def __init__(self, channels: int, norm: Norm, dropout: bool) -> None:
        super().__init__()
        bias = norm == "instance"

        def convolution() -> list[nn.Module]:
            conv = nn.Conv2d(channels, channels, 3, bias=bias)
            return [nn.ReflectionPad2d(1), conv, norm_of(norm, channels)]

        between = [nn.ReLU(), *([nn.Dropout(0.5)] if dropout else [])]
        self.conv_block = nn.Sequential(*convolution(), *between, *convolution())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


def resnet(
    ngf: int = 4,
    norm: Norm = "instance",
    dropout: bool = False,
    blocks: int = 9,
    channels: tuple[int, int] = (3, 3),
) -> nn.Module:
    bias = norm == "instance"
    layers: list[nn.Module] = [
        nn.ReflectionPad2d(3), nn.Conv2d(channels[0], ngf, 7, bias=bias), norm_of(norm, ngf), nn.ReLU(),
    ]  # fmt: skip
    for width in (ngf, 2 * ngf):
        conv = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=bias)
        layers += [conv, norm_of(norm, 2 * width), nn.ReLU()]
    layers += [Block(4 * ngf, norm, dropout) for _ in range(blocks)]
    for width in (4 * ngf, 2 * ngf):
        up = nn.ConvTranspose2d(width, width // 2, 3, stride=2, padding=1, output_padding=1, bias=bias)
        layers += [up, norm_of(norm, width // 2), nn.ReLU()]
    layers += [nn.ReflectionPad2d(3), nn.Conv2d(ngf, channels[1], 7), nn.Tanh()]
    return Chain(*layers)


class Level(nn.Module):
    """One level of the U-Net with all that is inside it; its output is [input, what came up]."""

    def __init__(self, *layers: nn.Module, outermost: bool = False) -> None:
        super().__init__()
        self.model, self.outermost = nn.Sequential(*layers), outermost

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) if self.outermost else torch.cat([x, self.model(x)], 1)


def unet(
    ngf: int = 4,
    norm: Norm = "batch",
    dropout: bool = False,
    downs: int = 8,
    channels: tuple[int, int] = (3, 3),
) -> nn.Module:
    bias = norm == "instance"
    width = [ngf * min(2**level, 8) for level in range(downs)]

    def down(level: int) -> nn.Module:
        return nn.Conv2d(width[level - 1] if level else channels[0], width[level], 4, 2, 1, bias=bias)

    def up(level: int, inputs: int) -> nn.Module:
        return nn.ConvTranspose2d(inputs, width[level - 1], 4, 2, 1, bias=bias)

    last = downs - 1
    # the rectifier of the way down works in place: the skip is rectified too
    inside: nn.Module = Level(
        nn.LeakyReLU(0.2, True),
        down(last),
        nn.ReLU(True),
        up(last, width[last]),
        norm_of(norm, width[last - 1]),
    )
    for level in range(last - 1, 0, -1):
        layers = [
            nn.LeakyReLU(0.2, True), down(level), norm_of(norm, width[level]), inside,
            nn.ReLU(True), up(level, 2 * width[level]), norm_of(norm, width[level - 1]),
        ]  # fmt: skip
        inside = Level(*layers, *([nn.Dropout(0.5)] if dropout and width[level - 1] == 8 * ngf else []))
    out = nn.ConvTranspose2d(2 * ngf, channels[1], 4, 2, 1)
    whole = nn.Module()
    whole.model = Level(down(0), inside, nn.ReLU(True), out, nn.Tanh(), outermost=True)
    whole.forward = whole.model.forward  # type: ignore[method-assign]
    return whole


def patch_discriminator(
    channels: int = 3, ndf: int = 4, norm: Norm = "instance", count: int = 3
) -> nn.Module:
    bias = norm == "instance"
    layers: list[nn.Module] = [nn.Conv2d(channels, ndf, 4, 2, 1), nn.LeakyReLU(0.2)]
    width = [ndf * min(2**layer, 8) for layer in range(count + 1)]
    for layer in range(1, count + 1):
        stride = 2 if layer < count else 1
        conv = nn.Conv2d(width[layer - 1], width[layer], 4, stride, 1, bias=bias)
        layers += [conv, norm_of(norm, width[layer]), nn.LeakyReLU(0.2)]
    return Chain(*layers, nn.Conv2d(width[-1], 1, 4, 1, 1))


def pixel_discriminator(channels: int = 3, ndf: int = 4, norm: Norm = "instance") -> nn.Module:
    bias = norm == "instance"
    return Chain(
        nn.Conv2d(channels, ndf, 1), nn.LeakyReLU(0.2),
        nn.Conv2d(ndf, 2 * ndf, 1, bias=bias), norm_of(norm, 2 * ndf), nn.LeakyReLU(0.2),
        nn.Conv2d(2 * ndf, 1, 1, bias=bias), attribute="net",
    )  # fmt: skip


def with_drawn_weights(network: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter and running statistic drawn anew, so that no two layers could be exchanged unnoticed."""
    draws = torch.Generator().manual_seed(seed)
    for key, value in network.state_dict().items():
        if key.endswith("running_var"):
            value.copy_(0.5 + torch.rand(value.shape, generator=draws))
        elif value.is_floating_point():
            spread = 1 / value[0].numel() ** 0.5 if value.ndim == 4 else 0.3
            value.copy_(spread * torch.randn(value.shape, generator=draws))
            if value.ndim == 1 and key.endswith("weight"):
                value.add_(1)
    return network


def save(network: nn.Module, path: Path) -> Path:
    """Write `network` as that implementation does: the state_dict alone, moved to the CPU."""
    torch.save(network.cpu().state_dict(), path)
    return path
