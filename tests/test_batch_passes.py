"""--batch_passes: the same step from fewer passes, and refused where a layer couples the pictures of a batch."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from datasets.errors import UserError
from gan.command_line import parse_train
from gan.setup import build_trainer
from gan.step import Trainer

TINY = [
    "--dataroot", "none", "--crop_size", "16", "--ngf", "4", "--ndf", "4", "--netG", "resnet_6blocks",
    "--netD", "n_layers", "--n_layers_D", "1", "--device", "cpu",
]  # fmt: skip


def in_float64(model: str, *more: str) -> Trainer:
    """With SGD: Adam makes a whole step of a gradient that is rounding noise."""
    trainer = build_trainer(parse_train([*TINY, "--model", model, *more])[0])
    for network in trainer.networks.values():
        network.double()
    for name, optimizer in trainer.optimizers.items():
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        trainer.optimizers[name] = torch.optim.SGD(parameters, lr=2e-3, momentum=0.5)
    return trainer


def batches(count: int, batch: int) -> list[dict[str, Tensor]]:
    draws = torch.Generator().manual_seed(5)
    pictures = 2 * torch.rand(count, 2, batch, 3, 16, 16, generator=draws, dtype=torch.float64) - 1
    return [{"A": a, "B": b} for a, b in pictures]


def relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max().clamp_min(1e-30))


def weights(network: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


CASES = [
    ("cycle_gan", "instance"), ("cycle_gan", "nc_ms"), ("cycle_gan", "pono_ms"), ("cycle_gan", "none"),
    ("pix2pix", "nc_ms"), ("pix2pix", "instance"),
]  # fmt: skip


@pytest.mark.parametrize("gan_mode", ["lsgan", "wgangp"])
@pytest.mark.parametrize(("model", "norm"), CASES)
def test_joined_passes_compute_the_same_step(model: str, norm: str, gan_mode: str) -> None:
    more = ["--norm", norm, "--base_norm", "instance", "--gan_mode", gan_mode]
    more = [*more[:2], *more[4:]] if norm in ("instance", "none") else more
    if norm == "none":
        more += ["--base_norm", "none"]
    plain = in_float64(model, *more)
    joined = in_float64(model, *more, "--batch_passes")
    for batch in batches(3, batch=2):
        torch.manual_seed(1)  # the points of the gradient penalty
        expected = plain.step(batch)
        torch.manual_seed(1)
        got = joined.step(batch)
        assert got.losses.keys() == expected.losses.keys()
        for name, loss in got.losses.items():
            assert relative(loss, expected.losses[name]) <= 1e-12, name
        for name, network in joined.networks.items():
            assert relative(weights(network), weights(plain.networks[name])) <= 1e-12, name
            network.load_state_dict(
                plain.networks[name].state_dict()
            )  # per step: a GAN amplifies what differs


class Calls(TorchDispatchMode):
    """Counts the convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.convolutions += func is torch.ops.aten.convolution.default
        return func(*args, **(kwargs or {}))


def test_there_are_fewer_passes() -> None:
    def convolutions(*more: str) -> int:
        trainer = in_float64("cycle_gan", "--norm", "instance", *more)
        with Calls() as calls:
            trainer.step(batches(1, batch=1)[0])
        return calls.convolutions

    generator = sum(
        isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
        for layer in in_float64("cycle_gan", "--norm", "instance").networks["G_A"].modules()
    )
    discriminator = 3
    assert convolutions() == 6 * generator + 6 * discriminator
    assert convolutions("--batch_passes") == 4 * generator + 4 * discriminator


@pytest.mark.parametrize("model", ["cycle_gan", "pix2pix"])
def test_batch_norm_refuses_it(model: str) -> None:
    more = ["--norm", "batch"] if model == "cycle_gan" else []
    with pytest.raises(
        UserError, match=r"--batch_passes: does not go with batch norm: in (G|G_A), .*--base_norm instance"
    ):
        build_trainer(parse_train([*TINY, "--model", model, *more, "--batch_passes"])[0])


def test_pictures_of_two_sizes_go_one_by_one() -> None:
    trainer = in_float64("cycle_gan", "--norm", "instance", "--batch_passes")
    A, B = torch.zeros(1, 3, 16, 16, dtype=torch.float64), torch.zeros(1, 3, 20, 16, dtype=torch.float64)
    assert trainer.step({"A": A, "B": B}).images["fake_A"].shape == B.shape
