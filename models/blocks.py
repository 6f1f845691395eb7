"""The one block that every generator's convolutions are made of, and the check of input sizes."""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from cuda_ops import Moments
from cuda_ops.normalized_conv import Activation, Backend
from models.moments import PONO
from models.names import BaseNormName
from models.normalized_conv import NormalizedConv2d
from models.norms import BASE_NORMS, Positional

LEAKY_SLOPE = 0.2


class ConvBlock(nn.Module):
    """conv (-> PONO) -> base norm -> activation, or NC in the place of conv and PONO.

    (N, C, H, W) -> (N, O, H', W') and moments. `positional` chooses between a plain convolution, one followed
    by PONO, and NC. The moments are (N, 1, H', W') each where `keep_moments` asks for them, otherwise None.
    Where NC is directly followed by the activation (base norm `none`), the layer applies it itself, in one
    pass with its epilogue.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        padding_mode: Literal["zeros", "reflect"] = "zeros",
        base_norm: BaseNormName = "none",
        bias: bool | None = None,
        positional: Positional = "none",
        keep_moments: bool = False,
        activation: Activation = "none",
        nc_backend: Backend = "auto",
    ) -> None:
        super().__init__()
        if keep_moments and positional == "none":
            raise ValueError("keep_moments: a plain convolution has no moments, choose positional pono or nc")
        base = BASE_NORMS[base_norm]
        bias = base.bias_before if bias is None else bias
        fused = positional == "nc" and base_norm == "none"
        self.positional = positional
        self.keep_moments = keep_moments
        self.activation: Activation = "none" if fused else activation
        self.conv: nn.Conv2d
        if positional == "nc":
            self.conv = NormalizedConv2d(
                in_channels,
                out_channels,
                kernel_size,
                stride,
                padding,
                bias=bias,
                padding_mode=padding_mode,
                return_moments=keep_moments,
                backend=nc_backend,
                activation=activation if fused else "none",
                negative_slope=LEAKY_SLOPE,
            )
        else:
            self.conv = nn.Conv2d(
                in_channels,
                out_channels,
                kernel_size,
                stride,
                padding,
                bias=bias,
                padding_mode=padding_mode,
            )
        self.pono = PONO() if positional == "pono" else None
        self.norm = base.layer(out_channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Moments | None]:
        moments = None
        if self.positional == "nc" and self.keep_moments:
            y, moments = self.conv(x)  # (N, O, H', W'), (N, 1, H', W')
        else:
            y = self.conv(x)  # (N, O, H', W')
        if self.pono is not None:
            y, moments = self.pono(y)  # (N, O, H', W'), (N, 1, H', W')
        y = activate(self.norm(y), self.activation)  # (N, O, H', W')
        return y, moments if self.keep_moments else None


def activate(x: Tensor, activation: Activation) -> Tensor:
    """x of any shape, unchanged (none), rectified (relu), or its negative part times 0.2 (leaky_relu)."""
    if activation == "relu":
        return F.relu(x)
    if activation == "leaky_relu":
        return F.leaky_relu(x, LEAKY_SLOPE)
    return x


def check_size(network: nn.Module, x: Tensor, multiple: int, minimum: int) -> None:
    """Raise ValueError unless both sides of x (N, C, H, W) are multiples of `multiple` and >= `minimum`."""
    height, width = x.shape[-2:]
    if height % multiple or width % multiple or min(height, width) < minimum:
        what = f"sides that are multiples of {multiple} and" if multiple > 1 else "sides of"
        raise ValueError(
            f"{type(network).__name__} takes {what} at least {minimum} pixels, "
            f"got height {height} and width {width}"
        )
