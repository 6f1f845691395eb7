"""benchmarks/smoothness.py: power iteration against the whole Hessian, the gradient along itself in closed form."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import smoothness
from benchmarks.smoothness import FORMS, StandardizedConv2d, predictiveness, sharpness, small_network
from cuda_ops import NormalizedConv2d
from tools.class_pictures import LabelledPictures, Split


@pytest.mark.parametrize("kind", [nn.Conv2d, NormalizedConv2d])
def test_power_iteration_finds_the_largest_eigenvalue(kind: type[nn.Conv2d]) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(kind(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2)).double()
    x, y = torch.randn(5, 2, 3, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1])
    names, weights = zip(*network.named_parameters(), strict=True)

    def loss(*values: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(
            torch.func.functional_call(network, dict(zip(names, values, strict=True)), (x,)), y
        )

    blocks = torch.autograd.functional.hessian(loss, weights)
    whole = torch.cat(
        [
            torch.cat([block.reshape(weight.numel(), -1) for block in row], 1)
            for weight, row in zip(weights, blocks, strict=True)
        ]
    )
    eigenvalues = torch.linalg.eigvalsh(whole)
    expected = eigenvalues[eigenvalues.abs().argmax()]
    assert sharpness(lambda: loss(*weights), weights, 500, 1e-9) == pytest.approx(expected.item(), rel=1e-4)


def test_the_gradient_along_itself_in_a_bowl() -> None:
    """Of w A w / 2 the gradient is A w; a step of length a along it leaves (1 - a A) A w."""
    a, w = (
        torch.tensor([3.0, 1.0], dtype=torch.float64),
        torch.ones(2, dtype=torch.float64, requires_grad=True),
    )
    change, cosine = predictiveness(lambda: (a * w * w).sum() / 2, [w], [0.1, 0.2])
    g, after = np.array([3.0, 1.0]), (1 - 0.2 * np.array([3.0, 1.0])) * np.array([3.0, 1.0])
    assert change == pytest.approx(np.linalg.norm(after - g) / np.linalg.norm(g))
    assert cosine == pytest.approx(g @ after / np.linalg.norm(g) / np.linalg.norm(after))
    assert w.tolist() == [1, 1]


def test_weight_standardization() -> None:
    torch.manual_seed(0)
    conv = StandardizedConv2d(3, 4, 3, padding=1)
    weight = conv.weight.detach().numpy().reshape(4, -1)
    weight = (weight - weight.mean(1, keepdims=True)) / weight.std(1, keepdims=True) * np.sqrt(2 / 27)
    x = torch.randn(2, 3, 5, 5)
    expected = F.conv2d(x, torch.tensor(weight, dtype=torch.float32).view(4, 3, 3, 3), conv.bias, padding=1)
    torch.testing.assert_close(conv(x), expected, rtol=1e-3, atol=1e-3)  # its variance has an epsilon


def test_a_short_training_of_each_form(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    split = Split(torch.randint(0, 256, (64, 3, 8, 8), dtype=torch.uint8), torch.randint(3, (64,)))
    monkeypatch.setattr(smoothness, "MEASUREMENTS", 2)
    for form in FORMS:
        found = smoothness.measure(form, "SGD", 0, LabelledPictures(split, split, ["a", "b", "c"]), 2)
        lengths = [len(found[name]) for name in ("sharpness", "change", "cosine", "loss", "error")]
        assert lengths == [2, 2, 2, 2, 1]  # before the first and after the last of two steps
        assert all(np.isfinite(value) for values in found.values() for value in values)
    assert sum(type(layer) is NormalizedConv2d for layer in small_network("NC", 3)) == 4
