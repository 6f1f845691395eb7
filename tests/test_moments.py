"""PONO, MS and DMS against hand-computed values, layer normalisation and functional ops."""

import pytest
import torch
from torch.nn import functional as F

from cuda_ops import Moments
from models.norms import PONO, DynamicMomentShortcut, MomentShortcut


def test_hand_computed_pixel() -> None:
    x = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64).view(1, 3, 1, 1)
    y, (mean, std) = PONO(eps=2.0)(x)  # mean 3, squared deviations 4 + 1 + 9 = 14, var 7, std sqrt(9) = 3
    assert mean.item() == 3.0
    assert std.item() == pytest.approx(3.0, abs=1e-15)
    torch.testing.assert_close(y.flatten(), torch.tensor([-2 / 3, -1 / 3, 1.0], dtype=torch.float64))


def test_equals_layer_norm_over_channels_up_to_the_unbiased_factor() -> None:
    x = torch.randn(2, 7, 5, 6, dtype=torch.float64) * 3 + 10
    c, eps = 7, 1e-5
    rows = x.permute(0, 2, 3, 1)  # (N, H, W, C)
    expected = F.layer_norm(rows, (c,), eps=eps * (c - 1) / c) * ((c - 1) / c) ** 0.5
    y, moments = PONO(eps)(x)
    torch.testing.assert_close(y, expected.permute(0, 3, 1, 2), rtol=1e-12, atol=1e-12)
    assert moments.mean.shape == moments.std.shape == (2, 1, 5, 6)


def test_shortcut_undoes_pono() -> None:
    x = torch.randn(2, 5, 4, 3, dtype=torch.float64) * 4 - 7
    torch.testing.assert_close(MomentShortcut()(*PONO()(x)), x, rtol=1e-12, atol=1e-12)


def test_constant_pixels_stay_finite() -> None:
    x = torch.full((1, 4, 3, 3), 5.0, requires_grad=True)
    y, moments = PONO()(x)
    (y.sum() + (y * torch.randn(1, 4, 3, 3)).sum() + moments.std.sum()).backward()
    assert y.abs().max() == 0
    assert torch.isfinite(x.grad).all()


def test_half_precision_keeps_wide_statistics() -> None:
    x = (torch.randn(1, 64, 4, 4) + 100).bfloat16()
    y, moments = PONO()(x)
    assert y.dtype == torch.bfloat16
    assert moments.mean.dtype == moments.std.dtype == torch.float32
    torch.testing.assert_close(moments.mean, x.float().mean(1, keepdim=True), rtol=1e-6, atol=1e-6)
    assert MomentShortcut()(y, moments).dtype == torch.bfloat16


def test_one_channel_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 channels"):
        PONO()(torch.zeros(1, 1, 2, 2))


def test_untrained_dynamic_shortcut_is_the_identity() -> None:
    dms = DynamicMomentShortcut(4)
    for parameter in dms.out.parameters():
        torch.nn.init.zeros_(parameter)
    x = torch.randn(1, 4, 4, 4)
    torch.testing.assert_close(dms(x, Moments(torch.randn(1, 1, 2, 2), torch.rand(1, 1, 2, 2))), x)
