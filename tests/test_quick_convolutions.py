"""Convolutions in the forms that are quickest on a CPU: torch's own convolutions are the answer."""

import pytest
import torch
from conftest import spy
from torch.autograd import forward_ad
from torch.nn import functional as F

from cuda_ops import few_channels
from models import quick_convolutions
from models.blocks import PlainConv2d, TransposedConv2d, up_conv
from models.quick_convolutions import conv2d, conv_transpose2d


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """`product` or `few outputs` for every call that takes that form, the second for however few pixels."""
    taken: list[str] = []
    spy(monkeypatch, quick_convolutions.F, "linear", taken, "product")
    monkeypatch.setattr(few_channels, "LEAST_PRODUCTS", 0)
    spy(monkeypatch, few_channels, "convolve", taken, "few outputs")
    spy(monkeypatch, few_channels, "convolve_transposed", taken, "few outputs")
    return taken


ONE = (1, 1)
CASES = {
    "U-Net down": (conv2d, F.conv2d, "product", (1, 3, 4, 2), (96, 3, 4, 4), 96, (2, 2), (1, 1), ONE),
    "no bias": (conv2d, F.conv2d, "product", (2, 3, 2, 6), (96, 3, 4, 4), 0, (2, 2), (1, 1), ONE),
    "uneven": (conv2d, F.conv2d, "product", (2, 2, 4, 1), (200, 2, 3, 2), 200, (2, 1), (1, 2), (1, 2)),
    "last layer": (conv2d, F.conv2d, "few outputs", (2, 16, 9, 8), (3, 16, 7, 7), 3, ONE, (0, 0), ONE),
    "uneven, few outputs": (conv2d, F.conv2d, "few outputs", (1, 9, 5, 6), (2, 9, 4, 3), 0, ONE, (1, 2), ONE),
    "one output": (conv2d, F.conv2d, "few outputs", (1, 4, 6, 6), (1, 4, 4, 4), 1, ONE, (0, 0), ONE),
    "U-Net's last layer": (
        conv_transpose2d, F.conv_transpose2d, "few outputs", (2, 12, 4, 5), (12, 3, 4, 4), 3, (2, 2), (1, 1), (0, 0)
    ),
    "ResNet's up with few outputs": (
        conv_transpose2d, F.conv_transpose2d, "few outputs", (1, 8, 4, 3), (8, 2, 3, 3), 0, (2, 2), (1, 1), (1, 1)
    ),
    "U-Net up": (
        conv_transpose2d, F.conv_transpose2d, "product", (1, 112, 2, 3), (112, 7, 4, 4), 7, (2, 2), (1, 1), (0, 0)
    ),
    "ResNet up": (
        conv_transpose2d, F.conv_transpose2d, "product", (2, 128, 1, 4), (128, 8, 3, 3), 0, (2, 2), (1, 1), (1, 1)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_torch(name: str, chosen: list[str]) -> None:
    quick, answer, form, shape, kernel, bias, *sizes = CASES[name]
    draws = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(size, generator=draws, dtype=torch.float64, requires_grad=True)
        for size in (shape, kernel, (bias,))
        if size != (0,)
    ]
    x, weight, b = (*tensors, None)[:3]
    found, expected = quick(x, weight, b, *sizes), answer(x, weight, b, *sizes)
    assert chosen == [form]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert found.stride() == expected.stride()
    along = torch.randn(expected.shape, generator=draws, dtype=torch.float64)
    once, right = (
        torch.autograd.grad((y.sin() * along).sum(), tensors, create_graph=True) for y in (found, expected)
    )
    torch.testing.assert_close(once, right, rtol=1e-11, atol=1e-11)
    # the gradient penalty of wgangp differentiates them again
    twice, right = (
        torch.autograd.grad(sum(g.square().sum() for g in grads), tensors) for grads in (once, right)
    )
    torch.testing.assert_close(twice, right, rtol=1e-9, atol=1e-9)


def test_the_border_is_mirrored_as_by_torch(chosen: list[str]) -> None:
    """The last layer of the ResNet generator: it keeps what the ReLU before it keeps, and mirrors that again."""
    layer = PlainConv2d(16, 3, 7, padding=3, padding_mode="reflect").double()
    x = torch.randn(1, 16, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted = [x.requires_grad_(), *layer.parameters()]
    found, expected = layer(x), F.conv2d(F.pad(x, (3, 3, 3, 3), "reflect"), layer.weight, layer.bias)
    assert chosen == ["few outputs"]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    once, right = (torch.autograd.grad(y.sin().sum(), wanted, retain_graph=True) for y in (found, expected))
    torch.testing.assert_close(once, right, rtol=1e-11, atol=1e-11)
    twice, right = (
        torch.autograd.grad(
            torch.autograd.grad(y.sin().sum(), x, create_graph=True)[0].square().sum(), wanted
        )
        for y in (found, expected)
    )
    torch.testing.assert_close(twice, right, rtol=1e-9, atol=1e-9)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda v: kept.append(v) or v, lambda v: v):
        layer(x)
    assert {v.data_ptr() for v in kept} == {x.data_ptr(), layer.weight.data_ptr()}


@pytest.mark.parametrize("mode", ["replicate", "circular"])
def test_other_borders_are_torchs(mode: str) -> None:
    layer = PlainConv2d(2, 3, 3, padding=1, padding_mode=mode)  # type: ignore[arg-type]
    x = torch.rand(1, 2, 5, 6)
    assert torch.equal(layer(x), torch.nn.Conv2d.forward(layer, x))


def test_only_the_gradients_that_are_wanted_are_computed(chosen: list[str]) -> None:
    x, layer = torch.randn(1, 16, 9, 9, requires_grad=True), PlainConv2d(16, 3, 7)
    assert torch.autograd.grad(layer.requires_grad_(False)(x).sum(), x)[0].shape == x.shape
    layer.requires_grad_(True)(x.detach()).sum().backward()
    assert layer.weight.grad is not None and x.grad is None and chosen == ["few outputs"] * 2


@pytest.mark.parametrize(
    ("layer", "yes", "no"),
    [
        # of 64 rows, 4 positions take 16 each; 6 are too many
        (PlainConv2d(2, 64, 4, 2, 1), (1, 2, 4, 4), (1, 2, 6, 4)),
        (up_conv(64, 8, 4, "transposed", bias=True), (2, 64, 1, 2), (3, 64, 1, 2)),
        (PlainConv2d(12, 3, 3), (1, 12, 5, 5), None),
        (up_conv(12, 3, 4, "transposed", bias=True), (1, 12, 5, 5), None),
    ],
    ids=["down", "up", "last", "last of a U-Net"],
)
def test_other_forms_elsewhere(
    layer: torch.nn.Module, yes: tuple[int, ...], no: tuple[int, ...] | None, chosen: list[str]
) -> None:
    layer(torch.zeros(yes))
    assert len(chosen) == 1
    if no:
        layer(torch.zeros(no))
    torch.func.vmap(layer)(torch.zeros(3, *yes))
    layer.to(memory_format=torch.channels_last)(torch.zeros(yes))
    assert len(chosen) == 1


def test_no_pictures_and_too_small_ones_are_answered_as_by_torch(chosen: list[str]) -> None:
    layer, up = PlainConv2d(2, 64, 4, 2), TransposedConv2d(64, 8, 4, 2, 1)
    assert layer(torch.zeros(0, 2, 8, 8)).shape == (0, 64, 3, 3)
    assert up(torch.zeros(0, 64, 1, 1)).shape == (0, 8, 2, 2)
    with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
        layer(torch.zeros(1, 2, 2, 2))
    assert not chosen


def test_forward_mode_and_float64_under_autocast_are_torchs(chosen: list[str]) -> None:
    layer = PlainConv2d(12, 3, 3).double()
    x, along = torch.randn(2, 1, 12, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, along))).tangent
    torch.testing.assert_close(found, F.conv2d(along, layer.weight))
    assert not chosen
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert chosen == ["few outputs"] and y.dtype == torch.float64


@pytest.mark.parametrize("layer", [PlainConv2d(12, 3, 3), TransposedConv2d(12, 3, 4, 2, 1)])
def test_inference_takes_the_same_form(layer: torch.nn.Module, chosen: list[str]) -> None:
    x = torch.randn(1, 12, 5, 5, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = layer(x)
    assert torch.equal(found, layer(x)) and chosen == ["few outputs"] * 2


def test_more_outputs_take_the_ordinary_form(chosen: list[str]) -> None:
    PlainConv2d(12, 4, 3)(torch.zeros(1, 12, 5, 5))
    TransposedConv2d(12, 7, 4, 2, 1)(torch.zeros(1, 12, 5, 5))
    assert not chosen


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (PlainConv2d(512, 64, 4, 2, 1), (1, 512, 2, 2)),
        (TransposedConv2d(64, 512, 4, 2, 1), (1, 64, 2, 2)),
        (PlainConv2d(64, 3, 7), (1, 64, 12, 12)),
    ],
    ids=["down", "up", "last"],
)
def test_under_autocast_the_output_is_bfloat16(
    layer: torch.nn.Module, shape: tuple[int, ...], chosen: list[str]
) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16 and chosen
    torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.05)
    found = torch.autograd.grad(y.float().sum(), [x, *layer.parameters()])
    expected = torch.autograd.grad(layer(x).sum(), [x, *layer.parameters()])
    for mine, right in zip(found, expected, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - right).norm() < 0.02 * right.norm()


def test_the_last_layer_of_a_unet_is_torchs_under_autocast(chosen: list[str]) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert TransposedConv2d(12, 3, 4, 2, 1)(torch.zeros(1, 12, 5, 5)).dtype == torch.bfloat16
    assert not chosen
