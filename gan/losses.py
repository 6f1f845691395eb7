"""Adversarial losses as functions of discriminator outputs; all in float32.

Sources: vanilla (Goodfellow et al. 2014, with logits), lsgan (Mao et al. 2017), wgangp (Gulrajani et al. 2017), hinge
(Lim & Ye 2017). Predictions are maps of any shape, averaged.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class GANLoss(NamedTuple):
    """What one adversarial game minimises: three functions of a prediction map."""

    generator: Callable[[Tensor], Tensor]
    real: Callable[[Tensor], Tensor]
    fake: Callable[[Tensor], Tensor]


GAN_LOSSES: dict[str, GANLoss] = {
    "vanilla": GANLoss(
        generator=lambda p: F.softplus(-p.float()).mean(),  # BCE with logits against 1
        real=lambda p: F.softplus(-p.float()).mean(),
        fake=lambda p: F.softplus(p.float()).mean(),
    ),
    "lsgan": GANLoss(
        generator=lambda p: (p.float() - 1).square().mean(),
        real=lambda p: (p.float() - 1).square().mean(),
        fake=lambda p: p.float().square().mean(),
    ),
    "wgangp": GANLoss(
        generator=lambda p: -p.float().mean(),
        real=lambda p: -p.float().mean(),
        fake=lambda p: p.float().mean(),
    ),
    "hinge": GANLoss(
        generator=lambda p: -p.float().mean(),
        real=lambda p: F.relu(1 - p.float()).mean(),
        fake=lambda p: F.relu(1 + p.float()).mean(),
    ),
}
"""`--gan_mode` -> its losses."""


def gradient_penalty(discriminator: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor) -> Tensor:
    """E[(|grad D(x)|_2 - 1)^2] at random points between real and fake, both (N, C, H, W); unweighted."""
    mix = torch.rand(real.shape[0], 1, 1, 1, device=real.device)
    points = (mix * real.detach() + (1 - mix) * fake.detach()).requires_grad_()
    prediction = discriminator(points)
    (gradient,) = torch.autograd.grad(prediction.float().sum(), points, create_graph=True)
    return (gradient.float().flatten(1).norm(dim=1) - 1).square().mean()
