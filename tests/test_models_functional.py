"""Both generators written a second time from the definitions, as functions of a state dict, in float64.

Here nothing is fused and nothing reused: NC is unfold, PONO and the base norms are sums, the U-Net recurses
and hands its skips over before their activation, as it is drawn in the paper.
"""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.names import NORM_NAMES
from models.resnet import ResnetGenerator
from models.unet import UnetGenerator

State = dict[str, Tensor]
CASES = [(norm, base) for norm in NORM_NAMES for base in ("instance", "batch", "none")]
CASES = [case for case in CASES if case[0] != "nc"] + [("nc", "none")]
# norm -> what the down convs are, what the other convs are, which shortcut
MEANING = {
    "pono": ("pono", "plain", None),
    "pono_ms": ("pono", "plain", "ms"),
    "pono_dms": ("pono", "plain", "dms"),
    "nc": ("nc", "nc", None),
    "nc_ms": ("nc", "plain", "ms"),
    "nc_dms": ("nc", "plain", "dms"),
}


class Written:
    """The definitions, bound to one state dict, one norm and one base norm (batch norm in training mode)."""

    def __init__(self, state: State, norm: str, base: str) -> None:
        self.state = state
        self.base = norm if norm in ("instance", "batch", "none") else base
        self.down, self.rest, self.shortcut = MEANING.get(norm, ("plain", "plain", None))

    def norm(self, x: Tensor, key: str) -> Tensor:
        if self.base == "none":
            return x
        over = (2, 3) if self.base == "instance" else (0, 2, 3)
        mean = x.mean(over, keepdim=True)
        x = (x - mean) / (((x - mean) ** 2).mean(over, keepdim=True) + 1e-5).sqrt()
        if self.base == "batch":
            x = x * self.state[f"{key}.weight"].view(1, -1, 1, 1) + self.state[f"{key}.bias"].view(
                1, -1, 1, 1
            )
        return x

    def conv(self, x: Tensor, key: str, kind: str, stride: int = 1, reflect: int = 0, zeros: int = 0):
        """Returns y and the moments (None for a plain convolution)."""
        weight, bias = self.state[f"{key}.weight"], self.state.get(f"{key}.bias")
        if reflect:
            x = F.pad(x, [reflect] * 4, mode="reflect")
        x = F.pad(x, [zeros] * 4)
        if kind != "nc":
            y = F.conv2d(x, weight, bias, stride)
            if kind == "plain":
                return y, None
            mean = y.sum(1, keepdim=True) / y.shape[1]
            std = (((y - mean) ** 2).sum(1, keepdim=True) / (y.shape[1] - 1) + 1e-5).sqrt()
            return (y - mean) / std, (mean, std)
        height, width = ((side - weight.shape[2]) // stride + 1 for side in x.shape[2:])
        rows = F.unfold(x, weight.shape[2], stride=stride)  # (N, n, L)
        mean = rows.sum(1, keepdim=True) / rows.shape[1]
        std = (((rows - mean) ** 2).sum(1, keepdim=True) / (rows.shape[1] - 1) + 1e-5).sqrt()
        y = weight.flatten(1) @ ((rows - mean) / std)
        if bias is not None:
            y = y + bias.view(-1, 1)
        shaped = [t.view(len(x), -1, height, width) for t in (y, mean, std)]
        return shaped[0], (shaped[1], shaped[2])

    def dms(self, x: Tensor, key: str, moments: tuple[Tensor, Tensor]) -> Tensor:
        h = F.conv_transpose2d(
            torch.cat(moments, 1), self.state[f"{key}.up.weight"], self.state.get(f"{key}.up.bias"), 2, 1, 1
        )
        h = F.relu(self.norm(h, f"{key}.norm"))
        h = F.conv2d(h, self.state[f"{key}.out.weight"], self.state[f"{key}.out.bias"], padding=1)
        beta, gamma = h[:, : x.shape[1]], h[:, x.shape[1] :]
        return x * (1 + gamma) + beta

    def resnet(self, x: Tensor, n_blocks: int) -> Tensor:
        x, _ = self.conv(x, "stem.conv", self.rest, reflect=3)
        x = F.relu(self.norm(x, "stem.norm"))
        moments = []
        for i in (0, 1):
            x, m = self.conv(x, f"downs.{i}.conv", self.down, stride=2, zeros=1)
            x = F.relu(self.norm(x, f"downs.{i}.norm"))
            moments.append(m)
        for i in range(n_blocks):
            y, _ = self.conv(x, f"blocks.{i}.first.conv", self.rest, reflect=1)
            y = F.relu(self.norm(y, f"blocks.{i}.first.norm"))
            y, _ = self.conv(y, f"blocks.{i}.second.conv", self.rest, reflect=1)
            x = x + self.norm(y, f"blocks.{i}.second.norm")
        for i in (0, 1):
            mean_std = moments[1 - i]
            if self.shortcut == "ms":
                x = x * mean_std[1] + mean_std[0]
            key = f"ups.{i}"
            x = F.conv_transpose2d(
                x, self.state[f"{key}.conv.weight"], self.state.get(f"{key}.conv.bias"), 2, 1, 1
            )
            x = self.norm(x, f"{key}.norm")
            if self.shortcut == "dms":
                x = self.dms(x, f"{key}.dms", mean_std)
            x = F.relu(x)
        x, _ = self.conv(x, "out", "plain", reflect=3)
        return torch.tanh(x)

    def unet(self, x: Tensor, num_downs: int) -> Tensor:
        y = self.unet_level(x, 0, num_downs - 1)
        return torch.tanh(y)

    def unet_level(self, x: Tensor, level: int, last: int) -> Tensor:
        """x not yet activated -> what level `level`'s up-conv and norm make of it, not yet activated."""
        inner = 0 < level < last
        if level > 0:
            x = torch.where(x > 0, x, 0.2 * x)
        d, moments = self.conv(x, f"downs.{level}.conv", self.down if inner else self.rest, stride=2, zeros=1)
        if inner:
            d = self.norm(d, f"downs.{level}.norm")
        if level == last:
            y = F.relu(d)
        else:
            y = F.relu(self.unet_level(d, level + 1, last))
            if inner and self.shortcut == "ms":
                y = y * moments[1] + moments[0]
            y = torch.cat([y, F.relu(d)], 1)
        key = f"ups.{level - 1}" if level else "out"
        conv = f"{key}.conv" if level else "out"
        y = F.conv_transpose2d(y, self.state[f"{conv}.weight"], self.state.get(f"{conv}.bias"), 2, 1)
        if level == 0:
            return y
        y = self.norm(y, f"{key}.norm")
        if inner and self.shortcut == "dms":
            y = self.dms(y, f"{key}.dms", moments)
        return y


def compare(network: torch.nn.Module, x: Tensor, written) -> None:
    """Output and the gradients of the input and of every parameter agree."""
    for module in network.modules():  # batch-norm scales and shifts that matter
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.weight, 1, 0.3)
            torch.nn.init.normal_(module.bias, 0, 0.3)
    state = dict(network.named_parameters())
    inputs = [x.requires_grad_(), *state.values()]
    got, want = network(x), written(state, x)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)
    upstream = torch.randn_like(got)
    got_grads = torch.autograd.grad(got, inputs, upstream)
    want_grads = torch.autograd.grad(want, inputs, upstream)
    scale = max(g.abs().max().item() for g in want_grads)
    for name, a, b in zip(["x", *state], got_grads, want_grads, strict=True):
        torch.testing.assert_close(
            a, b, rtol=1e-7, atol=1e-9 * scale, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize(("norm", "base"), CASES)
def test_resnet(norm: str, base: str) -> None:
    torch.manual_seed(0)
    network = ResnetGenerator(3, 2, 4, n_blocks=2, norm=norm, base_norm=base).double()
    x = torch.randn(2, 3, 16, 20, dtype=torch.float64)
    compare(network, x, lambda state, x: Written(state, norm, base).resnet(x, 2))


@pytest.mark.parametrize(("norm", "base"), CASES)
def test_unet(norm: str, base: str) -> None:
    torch.manual_seed(0)
    network = UnetGenerator(3, 2, 4, 4, norm=norm, base_norm=base).double()
    x = torch.randn(2, 3, 16, 32, dtype=torch.float64)
    compare(network, x, lambda state, x: Written(state, norm, base).unet(x, 4))
