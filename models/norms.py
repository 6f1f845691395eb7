"""Norms: the base norms and what each `--norm` value means, as two tables; PONO and its two moment shortcuts.

Source of PONO and the shortcuts: Li et al., "Positional Normalization", NeurIPS 2019.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cuda_ops import Moments
from models.names import BaseNormName, NormName


@dataclass(frozen=True)
class BaseNorm:
    """A normalisation of whole feature maps, and whether the layer before it has a bias.

    A bias in front of affine parameters would be learned twice; where the norm has none, the layer keeps its
    bias.
    """

    layer: Callable[[int], nn.Module]
    bias_before: bool


BASE_NORMS: dict[BaseNormName, BaseNorm] = {
    "instance": BaseNorm(nn.InstanceNorm2d, bias_before=True),  # no affine, no running statistics
    "batch": BaseNorm(nn.BatchNorm2d, bias_before=False),  # affine, running statistics
    "none": BaseNorm(nn.Identity, bias_before=True),
}

Positional = Literal["none", "pono", "nc"]
Shortcut = Literal["none", "ms", "dms"]


@dataclass(frozen=True)
class NormPlan:
    """Where a generator standardises what.

    base      the base norm; None: the one asked for by `base_norm`
    down      what the down-sampling convs do per position: nothing, PONO after the conv, or NC in its place
    rest      the same for every other convolution but the output's; transposed convolutions are always plain
    shortcut  how the moments of the down-sampling convs return in the decoder
    """

    base: BaseNormName | None = None
    down: Positional = "none"
    rest: Positional = "none"
    shortcut: Shortcut = "none"


NORMS: dict[NormName, NormPlan] = {
    "instance": NormPlan(base="instance"),
    "batch": NormPlan(base="batch"),
    "none": NormPlan(base="none"),
    "pono": NormPlan(down="pono"),
    "pono_ms": NormPlan(down="pono", shortcut="ms"),
    "pono_dms": NormPlan(down="pono", shortcut="dms"),
    "nc": NormPlan(base="none", down="nc", rest="nc"),
    "nc_ms": NormPlan(down="nc", shortcut="ms"),
    "nc_dms": NormPlan(down="nc", shortcut="dms"),
}


def plan_norms(norm: NormName, base_norm: BaseNormName) -> tuple[NormPlan, BaseNormName]:
    """The plan of a norm and the base norm that goes with it.

    `instance`, `batch` and `none` are their own base norm, whatever `base_norm` says. Raises ValueError for `nc` with
    a base norm: NC needs none.

    >>> plan_norms("nc_ms", "batch")
    (NormPlan(base=None, down='nc', rest='none', shortcut='ms'), 'batch')
    """
    if norm == "nc" and base_norm != "none":
        raise ValueError(f"base_norm: norm 'nc' goes with base_norm 'none' only, got {base_norm!r}")
    plan = NORMS[norm]
    return plan, plan.base or base_norm


class PONO(nn.Module):
    """Standardise every pixel over its channels: `(x - mean) / std` with `std = sqrt(var + eps)`. No parameters.

    The variance is the unbiased one. x is (N, C, H, W) with C >= 2; returns y of x's shape and dtype, and the
    moments, each (N, 1, H, W). The statistics are computed and returned in float32 (float64 for float64),
    whatever the precision of x.
    Raises ValueError for C < 2, where there is no variance. Source: PONO, equations 1 and 2.

    >>> y, moments = PONO()(torch.tensor([1.0, 3.0]).view(1, 2, 1, 1))
    >>> moments.mean.item(), round(moments.std.item(), 4)
    (2.0, 1.4142)
    """

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> tuple[Tensor, Moments]:
        if x.shape[1] < 2:
            raise ValueError(f"PONO needs at least 2 channels, got {x.shape[1]}")
        wide = x if x.dtype == torch.float64 else x.float()
        var, mean = torch.var_mean(wide, dim=1, correction=1, keepdim=True)  # (N, 1, H, W) each
        std = torch.sqrt(var + self.eps)  # (N, 1, H, W)
        return ((wide - mean) / std).to(x.dtype), Moments(mean, std)  # (N, C, H, W)


class MomentShortcut(nn.Module):
    """Give x the moments of an encoder layer: `x * std + mean`, which undoes `PONO`.

    It has no parameters. x is (N, C, H, W), the moments are (N, 1, H, W); returns x's shape and dtype.
    Source: PONO, equation 3.
    """

    def forward(self, x: Tensor, moments: Moments) -> Tensor:
        return (x * moments.std + moments.mean).to(x.dtype)  # (N, C, H, W), computed in the wider precision


class DynamicMomentShortcut(nn.Module):
    """A small network turns the moments of one resolution into shift and scale of the next finer one.

    It stands after the up-conv that doubles the resolution, and after that layer's norm: with c = `channels`
    of the up-conv's output, (mean, std) -> transposed 3x3 stride-2 conv to c -> base norm -> ReLU -> 3x3 conv
    to 2c -> split into beta and gamma, and x becomes `x * (1 + gamma) + beta`. The one added to gamma is what
    the last convolution's bias could learn; it makes an untrained shortcut the identity instead of a factor
    near zero.
    Source: PONO, section 3.2 (DMS).
    """

    def __init__(self, channels: int, base_norm: BaseNormName = "instance") -> None:
        super().__init__()
        base = BASE_NORMS[base_norm]
        self.up = nn.ConvTranspose2d(
            2, channels, 3, stride=2, padding=1, output_padding=1, bias=base.bias_before
        )
        self.norm = base.layer(channels)
        self.out = nn.Conv2d(channels, 2 * channels, 3, padding=1)

    def forward(self, x: Tensor, moments: Moments) -> Tensor:
        """x (N, c, 2H, 2W), moments of (N, 1, H, W) -> (N, c, 2H, 2W)."""
        h = torch.cat([moments.mean, moments.std], dim=1).to(x.dtype)  # (N, 2, H, W)
        h = F.relu(self.norm(self.up(h)))  # (N, c, 2H, 2W)
        beta, gamma = self.out(h).chunk(2, dim=1)  # (N, c, 2H, 2W) each
        return x * (1 + gamma) + beta  # (N, c, 2H, 2W)
