"""NormalizedConv2d against the definition on padded patches, and against nn.Conv2d's interface."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cuda_ops.layer import NormalizedConv2d

PAD_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}


def by_definition(layer: nn.Conv2d, x: Tensor, pads: list[int], mode: str) -> tuple[Tensor, Tensor, Tensor]:
    """Pad, cut every patch out with slices, standardise it, multiply: y, mean, std (one group)."""
    x = F.pad(x, pads, mode=mode)
    kh, kw = layer.kernel_size
    sh, sw = layer.stride
    rows = x.unfold(2, kh, sh).unfold(3, kw, sw)  # (N, C, H', W', kh, kw)
    rows = rows.permute(0, 2, 3, 1, 4, 5).flatten(3)  # (N, H', W', n)
    mean = rows.mean(-1, keepdim=True)
    std = (((rows - mean) ** 2).sum(-1, keepdim=True) / (rows.shape[-1] - 1) + 1e-5).sqrt()
    y = torch.einsum("nhwi,oi->nohw", (rows - mean) / std, layer.weight.flatten(1))
    if layer.bias is not None:
        y = y + layer.bias.view(1, -1, 1, 1)
    return y, mean.permute(0, 3, 1, 2), std.permute(0, 3, 1, 2)


@pytest.mark.parametrize("mode", PAD_MODES)
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(3, 1, 1), (4, 2, 1), ((3, 5), (2, 1), (1, 2)), (7, 1, 3)]
)
def test_every_padding_mode(mode: str, kernel: int, stride: int, padding: int) -> None:
    torch.manual_seed(0)
    layer = NormalizedConv2d(
        3, 5, kernel, stride, padding, padding_mode=mode, return_moments=True, dtype=torch.float64
    )
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64) + 2
    ph, pw = layer.padding
    expected = by_definition(layer, x, [pw, pw, ph, ph], PAD_MODES[mode])
    y, moments = layer(x)
    for got, want in zip((y, *moments), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_padding_same_and_valid(mode: str) -> None:
    x = torch.randn(1, 2, 6, 7, dtype=torch.float64)
    same = NormalizedConv2d(2, 3, 4, padding="same", padding_mode=mode, dtype=torch.float64)
    expected, _, _ = by_definition(same, x, [1, 2, 1, 2], PAD_MODES[mode])
    torch.testing.assert_close(same(x), expected, rtol=1e-12, atol=1e-12)
    assert expected.shape == (1, 3, 6, 7)
    valid = NormalizedConv2d(2, 3, 4, padding="valid", padding_mode=mode, bias=False, dtype=torch.float64)
    expected, _, _ = by_definition(valid, x, [0, 0, 0, 0], "constant")
    torch.testing.assert_close(valid(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernel", [3, 4, (2, 5)])
def test_padding_same_keeps_its_digits_at_a_large_offset(kernel: int) -> None:
    """The layer itself pads before it subtracts the mean: zeros added outside would enter that mean."""
    torch.manual_seed(0)
    x = torch.randn(2, 16, 24, 20) + 1000
    layer = NormalizedConv2d(16, 8, kernel, padding="same", return_moments=True)
    y, moments = layer(x)
    exact, wide = layer.double()(x.double())
    assert y.shape == (2, 8, 24, 20)
    for ours, truth in zip((y, *moments), (exact, *wide), strict=True):
        assert (ours.double() - truth).norm() <= 2e-6 * truth.norm()


def test_padding_that_is_changed_later_counts_as_in_conv2d() -> None:
    layer, plain = NormalizedConv2d(2, 2, 3, padding=1), torch.nn.Conv2d(2, 2, 3, padding=1)
    for one in (layer, plain):
        one.dilation = one.padding = (2, 2)
    assert layer(torch.randn(1, 2, 8, 8)).shape == plain(torch.randn(1, 2, 8, 8)).shape


def test_is_a_conv2d_in_keys_and_initial_weights() -> None:
    arguments = (4, 6, 3, 2, 1, 1, 2)
    torch.manual_seed(3)
    plain = nn.Conv2d(*arguments, padding_mode="replicate")
    torch.manual_seed(3)
    layer = NormalizedConv2d(*arguments, padding_mode="replicate")
    assert isinstance(layer, nn.Conv2d)
    assert list(layer.state_dict()) == list(plain.state_dict()) == ["weight", "bias"]
    torch.testing.assert_close(layer.weight, plain.weight, rtol=0, atol=0)
    layer.load_state_dict(plain.state_dict())
    assert layer(torch.rand(1, 4, 9, 9)).shape == plain(torch.rand(1, 4, 9, 9)).shape
    assert list(NormalizedConv2d(3, 3, 3, bias=False).state_dict()) == ["weight"]


def test_groups_have_their_own_moments() -> None:
    layer = NormalizedConv2d(6, 4, 3, padding=1, groups=2, return_moments=True)
    x = torch.randn(2, 6, 5, 7)
    y, moments = layer(x)
    assert y.shape == (2, 4, 5, 7)
    assert moments.mean.shape == moments.std.shape == (2, 2, 5, 7)
    half = NormalizedConv2d(3, 2, 3, padding=1)
    half.load_state_dict({"weight": layer.weight[2:], "bias": layer.bias[2:]})
    torch.testing.assert_close(y[:, 2:], half(x[:, 3:]), rtol=1e-5, atol=1e-5)
