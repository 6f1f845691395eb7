"""Adversarial losses as functions of discriminator outputs, and the pool of past fakes."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """x in float32, or in float64 if it has that."""
    return x if x.dtype == torch.float64 else x.float()


class GANLoss(NamedTuple):
    """What one adversarial game minimises: three functions of a prediction map."""

    generator: Callable[[Tensor], Tensor]
    real: Callable[[Tensor], Tensor]
    fake: Callable[[Tensor], Tensor]


GAN_LOSSES: dict[str, GANLoss] = {
    "vanilla": GANLoss(
        generator=lambda p: F.softplus(-wide(p)).mean(),  # BCE with logits against 1
        real=lambda p: F.softplus(-wide(p)).mean(),
        fake=lambda p: F.softplus(wide(p)).mean(),
    ),
    "lsgan": GANLoss(
        generator=lambda p: (wide(p) - 1).square().mean(),
        real=lambda p: (wide(p) - 1).square().mean(),
        fake=lambda p: wide(p).square().mean(),
    ),
    "wgangp": GANLoss(
        generator=lambda p: -wide(p).mean(),
        real=lambda p: -wide(p).mean(),
        fake=lambda p: wide(p).mean(),
    ),
    "hinge": GANLoss(
        generator=lambda p: -wide(p).mean(),
        real=lambda p: F.relu(1 - wide(p)).mean(),
        fake=lambda p: F.relu(1 + wide(p)).mean(),
    ),
}
"""`--gan_mode` -> its losses."""


def gradient_penalty(discriminator: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor) -> Tensor:
    """E[(|grad D(x)|_2 - 1)^2] at random points between real and fake, both (N, C, H, W); unweighted.

    Of a stored fake of another size, and of the real picture, the part that both have is taken.
    """
    height, width = (min(sides) for sides in zip(real.shape[2:], fake.shape[2:], strict=True))
    real, fake = real[:, :, :height, :width], fake[:, :, :height, :width]
    mix = torch.rand(real.shape[0], 1, 1, 1, device=real.device)
    points = (mix * real.detach() + (1 - mix) * fake.detach()).requires_grad_()
    prediction = discriminator(points)
    (gradient,) = torch.autograd.grad(wide(prediction).sum(), points, create_graph=True)
    return (wide(gradient).flatten(1).norm(dim=1) - 1).square().mean()


@dataclass
class ImagePool:
    """Keeps up to `size` images. Once full, half of the queries hand back a stored image and keep the new one.

    The pool draws from a random generator of its own, so its history is part of its state and of nothing else's.
    """

    size: int
    seed: int = 0

    def __post_init__(self) -> None:
        self.images: list[Tensor] = []
        self._random = random.Random(self.seed)

    def query(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in, as many out: new ones or, half of the time, stored ones."""
        if self.size == 0:
            return images
        new = images.detach()
        chosen = [self._exchange(image) for image in new]
        if len(chosen) > 1:  # a crop size changed on resume: old and new do not go into one batch
            chosen = [c if c.shape == image.shape else image for c, image in zip(chosen, new, strict=True)]
        return torch.stack(chosen)

    def _exchange(self, image: Tensor) -> Tensor:
        read, write = self._draw(len(self.images))
        chosen = image if read is None else self.images[read]
        if write is not None:
            self.images[write : write + 1] = [image.clone()]
        return chosen

    def _draw(self, filled: int) -> tuple[int | None, int | None]:
        """Which stored image is handed back (None: the new one), and where the new one is kept (None: nowhere)."""
        if filled < self.size:
            return None, filled
        if self._random.random() < 0.5:
            return None, None
        place = self._random.randrange(self.size)
        return place, place

    def state_dict(self) -> dict[str, Any]:
        """images: (n, C, H, W) where all have one size, which keeps the header of a checkpoint small; else a list."""
        version, words, gauss = self._random.getstate()
        images: Tensor | list[Tensor] = [image.cpu() for image in self.images]
        if len({image.shape for image in images}) == 1:
            images = torch.stack(list(images))
        return {"images": images, "random": [version, list(words), gauss]}

    def load_state_dict(self, state: dict[str, Any], device: torch.device | str = "cpu") -> None:
        version, words, gauss = state["random"]
        self.images = [image.to(device, copy=True) for image in state["images"]]  # apart from each other
        self._random.setstate((version, tuple(words), gauss))
