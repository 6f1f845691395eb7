"""The ResNet generator: stem, two convs down, residual blocks, two convs up, output conv."""

from functools import partial

import torch
from torch import Tensor, nn

from cuda_ops import Moments
from models.blocks import ConvBlock, PlainConv2d, UpBlock, check_size, run_block
from models.names import BaseNormName, NormName, UpsampleName
from models.norms import MomentShortcut, Positional, plan_norms


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(x))): 3x3, reflected borders, each with its norm; (N, C, H, W) -> the same shape."""

    def __init__(
        self,
        channels: int,
        *,
        base_norm: BaseNormName,
        positional: Positional,
        dropout: bool,
    ) -> None:
        super().__init__()
        block = partial(
            ConvBlock,
            channels,
            channels,
            3,
            padding=1,
            padding_mode="reflect",
            base_norm=base_norm,
            positional=positional,
        )
        self.first = block(activation="relu")
        self.dropout = nn.Dropout(0.5) if dropout else nn.Identity()
        self.second = block(activation="none")

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.first(x)  # (N, C, H, W)
        y, _ = self.second(self.dropout(y))  # (N, C, H, W)
        return x + y  # (N, C, H, W)


class ResnetGenerator(nn.Module):
    """Images (N, input_nc, H, W) in [-1, 1] -> images (N, output_nc, H, W) in [-1, 1].

    The moments of the two stride-2 convs return before the two up convs in reverse order: as `x * std
    + mean` right before the conv (`*_ms`), or through a small network after the conv and its norm (`*_dms`).
    H and W must be multiples of `size_multiple` and at least `min_size` (ValueError otherwise): two halvings,
    and reflected borders of 3 at full and of 1 at quarter size. `norm` and `base_norm` are explained in
    `models/norms.py`. 11,378,179 parameters at ngf 64, 9 blocks, instance norm.
    Source: Johnson et al. 2016; Zhu et al. 2017 (CycleGAN); moment shortcuts: Li et al. 2019 (PONO).
    """

    size_multiple = 4
    min_size = 8
    grad_checkpoint = False  # see `run_block`

    def __init__(
        self,
        input_nc: int = 3,
        output_nc: int = 3,
        ngf: int = 64,
        n_blocks: int = 9,
        norm: NormName = "instance",
        base_norm: BaseNormName = "instance",
        dropout: bool = False,
        upsample: UpsampleName = "transposed",
    ) -> None:
        super().__init__()
        plan, base = plan_norms(norm, base_norm)
        self.stem = ConvBlock(
            input_nc,
            ngf,
            7,
            padding=3,
            padding_mode="reflect",
            base_norm=base,
            positional=plan.rest,
            activation="relu",
        )
        self.downs = nn.ModuleList(
            ConvBlock(
                channels,
                2 * channels,
                3,
                stride=2,
                padding=1,
                base_norm=base,
                positional=plan.down,
                keep_moments=plan.shortcut != "none",
                activation="relu",
            )
            for channels in (ngf, 2 * ngf)
        )
        self.blocks = nn.ModuleList(
            ResidualBlock(4 * ngf, base_norm=base, positional=plan.rest, dropout=dropout)
            for _ in range(n_blocks)
        )
        self.ups = nn.ModuleList(
            UpBlock(
                channels,
                channels // 2,
                3,
                base_norm=base,
                upsample=upsample,
                dynamic=plan.shortcut == "dms",
            )
            for channels in (4 * ngf, 2 * ngf)
        )
        self.ms = MomentShortcut() if plan.shortcut == "ms" else None
        self.out = PlainConv2d(ngf, output_nc, 7, padding=3, padding_mode="reflect")

    def forward(self, x: Tensor) -> Tensor:
        check_size(self, x, self.size_multiple, self.min_size)
        run = partial(run_block, recompute=self.grad_checkpoint)
        x, _ = run(self.stem, x)  # (N, ngf, H, W)
        kept: list[Moments | None] = []
        for down in self.downs:
            x, moments = run(down, x)  # (N, 2 ngf, H/2, W/2), then (N, 4 ngf, H/4, W/4)
            kept.append(moments)  # (N, 1, H/2, W/2), then (N, 1, H/4, W/4)
        for block in self.blocks:
            x = run(block, x)  # (N, 4 ngf, H/4, W/4)
        for up, moments in zip(self.ups, reversed(kept), strict=True):
            if self.ms is not None:
                x = self.ms(x, moments)  # (N, 4 ngf, H/4, W/4), then (N, 2 ngf, H/2, W/2)
            x = run(up, x, moments)  # (N, 2 ngf, H/2, W/2), then (N, ngf, H, W)
        return torch.tanh(self.out(x))  # (N, output_nc, H, W)
