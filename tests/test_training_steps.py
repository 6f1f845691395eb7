"""The training steps against a second writing of them from the definitions, and what options do to them."""

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan import step
from gan.command_line import parse_train
from gan.losses import GAN_LOSSES
from gan.setup import build_trainer
from gan.step import Trainer, stepping_in_backward

TINY = [
    "--dataroot", "none", "--crop_size", "16", "--ngf", "4", "--ndf", "4", "--netG", "resnet_6blocks",
    "--netD", "n_layers", "--n_layers_D", "1", "--device", "cpu", "--lr", "2e-3",
]  # fmt: skip


def tiny(model: str, *arguments: str) -> Trainer:
    torch.manual_seed(0)
    return build_trainer(parse_train([*TINY, "--model", model, *arguments])[0])


def batches(count: int, size: int = 16, batch: int = 1, channels: int = 3) -> list[dict[str, Tensor]]:
    draws = torch.Generator().manual_seed(5)
    pictures = 2 * torch.rand(count, 2, batch, channels, size, size, generator=draws) - 1
    return [{"A": a, "B": b} for a, b in pictures]


def twins(trainer: Trainer) -> dict[str, nn.Module]:
    """Networks of the same weights that share nothing with the trainer's."""
    return {name: copy.deepcopy(network) for name, network in trainer.networks.items()}


def descend(*networks: nn.Module) -> torch.optim.SGD:
    """Adam makes a step of full length of a gradient that is rounding noise; this compares what the step computes."""
    return torch.optim.SGD([p for network in networks for p in network.parameters()], lr=2e-3, momentum=0.5)


def use_descent(trainer: Trainer) -> None:
    for name, optimizer in trainer.optimizers.items():
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        trainer.optimizers[name] = torch.optim.SGD(parameters, lr=2e-3, momentum=0.5)


def assert_equal_weights(trainer: Trainer, others: dict[str, nn.Module]) -> None:
    for name, network in trainer.networks.items():
        expected = others[name].state_dict()
        for key, value in network.state_dict().items():
            torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-6, msg=f"{name}.{key}")


@pytest.mark.parametrize("norm", ["instance", "nc_ms"])
@pytest.mark.parametrize("identity", [0.5, 0.0])
def test_cyclegan_step_by_step(norm: str, identity: float) -> None:
    arguments = ["--norm", norm, "--lambda_A", "7", "--lambda_B", "11", "--lambda_identity", str(identity)]
    trainer = tiny("cycle_gan", *arguments)
    nets = twins(trainer)
    G_A, G_B, D_A, D_B = (nets[name] for name in ("G_A", "G_B", "D_A", "D_B"))
    use_descent(trainer)
    optimizer_G, optimizer_D = descend(G_A, G_B), descend(D_A, D_B)

    def mse(prediction: Tensor, target: float) -> Tensor:
        return nn.MSELoss()(prediction, torch.full_like(prediction, target))

    for batch in batches(2):
        A, B = batch["A"], batch["B"]
        fake_B, fake_A = G_A(A), G_B(B)
        expected = {
            "G_A": mse(D_A(fake_B), 1),
            "G_B": mse(D_B(fake_A), 1),
            "cycle_A": 7 * nn.L1Loss()(G_B(fake_B), A),
            "cycle_B": 11 * nn.L1Loss()(G_A(fake_A), B),
        }
        if identity:
            expected["idt_A"] = 11 * identity * nn.L1Loss()(G_A(B), B)
            expected["idt_B"] = 7 * identity * nn.L1Loss()(G_B(A), A)
        optimizer_G.zero_grad()
        torch.stack(list(expected.values())).sum().backward()
        optimizer_G.step()
        optimizer_D.zero_grad()
        expected["D_A"] = 0.5 * (mse(D_A(B), 1) + mse(D_A(fake_B.detach()), 0))
        expected["D_B"] = 0.5 * (mse(D_B(A), 1) + mse(D_B(fake_A.detach()), 0))
        (expected["D_A"] + expected["D_B"]).backward()
        optimizer_D.step()

        result = trainer.step(batch)
        assert result.losses.keys() == expected.keys()
        for name, loss in expected.items():
            torch.testing.assert_close(result.losses[name], loss.detach(), rtol=1e-5, atol=1e-6, msg=name)
        torch.testing.assert_close(result.images["fake_B"], fake_B.detach(), rtol=0, atol=1e-5)
    assert_equal_weights(trainer, nets)


@pytest.mark.parametrize("norm", ["batch", "nc_ms"])
def test_pix2pix_step_by_step(norm: str) -> None:
    trainer = tiny("pix2pix", "--norm", norm, "--no_dropout", "--lambda_L1", "30")
    nets = twins(trainer)
    G, D = nets["G"], nets["D"]
    use_descent(trainer)
    optimizer_G, optimizer_D = descend(G), descend(D)

    def bce(prediction: Tensor, target: float) -> Tensor:
        return nn.BCEWithLogitsLoss()(prediction, torch.full_like(prediction, target))

    for batch in batches(2, batch=2):
        A, B = batch["A"], batch["B"]
        fake = G(A)
        real_loss = bce(D(torch.cat([A, B], 1)), 1)
        fake_loss = bce(D(torch.cat([A, fake.detach()], 1)), 0)
        optimizer_D.zero_grad()
        (0.5 * (real_loss + fake_loss)).backward()
        optimizer_D.step()
        optimizer_G.zero_grad()
        gan_loss, l1 = bce(D(torch.cat([A, fake], 1)), 1), 30 * nn.L1Loss()(fake, B)
        (gan_loss + l1).backward()
        optimizer_G.step()

        losses = trainer.step(batch).losses
        expected = {"D_real": real_loss, "D_fake": fake_loss, "G_GAN": gan_loss, "G_L1": l1}
        assert losses.keys() == expected.keys()
        for name, loss in expected.items():
            torch.testing.assert_close(losses[name], loss.detach(), rtol=1e-5, atol=1e-6, msg=name)
    assert_equal_weights(trainer, nets)


@pytest.mark.parametrize(
    ("model", "groups"),
    [("cycle_gan", {"G": ["G_A", "G_B"], "D": ["D_A", "D_B"]}), ("pix2pix", {"G": ["G"], "D": ["D"]})],
)
def test_adam_as_the_papers_have_it(model: str, groups: dict[str, list[str]]) -> None:
    trainer = tiny(model, "--beta1", "0.4")
    assert trainer.optimizers.keys() == groups.keys()
    for name, optimizer in trainer.optimizers.items():
        assert type(optimizer) is torch.optim.Adam
        [group] = optimizer.param_groups
        assert [group[name] for name in ("lr", "betas", "weight_decay", "eps")] == [
            2e-3,
            (0.4, 0.999),
            0,
            1e-8,
        ]
        expected = [p for network in groups[name] for p in trainer.networks[network].parameters()]
        assert [id(p) for p in group["params"]] == [id(p) for p in expected]


def test_a_discriminator_sees_the_pool_and_a_generator_does_not() -> None:
    """A pool that hands back an old picture changes D's loss only; in CycleGAN each domain has its own."""
    pooled, plain = tiny("cycle_gan", "--pool_size", "1"), tiny("cycle_gan", "--pool_size", "0")
    old = torch.ones(3, 16, 16)
    for pool in pooled.pools.values():
        pool.query(old[None])
        pool._random.random = lambda: 0.9  # type: ignore[method-assign]
    batch = batches(1)[0]
    D_A = copy.deepcopy(plain.networks["D_A"])
    losses, reference = pooled.step(batch).losses, plain.step(batch).losses
    gan = GAN_LOSSES["lsgan"]
    expected = 0.5 * (gan.real(D_A(batch["B"])) + gan.fake(D_A(old[None])))
    torch.testing.assert_close(losses["D_A"], expected.detach())
    assert losses["D_A"] != reference["D_A"]
    assert losses["G_A"] == reference["G_A"]


@pytest.mark.parametrize("gan_mode", GAN_LOSSES)
@pytest.mark.parametrize("model", ["cycle_gan", "pix2pix"])
def test_every_gan_mode_trains(model: str, gan_mode: str) -> None:
    trainer = tiny(model, "--gan_mode", gan_mode, "--norm", "nc_ms")
    before = twins(trainer)
    for batch in batches(2):
        losses = trainer.step(batch).losses
    assert all(math.isfinite(loss.item()) and not loss.requires_grad for loss in losses.values())
    assert ("D_gp" in losses) == (gan_mode == "wgangp" and model == "pix2pix")
    for name, network in trainer.networks.items():
        changed = [
            not torch.equal(p, q)
            for p, q in zip(network.parameters(), before[name].parameters(), strict=True)
        ]
        assert any(changed), name


def test_the_gradient_penalty_is_part_of_the_discriminators_loss() -> None:
    with_penalty = tiny("cycle_gan", "--gan_mode", "wgangp", "--lambda_gp", "10").step(batches(1)[0]).losses
    without = tiny("cycle_gan", "--gan_mode", "wgangp", "--lambda_gp", "0").step(batches(1)[0]).losses
    assert with_penalty["D_A"] > without["D_A"]
    assert with_penalty["G_A"] == without["G_A"]


@pytest.mark.parametrize("model", ["cycle_gan", "pix2pix"])
def test_samples_change_nothing(model: str) -> None:
    trainer = tiny(
        model, "--norm", "nc_ms", "--base_norm", "batch", "--dropout" if model == "cycle_gan" else "--lr=1"
    )
    before, random = twins(trainer), torch.get_rng_state()
    first = trainer.sample(batches(1)[0])
    again = trainer.sample(batches(1)[0])
    assert_equal_weights(trainer, before)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(first[kind], again[kind]) for kind in first)
    assert all(network.training for network in trainer.networks.values())


def test_different_channels_in_and_out() -> None:
    trainer = tiny("cycle_gan", "--input_nc", "1", "--lambda_identity", "0")
    batch = {"A": batches(1, channels=1)[0]["A"], "B": batches(1)[0]["B"]}
    images = trainer.step(batch).images
    assert images["fake_A"].shape[1] == 1 and images["fake_B"].shape[1] == 3
    pair = tiny("pix2pix", "--output_nc", "1")
    assert pair.step({"A": batch["B"], "B": batch["A"]}).images["fake"].shape[1] == 1


def coarse_pair() -> dict[str, Tensor]:
    """B is A with its channels exchanged and inverted."""
    A = F.interpolate(batches(1, size=4)[0]["A"], 16, mode="bilinear")
    return {"A": A, "B": -A.flip(1)}


def test_pix2pix_learns_one_pair_by_heart() -> None:
    trainer = tiny("pix2pix", "--norm", "nc_ms", "--ngf", "8", "--no_dropout", "--netD", "pixel")
    batch = coarse_pair()
    distances = [F.l1_loss(trainer.step(batch).images["fake"], batch["B"]).item() for _ in range(120)]
    assert distances[0] > 0.3
    assert min(distances[-10:]) < 0.1, distances[::20]


def test_cyclegan_learns_to_come_back() -> None:
    trainer = tiny("cycle_gan", "--norm", "nc_ms", "--ngf", "8", "--netD", "pixel", "--lambda_identity", "0")
    batch = coarse_pair()
    losses = [trainer.step(batch).losses for _ in range(60)]
    for name in ("cycle_A", "cycle_B"):
        assert min(loss[name].item() for loss in losses[-10:]) < 0.5 * losses[0][name].item(), name


@pytest.mark.parametrize("model", ["cycle_gan", "pix2pix"])
def test_bfloat16_and_channels_last_follow_float32(model: str) -> None:
    plain = tiny(model, "--norm", "nc_ms", "--no_dropout")
    other = tiny(model, "--norm", "nc_ms", "--no_dropout", "--precision", "bf16", "--channels_last")
    for batch in batches(2):
        expected, result = plain.step(batch), other.step(batch)
    for name, loss in expected.losses.items():
        assert result.losses[name].dtype == torch.float32
        assert result.losses[name].item() == pytest.approx(loss.item(), rel=0.05, abs=0.02), name
    assert {p.dtype for network in other.networks.values() for p in network.parameters()} == {torch.float32}
    assert {image.dtype for image in result.images.values()} == {torch.float32}


@pytest.mark.parametrize("large", [1, 10])
def test_a_step_in_the_backward_pass_has_the_bits_of_one_afterwards(
    large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A weight that is used twice, and one that is not used, too. Only one large gradient at a time is in memory."""
    monkeypatch.setattr(step, "LARGE", large)

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.twice, self.unused = nn.Linear(3, 5), nn.Linear(5, 5), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.twice(self.twice(self.first(x)).sin()).square().mean()  # type: ignore[no-any-return]

    torch.manual_seed(0)
    network = Network()
    plain = copy.deepcopy(network)
    early, late = (torch.optim.Adam(n.parameters(), lr=0.1, fused=True) for n in (network, plain))
    alive: list[int] = []
    for parameter in network.parameters():
        count = lambda _: alive.append(sum(p.grad is not None for p in network.parameters()))
        parameter.register_post_accumulate_grad_hook(count)
    for x in torch.randn(3, 4, 3):
        with stepping_in_backward(early):
            network(x).backward()
        late.zero_grad()
        plain(x).backward()
        late.step()
    assert max(alive) == (1 if large == 1 else 3)  # two biases and a weight
    assert all(p.grad is None for p in network.parameters())
    for mine, right in zip(network.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, right)
    assert early.state_dict()["param_groups"] == late.state_dict()["param_groups"]
    torch.testing.assert_close(early.state_dict()["state"], late.state_dict()["state"], rtol=0, atol=0)


def test_a_backward_pass_that_fails_leaves_the_optimizer_whole() -> None:
    network = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(network.parameters())
    with pytest.raises(RuntimeError, match="stop"), stepping_in_backward(optimizer):
        raise RuntimeError("stop")
    assert optimizer.param_groups[0]["params"] == [*network.parameters()]
    network(torch.ones(1, 2)).sum().backward()
    assert network.weight.grad is not None  # no hook is left


def names_of(trainer: Trainer) -> dict[str, Any]:
    return {name: list(network.state_dict()) for name, network in trainer.networks.items()}


def test_compiling_changes_no_name_in_a_checkpoint() -> None:
    plain, compiled = tiny("pix2pix", "--norm", "nc_ms"), tiny("pix2pix", "--norm", "nc_ms", "--compile")
    assert names_of(compiled) == names_of(plain)
    assert all(network._compiled_call_impl is not None for network in compiled.networks.values())
    with torch.compiler.set_stance("force_eager"):  # the compiler itself: the slow test below
        losses = compiled.step(batches(1)[0]).losses
    assert all(math.isfinite(loss.item()) for loss in losses.values())


@pytest.mark.slow
@pytest.mark.parametrize("model", ["cycle_gan", "pix2pix"])
def test_compiled_steps_follow_the_plain_ones(model: str) -> None:
    plain, compiled = (tiny(model, "--norm", "nc_ms", "--no_dropout", *more) for more in ([], ["--compile"]))
    for batch in batches(2):
        expected, result = plain.step(batch), compiled.step(batch)
    for name, loss in expected.losses.items():
        assert result.losses[name].item() == pytest.approx(loss.item(), rel=1e-3), name
    assert names_of(compiled) == names_of(plain)
