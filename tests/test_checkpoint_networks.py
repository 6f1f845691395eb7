"""Weights into a network: wrappers' prefixes, what does not fit, NaN."""

import pytest
import torch
from torch import nn

from datasets.errors import UserError
from gan.state import load_network


def network(width: int = 4, norm: type[nn.Module] = nn.BatchNorm2d) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, width, 3), norm(width), nn.Sequential(nn.Conv2d(width, 3, 1)))


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize(
    "saved", ["{}", "module.{}", "_orig_mod.{}", "module._orig_mod.{}", "_orig_mod.module.{}"]
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_prefixes_of_wrappers_do_not_matter(saved: str, wrapped: bool) -> None:
    source, target = network(), network()
    state = {saved.format(key): value for key, value in source.state_dict().items()}
    load_network(nn.DataParallel(target) if wrapped else target, state, where="x")
    assert equal(source, target)


def test_a_compiled_part_loads_into_a_plain_network_and_back() -> None:
    source, target = network(), network()
    source[2] = torch.compile(source[2])  # type: ignore[assignment]
    assert any("_orig_mod" in key for key in source.state_dict())
    load_network(target, source.state_dict(), where="x")
    assert equal(source, target)
    other = network()
    load_network(source, other.state_dict(), where="x")
    assert equal(source, other)


def test_another_width_is_one_line_and_changes_nothing() -> None:
    target, untouched = network(4), network(4)
    untouched.load_state_dict(target.state_dict())
    with pytest.raises(UserError) as caught:
        load_network(target, network(8).state_dict(), where="ckpt.pt")
    line = f"error: {caught.value}"
    assert line == (
        "error: ckpt.pt: does not fit this network: 0.weight is 8x3x3x3 there, 4x3x3x3 here; 0.bias is 8 there, "
        "4 here; 1.weight is 8 there, 4 here and 4 more (use the options it was trained with)"
    )
    assert equal(target, untouched)


def test_missing_and_unexpected_keys_and_values() -> None:
    target = network(norm=nn.Identity)
    state = network().state_dict()
    with pytest.raises(UserError, match=r"1\.weight is 4 there, missing here.* and 2 more"):
        load_network(target, state, where="x")
    with pytest.raises(UserError, match=r"1\.weight is missing there, 4 here"):
        load_network(network(), target.state_dict(), where="x")
    with pytest.raises(UserError, match=r"0\.weight is a str there"):
        load_network(network(), {**state, "0.weight": "text"}, where="x")  # type: ignore[dict-item]
    with pytest.raises(UserError, match="num_batches_tracked is 2 there, a number here"):
        load_network(network(), {**state, "1.num_batches_tracked": torch.zeros(2)}, where="x")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(bad: float) -> None:
    state = network().state_dict()
    state["2.0.weight"][0, 1] = bad
    target = network()
    with pytest.raises(UserError, match=r"2\.0\.weight: 1 of 12 values are NaN or infinite"):
        load_network(target, state, where="x", check_finite=True)
    assert torch.isfinite(target[2][0].weight).all()  # type: ignore[index]
    load_network(target, state, where="x")
