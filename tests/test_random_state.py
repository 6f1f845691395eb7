"""Random states: saved, restored, left alone."""

import random
from pathlib import Path

import numpy
import pytest
import torch

from gan import state as rng_state
from gan.checkpoint import load_file, save_checkpoint
from gan.step import seed_everything, use_deterministic


@pytest.fixture(autouse=True)
def leave_the_generators_alone():
    with rng_state.forked_random_state():
        yield


def draw() -> list[float]:
    """Numbers from every generator, odd counts of normal ones: those keep half a pair for later."""
    return [
        random.random(), random.gauss(0, 1), numpy.random.rand(), numpy.random.randn(),
        torch.rand(()).item(), torch.randn(3).sum().item(), float(torch.randperm(1000)[0]),
    ]  # fmt: skip


def test_the_state_goes_through_a_checkpoint(tmp_path: Path) -> None:
    seed_everything(3)
    for _ in range(700):  # beyond the first block of the Mersenne twister
        draw()
    path = save_checkpoint(tmp_path, {"rng": rng_state.random_state()}, step=1, epoch=0, keep=1)
    expected = [draw() for _ in range(700)]
    seed_everything(4)
    assert draw() != expected[0]
    rng_state.set_random_state(load_file(path)["rng"])
    assert [draw() for _ in range(700)] == expected
    assert path.stat().st_size < 30_000


def test_seeds_are_those_of_the_libraries() -> None:
    seed_everything(5)
    mine = (random.random(), numpy.random.rand(), torch.rand(()).item())
    generator = torch.Generator().manual_seed(5)
    theirs = (
        random.Random(5).random(),
        numpy.random.RandomState(5).rand(),
        torch.rand((), generator=generator).item(),
    )
    assert mine == theirs


def test_forked_leaves_the_generators_as_they_were() -> None:
    seed_everything(1)
    expected = draw() + draw()
    seed_everything(1)
    found = draw()
    with pytest.raises(KeyError), rng_state.forked_random_state():
        seed_everything(9)
        draw()
        raise KeyError
    assert found + draw() == expected


def test_states_of_devices_that_are_not_here_are_left_out() -> None:
    state = rng_state.random_state()
    drawn = torch.rand(3)
    rng_state.set_random_state({**state, "mps": torch.zeros(44, dtype=torch.uint8), "cuda": []})
    assert torch.equal(torch.rand(3), drawn)  # the generators that are here are restored all the same


def test_deterministic_is_switched_on_and_off(monkeypatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    use_deterministic(True)
    try:
        assert torch.are_deterministic_algorithms_enabled()
        with pytest.raises(RuntimeError, match="deterministic"):  # one that has no deterministic form
            torch.zeros(4).put_(torch.tensor([0, 0]), torch.ones(2))
        assert not torch.empty(1 << 24).isnan().all()  # nothing is filled with NaN first
    finally:
        use_deterministic(False)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.cuda
def test_the_state_of_a_gpu(tmp_path: Path) -> None:
    torch.rand(3, device="cuda")
    path = save_checkpoint(tmp_path, {"rng": rng_state.random_state()}, step=1, epoch=0, keep=1)
    expected = torch.randn(5, device="cuda")
    seed_everything(9)
    rng_state.set_random_state(load_file(path)["rng"])
    assert torch.equal(torch.randn(5, device="cuda"), expected)
