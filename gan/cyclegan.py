"""CycleGAN: two generators, two discriminators, no pairs (Zhu et al. 2017).

G_A: A -> B, judged by D_A (real B against translated A)        G_B: B -> A, judged by D_B
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan.losses import GAN_LOSSES, gradient_penalty, wide
from gan.step import Batch, StepResult, Trainer, evaluating, requires_grad


@dataclass(frozen=True, kw_only=True)
class CycleGAN(Trainer):
    """Networks `G_A G_B D_A D_B`, optimisers `G` (both generators) and `D`, pools `A B`, and the loss weights."""

    lambda_A: float
    lambda_B: float
    lambda_identity: float

    def step(self, batch: Batch) -> StepResult:
        """Generators first, then discriminators; the identity loss is left out where its weight is 0."""
        gan = GAN_LOSSES[self.gan_mode]
        G_A, G_B, D_A, D_B = (self.networks[name] for name in ("G_A", "G_B", "D_A", "D_B"))
        real_A, real_B = self.placement.put(batch["A"]), self.placement.put(batch["B"])
        identity = self.lambda_identity > 0
        joined = identity and self.batch_passes

        requires_grad(self.optimizers["D"], False)
        with self.placement.autocast():
            fake_B, same_B = self.both(G_A, real_A, real_B) if joined else (G_A(real_A), None)
            rec_A = G_B(fake_B)
            fake_A, same_A = self.both(G_B, real_B, real_A) if joined else (G_B(real_B), None)
            rec_B = G_A(fake_A)
            losses = {
                "G_A": gan.generator(D_A(fake_B)),
                "G_B": gan.generator(D_B(fake_A)),
                "cycle_A": self.lambda_A * _l1(rec_A, real_A),
                "cycle_B": self.lambda_B * _l1(rec_B, real_B),
            }
            if identity:
                same_B = G_A(real_B) if same_B is None else same_B
                losses["idt_A"] = self.lambda_B * self.lambda_identity * _l1(same_B, real_B)
                same_A = G_B(real_A) if same_A is None else same_A
                losses["idt_B"] = self.lambda_A * self.lambda_identity * _l1(same_A, real_A)
        with self.updating("G", losses, batch):
            torch.stack(list(losses.values())).sum().backward()

        requires_grad(self.optimizers["D"], True)
        old_B, old_A = self.pooled({"B": wide(fake_B.detach()), "A": wide(fake_A.detach())}, batch)
        with self.updating("D", losses, batch):
            losses["D_A"] = self._discriminate(D_A, real_B, old_B)
            losses["D_B"] = self._discriminate(D_B, real_A, old_A)

        images = {
            "input_A": real_A, "fake_B": fake_B, "rec_A": rec_A,
            "input_B": real_B, "fake_A": fake_A, "rec_B": rec_B,
        }  # fmt: skip
        return StepResult(_detached(losses), _detached(images))

    def sample(self, batch: Batch) -> dict[str, Tensor]:
        G_A, G_B = self.shown("G_A"), self.shown("G_B")
        real_A, real_B = self.placement.put(batch["A"]), self.placement.put(batch["B"])
        with evaluating([G_A, G_B]), self.placement.autocast():
            fake_B, fake_A = G_A(real_A), G_B(real_B)
            images = {
                "input_A": real_A, "fake_B": fake_B, "rec_A": G_B(fake_B),
                "input_B": real_B, "fake_A": fake_A, "rec_B": G_A(fake_A),
            }  # fmt: skip
        return _detached(images)

    def _discriminate(self, discriminator: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
        """Half the adversarial loss (so that D learns at half the pace of G), with its gradients."""
        gan = GAN_LOSSES[self.gan_mode]
        with self.placement.autocast():
            on_real, on_fake = self.both(discriminator, real, fake)
            loss = 0.5 * (gan.real(on_real) + gan.fake(on_fake))
            if self.gan_mode == "wgangp":
                loss = loss + self.lambda_gp * gradient_penalty(discriminator, real, fake)
        if loss.requires_grad:  # not all of this discriminator is frozen
            loss.backward()
        return loss


def _l1(output: Tensor, target: Tensor) -> Tensor:
    return F.l1_loss(wide(output), target)


def _detached(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: wide(tensor.detach()) for name, tensor in tensors.items()}
