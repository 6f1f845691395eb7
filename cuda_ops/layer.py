"""NormalizedConv2d: `nn.Conv2d` whose every patch is standardised before it meets the weights."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from cuda_ops.direct import Activation
from cuda_ops.normalized_conv import Backend, Moments, PaddingMode, normalized_conv2d
from cuda_ops.padding import pad


class NormalizedConv2d(nn.Conv2d):
    """A drop-in for `nn.Conv2d`, with its arguments, its initialisation and its state-dict keys.

    x (N, C, H, W) -> y (N, O, H', W'); with `return_moments` -> (y, Moments), mean and std each (N, groups, H', W'),
    float32 or wider. Any `padding_mode` works: the padded entries count as entries of their patch. `activation` is
    applied to y as part of the layer. Arguments after `padding_mode` are those of `cuda_ops.normalized_conv2d`.
    Raises ValueError where a patch has no variance (entries per patch <= correction).
    Source: the definition in `cuda_ops/normalized_conv.py`.

    >>> layer = NormalizedConv2d(3, 8, 3, padding=1, return_moments=True)
    >>> y, moments = layer(torch.rand(2, 3, 16, 16))
    >>> y.shape, moments.std.shape
    (torch.Size([2, 8, 16, 16]), torch.Size([2, 1, 16, 16]))
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        *,
        eps: float = 1e-5,
        correction: int = 1,
        return_moments: bool = False,
        backend: Backend = "auto",
        activation: Activation = "none",
        negative_slope: float = 0.2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        sizes = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups)
        super().__init__(*sizes, bias, padding_mode, device, dtype)
        self.eps = eps
        self.correction = correction
        self.return_moments = return_moments
        self.backend = backend
        self.activation = activation
        self.negative_slope = negative_slope

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Moments]:  # type: ignore[override]
        stride, dilation = (self.stride[0], self.stride[1]), (self.dilation[0], self.dilation[1])
        pads = self._reversed_padding_repeated_twice
        if self.padding_mode == "zeros" and not isinstance(self.padding, str):  # may change, as in nn.Conv2d
            down, across = _pair(self.padding)
            pads = [across, across, down, down]
        left, right, top, bottom = pads
        padding, symmetric = (0, 0), (left, top) == (right, bottom)
        mode: PaddingMode = "reflect" if self.padding_mode == "reflect" and symmetric else "zeros"
        if self.padding_mode == mode:
            padding = (bottom, right)  # "same" with an even kernel: one more than top and left, cut off below
        else:
            x = pad(x, pads, self.padding_mode)  # (N, C, H + pads, W + pads)
        result = normalized_conv2d(
            x,
            self.weight,
            self.bias,
            stride,
            padding,
            dilation,
            self.groups,
            padding_mode=mode,
            eps=self.eps,
            correction=self.correction,
            return_moments=self.return_moments,
            backend=self.backend,
            activation=self.activation,
            negative_slope=self.negative_slope,
        )  # (N, O, H', W'), and the moments (N, groups, H', W')
        if self.padding_mode != "zeros" or symmetric:
            return result
        whole = (result,) if isinstance(result, Tensor) else (result[0], *result[1])
        y, *moments = (v[:, :, bottom - top :, right - left :] for v in whole)
        return (y, Moments(*moments)) if moments else y
