"""Parameter counts by hand, tables of names, and the statistics of fresh weights."""

from typing import get_args

import pytest
import torch
from torch import nn

from models import names
from models.build import DISCRIMINATORS, GENERATORS, build_discriminator, build_generator, initialize
from models.norms import BASE_NORMS, NORMS, plan_norms


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def conv(inputs: int, outputs: int, kernel: int, bias: bool = True) -> int:
    """Parameters of one convolution, transposed or not."""
    return inputs * outputs * kernel**2 + bias * outputs


RESNET_ENDS = sum(conv(*c) for c in [(3, 64, 7), (64, 128, 3), (128, 256, 3)])
RESNET_ENDS += sum(conv(*c) for c in [(256, 128, 3), (128, 64, 3), (64, 3, 7)])
RESNET_BLOCK = 2 * conv(256, 256, 3)


def unet_by_hand(num_downs: int, affine: bool) -> int:
    """Biases where the norm is not affine, and in the last conv; else two parameters per normed channel."""
    width = [min(64 * 2**i, 512) for i in range(num_downs)]
    total = conv(3, 64, 4, not affine)
    for i in range(1, num_downs):
        inputs = width[i] if i == num_downs - 1 else 2 * width[i]
        total += conv(width[i - 1], width[i], 4, not affine)
        total += conv(inputs, width[i - 1], 4, not affine)
    total += conv(128, 3, 4)
    normed = sum(width[1:-1]) + sum(width[:-1])  # down: all but the ends; up: all but the outermost
    return total + affine * 2 * normed


def test_resnet_counts() -> None:
    nine, six = build_generator("resnet_9blocks"), build_generator("resnet_6blocks")
    assert count(nine) == RESNET_ENDS + 9 * RESNET_BLOCK == 11_378_179
    assert count(six) == RESNET_ENDS + 6 * RESNET_BLOCK


def test_unet_counts() -> None:
    batch = {"norm": "batch", "base_norm": "batch"}
    assert count(build_generator("unet_256", **batch)) == unet_by_hand(8, affine=True) == 54_413_955
    assert count(build_generator("unet_128", **batch)) == unet_by_hand(7, affine=True)
    assert count(build_generator("unet_128", norm="instance")) == unet_by_hand(7, affine=False)


def test_discriminator_counts() -> None:
    def by_hand(channels: int, affine: bool) -> int:
        middle = [(64, 128), (128, 256), (256, 512)]
        total = conv(channels, 64, 4) + conv(512, 1, 4)
        return total + sum(conv(a, b, 4, not affine) + affine * 2 * b for a, b in middle)

    assert count(build_discriminator("basic")) == by_hand(3, affine=False) == 2_764_737
    six = build_discriminator("basic", input_nc=6, base_norm="batch")
    assert count(six) == by_hand(6, affine=True) == 2_768_705
    pixel = build_discriminator("pixel", n_layers=5)  # n_layers is not for it
    assert count(pixel) == conv(3, 64, 1) + conv(64, 128, 1) + conv(128, 1, 1)


def test_tables_and_names_agree() -> None:
    assert tuple(NORMS) == names.NORM_NAMES
    assert tuple(BASE_NORMS) == get_args(names.BaseNormName)
    assert tuple(GENERATORS) == get_args(names.GeneratorName)
    assert tuple(DISCRIMINATORS) == get_args(names.DiscriminatorName)


def test_nc_refuses_a_base_norm() -> None:
    for base_norm in ("instance", "batch"):
        with pytest.raises(ValueError, match="'nc' goes with base_norm 'none' only"):
            build_generator("resnet_6blocks", norm="nc", base_norm=base_norm)
    assert plan_norms("nc", "none")[1] == "none"
    assert plan_norms("batch", "instance")[1] == "batch"  # a base norm by name is that norm everywhere


def test_normal_initialisation() -> None:
    network = build_generator("unet_128", ngf=16, norm="batch", base_norm="batch")
    initialize(network, generator=torch.Generator().manual_seed(1))
    convs = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    weights = torch.cat([m.weight.flatten() for m in convs])
    scales = torch.cat([m.weight for m in network.modules() if isinstance(m, nn.BatchNorm2d)])
    assert weights.mean().item() == pytest.approx(0, abs=4 * 0.02 / len(weights) ** 0.5)
    assert weights.std().item() == pytest.approx(0.02, rel=4 / (2 * len(weights)) ** 0.5)
    assert scales.mean().item() == pytest.approx(1, abs=4 * 0.02 / len(scales) ** 0.5)
    assert scales.std().item() == pytest.approx(0.02, rel=4 / (2 * len(scales)) ** 0.5)
    assert all((p == 0).all() for name, p in network.named_parameters() if name.endswith("bias"))


def test_initialisation_follows_its_generator_alone() -> None:
    first, second = (build_generator("resnet_6blocks", ngf=4, norm="nc_ms") for _ in range(2))
    initialize(first, generator=torch.Generator().manual_seed(5))
    torch.rand(7)
    initialize(second, generator=torch.Generator().manual_seed(5))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_other_initialisations() -> None:
    layer = nn.Conv2d(64, 32, 3)
    fan_in, fan_out = 64 * 9, 32 * 9
    initialize(layer, "xavier", gain=0.5)
    assert layer.weight.std().item() == pytest.approx(0.5 * (2 / (fan_in + fan_out)) ** 0.5, rel=0.03)
    initialize(layer, "kaiming")
    assert layer.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.03)
    initialize(layer, "orthogonal", gain=0.5)
    rows = layer.weight.flatten(1)
    torch.testing.assert_close(rows @ rows.T, 0.25 * torch.eye(32), rtol=0, atol=1e-5)
    assert (layer.bias == 0).all()
