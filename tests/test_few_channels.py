"""Convolutions with few output channels, many pixels of them at once: torch's own convolutions are the answer."""

import pytest
import torch
from conftest import spy
from torch import Tensor
from torch.nn import functional as F

from cuda_ops import NormalizedConv2d, few_channels
from models.blocks import PlainConv2d

ONE, TWO, NONE = (1, 1), (2, 2), (0, 0)
CASES = {
    # height and width; kernel; padding
    "whole blocks": ((14, 22), (7, 7), (0, 0)),
    "parts of blocks": ((9, 8), (3, 4), (1, 2)),
    "padding and whole blocks": ((8, 8), (3, 3), (1, 1)),
    "one pixel": ((4, 4), (4, 4), (0, 0)),
}
TRANSPOSED = {
    # kernel, stride, padding, output padding
    "U-Net": ((4, 4), (2, 2), (1, 1), (0, 0)),
    "kernel no multiple of the stride": ((3, 3), (2, 2), (1, 1), (1, 1)),
    "uneven": ((5, 4), (3, 2), (2, 0), (1, 1)),
    "kernel smaller than the stride": ((2, 3), (3, 3), (0, 1), (2, 0)),
    "more past the end than the kernel": ((2, 2), (2, 2), (0, 0), (1, 1)),
}


def draws(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few pixels are enough."""
    monkeypatch.setattr(few_channels, "LEAST_PRODUCTS", 0)


@pytest.mark.parametrize("channels", [1, 2, 3, 6])
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name: str, channels: int, always: None) -> None:
    size, kernel, padding = CASES[name]
    x, weight = draws((2, 5, *size), (channels, 5, *kernel))
    expected = F.conv2d(x.requires_grad_(), weight.requires_grad_(), padding=padding)
    (dy,) = draws(tuple(expected.shape))
    with torch.no_grad():
        y = few_channels.convolve(x, weight, padding)
        found = few_channels.input_gradient(dy, weight, padding), few_channels.weight_gradient(x, dy, padding)
    assert y.is_contiguous()
    torch.testing.assert_close(y, expected.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found, torch.autograd.grad(expected, (x, weight), dy), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", TRANSPOSED)
def test_transposed(name: str, channels: int) -> None:
    kernel, stride, padding, past = TRANSPOSED[name]
    x, weight = draws((2, 5, 6, 7), (5, channels, *kernel))
    expected = F.conv_transpose2d(x, weight, None, stride, padding, past)
    y = few_channels.convolve_transposed(x, weight, stride, padding, (expected.shape[2], expected.shape[3]))
    assert y.is_contiguous()
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


def test_it_is_taken_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen in what the library is asked for: more channels than there are outputs, or as many."""
    asked: list[int] = []
    real = F.conv2d

    def conv2d(x: Tensor, weight: Tensor, *others: object, **more: object) -> Tensor:
        asked.append(len(weight))
        return real(x, weight, *others, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(few_channels.F, "conv2d", conv2d)
    x = torch.zeros(1, 64, 60, 60)
    few_channels.convolve(x, torch.zeros(3, 64, 7, 7), NONE)  # 9 million products
    few_channels.convolve(x, torch.zeros(1, 64, 7, 7), NONE)
    few_channels.convolve(x, torch.zeros(7, 64, 7, 7), NONE)  # many outputs
    few_channels.convolve(x[:, :, :30, :30].contiguous(), torch.zeros(3, 64, 7, 7), NONE)  # small
    few_channels.convolve(x.to(memory_format=torch.channels_last), torch.zeros(3, 64, 7, 7), NONE)
    few_channels.convolve(x, torch.zeros(2, 64, 7, 7), NONE)
    few_channels.convolve(x, torch.zeros(6, 64, 7, 7), NONE)
    few_channels.convolve(x.bfloat16(), torch.zeros(3, 64, 7, 7).bfloat16(), NONE)
    few_channels.convolve(x, torch.zeros(3, 64, 1, 40), NONE)  # nothing to share
    assert asked == [12, 8, 7, 3, 3, 16, 24, 3, 3]
    with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
        few_channels.convolve(torch.zeros(1, 64, 2, 2), torch.zeros(3, 64, 7, 7), NONE)

    large, weight = torch.zeros(1, 64, 128, 128), torch.zeros(64, 3, 4, 4)
    suits = few_channels.suits_transposed
    assert suits(large, weight, TWO) and not suits(x, weight, TWO)
    assert not suits(large, weight, ONE) and not suits(large, weight, TWO, TWO)
    assert not suits(large, weight, TWO, ONE, 2) and not suits(large, torch.zeros(64, 7, 4, 4), TWO)
    assert not suits(large.to(memory_format=torch.channels_last), weight, TWO)
    assert not suits(large.to("meta"), weight, TWO) and not suits(large.bfloat16(), weight.bfloat16(), TWO)
    assert suits(large, torch.zeros(64, 6, 4, 4), TWO)


def test_float32_is_as_exact_as_torch() -> None:
    x, weight, dy = draws((1, 64, 70, 70), (3, 64, 7, 7), (1, 64, 128, 128))
    (filters,) = draws((64, 3, 4, 4))
    for quick, torchs, exact in (
        (
            few_channels.convolve(x.float(), weight.float(), NONE),
            F.conv2d(x.float(), weight.float()),
            F.conv2d(x, weight),
        ),
        (
            few_channels.convolve_transposed(dy.float(), filters.float(), TWO, ONE, (256, 256)),
            F.conv_transpose2d(dy.float(), filters.float(), stride=2, padding=1),
            F.conv_transpose2d(dy, filters, stride=2, padding=1),
        ),
    ):
        error, torchs_error = ((y - exact).abs() for y in (quick, torchs))
        assert error.mean() < 1.5 * torchs_error.mean() and error.max() < 2 * torchs_error.max()


@pytest.mark.parametrize("reflect", [False, True])
def test_the_gradient_of_a_picture_in_the_layer(
    reflect: bool, always: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first layer of the U-Net. A stride of 1, groups and a dilation are torch's."""
    taken: list[str] = []
    spy(monkeypatch, few_channels, "convolve_transposed", taken)
    mode = "reflect" if reflect else "zeros"
    layer = NormalizedConv2d(3, 8, 4, 2, 1, padding_mode=mode).double()
    (x,) = draws((2, 3, 9, 8))
    x.requires_grad_()
    padded = F.pad(x, (1, 1, 1, 1), "reflect" if reflect else "constant")
    patches = F.unfold(padded, 4, stride=2).unflatten(2, ((9 + 2 - 4) // 2 + 1, -1))  # (N, 48, H', W')
    mean = patches.mean(1, keepdim=True)
    std = ((patches - mean).square().sum(1, keepdim=True) / (48 - layer.correction) + layer.eps).sqrt()
    expected = torch.einsum("nkij,ok->noij", (patches - mean) / std, layer.weight.flatten(1))
    expected = expected + layer.bias.view(-1, 1, 1)
    found = layer(x)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    wanted = [x, layer.weight, layer.bias]
    grads, right = (torch.autograd.grad(y.sin().sum(), wanted) for y in (found, expected))
    assert taken == ["convolve_transposed"]
    torch.testing.assert_close(grads, right, rtol=1e-10, atol=1e-10)
    for other in ({"stride": 1}, {"stride": 2, "dilation": 2}, {"stride": 2, "groups": 3}):
        layer = NormalizedConv2d(3, 9, 3, padding=1, **other).double()
        torch.autograd.grad(layer(x).sum(), x)
    assert taken == ["convolve_transposed"]


@pytest.mark.parametrize("layer", [NormalizedConv2d(4, 8, 4, 2, 1), PlainConv2d(4, 1, 3)], ids=["NC", "last"])
def test_a_backward_pass_under_autocast_is_not_cast(layer: torch.nn.Module, always: None) -> None:
    """Nor is torch's own."""
    (x,) = draws((1, 4, 9, 8), dtype=torch.float32)
    wanted = [x.requires_grad_(), *layer.parameters()]
    expected = torch.autograd.grad(layer(x).sin().sum(), wanted)
    loss = layer(x).sin().sum()
    with torch.autocast("cpu"):
        assert all(map(torch.equal, torch.autograd.grad(loss, wanted), expected))
