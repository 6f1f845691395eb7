"""The U-Net generator: stride-2 convs down to 1x1, up convs back, skips between equal resolutions."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cuda_ops import Moments
from models.blocks import ConvBlock, UpBlock, check_size, run_block, up_conv
from models.names import BaseNormName, NormName, UpsampleName
from models.norms import BASE_NORMS, MomentShortcut, plan_norms


class UnetGenerator(nn.Module):
    """Images (N, input_nc, H, W) in [-1, 1] -> images (N, output_nc, H, W) in [-1, 1].

    Down conv i = 0 .. num_downs-1 has c_i = ngf·min(2^i, 8) channels and is followed by LeakyReLU(0.2); the
    up-conv of level i takes [decoder, skip] of c_i channels each, both rectified. The outermost and innermost
    down convs have no base norm, and are plain except with `nc`. Dropout is 0.5 in the up blocks from 8·ngf
    to 8·ngf channels, the innermost left out (three in unet_256, two in unet_128).

    Moments: from every down conv but the outermost and the innermost. The moment shortcut (`*_ms`) acts on
    the decoder path, never on the skip, after its ReLU and right before the up-conv of equal resolution, as
    in the ResNet generator: the restored means reach the up-conv unclipped. The dynamic one (`*_dms`) acts
    after that up-conv and its norm. No published U-Net placement exists; this one is ours.

    A skip is kept after its LeakyReLU, because the decoder's ReLU follows and relu(leaky_relu(x)) = relu(x):
    so NC can apply the activation itself, exactly.

    H and W must be multiples of 2^num_downs (`size_multiple`, `min_size`; ValueError otherwise).
    54,413,955 parameters for 8 downs, ngf 64, batch norm. Source: Isola et al. 2017 (pix2pix), appendix 6.1.
    """

    grad_checkpoint = False  # see `run_block`

    def __init__(
        self,
        input_nc: int = 3,
        output_nc: int = 3,
        num_downs: int = 8,
        ngf: int = 64,
        norm: NormName = "batch",
        base_norm: BaseNormName = "batch",
        dropout: bool = False,
        upsample: UpsampleName = "transposed",
    ) -> None:
        super().__init__()
        plan, base = plan_norms(norm, base_norm)
        bias = BASE_NORMS[base].bias_before
        last = num_downs - 1
        width = [ngf * min(2**level, 8) for level in range(num_downs)]  # c_i, channels after down conv i
        self.size_multiple = 2**num_downs
        self.min_size = 2**num_downs
        self.downs = nn.ModuleList()
        for level in range(num_downs):
            inner = 0 < level < last
            self.downs.append(
                ConvBlock(
                    width[level - 1] if level else input_nc,
                    width[level],
                    4,
                    stride=2,
                    padding=1,
                    base_norm=base if inner else "none",
                    bias=bias,
                    positional=plan.down if inner else plan.rest,
                    keep_moments=inner and plan.shortcut != "none",
                    activation="relu" if level == last else "leaky_relu",
                )
            )
        self.ups = nn.ModuleList()  # ups[i] is the up-conv of level i + 1; the outermost one is `out`
        for level in range(1, num_downs):
            self.ups.append(
                UpBlock(
                    width[level] if level == last else 2 * width[level],
                    width[level - 1],
                    4,
                    base_norm=base,
                    upsample=upsample,
                    dynamic=plan.shortcut == "dms" and level != last,
                    dropout=dropout and level != last and width[level - 1] == 8 * ngf,
                )
            )
        self.ms = MomentShortcut() if plan.shortcut == "ms" else None
        self.out = up_conv(2 * ngf, output_nc, 4, upsample, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        check_size(self, x, self.size_multiple, self.min_size)
        run = partial(run_block, recompute=self.grad_checkpoint)
        skips: list[Tensor] = []
        kept: list[Moments | None] = []
        for down in self.downs:
            x, moments = run(down, x)  # (N, c_i, H/2^(i+1), W/2^(i+1)), activated
            skips.append(x)
            kept.append(moments)  # (N, 1, H/2^(i+1), W/2^(i+1))
        x = run(self.ups[-1], x)  # (N, c_i, H/2^(i+1), W/2^(i+1)) for i = num_downs - 2
        for level in reversed(range(1, len(skips) - 1)):
            x = self.join(x, skips[level], kept[level])  # (N, 2 c_i, H/2^(i+1), W/2^(i+1))
            x = run(self.ups[level - 1], x, kept[level])  # (N, c_(i-1), H/2^i, W/2^i)
        x = self.join(x, skips[0], None)  # (N, 2 ngf, H/2, W/2)
        return torch.tanh(self.out(x))  # (N, output_nc, H, W)

    def join(self, x: Tensor, skip: Tensor, moments: Moments | None) -> Tensor:
        """What the up-conv of a level takes: decoder path (moments restored) and skip, (N, 2 c_i, h, w)."""
        if self.ms is not None and moments is not None:
            x = self.ms(x, moments)  # (N, c_i, h, w)
        return torch.cat([x, F.relu(skip)], dim=1)  # (N, 2 c_i, h, w)
