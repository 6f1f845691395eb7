"""The image pool: what it hands out, how often, and that its state is all of it."""

from pathlib import Path

import torch

from gan.checkpoint import load_file, save_checkpoint
from gan.losses import ImagePool


def image(value: float) -> torch.Tensor:
    return torch.full((1, 1, 2, 2), float(value))


def test_an_empty_pool_passes_images_through() -> None:
    images = torch.randn(3, 1, 2, 2, requires_grad=True)
    assert ImagePool(0).query(images) is images


def test_it_fills_up_first() -> None:
    pool = ImagePool(3)
    assert [pool.query(image(k)).mean().item() for k in range(3)] == [0, 1, 2]
    assert {stored.mean().item() for stored in pool.state_dict()["images"]} == {0, 1, 2}


def test_half_of_the_queries_hand_back_a_stored_image() -> None:
    """4000 draws: 5 standard deviations of a fair coin are 0.04."""
    size, queries = 50, 4000
    pool = ImagePool(size, seed=7)
    stored = 0
    held = set(range(size))
    for k in range(size + queries):
        out = int(pool.query(image(k)).mean().item())
        if k < size:
            assert out == k
        elif out != k:  # an exchange: the one handed back leaves, the new one stays
            stored += 1
            assert out in held
            held = held - {out} | {k}
    assert abs(stored / queries - 0.5) < 0.04
    assert {int(kept.mean().item()) for kept in pool.state_dict()["images"]} == held


def test_what_is_kept_and_handed_out_is_detached_from_the_callers_tensor() -> None:
    pool = ImagePool(1)
    images = image(1.0).requires_grad_()
    out = pool.query(images)
    assert not out.requires_grad
    images.data.fill_(9.0)
    [kept] = pool.state_dict()["images"]
    assert kept.mean() == 1


def test_a_batch_is_treated_image_by_image() -> None:
    pool = ImagePool(2, seed=3)
    out = pool.query(torch.arange(8.0).view(8, 1, 1, 1).expand(8, 1, 2, 2))
    assert out.shape == (8, 1, 2, 2)
    assert (out[:2].mean((1, 2, 3)) == torch.tensor([0.0, 1.0])).all()
    assert (out.flatten(1) == out.flatten(1)[:, :1]).all()


def test_the_state_goes_on_exactly_and_global_generators_are_left_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    pool = ImagePool(4, seed=5)
    for k in range(10):
        pool.query(image(k))
    twin = ImagePool(4, seed=99)
    twin.load_state_dict(pool.state_dict())
    for k in range(10, 60):
        assert torch.equal(pool.query(image(k)), twin.query(image(k)))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_stored_state_does_not_change_with_the_pool() -> None:
    pool = ImagePool(2, seed=0)
    pool.query(image(0))
    state = pool.state_dict()
    for k in range(1, 20):
        pool.query(image(k))
    assert len(state["images"]) == 1 and state["images"][0].mean() == 0


def test_a_large_pool_fits_into_a_checkpoint(tmp_path: Path) -> None:
    pool = ImagePool(20_000, seed=0)
    for k in range(20_000):
        pool.query(torch.full((1, 1, 1, 1), float(k)))
    path = save_checkpoint(tmp_path, pool.state_dict(), step=1, epoch=0, keep=1)
    twin = ImagePool(20_000, seed=9)
    twin.load_state_dict(load_file(path))
    assert [int(kept) for kept in twin.images] == list(range(20_000))


def test_sizes_may_change_on_the_way() -> None:
    """Pictures of their own sizes one by one come back as they are; in a batch only those that fit."""
    one = ImagePool(1, seed=0)
    one.query(image(0))
    sizes = {one.query(torch.zeros(1, 1, 3, 3 + k)).shape[2:] for k in range(9)}
    assert len(sizes) > 1
    batches = ImagePool(2, seed=0)
    batches.query(torch.zeros(2, 1, 2, 2))
    for k in range(9):
        assert batches.query(torch.full((2, 1, 3, 3), float(k))).shape == (2, 1, 3, 3)
