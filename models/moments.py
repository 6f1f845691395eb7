"""Positional normalization (PONO) and the two ways its moments return in a decoder.

Source: Li et al., "Positional Normalization", NeurIPS 2019.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cuda_ops import Moments
from models.names import BaseNormName
from models.norms import BASE_NORMS


def positional_norm(x: Tensor, eps: float = 1e-5) -> tuple[Tensor, Moments]:
    """Standardise every pixel over its channels: `(x - mean) / std` with `std = sqrt(var + eps)`.

    The variance is the unbiased one. x is (N, C, H, W) with C >= 2; returns y of x's shape and dtype, and the
    moments, each (N, 1, H, W). The statistics are computed and returned in float32 (float64 for float64),
    whatever the precision of x.
    Raises ValueError for C < 2, where there is no variance. Source: PONO, equations 1 and 2.

    >>> y, moments = positional_norm(torch.tensor([1.0, 3.0]).view(1, 2, 1, 1))
    >>> moments.mean.item(), round(moments.std.item(), 4)
    (2.0, 1.4142)
    """
    if x.shape[1] < 2:
        raise ValueError(f"positional_norm: needs at least 2 channels, got {x.shape[1]}")
    wide = x if x.dtype == torch.float64 else x.float()
    var, mean = torch.var_mean(wide, dim=1, correction=1, keepdim=True)  # (N, 1, H, W) each
    std = torch.sqrt(var + eps)  # (N, 1, H, W)
    return ((wide - mean) / std).to(x.dtype), Moments(mean, std)  # (N, C, H, W)


class PONO(nn.Module):
    """`positional_norm` as a layer: (N, C, H, W) -> the same shape, and the moments. It has no parameters."""

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> tuple[Tensor, Moments]:
        return positional_norm(x, self.eps)

    def extra_repr(self) -> str:
        return f"eps={self.eps}"


class MomentShortcut(nn.Module):
    """Give x the moments of an encoder layer: `x * std + mean`, which undoes `positional_norm`.

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
