"""Adversarial losses against torch.nn and hand-computed values; the gradient penalty in closed form."""

import math

import pytest
import torch
from torch import Tensor, nn

from cuda_ops.layer import NormalizedConv2d
from gan.losses import GAN_LOSSES, gradient_penalty

PREDICTION = torch.tensor([[[[-3.0, -0.5], [0.25, 2.0]]]])


@pytest.mark.parametrize(("mode", "loss"), [("vanilla", nn.BCEWithLogitsLoss()), ("lsgan", nn.MSELoss())])
def test_against_the_losses_of_torch(mode: str, loss: nn.Module) -> None:
    prediction = 3 * torch.randn(2, 1, 5, 4, generator=torch.Generator().manual_seed(0))
    gan = GAN_LOSSES[mode]
    ones, zeros = torch.ones_like(prediction), torch.zeros_like(prediction)
    torch.testing.assert_close(gan.generator(prediction), loss(prediction, ones))
    torch.testing.assert_close(gan.real(prediction), loss(prediction, ones))
    torch.testing.assert_close(gan.fake(prediction), loss(prediction, zeros))


def test_vanilla_is_finite_for_extreme_logits() -> None:
    far = torch.tensor([1e4, -1e4])
    assert GAN_LOSSES["vanilla"].real(far) == 5e3
    assert GAN_LOSSES["vanilla"].fake(far) == 5e3


def test_hinge_by_hand() -> None:
    gan = GAN_LOSSES["hinge"]
    assert gan.real(PREDICTION).item() == pytest.approx((4 + 1.5 + 0.75 + 0) / 4)
    assert gan.fake(PREDICTION).item() == pytest.approx((0 + 0.5 + 1.25 + 3) / 4)
    assert gan.generator(PREDICTION).item() == pytest.approx(1.25 / 4)


def test_wasserstein_by_hand() -> None:
    gan = GAN_LOSSES["wgangp"]
    assert gan.real(PREDICTION).item() == pytest.approx(1.25 / 4)
    assert gan.fake(PREDICTION).item() == pytest.approx(-1.25 / 4)
    assert gan.generator(PREDICTION).item() == pytest.approx(1.25 / 4)


@pytest.mark.parametrize("mode", GAN_LOSSES)
def test_losses_are_float32_whatever_comes_in(mode: str) -> None:
    for loss in GAN_LOSSES[mode]:
        assert loss(PREDICTION.bfloat16()).dtype == torch.float32


def test_gradient_penalty_of_a_linear_discriminator() -> None:
    """D(x) = w . x has the gradient w everywhere, so the penalty is (|w| - 1)^2, and 2 (|w| - 1) w / |w| for w."""
    draws = torch.Generator().manual_seed(1)
    w = torch.randn(3, 4, 4, generator=draws).requires_grad_()
    real, fake = torch.randn(2, 2, 3, 4, 4, generator=draws)
    penalty = gradient_penalty(lambda x: (x * w).sum((1, 2, 3)), real, fake)
    length = w.detach().norm().item()
    assert penalty.item() == pytest.approx((length - 1) ** 2, rel=1e-5)
    penalty.backward()
    torch.testing.assert_close(w.grad, 2 * (length - 1) / length * w.detach())


def test_gradient_penalty_of_a_stored_picture_of_another_size() -> None:
    draws = torch.Generator().manual_seed(1)
    real, fake = torch.randn(1, 3, 4, 6, generator=draws), torch.randn(1, 3, 5, 3, generator=draws)
    penalty = gradient_penalty(lambda x: 2 * x.sum((1, 2, 3)), real, fake)  # what both have is 3 x 4 x 3
    assert penalty.item() == pytest.approx((2 * 36**0.5 - 1) ** 2, rel=1e-5)


def test_gradient_penalty_is_per_image_and_between_real_and_fake() -> None:
    """D(x) = |x|^2 / 2 has the gradient x: the penalty looks at the norm of each mixed image by itself."""
    seen: list[Tensor] = []

    def discriminator(x: Tensor) -> Tensor:
        seen.append(x.detach())
        return x.square().sum((1, 2, 3)) / 2

    real, fake = torch.full((2, 1, 2, 2), 3.0), torch.full((2, 1, 2, 2), 1.0)
    penalty = gradient_penalty(discriminator, real, fake)
    [points] = seen
    levels = points.flatten(1)
    assert (levels == levels[:, :1]).all() and (levels > 1).all() and (levels < 3).all()
    assert levels[0, 0] != levels[1, 0]
    expected = sum((2 * level - 1) ** 2 for level in levels[:, 0].tolist()) / 2  # 4 pixels: norm = 2 * level
    assert penalty.item() == pytest.approx(expected, rel=1e-5)


def test_gradient_penalty_through_a_normalized_convolution() -> None:
    """Second order through the layer: the gradient of the penalty against finite differences, in float64."""
    torch.manual_seed(0)
    discriminator = nn.Sequential(
        NormalizedConv2d(2, 3, 3, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        NormalizedConv2d(3, 1, 3, padding=1),
    ).double()
    real, fake = torch.randn(2, 2, 2, 6, 6, dtype=torch.float64)

    def penalty() -> Tensor:
        """As gradient_penalty, in float64 and at one fixed point each."""
        points = (0.3 * real + 0.7 * fake).requires_grad_()
        (gradient,) = torch.autograd.grad(discriminator(points).sum(), points, create_graph=True)
        return (gradient.flatten(1).norm(dim=1) - 1).square().mean()

    penalty().backward()
    for parameter in discriminator.parameters():
        if parameter.grad is None:  # a bias of the last layer moves no gradient
            continue
        flat, h = parameter.data.view(-1), 1e-6
        for index in range(0, flat.numel(), max(1, flat.numel() // 5)):
            before = flat[index].item()
            flat[index] = before + h
            above = penalty().item()
            flat[index] = before - h
            below = penalty().item()
            flat[index] = before
            slope = (above - below) / (2 * h)
            assert parameter.grad.view(-1)[index].item() == pytest.approx(slope, rel=1e-4, abs=1e-7)


def test_gradient_penalty_of_a_normalized_discriminator_trains() -> None:
    torch.manual_seed(0)
    layer = NormalizedConv2d(3, 1, 4, stride=2, padding=1)
    penalty = gradient_penalty(layer, torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8))
    penalty.backward()
    assert math.isfinite(penalty.item())
    assert layer.weight.grad is not None and layer.weight.grad.abs().sum() > 0
