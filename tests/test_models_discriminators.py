"""Discriminators: what one logit sees, output sizes, refusals, and that only the base norm is in them."""

import pytest
import torch
from torch import nn

from cuda_ops.layer import NormalizedConv2d
from models.build import build_discriminator
from models.norms import PONO
from models.patchgan import PatchGAN, PixelDiscriminator

BASE_LAYERS = {"instance": nn.InstanceNorm2d, "batch": nn.BatchNorm2d, "none": nn.Identity}


@pytest.mark.parametrize(("n_layers", "field"), [(1, 16), (2, 34), (3, 70), (4, 142)])
def test_receptive_field(n_layers: int, field: int) -> None:
    torch.manual_seed(0)
    network = PatchGAN(1, 2, n_layers, base_norm="none").double()
    x = torch.randn(1, 1, 256, 256, dtype=torch.float64, requires_grad=True)
    y = network(x)
    y[0, 0, y.shape[2] // 2, y.shape[3] // 2].backward()
    seen = x.grad[0, 0] != 0
    for axis in (0, 1):
        lines = seen.any(axis).nonzero()
        assert lines.max() - lines.min() + 1 == field


def test_one_pixel_sees_one_pixel() -> None:
    network = PixelDiscriminator(3, 4, base_norm="none")
    x = torch.randn(1, 3, 5, 6, requires_grad=True)
    y = network(x)
    assert y.shape == (1, 1, 5, 6)
    y[0, 0, 2, 3].backward()
    assert (x.grad != 0).any(1).nonzero().tolist() == [[0, 2, 3]]


@pytest.mark.parametrize(
    ("n_layers", "size", "out"),
    [(3, (256, 256), (30, 30)), (3, (24, 31), (1, 1)), (1, (6, 9), (1, 2)), (2, (64, 48), (14, 10))],
)
def test_output_sizes(n_layers: int, size: tuple[int, int], out: tuple[int, int]) -> None:
    network = build_discriminator("n_layers", n_layers=n_layers, input_nc=6, ndf=4, base_norm="instance")
    assert network(torch.randn(2, 6, *size)).shape == (2, 1, *out)


@pytest.mark.parametrize("n_layers", [1, 3, 5])
def test_smallest_size(n_layers: int) -> None:
    network = PatchGAN(3, 2, n_layers)
    smallest = network.min_size
    assert network(torch.randn(1, 3, smallest, smallest)).shape == (1, 1, 1, 1)
    with pytest.raises(
        ValueError, match=rf"PatchGAN takes sides of at least {smallest} pixels, got height \d+ and width"
    ):
        network(torch.randn(1, 3, smallest, smallest - 1))


@pytest.mark.parametrize("name", ["basic", "n_layers", "pixel"])
@pytest.mark.parametrize("base_norm", BASE_LAYERS)
def test_only_the_base_norm(name: str, base_norm: str) -> None:
    network = build_discriminator(name, ndf=4, base_norm=base_norm)
    layers = [type(m) for m in network.modules()]
    assert layers.count(BASE_LAYERS[base_norm]) >= (1 if name == "pixel" else 3)
    assert NormalizedConv2d not in layers
    assert PONO not in layers
    others = {layer for base, layer in BASE_LAYERS.items() if base not in (base_norm, "none")}
    assert not others & set(layers)


def test_logits_by_functional_ops() -> None:
    torch.manual_seed(0)
    network = PatchGAN(3, 4, base_norm="instance").double()
    weights = list(network.parameters())
    x = torch.randn(2, 3, 32, 40, dtype=torch.float64)
    want = x
    for i, stride in enumerate([2, 2, 2, 1, 1]):
        want = nn.functional.conv2d(want, weights[2 * i], weights[2 * i + 1], stride, 1)
        if 0 < i < 4:
            mean, var = want.mean((2, 3), keepdim=True), want.var((2, 3), correction=0, keepdim=True)
            want = (want - mean) / (var + 1e-5).sqrt()
        if i < 4:
            want = torch.where(want > 0, want, 0.2 * want)
    torch.testing.assert_close(network(x), want, rtol=1e-10, atol=1e-12)
