"""--grad_checkpoint: the same bits with less memory."""

import copy
from pathlib import Path

import pytest
import torch
from training_support import TINY, differences, last_state, records, train, write_aligned

from gan.command_line import parse_train
from gan.cyclegan import CycleGAN
from gan.setup import build_trainer, why_no_graph
from models.build import build_generator

NETWORKS = {
    "resnet, dropout": ("resnet_6blocks", {"norm": "instance", "base_norm": "instance", "dropout": True}),
    "resnet, batch norm": ("resnet_6blocks", {"norm": "batch", "base_norm": "batch", "dropout": True}),
    "resnet, nc_dms": ("resnet_6blocks", {"norm": "nc_dms", "base_norm": "batch"}),
    "resnet, pono_ms, resize": (
        "resnet_6blocks",
        {"norm": "pono_ms", "base_norm": "instance", "upsample": "resize"},
    ),
    "unet, batch norm": ("unet_128", {"norm": "batch", "base_norm": "batch", "dropout": True}),
    "unet, nc_ms": ("unet_128", {"norm": "nc_ms", "base_norm": "batch", "dropout": True}),
}
"""What draws random numbers, what counts batches, what hands moments on."""


class SavedBytes:
    """Bytes that autograd keeps for the backward pass, counted once a storage."""

    def __init__(self, network: torch.nn.Module) -> None:
        self._known = {p.untyped_storage().data_ptr() for p in network.parameters()}
        self.total = 0

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._known:
            self._known.add(storage.data_ptr())
            self.total += storage.nbytes()
        return tensor


@pytest.mark.parametrize("name", NETWORKS)
def test_same_bits_less_memory(name: str) -> None:
    generator, named = NETWORKS[name]
    torch.manual_seed(0)
    plain = build_generator(generator, ngf=4, **named)
    saving = copy.deepcopy(plain)
    saving.grad_checkpoint = True
    side = plain.min_size if generator == "unet_128" else 32
    x = torch.rand(2, 3, side, side) * 2 - 1
    outcomes = []
    for network in (plain, saving):
        torch.manual_seed(1)
        saved, images = SavedBytes(network), x.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
            first = network(images)
            second = network(first)  # as in a cycle: two passes before one backward pass
        second.square().mean().backward()
        gradients = {key: p.grad for key, p in network.named_parameters()}
        outcomes.append(
            (
                saved.total,
                first.detach(),
                second.detach(),
                images.grad,
                gradients,
                network.state_dict(),
                torch.rand(3),
            )
        )
    (much, *expected), (little, *found) = outcomes
    assert list(differences(expected, found)) == []
    assert little < 0.7 * much, (little, much)
    if "batch" in named.values():
        counts = {int(value) for key, value in plain.state_dict().items() if key.endswith("tracked")}
        assert counts == {2}


def test_a_retained_graph_serves_twice() -> None:
    network = build_generator("resnet_6blocks", ngf=2, norm="batch", base_norm="batch", grad_checkpoint=True)
    total = network(torch.randn(1, 3, 16, 16)).sum()
    total.backward(retain_graph=True)
    first = [p.grad.clone() for p in network.parameters()]
    buffers = [buffer.clone() for buffer in network.buffers()]
    total.backward()
    for one, p in zip(first, network.parameters(), strict=True):
        torch.testing.assert_close(p.grad, 2 * one, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(buffers, network.buffers(), strict=True))


def test_without_gradients_it_is_a_plain_call(monkeypatch: pytest.MonkeyPatch) -> None:
    network = build_generator("resnet_6blocks", ngf=2, grad_checkpoint=True)
    assert network.grad_checkpoint and not build_generator("resnet_6blocks", ngf=2).grad_checkpoint
    monkeypatch.setattr("models.blocks.checkpoint", None)
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 8, 8)).shape == (1, 3, 8, 8)
    with pytest.raises(TypeError):
        network(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("model", ["cycle_gan", "pix2pix"])
def test_a_training_has_the_same_bits_and_lines(model: str, tmp_path: Path) -> None:
    """Resumed with the flag switched on half way as well: it changes nothing that is trained."""
    data = write_aligned(tmp_path / "data")
    more = ["--model", model, "--dropout", "--norm", "batch", "--dataset_mode", "aligned"]
    more += ["--n_epochs", 2]
    flags = ["--dataroot", data, "--name", "r", *TINY, *more]
    for runs, own in (("plain", []), ("saving", ["--grad_checkpoint"])):
        outcome = train(*flags, "--checkpoints_dir", tmp_path / runs, *own)
        assert outcome.code == 0, outcome.err
    assert list(differences(last_state(tmp_path / "plain/r"), last_state(tmp_path / "saving/r"))) == []
    assert records(tmp_path / "plain/r") == records(tmp_path / "saving/r")
    for runs, own in (("plain", ["--grad_checkpoint"]), ("saving", ["--no_grad_checkpoint"])):
        where = ["--name", "r", "--checkpoints_dir", tmp_path / runs, "--continue_train", "--n_epochs", 3]
        outcome = train(*where, *own)
        assert outcome.code == 0, outcome.err
    assert list(differences(last_state(tmp_path / "plain/r"), last_state(tmp_path / "saving/r"))) == []


def test_only_the_generators_do_it() -> None:
    options = parse_train(["--dataroot", "none", *TINY, "--grad_checkpoint", "--precision", "bf16"])[0]
    trainer = build_trainer(options)
    assert isinstance(trainer, CycleGAN)
    assert trainer.networks["G_A"].grad_checkpoint and trainer.networks["G_B"].grad_checkpoint
    batch = {side: torch.rand(1, 3, 16, 16) for side in "AB"}
    assert torch.isfinite(torch.stack(list(trainer.step(batch).losses.values()))).all()


def test_it_does_not_go_with_a_cuda_graph() -> None:
    for flags, reason in (([], ""), (["--grad_checkpoint"], "does not go with --grad_checkpoint")):
        options = parse_train(["--dataroot", "none", *TINY, *flags])[0]
        assert why_no_graph(options, torch.device("cuda")) == reason


def test_compile_is_refused(tmp_path: Path) -> None:
    outcome = train("--dataroot", tmp_path, *TINY, "--grad_checkpoint", "--compile")
    assert outcome.code == 2
    assert outcome.error == "error: --compile: does not go with --grad_checkpoint (leave one of them out)"
