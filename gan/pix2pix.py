"""Pix2Pix: one generator, one conditional discriminator, pairs (Isola et al. 2017)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gan.losses import GAN_LOSSES, gradient_penalty, wide
from gan.step import Batch, StepResult, Trainer, evaluating, requires_grad


@dataclass(frozen=True, kw_only=True)
class Pix2Pix(Trainer):
    """Networks `G D`, optimisers `G D`, pool `AB` of (input, translation) pairs, and the loss weights."""

    lambda_L1: float

    def step(self, batch: Batch) -> StepResult:
        """Discriminator first, then generator."""
        gan = GAN_LOSSES[self.gan_mode]
        G, D = self.networks["G"], self.networks["D"]
        real_A, real_B = self.placement.put(batch["A"]), self.placement.put(batch["B"])

        requires_grad(self.optimizers["D"], True)
        with self.placement.autocast():
            fake_B = G(real_A)
            (fake_pair,) = self.pooled({"AB": torch.cat([real_A, fake_B.detach()], 1)}, batch)
            real_pair = torch.cat([real_A, real_B], 1)
            on_real, on_fake = self.both(D, real_pair, fake_pair)
            losses = {"D_real": gan.real(on_real), "D_fake": gan.fake(on_fake)}
            loss_D = 0.5 * (losses["D_real"] + losses["D_fake"])
            if self.gan_mode == "wgangp":
                losses["D_gp"] = self.lambda_gp * gradient_penalty(D, real_pair, fake_pair)
                loss_D = loss_D + losses["D_gp"]
        with self.updating("D", losses, batch):
            loss_D.backward()

        requires_grad(self.optimizers["D"], False)
        with self.placement.autocast():
            losses["G_GAN"] = gan.generator(D(torch.cat([real_A, fake_B], 1)))
            losses["G_L1"] = self.lambda_L1 * F.l1_loss(wide(fake_B), real_B)
        with self.updating("G", losses, batch):
            (losses["G_GAN"] + losses["G_L1"]).backward()

        return StepResult(
            {name: loss.detach() for name, loss in losses.items()},
            {"input": real_A, "fake": wide(fake_B.detach()), "target": real_B},
        )

    def sample(self, batch: Batch) -> dict[str, Tensor]:
        G = self.shown("G")
        real_A, real_B = self.placement.put(batch["A"]), self.placement.put(batch["B"])
        with evaluating([G]), self.placement.autocast():
            fake_B = G(real_A)
        return {"input": real_A, "fake": wide(fake_B), "target": real_B}
